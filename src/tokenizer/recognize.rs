//! The special and added tokens that are recognised in a text, before and after it is normalised.

use rustc_hash::FxHashMap;

use super::Spec;
use super::normalize::Normalizer;
use super::spec::TokenRule;
use super::vocab::{Class, Vocab};
use super::written::{Token, WrittenTokens};
use crate::Malformed;

/// The tokens of some classes.
#[derive(Debug)]
pub(super) struct Recognizer {
    /// In the text as it is.
    pub raw: WrittenTokens,
    /// In the normalised text, as they are when normalised.
    pub normalized: WrittenTokens,
    /// All of them as the vocabulary has them, where that is not `raw`.
    written: Option<WrittenTokens>,
}

impl Recognizer {
    /// # Errors
    /// If there is more to them than an automaton can hold.
    pub fn new(
        spec: &Spec,
        vocab: &Vocab,
        normalizer: &Normalizer,
        classes: &[Class],
    ) -> Result<Recognizer, Malformed> {
        let rules: FxHashMap<u32, TokenRule> = spec.token_rules.iter().copied().collect();
        let of_classes = spec
            .vocab
            .iter()
            .filter(|(_, id)| vocab.class(*id).is_some_and(|class| classes.contains(&class)));
        let (mut raw, mut normalized, mut written) = (Vec::new(), Vec::new(), Vec::new());
        for (piece, id) in of_classes {
            let rule = rules.get(id).copied().unwrap_or_default();
            let token = |written: &str| Token { written: written.into(), id: *id, rule };
            written.push(token(piece));
            match rule.normalized {
                true => normalized.push(token(&normalizer.apply(piece, true).text)),
                false => raw.push(token(piece)),
            }
        }
        let written = (!normalized.is_empty()).then(|| WrittenTokens::new(written)).transpose()?;
        let (raw, normalized) = (WrittenTokens::new(raw)?, WrittenTokens::new(normalized)?);
        Ok(Recognizer { raw, normalized, written })
    }

    /// All of them, by their own text.
    pub fn as_written(&self) -> &WrittenTokens {
        self.written.as_ref().unwrap_or(&self.raw)
    }
}
