//! `tokenizer.json` and the small files beside it.

#![expect(clippy::indexing_slicing, reason = "a JSON value indexed by a name that it lacks is null")]

mod conventions;
mod steps;
mod tekken;

pub use conventions::ids;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use super::json::{Json, excerpt};
use crate::tokenizer::{Kind, Spec, TokenRule, scores_for_merges};
use crate::{Error, Malformed};

/// With more merges a vocabulary takes long to read: Gemma's has half a million, for half as many pieces.
const MANY_MERGES: usize = 200_000;

/// The tokenizer of the model in `folder`, and what the user should know about it.
pub fn read(folder: &Path, config: &Json, vocab_size: usize) -> Result<(Spec, Vec<String>), Error> {
    let Some(json) = Json::read(&folder.join("tokenizer.json"))? else {
        if let Some(json) = Json::read(&folder.join("tekken.json"))? {
            return tekken::read(folder, config, &json, vocab_size);
        }
        let problem = "has no tokenizer.json (tokenizer.model alone is not supported): save one with transformers' \
                       AutoTokenizer.save_pretrained";
        return Err(Error::file(folder, problem));
    };
    let mut notes = Vec::new();
    let mut spec = steps::read(&json)?;
    let model = json.get("model").unwrap_or(&Value::Null);
    check_model(&json, model, spec.kind)?;
    spec.decode_start = steps::decoder(&json, spec.kind)?;
    // Llama 3's files from before the field existed mean true; so does our default for them.
    let ignore_merges = model["ignore_merges"].as_bool();
    spec.ignore_merges = ignore_merges.filter(|_| spec.kind == Kind::ByteLevel);
    let mut vocab = vocab(&json)?;
    check_unknown(&json, model, spec.kind, &vocab)?;
    add_tokens(&json, &mut vocab, &mut spec)?;

    let mut entries: Vec<(String, u32)> = vocab.into_iter().collect();
    entries.sort_unstable_by_key(|&(_, id)| id);
    let has_row = |&(_, id): &(String, u32)| (id as usize) < vocab_size;
    let without_row = entries.iter().filter(|entry| !has_row(entry)).count();
    if without_row > 0 {
        notes.push(format!(
            "tokens beyond the {vocab_size} rows of the embedding are left out ({without_row} in number)"
        ));
        entries.retain(has_row);
        spec.special_tokens.retain(has_row);
        spec.added_tokens.retain(has_row);
        spec.token_rules.retain(|&(id, _)| (id as usize) < vocab_size);
    }
    spec.vocab = entries;
    spec.merges = merges(&json)?;
    if spec.kind == Kind::Metaspace && spec.merges.len() > MANY_MERGES {
        scores_for_merges(&mut spec).map_err(Malformed::in_file(folder))?;
    }
    conventions::read(folder, config, &json, &mut spec, &mut notes)?;
    Ok((spec, notes))
}

fn check_model(json: &Json, model: &Value, kind: Kind) -> Result<(), Error> {
    // Old files leave the type out; only BPE has merges.
    if !(model["type"] == "BPE" || model["type"].is_null() && model["merges"].is_array()) {
        return Err(json.error(format!("model.type is {}: only BPE is supported", excerpt(&model["type"]))));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix", "dropout"] {
        let value = &model[key];
        if !(value.is_null() || value == "" || value.as_f64() == Some(0.0)) {
            return Err(json.error(format!("model.{key} {} is not supported", excerpt(value))));
        }
    }
    let byte_fallback = model["byte_fallback"] == true;
    if byte_fallback != (kind == Kind::Metaspace) {
        return Err(json
            .error(format!("model.byte_fallback {byte_fallback} is not supported with this pre_tokenizer")));
    }
    if model["ignore_merges"] == true && kind == Kind::Metaspace {
        return Err(json.error("model.ignore_merges is not supported with this pre_tokenizer"));
    }
    Ok(())
}

