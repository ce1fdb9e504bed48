//! `tekken.json`: what Mistral ships in place of `tokenizer.json` with some of its models (mistral-common, "Tekkenizer").
//!
//! Pieces are bytes in base64, in order of rank; of two neighbours those go together whose piece has the lowest (tiktoken's way). Special
//! tokens come before them and have the first ids.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::super::json::{Json, excerpt};
use super::{conventions, steps};
use crate::Error;
use crate::tokenizer::{Kind, Spec, spell_bytes};

/// What the first special tokens are where the file does not name them.
const OLD_SPECIAL_TOKENS: [&str; 17] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
];

/// Ids are below this: the embedding has a row for each.
const MOST_TOKENS: usize = 1 << 24;

/// The tokenizer that `json` describes, for a model of the folder with so many rows in its embedding.
pub fn read(
    folder: &Path,
    config: &Json,
    json: &Json,
    vocab_size: usize,
) -> Result<(Spec, Vec<String>), Error> {
    let setting = |key: &str| json.get("config").and_then(|settings| settings[key].as_u64());
    let size = |key: &str, default: usize| match setting(key) {
        None => Ok(default),
        Some(n) => usize::try_from(n)
            .ok()
            .filter(|n| *n <= MOST_TOKENS)
            .ok_or_else(|| json.error(format!("config.{key} is {n}"))),
    };
    let all = size("default_vocab_size", vocab_size)?.min(vocab_size);
    let special = size("default_num_special_tokens", 1000)?;
    let pattern = json.get("config").and_then(|settings| settings["pattern"].as_str());
    let pattern = pattern.ok_or_else(|| json.error("config.pattern is missing"))?;
    let mut spec = Spec { kind: Kind::ByteLevel, ignore_merges: Some(true), ..Spec::default() };
    steps::cut_by(pattern, &mut spec);
    for (id, piece) in (0..).zip(special_tokens(json, special)?).take(all) {
        spec.special_tokens.push((piece.clone(), id));
        spec.vocab.push((piece, id));
        spec.scores.push(0.0);
    }
    let Some(pieces) = json.get("vocab").and_then(Value::as_array) else {
        return Err(json.error("vocab is not an array"));
    };
    for (rank, piece) in (0u32..).zip(pieces.iter().take(all.saturating_sub(special))) {
        let bytes = piece["token_bytes"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        let bytes = bytes.filter(|_| piece["rank"].as_u64() == Some(rank.into()));
        let bytes = bytes.ok_or_else(|| {
            json.error(format!("vocab: {} is not the piece of rank {rank}", excerpt(piece)))
        })?;
        spec.vocab.push((spell_bytes(&bytes), rank.saturating_add(special as u32)));
        spec.scores.push(-(rank as f32));
    }
    let id_of = |piece: &str| spec.special_tokens.iter().find(|(token, _)| token == piece).map(|&(_, id)| id);
    (spec.bos_token_id, spec.add_bos) = (id_of("<s>"), Some(true));
    let mut eos = conventions::eos(folder, config)?;
    if let Some(own) = id_of("</s>").filter(|own| !eos.contains(own)) {
        eos.insert(0, own);
    }
    spec.eos_token_ids = conventions::once_each(eos);
    spec.chat_template = conventions::chat_template(folder, None)?;
    let notes = match spec.chat_template {
        Some(_) => Vec::new(),
        None => {
            vec!["the folder has no chat template: a chat needs one (--chat-template mistral)".to_owned()]
        }
    };
    Ok((spec, notes))
}

/// The special tokens, `n` of them.
fn special_tokens(json: &Json, n: usize) -> Result<Vec<String>, Error> {
    let mut pieces: Vec<String> = (0..n).map(|id| format!("<SPECIAL_{id}>")).collect();
    let Some(named) = json.get("special_tokens") else {
        pieces.iter_mut().zip(OLD_SPECIAL_TOKENS).for_each(|(piece, name)| *piece = name.to_owned());
        return Ok(pieces);
    };
    for token in named.as_array().into_iter().flatten() {
        let place = token["rank"].as_u64().and_then(|rank| usize::try_from(rank).ok());
        match (place.and_then(|place| pieces.get_mut(place)), token["token_str"].as_str()) {
            (Some(piece), Some(name)) => *piece = name.to_owned(),
            _ => {
                return Err(json.error(format!(
                    "special_tokens: {} has no rank below {n}, or no token_str",
                    excerpt(token)
                )));
            }
        }
    }
    Ok(pieces)
}
