//! A model in a GGUF file, or in several: its tensors under Hugging Face's names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::parts::{named as named_part, part_of};
use super::{Gguf, config, generation, rope, tokenizer};
use crate::arch::Config;
use crate::arch::architectures::Architecture;
use crate::arch::tensors::{ROPE_FACTORS, is_rotated, mlp_norm};
use crate::format::fs::map_file;
use crate::format::source::{HeadOrder, Source, SourceTensor};
use crate::{Error, Malformed};

/// Opens the GGUF file at `path`, which is mapped: if it is one of several parts, all of them.
///
/// # Errors
/// When a file is damaged or missing, or the model is not of an architecture that is supported.
pub fn open(path: &Path, map: Mmap) -> Result<Source, Error> {
    let map = Arc::new(map);
    let mut gguf = Gguf::parse(&map).map_err(Malformed::in_file(path))?;
    let count = gguf.integer("split.count").map_err(Malformed::in_file(path))?.unwrap_or(1);
    let mut tensors = HashMap::new();
    if count < 2 {
        add_tensors(&gguf, &map, &mut tensors).map_err(Malformed::in_file(path))?;
        return model(&gguf, tensors, vec![path.to_owned()]).map_err(Malformed::in_file(path));
    }
    let files = parts(path, count)?;
    let maps = files.iter().map(|file| map_part(file, count).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    let mut later = Vec::new();
    for (i, (file, map)) in files.iter().zip(&maps).enumerate() {
        let part = Gguf::parse(map).map_err(Malformed::in_file(file))?;
        if part.integer("split.no").map_err(Malformed::in_file(file))? != Some(i as u64) {
            return Err(Error::file(file, "is not the part that its name says"));
        }
        add_tensors(&part, map, &mut tensors).map_err(Malformed::in_file(file))?;
        match i {
            0 => gguf = part,
            _ => later.extend(part.tensors),
        }
    }
    // What a model has is told by its tensors, wherever they are.
    gguf.tensors.extend(later);
    model(&gguf, tensors, files).map_err(Malformed::in_file(path))
}

/// The model that the first part's keys and all parts' tensors make.
fn model(
    gguf: &Gguf<'_>,
    tensors: HashMap<String, SourceTensor>,
    files: Vec<PathBuf>,
) -> Result<Source, Malformed> {
    let (architecture, config, factors) = config::read(gguf)?;
    let (tokenizer, mut notes) = tokenizer::read(gguf, config.vocab_size)?;
    let generation = generation::read(gguf, &mut notes);
    let tensors = named(tensors, architecture, &config)?;
    let tensors = with_factors(tensors, factors)?;
    Ok(Source {
        config: Config {
            bos_token_id: tokenizer.bos_token_id,
            eos_token_ids: tokenizer.eos_token_ids.clone(),
            ..config
        },
        tokenizer,
        generation,
        tensors,
        files,
        notes,
    })
}

/// The files of a model of `count` parts, the first one first; `path` is one of them.
fn parts(path: &Path, count: u64) -> Result<Vec<PathBuf>, Error> {
    let stem = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".gguf"));
    match stem.and_then(part_of).filter(|(_, parts)| *parts as u64 == count) {
        Some((base, parts)) => {
            let file = |number| path.with_file_name(format!("{}.gguf", named_part(base, number, parts)));
            Ok((1..=parts).map(file).collect())
        }
        None => Err(Error::file(
            path,
            format!(
                "one of {count} parts of a model: its name must end in -00001-of-{count:05}.gguf or the like, to find the others by"
            ),
        )),
    }
}

fn map_part(file: &Path, count: u64) -> Result<Mmap, Error> {
    match file.exists() {
        true => map_file(file),
        false => Err(Error::file(file, format!("is missing: a model of {count} parts needs them all"))),
    }
}

