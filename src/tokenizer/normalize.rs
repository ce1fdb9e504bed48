//! What is done to a text before it is cut into words.

use std::borrow::Cow;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{UnicodeNormalization, is_nfc, is_nfd, is_nfkc, is_nfkd};

use super::expression::Expression;
use super::metaspace::SPACE;
use super::steps::{Normalize, Pattern};
use super::vocab::malformed;
use super::{Kind, Spec};
use crate::Malformed;

/// Bytes of the longest text that a step puts somewhere.
const MAX_CONTENT: usize = 256;

/// A replacement that would make a text longer than so many times itself is not made: steps could double it one after another.
const MAX_GROWTH: usize = 16;

/// The steps of a normalizer.
#[derive(Debug)]
pub(super) struct Normalizer(Vec<Step>);

#[derive(Debug)]
enum Step {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    StripAccents,
    Strip {
        left: bool,
        right: bool,
    },
    Prepend(String),
    /// At the beginning of the whole only.
    PrependFirst(String),
    Replace(Expression, String),
}

/// A text or a part of one, and whether it begins where the whole does.
#[derive(Debug, Clone)]
pub(super) struct Part<'t> {
    pub text: Cow<'t, str>,
    pub first: bool,
}

impl Normalizer {
    /// # Errors
    /// If an expression cannot be used, or the specification says twice what is to be done.
    pub fn new(spec: &Spec) -> Result<Normalizer, Malformed> {
        let Some(steps) = &spec.normalizer else { return Normalizer::of_kind(spec) };
        if spec.nfc || spec.prefix_first {
            return Err(malformed("nfc and prefix_first go without a normalizer of its own".to_owned()));
        }
        super::cut::check_count("normalizer", steps.len())?;
        steps.iter().map(Step::new).collect::<Result<_, _>>().map(Normalizer)
    }

    /// Where the specification has none of its own.
    fn of_kind(spec: &Spec) -> Result<Normalizer, Malformed> {
        let mut steps = Vec::new();
        if spec.nfc {
            steps.push(Step::Nfc);
        }
        if spec.kind == Kind::Metaspace {
            steps.push(match spec.prefix_first {
                true => Step::PrependFirst(SPACE.to_string()),
                false => Step::Prepend(SPACE.to_string()),
            });
            steps.push(Step::Replace(Expression::new(&Pattern::String(" ".to_owned()))?, SPACE.to_string()));
        }
        Ok(Normalizer(steps))
    }

    /// The text after all steps.
    pub fn apply<'t>(&self, text: &'t str, first: bool) -> Part<'t> {
        let limit = text.len().saturating_mul(MAX_GROWTH).saturating_add(MAX_CONTENT * MAX_GROWTH);
        let text = Part { text: Cow::Borrowed(text), first };
        self.0.iter().fold(text, |part, step| step.apply(part, limit))
    }
}

impl Step {
    fn new(step: &Normalize) -> Result<Step, Malformed> {
        Ok(match step {
            Normalize::Nfc {} => Step::Nfc,
            Normalize::Nfd {} => Step::Nfd,
            Normalize::Nfkc {} => Step::Nfkc,
            Normalize::Nfkd {} => Step::Nfkd,
            Normalize::Lowercase {} => Step::Lowercase,
            Normalize::StripAccents {} => Step::StripAccents,
            &Normalize::Strip { left, right } => Step::Strip { left, right },
            Normalize::Prepend { prepend: text } | Normalize::Replace { content: text, .. }
                if text.len() > MAX_CONTENT =>
            {
                let problem = format!("its normalizer puts more than {MAX_CONTENT} bytes in a place");
                return Err(malformed(problem));
            }
            Normalize::Prepend { prepend } => Step::Prepend(prepend.clone()),
            Normalize::Replace { pattern, content } => {
                Step::Replace(Expression::new(pattern)?, content.clone())
            }
        })
    }

    fn apply<'t>(&self, Part { text, mut first }: Part<'t>, limit: usize) -> Part<'t> {
        let text = match self {
            Step::Nfc if is_nfc(&text) => text,
            Step::Nfd if is_nfd(&text) => text,
            Step::Nfkc if is_nfkc(&text) => text,
            Step::Nfkd if is_nfkd(&text) => text,
            Step::Nfc => text.nfc().collect(),
            Step::Nfd => text.nfd().collect(),
            Step::Nfkc => text.nfkc().collect(),
            Step::Nfkd => text.nfkd().collect(),
            Step::Lowercase => text.chars().flat_map(char::to_lowercase).collect(),
            Step::StripAccents => {
                first &= !text.starts_with(is_combining_mark);
                text.chars().filter(|&c| !is_combining_mark(c)).collect()
            }
            Step::Strip { left, right } => {
                first &= !(*left && text.starts_with(char::is_whitespace));
                let stripped = if *left { text.trim_start() } else { &text };
                let stripped = if *right { stripped.trim_end() } else { stripped };
                Cow::Owned(stripped.to_owned())
            }
            Step::Prepend(_) | Step::PrependFirst(_) if text.is_empty() => text,
            Step::PrependFirst(_) if !first => text,
            Step::Prepend(prefix) | Step::PrependFirst(prefix) => Cow::Owned(format!("{prefix}{text}")),
            Step::Replace(pattern, content) => {
                if content.is_empty() {
                    first &= pattern.matches(&text).next().is_none_or(|(at, end)| at > 0 || end == 0);
                }
                pattern.replace(&text, content, limit).map_or(text, Cow::Owned)
            }
        };
        Part { text, first }
    }
}
