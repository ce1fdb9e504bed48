//! The steps that `tokenizer.json` gives: normalizer, pre-tokenizer and decoder.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::json::{Json, excerpt};
use super::steps;
use crate::Error;
use crate::tokenizer::{Behavior, Cut, DecodeStart, Kind, Normalize, Pattern, Spec};

/// The expressions by which models cut a text, and GGUF's names for them, which are short and run fast. Llama 3's and Qwen 2's
/// differ in how many digits stand together.
const EXPRESSIONS: [(&str, &str); 3] = [
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "tekken",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// A specification with what the text goes through before the merges.
pub fn read(json: &Json) -> Result<Spec, Error> {
    let normalizer: Vec<Normalize> = parsed(json, "normalizer", "normalizers", Ok)?;
    let cuts: Vec<Cut> = parsed(json, "pre_tokenizer", "pretokenizers", in_full)?;
    let byte_level = cuts.iter().any(|cut| matches!(cut, Cut::ByteLevel { .. }));
    let mut spec = Spec::default();
    if byte_level {
        spec.kind = Kind::ByteLevel;
        spec.nfc = normalizer == [Normalize::Nfc {}];
        spec.normalizer = Some(normalizer).filter(|steps| !spec.nfc && !steps.is_empty());
        spec.pre = name(&cuts).map(str::to_owned);
        spec.pre_tokenizer = Some(cuts).filter(|_| spec.pre.is_none());
    } else {
        spec.kind = Kind::Metaspace;
        let prefix = Normalize::Prepend { prepend: "▁".to_owned() };
        let space = Pattern::String(" ".to_owned());
        let spaces = Normalize::Replace { pattern: space, content: "▁".to_owned() };
        spec.normalizer = Some(normalizer).filter(|steps| *steps != [prefix, spaces]);
        spec.pre_tokenizer = Some(cuts).filter(|cuts| !cuts.is_empty());
    }
    Ok(spec)
}

/// Has text cut where an expression matches, and spelled byte by byte.
pub fn cut_by(expression: &str, spec: &mut Spec) {
    let pattern = Pattern::Regex(expression.to_owned());
    let split = Cut::Split { pattern, behavior: Behavior::Isolated, invert: false };
    let cuts = vec![split, Cut::ByteLevel { add_prefix_space: false, use_regex: false }];
    spec.pre = name(&cuts).map(str::to_owned);
    spec.pre_tokenizer = Some(cuts).filter(|_| spec.pre.is_none());
}

/// The steps of a field, which `in_full` spells out.
fn parsed<T: DeserializeOwned>(
    json: &Json,
    field: &str,
    list: &str,
    in_full: fn(Value) -> Result<Value, String>,
) -> Result<Vec<T>, Error> {
    let Some(value) = json.get(field) else { return Ok(Vec::new()) };
    let mut parsed = Vec::new();
    for step in steps(value, list) {
        let refuse = |problem: &dyn std::fmt::Display| {
            json.error(format!("{field} {} is not supported: {problem}", excerpt(step)))
        };
        let full = in_full(step.clone()).map_err(|problem| refuse(&problem))?;
        parsed.push(serde_json::from_value(full).map_err(|problem| refuse(&problem))?);
    }
    Ok(parsed)
}

/// A step of a pre-tokenizer without what does not change the ids, and with what it leaves out.
fn in_full(mut step: Value) -> Result<Value, String> {
    let kind = step["type"].as_str().unwrap_or_default().to_owned();
    let Some(fields) = step.as_object_mut() else { return Ok(step) };
    match kind.as_str() {
        "ByteLevel" => drop(fields.remove("trim_offsets")),
        "Metaspace" => {
            fields.remove("str_rep");
            let never = fields.remove("add_prefix_space") == Some(json!(false));
            let scheme = fields.entry("prepend_scheme").or_insert_with(|| json!("always"));
            if never && *scheme != "never" && *scheme != "always" {
                return Err("add_prefix_space and prepend_scheme contradict each other".to_owned());
            }
            if never {
                *scheme = json!("never");
            }
            fields.entry("split").or_insert(json!(true));
        }
        _ => {}
    }
    Ok(step)
}

/// GGUF's name of a byte-level pre-tokenizer, if it has one.
fn name(cuts: &[Cut]) -> Option<&'static str> {
    let (Cut::ByteLevel { add_prefix_space: false, use_regex }, before) = cuts.split_last()? else {
        return None;
    };
    match (before, use_regex) {
        ([], true) => Some("gpt-2"),
        ([Cut::Digits { individual_digits: true }], true) => Some("smollm"),
        (
            [Cut::Split { pattern: Pattern::Regex(regex), behavior: Behavior::Isolated, invert: false }],
            false,
        ) => EXPRESSIONS.iter().find(|(_, known)| known == regex).map(|(name, _)| *name),
        _ => None,
    }
}

/// What the decoder leaves out at the start, if that is not what the kind has; what else it does must be what the kind does.
pub fn decoder(json: &Json, kind: Kind) -> Result<Option<DecodeStart>, Error> {
    let Some(decoder) = json.get("decoder") else { return Ok(None) };
    let refuse =
        || json.error(format!("decoder {} is not supported with this pre_tokenizer", excerpt(decoder)));
    let (mut spelled, mut bytes, mut fused) = (false, false, false);
    let mut start = DecodeStart::Keep;
    for step in steps(decoder, "decoders") {
        match (kind, step["type"].as_str().unwrap_or_default()) {
            (Kind::ByteLevel, "ByteLevel") => (spelled, bytes) = (true, true),
            (Kind::Metaspace, "ByteFallback") => bytes = true,
            (_, "Fuse") => fused = true,
            (Kind::Metaspace, "Replace")
                if step["pattern"] == json!({"String": "▁"}) && step["content"] == " " =>
            {
                spelled = true;
            }
            (Kind::Metaspace, "Metaspace") if step["replacement"] == "▁" && !spelled => {
                spelled = true;
                let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                start = if never { DecodeStart::Keep } else { DecodeStart::Spaces };
            }
            (Kind::Metaspace, "Strip")
                if fused
                    && start == DecodeStart::Keep
                    && step["content"] == " "
                    && step["start"] == 1
                    && step["stop"] == 0 =>
            {
                start = DecodeStart::Space;
            }
            _ => return Err(refuse()),
        }
    }
    if !spelled || !bytes {
        return Err(refuse());
    }
    let by_default = if kind == Kind::Metaspace { DecodeStart::Space } else { DecodeStart::Keep };
    Ok(Some(start).filter(|start| *start != by_default))
}
