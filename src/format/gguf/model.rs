//! A model in a GGUF file, or in several: its tensors under Hugging Face's names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::{Gguf, config, generation, rope, tokenizer};
use crate::arch::Config;
use crate::arch::architectures::Architecture;
use crate::arch::tensors::{ROPE_FACTORS, mlp_norm};
use crate::format::fs::map_file;
use crate::format::source::{HeadOrder, Source, SourceTensor};
use crate::{Error, Malformed};

/// Opens the GGUF file at `path`, which is mapped: if it is one of several parts, all of them.
///
/// # Errors
/// When a file is damaged or missing, or the model is not of an architecture that is supported.
pub fn open(path: &Path, map: Mmap) -> Result<Source, Error> {
    let (files, maps) = parts(path, map)?;
    let mut tensors = HashMap::new();
    let mut first: Option<Gguf> = None;
    for (path, map) in files.iter().zip(&maps) {
        let gguf = Gguf::parse(map).map_err(Malformed::in_file(path))?;
        add_tensors(&gguf, map, &mut tensors).map_err(Malformed::in_file(path))?;
        match &mut first {
            // What a model has is told by its tensors, wherever they are.
            Some(first) => first.tensors.extend(gguf.tensors),
            None => first = Some(gguf),
        }
    }
    let Some(gguf) = first else { return Err(Error::file(path, "no parts")) };
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

/// The parts of a model, the first one first; `map` is the one at `path`.
fn parts(path: &Path, map: Mmap) -> Result<(Vec<PathBuf>, Vec<Arc<Mmap>>), Error> {
    let at = || Malformed::in_file(path);
    let gguf = Gguf::parse(&map).map_err(at())?;
    let count = gguf.integer("split.count").map_err(at())?.unwrap_or(1);
    drop(gguf);
    if count < 2 {
        return Ok((vec![path.to_owned()], vec![Arc::new(map)]));
    }
    let unnamed = || {
        Error::file(
            path,
            format!(
                "one of {count} parts of a model: its name must end in -00001-of-{count:05}.gguf or the like, to find the others by"
            ),
        )
    };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(unnamed)?;
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf")).ok_or_else(unnamed)?;
    let (stem, number) = stem.rsplit_once('-').ok_or_else(unnamed)?;
    if number.len() != 5 || !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(unnamed());
    }
    let mut files = Vec::new();
    let mut maps = Vec::new();
    for i in 0..count {
        let part = path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", i.saturating_add(1)));
        let map = match part.exists() {
            true => map_file(&part)?,
            false => {
                return Err(Error::file(
                    &part,
                    format!("is missing: a model of {count} parts needs them all"),
                ));
            }
        };
        let own =
            Gguf::parse(&map).and_then(|gguf| gguf.integer("split.no")).map_err(Malformed::in_file(&part))?;
        if own != Some(i) {
            return Err(Error::file(&part, "is not the part that its name says"));
        }
        files.push(part);
        maps.push(Arc::new(map));
    }
    Ok((files, maps))
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
            let rotated = ["q_proj.", "k_proj.", "q_norm.", "k_norm."].iter().any(|part| name.contains(part));
            let tensor = match order.filter(|_| rotated) {
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
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let of = |stem: &str, parts: &[(&str, usize)]| {
        let all: usize = parts.iter().map(|(_, rows)| rows).sum();
        if tensor.shape().len() != 2 || rows != all {
            let found = tensor.shape();
            return Err(Malformed(format!("tensor {name} has shape {found:?}: {all} rows are expected")));
        }
        let mut first = 0usize;
        let part = |(part, rows): &(&str, usize)| {
            let range = first..first.saturating_add(*rows);
            first = range.end;
            (format!("{stem}{part}.weight"), tensor.rows(range))
        };
        Ok(parts.iter().map(part).collect())
    };
    if let Some(stem) = name.strip_suffix("attn_qkv.weight") {
        return of(stem, &[("attn_q", q), ("attn_k", kv), ("attn_v", kv)]);
    }
    match name.strip_suffix("ffn_up.weight") {
        Some(stem) if rows == inter.saturating_mul(2) => of(stem, &[("ffn_gate", inter), ("ffn_up", inter)]),
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
