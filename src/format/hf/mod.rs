//! Hugging Face folders: `config.json`, `tokenizer.json` and safetensors, single or sharded.
//!
//! Beside these, what is read where it exists: `generation_config.json` (more end-of-text tokens, and how tokens are chosen),
//! `tokenizer_config.json` and `special_tokens_map.json` (BOS, EOS, chat template), `chat_template.jinja`.

mod config;
mod fp8;
mod generation;
mod json;
mod rope;
mod tensors;
mod tokenizer;

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};
use serde::de::IgnoredAny;

use self::config::Read;
use self::json::Json;
use crate::arch::Config;
use crate::arch::tensors::{HEAD, ROPE_FACTORS};
use crate::format::dequant::SourceType;
use crate::format::entries::Entries;
use crate::format::fs::map_file;
use crate::format::source::{Source, SourceTensor};
use crate::{Error, Malformed};

/// Opens a Hugging Face folder.
///
/// # Errors
/// When a file is missing or damaged, or the model is not of an architecture that is supported.
pub fn open(folder: &Path) -> Result<Source, Error> {
    let Some(outer) = Json::read(&folder.join("config.json"))? else {
        return Err(Error::file(folder, "has no config.json: give a Hugging Face folder or a GGUF file"));
    };
    let text = config::text_config(&outer);
    let config_json = text.as_ref().unwrap_or(&outer);
    let Read { architecture, config, rope_factors } = config::read(config_json)?;
    let (tokenizer, mut notes) = tokenizer::read(folder, config_json, config.vocab_size)?;
    let generation = generation::read(folder, &mut notes)?;
    let mut ids = tokenizer::ids(config_json, "bos_token_id")?;
    ids.extend(tokenizer.bos_token_id.iter().chain(&tokenizer.eos_token_ids));
    if let Some(id) = ids.into_iter().find(|&id| id as usize >= config.vocab_size) {
        let rows = config.vocab_size;
        return Err(
            config_json.error(format!("token {id} begins or ends texts, but there are only {rows} tokens"))
        );
    }
    let weights = weights(folder)?;
    let mut tensors = HashMap::new();
    for file in &weights {
        add_tensors(&folder.join(file), &mut tensors)?;
    }
    let at = || Malformed::in_file(folder);
    let (tensors, others) = tensors::of_text_model(tensors, text.is_some()).map_err(at())?;
    if others > 0 {
        notes.push(format!("the model takes more than text: {others} tensors for that are left out"));
    }
    let tensors: Result<_, Error> = tensors.into_iter().map(|(name, tensor)| Ok((name, tensor?))).collect();
    let tensors = fp8::with_scales(config_json, tensors?)?;
    let tensors = tensors::split(tensors, &config).map_err(at())?;
    let mut tensors = tensors::as_used(tensors, architecture, &config);
    for (name, factors) in ROPE_FACTORS.into_iter().zip(rope_factors) {
        if let Some(factors) = factors {
            tensors.insert(name.to_owned(), SourceTensor::of(&factors));
        }
    }
    let asked = config_json.bool("tie_word_embeddings")?.or(architecture.defaults.tie_word_embeddings);
    let tie_word_embeddings = is_tied(asked, &tensors, &mut notes);
    if tie_word_embeddings {
        tensors.remove(HEAD);
    }
    let config = Config {
        tie_word_embeddings,
        bos_token_id: tokenizer.bos_token_id,
        eos_token_ids: tokenizer.eos_token_ids.clone(),
        ..config
    };
    let files = weights.iter().map(String::as_str).chain(BESIDE_WEIGHTS);
    let files = files.map(|name| folder.join(name)).collect();
    Ok(Source { config, tokenizer, generation, tensors, files, notes })
}

/// Whether the head is the embedding, where the configuration asks for it, or not, or does not say.
fn is_tied(asked: Option<bool>, tensors: &HashMap<String, SourceTensor>, notes: &mut Vec<String>) -> bool {
    match (asked, tensors.get(HEAD)) {
        (Some(true), Some(head)) => {
            let copied = tensors.get("model.embed_tokens.weight").is_some_and(|embed| is_copy(head, embed));
            if !copied {
                notes.push(format!(
                    "tie_word_embeddings is true, but {HEAD} is not the embedding: it is kept"
                ));
            }
            copied
        }
        (Some(false), None) => {
            notes.push(format!(
                "tie_word_embeddings is false, but there is no {HEAD}: the embedding is the head"
            ));
            true
        }
        (_, head) => head.is_none(),
    }
}