/// Whether what cannot be spelled becomes what it does elsewhere: `<unk>`, one for a run, or nothing in byte-level
/// vocabularies. Nearly all spell everything.
fn check_unknown(json: &Json, model: &Value, kind: Kind, vocab: &HashMap<String, u32>) -> Result<(), Error> {
    let unknown = model["unk_token"].as_str();
    let as_ours = match kind {
        Kind::ByteLevel => {
            // The printable characters of Latin-1, and one for each other byte.
            let mut bytes = ('!'..='~').chain('¡'..='¬').chain('®'..='\u{143}');
            unknown.is_none() || bytes.all(|c| vocab.contains_key(c.encode_utf8(&mut [0; 4])))
        }
        Kind::Metaspace => {
            let bytes = (0..=255).all(|byte| vocab.contains_key(&format!("<0x{byte:02X}>")));
            let fused = model["fuse_unk"] == true;
            bytes || unknown == Some("<unk>") && fused || unknown.is_none() && !vocab.contains_key("<unk>")
        }
    };
    match as_ours {
        true => Ok(()),
        false => Err(json.error(format!(
            "model.unk_token {} is not supported with a vocabulary that lacks bytes",
            excerpt(&model["unk_token"])
        ))),
    }
}

/// The parts of a `Sequence`, and of those in it; of anything else, itself.
fn steps<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value[key].as_array() {
        Some(parts) if value["type"] == "Sequence" => {
            parts.iter().flat_map(|part| steps(part, key)).collect()
        }
        _ => vec![value],
    }
}

/// The ordinary pieces.
fn vocab(json: &Json) -> Result<HashMap<String, u32>, Error> {
    let Some(vocab) = json.get("model").and_then(|model| model["vocab"].as_object()) else {
        return Err(json.error("model.vocab is not an object"));
    };
    let entry = |(piece, id): (&String, &Value)| match as_id(id) {
        Some(id) => Ok((piece.clone(), id)),
        None => Err(json.error(format!("model.vocab: the id of {piece:?} is {}", excerpt(id)))),
    };
    vocab.iter().map(entry).collect()
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Adds `added_tokens`: to the vocabulary, and to the special tokens where they are marked so, else to the added ones.
fn add_tokens(json: &Json, vocab: &mut HashMap<String, u32>, spec: &mut Spec) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let (Some(piece), Some(id)) = (token["content"].as_str(), as_id(&token["id"])) else {
            return Err(json.error(format!("added_tokens: {} has no content or id", excerpt(token))));
        };
        if !seen.insert(piece) {
            return Err(json.error(format!("added_tokens: {piece:?} stands twice")));
        }
        let known = vocab.insert(piece.to_owned(), id);
        if known.is_some_and(|other| other != id) {
            return Err(
                json.error(format!("added_tokens: {piece:?} has another id in model.vocab than {id}"))
            );
        }
        let special = token["special"] == true;
        let list = if special { &mut spec.special_tokens } else { &mut spec.added_tokens };
        list.push((piece.to_owned(), id));
        let rule = TokenRule {
            lstrip: token["lstrip"] == true,
            rstrip: token["rstrip"] == true,
            single_word: token["single_word"] == true,
            normalized: token["normalized"] == true,
            mergeable: known.is_some() && !special,
        };
        if rule != TokenRule::default() {
            spec.token_rules.push((id, rule));
        }
    }
    Ok(())
}

/// The merges, `"left right"` or `["left", "right"]`.
fn merges(json: &Json) -> Result<Vec<(String, String)>, Error> {
    let Some(merges) = json.get("model").and_then(|model| model["merges"].as_array()) else {
        return Err(json.error("model.merges is not an array"));
    };
    let merge = |merge: &Value| {
        let pair = match merge {
            // At the first U+0020 only: pieces may hold other white space.
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match &pair[..] {
                [left, right] => left.as_str().zip(right.as_str()),
                _ => None,
            },
            _ => None,
        };
        match pair {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(json.error(format!("model.merges: {} is not two pieces", excerpt(merge)))),
        }
    };
    merges.iter().map(merge).collect()
}
