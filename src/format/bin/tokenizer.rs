//! The header's `tokenizer`, read and written.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::Malformed;
use crate::format::entries::Entries;
use crate::tokenizer::{Cut, DecodeStart, Kind, Normalize, Spec, TokenRule};

/// What stands there, not checked.
#[derive(serde::Deserialize)]
pub struct Raw {
    vocab: Entries<u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    equal_merges: Vec<(usize, usize)>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    scores: Vec<f32>,
    #[serde(default)]
    normalizer: Option<Vec<Normalize>>,
    #[serde(default)]
    pre_tokenizer: Option<Vec<Cut>>,
    #[serde(default)]
    pre: Option<String>,
    #[serde(default)]
    ignore_merges: Option<bool>,
    #[serde(default)]
    special_tokens: Option<Entries<u32>>,
    #[serde(default)]
    added_tokens: Option<Entries<u32>>,
    #[serde(default)]
    token_rules: Option<Entries<Vec<String>>>,
    #[serde(default)]
    nfc: bool,
    #[serde(default)]
    prefix_first: bool,
    #[serde(default)]
    decode_start: Option<String>,
    #[serde(default)]
    start_tokens: Vec<u32>,
    #[serde(default)]
    add_bos: Option<bool>,
    #[serde(default)]
    chat_template: Option<String>,
}

impl Raw {
    /// The tokenizer, with BOS and EOS, which stand in the metadata.
    pub fn spec(self, bos: Option<u32>, eos: Vec<u32>) -> Result<Spec, Malformed> {
        let raw = self;
        let kind = match raw.kind.as_deref() {
            None | Some("metaspace") => Kind::Metaspace,
            Some("byte_level") => Kind::ByteLevel,
            Some(other) => {
                return Err(Malformed(format!(
                    "tokenizer.kind is {other:?}: metaspace and byte_level are supported"
                )));
            }
        };
        let special_tokens = raw.special_tokens.map_or_else(Vec::new, |s| s.0);
        let added_tokens = raw.added_tokens.map_or_else(Vec::new, |s| s.0);
        let rules = raw.token_rules.map_or_else(Vec::new, |rules| rules.0);
        Ok(Spec {
            kind,
            normalizer: raw.normalizer,
            pre_tokenizer: raw.pre_tokenizer,
            pre: raw.pre,
            ignore_merges: raw.ignore_merges,
            vocab: raw.vocab.0,
            merges: raw.merges.into_iter().map(|Merge(left, right)| (left, right)).collect(),
            equal_merges: raw.equal_merges.into_iter().map(|(start, end)| start..end).collect(),
            scores: raw.scores,
            token_rules: token_rules(&rules, &special_tokens, &added_tokens)?,
            special_tokens,
            added_tokens,
            nfc: raw.nfc,
            prefix_first: raw.prefix_first,
            decode_start: raw.decode_start.as_deref().map(decode_start).transpose()?,
            start_tokens: raw.start_tokens,
            bos_token_id: bos,
            eos_token_ids: eos,
            add_bos: raw.add_bos,
            chat_template: raw.chat_template,
        })
    }
}

const RULES: [&str; 5] = ["lstrip", "rstrip", "single_word", "normalized", "mergeable"];

fn token_rules(
    rules: &[(String, Vec<String>)],
    special: &[(String, u32)],
    added: &[(String, u32)],
) -> Result<Vec<(u32, TokenRule)>, Malformed> {
    let ids: HashMap<&str, u32> = special.iter().chain(added).map(|(piece, id)| (&**piece, *id)).collect();
    let read = |(piece, names): &(String, Vec<String>)| {
        let wrong = |problem: &str| Malformed(format!("tokenizer.token_rules: {piece:?} {problem}"));
        let id = ids.get(&**piece).ok_or_else(|| wrong("is neither a special nor an added token"))?;
        if names.iter().any(|name| !RULES.contains(&&**name)) {
            return Err(wrong(&format!("has other rules than {}", RULES.join(", "))));
        }
        let [lstrip, rstrip, single_word, normalized, mergeable] =
            RULES.map(|rule| names.iter().any(|name| name == rule));
        Ok((*id, TokenRule { lstrip, rstrip, single_word, normalized, mergeable }))
    };
    rules.iter().map(read).collect()
}

fn decode_start(name: &str) -> Result<DecodeStart, Malformed> {
    let known = DECODE_STARTS.iter().find(|(known, _)| *known == name);
    let unknown =
        || Malformed(format!("tokenizer.decode_start is {name:?}: keep, space and spaces are known"));
    known.map(|&(_, start)| start).ok_or_else(unknown)
}

const DECODE_STARTS: [(&str, DecodeStart); 3] =
    [("keep", DecodeStart::Keep), ("space", DecodeStart::Space), ("spaces", DecodeStart::Spaces)];