/// Whether two tensors hold the same values. A head that is stored beside the embedding that it is tied to does; where it does
/// not, transformers 5 believes the tensors and not the configuration.
fn is_copy(a: &SourceTensor, b: &SourceTensor) -> bool {
    let [rows, cols] = *a.shape() else { return false };
    let (mut of_a, mut of_b) = (vec![0.0; cols], vec![0.0; cols]);
    // Values that are not finite are found, and refused, when the head is written.
    let mut same =
        |row| a.read_row(row, &mut of_a).is_ok() && b.read_row(row, &mut of_b).is_ok() && of_a == of_b;
    a.shape() == b.shape() && (0..rows).all(&mut same)
}

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Whatever else of a folder is read, where it exists.
pub(crate) const BESIDE_WEIGHTS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX,
];

/// The names of the files that hold the tensors.
pub(crate) fn weights(folder: &Path) -> Result<BTreeSet<String>, Error> {
    if folder.join(SINGLE).exists() {
        Ok(BTreeSet::from([SINGLE.to_owned()]))
    } else if let Some(index) = Json::read(&folder.join(INDEX))? {
        shards(&index)
    } else {
        Err(no_weights(folder))
    }
}

/// The refusal of a folder without safetensors, naming what it holds instead.
fn no_weights(folder: &Path) -> Error {
    let others = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"];
    match others.iter().find(|name| folder.join(name).exists()) {
        Some(other) => Error::file(
            folder,
            format!(
                "has {other} but no {SINGLE}, the only one supported: save it with transformers' save_pretrained"
            ),
        ),
        None => Error::file(folder, format!("has neither {SINGLE} nor {INDEX}")),
    }
}

/// The shards an index names.
fn shards(index: &Json) -> Result<BTreeSet<String>, Error> {
    let Some(map) = index.get("weight_map").and_then(|map| map.as_object()) else {
        return Err(index.error("weight_map is not an object"));
    };
    let shard = |file: &serde_json::Value| {
        let name = file.as_str().unwrap_or_default();
        // A name that leads out of the folder is an attempt to read other files.
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(only)), None) if only.to_str() == Some(name) => Ok(name.to_owned()),
            _ => Err(index.error(format!("weight_map names {file}, not a file in this folder"))),
        }
    };
    map.values().map(shard).collect()
}

/// Tensors by name; those that cannot be read may not be wanted.
type Found = HashMap<String, Result<SourceTensor, Error>>;

/// Adds the tensors of one safetensors file.
fn add_tensors(path: &Path, tensors: &mut Found) -> Result<(), Error> {
    let map: Arc<Mmap> = Arc::new(map_file(path)?);
    let (header_size, metadata) = SafeTensors::read_metadata(&map)
        .map_err(|problem| Error::file(path, format!("not a whole safetensors file: {problem}")))?;
    let base = header_size.saturating_add(8);
    // Of two tensors of one name the crate keeps one.
    serde_json::from_slice::<Entries<IgnoredAny>>(map.get(8..base).unwrap_or_default())
        .map_err(|problem| Error::file(path, format!("header: {problem}")))?;
    for (name, info) in metadata.tensors() {
        // Old checkpoints store the rotary frequencies, which follow from rope_theta.
        if name.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        let tensor = tensor(path, &map, base, &name, info);
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::file(path, format!("tensor {name:?} is in another shard as well")));
        }
    }
    Ok(())
}

fn tensor(
    path: &Path,
    map: &Arc<Mmap>,
    base: usize,
    name: &str,
    info: &TensorInfo,
) -> Result<SourceTensor, Error> {
    let encoding = match info.dtype {
        Dtype::F32 => SourceType::F32,
        Dtype::F16 => SourceType::F16,
        Dtype::BF16 => SourceType::Bf16,
        Dtype::F8_E4M3 => SourceType::F8E4M3,
        other => {
            let text =
                format!("tensor {name:?} has type {other:?}: only F32, F16, BF16 and F8_E4M3 are supported");
            return Err(Error::file(path, text));
        }
    };
    let (start, end) = info.data_offsets;
    let range = base.saturating_add(start)..base.saturating_add(end);
    let shape = if info.shape.is_empty() { vec![1] } else { info.shape.clone() };
    SourceTensor::new(map.clone(), range, encoding, shape)
        .map_err(|problem| Error::file(path, format!("tensor {name:?} {problem}")))
}
