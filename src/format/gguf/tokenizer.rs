//! The tokenizer that the keys `tokenizer.*` of a GGUF file describe.

use super::{Gguf, pre_tokenizer};
use crate::Malformed;
use crate::tokenizer::{DecodeStart, Kind, Normalize, Pattern, Spec, TokenRule, merges_from_scores};

// Values of tokenizer.ggml.token_type.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// SentencePiece's vocabularies with more pieces keep their scores: their merges, of which there are several for a piece, would
/// take longer to read than all else.
const MANY_PIECES: usize = 100_000;

/// Control tokens that end a turn or a text by their names, as llama.cpp has it: the file names one or two of them.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
];

/// The tokenizer of a model whose embedding has `vocab_size` rows, and what the user should know about it.
pub fn read(gguf: &Gguf<'_>, vocab_size: usize) -> Result<(Spec, Vec<String>), Malformed> {
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
    ends(gguf, vocab_size, &mut spec)?;
    if is_phi_3(gguf, spec.kind)? {
        strip_after_tokens(&mut spec);
    }
    let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?;
    // Where the file does not say: what these models' own tokenizers do, and llama.cpp with them.
    let by_default = spec.kind == Kind::Metaspace || pre_tokenizer::adds_bos(gguf)?;
    spec.add_bos = Some(add_bos.unwrap_or(by_default));
    spec.chat_template = gguf.str("tokenizer.chat_template")?.map(str::to_owned);
    let mut notes = Vec::new();
    if gguf.bool("tokenizer.ggml.add_eos_token")? == Some(true) {
        notes.push("the tokenizer adds EOS after a text: that is not done".to_owned());
    }
    Ok((spec, notes))
}

/// What a text begins with, and what ends one.
fn ends(gguf: &Gguf<'_>, vocab_size: usize, spec: &mut Spec) -> Result<(), Malformed> {
    spec.bos_token_id = token_id(gguf, "tokenizer.ggml.bos_token_id", vocab_size)?;
    let mut ends = Vec::new();
    for key in ["eos", "eot", "eom"] {
        ends.extend(token_id(gguf, &format!("tokenizer.ggml.{key}_token_id"), vocab_size)?);
    }
    let named = spec.special_tokens.iter().filter(|(token, _)| ENDS.contains(&&**token));
    ends.extend(named.map(|&(_, id)| id));
    for id in ends {
        if !spec.eos_token_ids.contains(&id) {
            spec.eos_token_ids.push(id);
        }
    }
    Ok(())
}

/// Whether this is Phi 3's tokenizer: nothing in the file says what it does besides.
fn is_phi_3(gguf: &Gguf<'_>, kind: Kind) -> Result<bool, Malformed> {
    let name = gguf.str("general.name")?.unwrap_or_default().to_lowercase();
    let of_phi =
        gguf.str("general.architecture")? == Some("phi3") || name.contains("phi-3") || name.contains("phi3");
    Ok(of_phi && kind == Kind::Metaspace)
}

/// White space after a token belongs to it, but for those that stand at the ends of a text.
fn strip_after_tokens(spec: &mut Spec) {
    let tokens = spec.special_tokens.iter().chain(&spec.added_tokens);
    let tokens = tokens.filter(|(token, _)| !matches!(&**token, "<unk>" | "<s>" | "<|endoftext|>"));
    let rule = TokenRule { rstrip: true, ..TokenRule::default() };
    spec.token_rules = tokens.map(|&(_, id)| (id, rule)).collect();
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
    if gguf.bool("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        let problem = "tokenizer.ggml.remove_extra_whitespaces is true: that is not supported";
        return Err(Malformed(problem.to_owned()));
    }
    let mut spec = Spec { kind: Kind::Metaspace, ..Spec::default() };
    if gguf.bool("tokenizer.ggml.add_space_prefix")? == Some(false) {
        let pattern = Pattern::String(" ".to_owned());
        spec.normalizer = Some(vec![Normalize::Replace { pattern, content: "▁".to_owned() }]);
        spec.decode_start = Some(DecodeStart::Keep);
    }
    let key = "tokenizer.ggml.scores";
    let scores = gguf.floats(key)?.ok_or_else(|| Malformed(format!("key {key} is missing")))?;
    if scores.len() != tokens.len() {
        return Err(Malformed(format!("{} tokens but {} scores", tokens.len(), scores.len())));
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Err(Malformed(format!("key {key} holds a NaN")));
    }
    if tokens.len() > MANY_PIECES {
        spec.scores = scores;
        return Ok(spec);
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
    (spec.merges, spec.equal_merges) = merges_from_scores(&pieces, &scores)?;
    Ok(spec)
}

/// A byte-level BPE tokenizer.
fn byte_level(gguf: &Gguf<'_>) -> Result<Spec, Malformed> {
    let spec = pre_tokenizer::read(gguf)?;
    let key = "tokenizer.ggml.merges";
    let merges = gguf.strings(key)?.ok_or_else(|| Malformed(format!("key {key} is missing")))?;
    let split = |merge: String| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(Malformed(format!("{key}: {merge:?} is not two pieces"))),
    };
    let merges = merges.into_iter().map(split).collect::<Result<_, _>>()?;
    Ok(Spec { merges, ..spec })
}
