//! The tokenizer that the keys `tokenizer.*` of a GGUF file describe.

use super::Gguf;
use crate::Malformed;
use crate::tokenizer::{Kind, Spec, merges_from_scores};

// Values of tokenizer.ggml.token_type.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// The tokenizer of a model whose embedding has `vocab_size` rows.
pub fn read(gguf: &Gguf<'_>, vocab_size: usize) -> Result<Spec, Malformed> {
    let missing = |key: &str| Malformed(format!("key {key} is missing"));
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    if tokens.len() > vocab_size {
        return Err(Malformed(format!(
            "{} tokens, but the embedding has only {vocab_size} rows",
            tokens.len()
        )));
    }
    let types = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(Malformed(format!("{} tokens but {} token types", tokens.len(), types.len())));
    }
    let mut spec = match gguf.str("tokenizer.ggml.model")? {
        Some("llama") => sentencepiece(gguf, &tokens, &types)?,
        Some("gpt2") => byte_level(gguf)?,
        other => {
            let model = other.unwrap_or("missing");
            return Err(Malformed(format!(
                "tokenizer.ggml.model is {model}: only llama (SentencePiece BPE) and gpt2 (byte-level BPE) are supported"
            )));
        }
    };
    for ((id, token), kind) in (0u32..).zip(tokens).zip(types) {
        // Converters fill the holes of a byte-level vocabulary with unused tokens of made-up names.
        if kind == UNUSED && spec.kind == Kind::ByteLevel {
            continue;
        }
        if kind == CONTROL || kind == UNKNOWN {
            spec.special_tokens.push((token.clone(), id));
        } else if kind == USER_DEFINED {
            spec.added_tokens.push((token.clone(), id));
        }
        spec.vocab.push((token, id));
    }
    spec.bos_token_id = token_id(gguf, "tokenizer.ggml.bos_token_id", vocab_size)?;
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(id) = token_id(gguf, key, vocab_size)?
            && !spec.eos_token_ids.contains(&id)
        {
            spec.eos_token_ids.push(id);
        }
    }
    let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?;
    // Where the file does not say: what these models' own tokenizers do, and llama.cpp with them.
    let by_default =
        spec.kind == Kind::Metaspace || matches!(spec.pre.as_deref(), Some("llama-bpe" | "tekken"));
    spec.add_bos = Some(add_bos.unwrap_or(by_default));
    spec.chat_template = gguf.str("tokenizer.chat_template")?.map(str::to_owned);
    Ok(spec)
}

fn token_id(gguf: &Gguf<'_>, key: &str, vocab_size: usize) -> Result<Option<u32>, Malformed> {
    match gguf.integer(key)? {
        Some(id) if id >= vocab_size as u64 => {
            Err(Malformed(format!("key {key} is {id}, but there are only {vocab_size} tokens")))
        }
        Some(id) => Ok(u32::try_from(id).ok()),
        None => Ok(None),
    }
}

/// A SentencePiece BPE tokenizer, whose merges follow from the pieces' scores.
fn sentencepiece(gguf: &Gguf<'_>, tokens: &[String], types: &[i64]) -> Result<Spec, Malformed> {
    if gguf.bool("tokenizer.ggml.add_space_prefix")? == Some(false) {
        return Err(Malformed(
            "tokenizer.ggml.add_space_prefix is false: a SentencePiece tokenizer without it is not supported"
                .into(),
        ));
    }
    let key = "tokenizer.ggml.scores";
    let scores = gguf.floats(key)?.ok_or_else(|| Malformed(format!("key {key} is missing")))?;
    if scores.len() != tokens.len() {
        return Err(Malformed(format!("{} tokens but {} scores", tokens.len(), scores.len())));
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Err(Malformed(format!("key {key} holds a NaN")));
    }
    // Merging never makes a control, unknown, added or byte token.
    let mergeable = |kind: i64| matches!(kind, NORMAL | UNUSED);
    let (pieces, scores): (Vec<String>, Vec<f32>) = tokens
        .iter()
        .zip(scores)
        .zip(types)
        .filter(|&(_, &kind)| mergeable(kind))
        .map(|((token, score), _)| (token.clone(), score))
        .unzip();
    let (merges, equal_merges) = merges_from_scores(&pieces, &scores)?;
    Ok(Spec { kind: Kind::Metaspace, merges, equal_merges, ..Spec::default() })
}

/// A byte-level BPE tokenizer.
fn byte_level(gguf: &Gguf<'_>) -> Result<Spec, Malformed> {
    let pre = match gguf.str("tokenizer.ggml.pre")? {
        Some(pre @ ("gpt-2" | "smollm" | "llama-bpe" | "qwen2" | "tekken")) => pre,
        Some("llama3" | "llama-v3") => "llama-bpe",
        other => {
            let pre = other.unwrap_or("missing");
            return Err(Malformed(format!(
                "tokenizer.ggml.pre is {pre}: only gpt-2, smollm, llama-bpe, qwen2 and tekken are supported"
            )));
        }
    };
    let key = "tokenizer.ggml.merges";
    let merges = gguf.strings(key)?.ok_or_else(|| Malformed(format!("key {key} is missing")))?;
    let split = |merge: String| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(Malformed(format!("{key}: {merge:?} is not two pieces"))),
    };
    Ok(Spec {
        kind: Kind::ByteLevel,
        pre: Some(pre.to_owned()),
        // Nothing in the file says so, but Qwen's own tokenizer does it.
        nfc: pre == "qwen2",
        merges: merges.into_iter().map(split).collect::<Result<_, _>>()?,
        ..Spec::default()
    })
}