/// Adds the tensors of one file, under GGUF's names.
fn add_tensors(
    gguf: &Gguf<'_>,
    map: &Arc<Mmap>,
    tensors: &mut HashMap<String, SourceTensor>,
) -> Result<(), Malformed> {
    for info in &gguf.tensors {
        let tensor = SourceTensor::new(map.clone(), info.range.clone(), info.encoding, info.shape.clone())
            .map_err(|problem| Malformed(format!("tensor {} {problem}", info.name)))?;
        if tensors.insert(info.name.to_owned(), tensor).is_some() {
            return Err(Malformed(format!("tensor {} occurs twice", info.name)));
        }
    }
    Ok(())
}

/// The tensors under Hugging Face's names; those without one keep theirs, to be refused by it.
fn named(
    tensors: HashMap<String, SourceTensor>,
    architecture: &Architecture,
    config: &Config,
) -> Result<HashMap<String, SourceTensor>, Malformed> {
    let (head_dim, rotary_dim) = (config.head_dim, config.rotary_dim());
    let order = match architecture.gguf_interleaved {
        true => Some(HeadOrder::Interleaved { head_dim }),
        false => (rotary_dim < head_dim).then_some(HeadOrder::Partial { head_dim, rotary_dim }),
    };
    let mut found = HashMap::new();
    for (gguf_name, tensor) in tensors {
        for (name, tensor) in parts_of(&gguf_name, tensor, config)? {
            let name = hugging_face_name(&name, config);
            let tensor = match order.filter(|_| is_rotated(&name)) {
                Some(order) => tensor.ordered(order),
                None => tensor,
            };
            if found.insert(name, tensor).is_some() {
                return Err(Malformed(format!("tensor {gguf_name} occurs twice")));
            }
        }
    }
    Ok(found)
}

/// Takes apart what some architectures store as one matrix: queries, keys and values; gate and up.
fn parts_of(
    name: &str,
    tensor: SourceTensor,
    config: &Config,
) -> Result<Vec<(String, SourceTensor)>, Malformed> {
    let (q, kv, inter) = (config.q_dim(), config.kv_dim(), config.intermediate_size);
    let cut = |stem: &str, parts: &[(&str, usize)]| {
        tensor.cut(stem, parts).map_err(|problem| Malformed(format!("tensor {name} {problem}")))
    };
    if let Some(stem) = name.strip_suffix("attn_qkv.weight") {
        return cut(stem, &[("attn_q.weight", q), ("attn_k.weight", kv), ("attn_v.weight", kv)]);
    }
    match name.strip_suffix("ffn_up.weight") {
        Some(stem) if tensor.shape().first() == Some(&inter.saturating_mul(2)) => {
            cut(stem, &[("ffn_gate.weight", inter), ("ffn_up.weight", inter)])
        }
        _ => Ok(vec![(name.to_owned(), tensor)]),
    }
}

/// Puts the factors of the rotary embeddings where they belong.
fn with_factors(
    mut tensors: HashMap<String, SourceTensor>,
    factors: rope::Factors,
) -> Result<HashMap<String, SourceTensor>, Malformed> {
    for (name, factors) in ROPE_FACTORS.into_iter().zip(factors) {
        let factors = match factors {
            None => continue,
            Some(rope::FactorsOf::Values(values)) => SourceTensor::of(&values),
            Some(rope::FactorsOf::Tensor(stored)) => {
                tensors.remove(stored).ok_or_else(|| Malformed(format!("tensor {stored} is missing")))?
            }
        };
        tensors.insert(name.to_owned(), factors);
    }
    Ok(tensors)
}

/// Hugging Face's name for the tensor GGUF calls `name`.
fn hugging_face_name(name: &str, config: &Config) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
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
            "post_attention_norm" => "post_attention_layernorm",
            "ffn_norm" => mlp_norm(config),
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "post_ffw_norm" => "post_feedforward_layernorm",
            _ => return None,
        };
        Some(format!("model.layers.{layer}.{name}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}