/// `"left right"`, or `["left", "right"]`.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge: \"left right\" or [\"left\", \"right\"]")
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Merge, E> {
                // A piece may hold other white space, but never U+0020.
                let (left, right) =
                    s.split_once(' ').ok_or_else(|| E::custom(format_args!("merge {s:?} has no space")))?;
                Ok(Merge(left.to_owned(), right.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let (left, right) = (seq.next_element()?, seq.next_element()?);
                match (left, right, seq.next_element::<serde::de::IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(A::Error::custom("a merge is of two pieces")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What stands there for this tokenizer.
///
/// # Errors
/// When two pieces are the same.
pub fn to_json(tokenizer: &Spec) -> Result<Value, Malformed> {
    let mut vocab = Map::new();
    for (piece, id) in &tokenizer.vocab {
        if vocab.insert(piece.clone(), json!(id)).is_some() {
            return Err(Malformed(format!("two tokens of the vocabulary are {piece:?}")));
        }
    }
    // "left right" is read by splitting at the first space, so a left part that holds one needs the other spelling.
    let pairs = tokenizer.merges.iter().any(|(left, _)| left.contains(' '));
    let merge = |(left, right): &(String, String)| match pairs {
        true => json!([left, right]),
        false => json!(format!("{left} {right}")),
    };
    let ids = |tokens: &[(String, u32)]| -> Map<_, _> {
        tokens.iter().map(|(piece, id)| (piece.clone(), json!(id))).collect()
    };
    let mut object = json!({
        "kind": match tokenizer.kind { Kind::Metaspace => "metaspace", Kind::ByteLevel => "byte_level" },
        "vocab": vocab,
        "merges": tokenizer.merges.iter().map(merge).collect::<Vec<_>>(),
        "special_tokens": ids(&tokenizer.special_tokens),
    });
    if let Some(pre) = &tokenizer.pre {
        object["pre"] = json!(pre);
    }
    if !tokenizer.equal_merges.is_empty() {
        let ranges = tokenizer.equal_merges.iter().map(|range| [range.start, range.end]);
        object["equal_merges"] = json!(ranges.collect::<Vec<_>>());
    }
    if !tokenizer.added_tokens.is_empty() {
        object["added_tokens"] = json!(ids(&tokenizer.added_tokens));
    }
    if !tokenizer.scores.is_empty() {
        object["scores"] = json!(tokenizer.scores);
    }
    if let Some(steps) = &tokenizer.normalizer {
        object["normalizer"] = json!(steps);
    }
    if let Some(steps) = &tokenizer.pre_tokenizer {
        object["pre_tokenizer"] = json!(steps);
    }
    if !tokenizer.token_rules.is_empty() {
        object["token_rules"] = Value::Object(rules_to_json(tokenizer));
    }
    if let Some((name, _)) = DECODE_STARTS.iter().find(|(_, start)| Some(*start) == tokenizer.decode_start) {
        object["decode_start"] = json!(name);
    }
    if !tokenizer.start_tokens.is_empty() {
        object["start_tokens"] = json!(tokenizer.start_tokens);
    }
    if tokenizer.nfc {
        object["nfc"] = json!(true);
    }
    if tokenizer.prefix_first {
        object["prefix_first"] = json!(true);
    }
    if let Some(ignore) = tokenizer.ignore_merges {
        object["ignore_merges"] = json!(ignore);
    }
    if let Some(add_bos) = tokenizer.add_bos {
        object["add_bos"] = json!(add_bos);
    }
    if let Some(template) = &tokenizer.chat_template {
        object["chat_template"] = json!(template);
    }
    Ok(object)
}

fn rules_to_json(tokenizer: &Spec) -> Map<String, Value> {
    let tokens = tokenizer.special_tokens.iter().chain(&tokenizer.added_tokens);
    let pieces: HashMap<u32, &str> = tokens.map(|(piece, id)| (*id, &**piece)).collect();
    let of_token = |(id, rule): &(u32, TokenRule)| {
        let of_rule = [rule.lstrip, rule.rstrip, rule.single_word, rule.normalized, rule.mergeable];
        let names = RULES.iter().zip(of_rule).filter(|(_, holds)| *holds).map(|(name, _)| json!(name));
        Some(((*pieces.get(id)?).to_owned(), names.collect()))
    };
    tokenizer.token_rules.iter().filter_map(of_token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_with_a_space_on_the_left_are_written_as_pairs() {
        let merges = |pairs: &[(&str, &str)]| {
            let merges = pairs.iter().map(|&(l, r)| (l.into(), r.into())).collect();
            let spec = Spec { merges, ..Spec::default() };
            to_json(&spec).unwrap()["merges"].clone()
        };
        assert_eq!(merges(&[("a", "b"), ("ab", " c")]), json!(["a b", "ab  c"]));
        assert_eq!(merges(&[("a", "b"), ("a b", "c")]), json!([["a", "b"], ["a b", "c"]]));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let split =
            r#"{"type": "Split", "pattern": {"Regex": "a|b"}, "behavior": "Removed", "invert": true}"#;
        let token = |piece: &str, id| vec![(piece.to_owned(), id)];
        let spec = Spec {
            kind: Kind::ByteLevel,
            normalizer: Some(vec![
                Normalize::Nfc {},
                Normalize::Strip { left: true, right: false },
                Normalize::Prepend { prepend: " ".to_owned() },
            ]),
            pre_tokenizer: Some(vec![
                serde_json::from_str(split).unwrap(),
                Cut::ByteLevel { add_prefix_space: true, use_regex: false },
            ]),
            vocab: token("a", 3),
            scores: vec![-1.5],
            special_tokens: token("<s>", 4),
            added_tokens: token("<x>", 5),
            token_rules: vec![
                (4, TokenRule { lstrip: true, normalized: true, ..TokenRule::default() }),
                (5, TokenRule { rstrip: true, single_word: true, mergeable: true, ..TokenRule::default() }),
            ],
            decode_start: Some(DecodeStart::Spaces),
            start_tokens: vec![4, 4],
            add_bos: Some(true),
            ..Spec::default()
        };
        let raw: Raw = serde_json::from_value(to_json(&spec).unwrap()).unwrap();
        assert_eq!(raw.spec(None, Vec::new()).unwrap(), spec);
    }
}
