//! The header's `tokenizer`, read and written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::Malformed;
use crate::arch::Config;
use crate::format::entries::Entries;
use crate::tokenizer::{Kind, Spec};

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
    pre: Option<String>,
    #[serde(default)]
    ignore_merges: Option<bool>,
    #[serde(default)]
    special_tokens: Option<Entries<u32>>,
    #[serde(default)]
    added_tokens: Option<Entries<u32>>,
    #[serde(default)]
    nfc: bool,
    #[serde(default)]
    prefix_first: bool,
    #[serde(default)]
    add_bos: Option<bool>,
    #[serde(default)]
    chat_template: Option<String>,
}

impl Raw {
    /// The tokenizer; BOS and EOS stand in the metadata.
    pub fn spec(self, config: &Config) -> Result<Spec, Malformed> {
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
        Ok(Spec {
            kind,
            pre: raw.pre,
            ignore_merges: raw.ignore_merges,
            vocab: raw.vocab.0,
            merges: raw.merges.into_iter().map(|Merge(left, right)| (left, right)).collect(),
            equal_merges: raw.equal_merges.into_iter().map(|(start, end)| start..end).collect(),
            special_tokens: raw.special_tokens.map_or_else(Vec::new, |s| s.0),
            added_tokens: raw.added_tokens.map_or_else(Vec::new, |s| s.0),
            nfc: raw.nfc,
            prefix_first: raw.prefix_first,
            bos_token_id: config.bos_token_id,
            eos_token_ids: config.eos_token_ids.clone(),
            add_bos: raw.add_bos,
            chat_template: raw.chat_template,
        })
    }
}

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
}
