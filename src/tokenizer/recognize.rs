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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::tokenizer::{EncodeOptions, Kind, Spec, TokenRule, Tokenizer};

    const LETTERS: [&str; 5] = ["▁", "a", "b", "<", ">"];

    /// Tokens from id 10 on, of the letters' vocabulary; those with an even one are special.
    fn tokenizer(tokens: &[(String, [bool; 3])]) -> Tokenizer {
        let mut spec = Spec {
            kind: Kind::Metaspace,
            vocab: LETTERS.map(String::from).into_iter().zip(0..).collect(),
            ..Spec::default()
        };
        for (id, (piece, [lstrip, rstrip, single_word])) in (10..).zip(tokens) {
            let known = spec.special_tokens.iter().chain(&spec.added_tokens).chain(&spec.vocab);
            if known.clone().any(|(known, _)| known == piece) {
                continue;
            }
            let list = if id % 2 == 0 { &mut spec.special_tokens } else { &mut spec.added_tokens };
            list.push((piece.clone(), id));
            let rule = TokenRule {
                lstrip: *lstrip,
                rstrip: *rstrip,
                single_word: *single_word,
                ..TokenRule::default()
            };
            spec.token_rules.push((id, rule));
        }
        Tokenizer::new(spec).unwrap()
    }

    /// What stands for `<` in a text from strangers.
    const DISGUISE: char = '\u{f0000}';

    proptest! {
        #[test]
        fn without_a_disguise_special_tokens_are_recognised_as_always(
            tokens in prop::collection::vec(("[ab<>]{1,3}| <|< ", any::<[bool; 3]>()), 0..5),
            text in "[ab<> ]{0,30}",
        ) {
            let tokenizer = tokenizer(&tokens);
            let special = EncodeOptions { bos: false, special: true };
            let disguised = tokenizer.encode_disguised(&text, str::to_owned);
            prop_assert_eq!(disguised, tokenizer.encode(&text, special));
        }

        #[test]
        fn no_special_token_comes_of_disguised_text(
            tokens in prop::collection::vec(("<[ab<>]{0,3}", any::<[bool; 3]>()), 0..5),
            text in "[ab<> ]{0,30}",
        ) {
            let tokenizer = tokenizer(&tokens);
            let disguised = text.replace('<', &DISGUISE.to_string());
            let ids = tokenizer.encode_disguised(&disguised, |text| text.replace(DISGUISE, "<"));
            prop_assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "{:?}", ids);
        }
    }
}
