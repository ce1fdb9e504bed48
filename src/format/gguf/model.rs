//! A model in a GGUF file: its tensors under Hugging Face's names.

use std::collections::HashMap;
use std::sync::Arc;

use memmap2::Mmap;

use super::{Gguf, config, generation, tokenizer};
use crate::Malformed;
use crate::arch::Config;
use crate::arch::tensors::ROPE_FACTORS;
use crate::format::source::{Source, SourceTensor};

/// Opens a mapped GGUF file.
///
/// # Errors
/// When the file is damaged, or not a model of an architecture that is supported.
pub fn open(map: Mmap) -> Result<Source, Malformed> {
    let map = Arc::new(map);
    let gguf = Gguf::parse(&map)?;
    if let Some(parts @ 2..) = gguf.integer("split.count")? {
        return Err(Malformed(format!(
            "one of {parts} parts of a model: join them first, with llama.cpp's llama-gguf-split --merge"
        )));
    }
    let config = config::read(&gguf)?;
    let tokenizer = tokenizer::read(&gguf, config.vocab_size)?;
    let mut notes = Vec::new();
    let generation = generation::read(&gguf, &mut notes);
    let mut tensors = tensors(&gguf, &map, &config)?;
    if let Some(factor) = config::linear_rope_scaling(&gguf, &config.architecture)? {
        let factors = SourceTensor::of(&vec![factor; config.head_dim / 2]);
        if tensors.insert(ROPE_FACTORS.to_owned(), factors).is_some() {
            return Err(Malformed(
                "rope scaling by rope_freqs.weight and a factor at once: not supported".into(),
            ));
        }
    }
    Ok(Source {
        config: Config {
            bos_token_id: tokenizer.bos_token_id,
            eos_token_ids: tokenizer.eos_token_ids.clone(),
            ..config
        },
        tokenizer,
        generation,
        tensors,
        files: Vec::new(),
        notes,
    })
}

/// The tensors under Hugging Face's names; those without one keep theirs, to be refused by it.
fn tensors(
    gguf: &Gguf<'_>,
    map: &Arc<Mmap>,
    config: &Config,
) -> Result<HashMap<String, SourceTensor>, Malformed> {
    // llama.cpp rotates neighbours in Llama's heads and halves in Qwen's.
    let interleaved = matches!(config.architecture.as_str(), "llama" | "mistral");
    let mut tensors = HashMap::new();
    for info in &gguf.tensors {
        let tensor = SourceTensor::new(map.clone(), info.range.clone(), info.encoding, info.shape.clone())
            .map_err(|problem| Malformed(format!("tensor {} {problem}", info.name)))?;
        let name = hugging_face_name(info.name);
        let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
        let tensor = if rotated && interleaved { tensor.interleaved(config.head_dim) } else { tensor };
        if tensors.insert(name, tensor).is_some() {
            return Err(Malformed(format!("tensor {} occurs twice", info.name)));
        }
    }
    Ok(tensors)
}

/// Hugging Face's name for the tensor GGUF calls `name`.
fn hugging_face_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        "rope_freqs.weight" => return ROPE_FACTORS.to_owned(),
        _ => {}
    }
    let in_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let renamed = in_layer.and_then(|(layer, name)| {
        let (name, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let name = match name {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "attn_output" => "self_attn.o_proj",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        Some(format!("model.layers.{layer}.{name}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}
