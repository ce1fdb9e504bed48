//! How a text is cut into words, one step after another.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use super::expression::Expression;
use super::pretokenize::PreTokenizer;
use super::steps::{Behavior, Cut, Prepend};
use super::vocab::malformed;
use super::{Kind, Spec};
use crate::Malformed;

/// Steps of a normalizer or a pre-tokenizer. Those in use have six.
const MAX_STEPS: usize = 32;

/// The steps of a pre-tokenizer.
#[derive(Debug)]
pub(super) struct Cutter(Vec<Step>);

#[derive(Debug)]
enum Step {
    Named(PreTokenizer),
    Split {
        pattern: Expression,
        behavior: Behavior,
        invert: bool,
    },
    Characters {
        at: fn(char) -> bool,
        behavior: Behavior,
    },
    /// Runs of letters and digits, and of symbols.
    Words,
    Metaspace {
        replacement: char,
        prepend: Prepend,
        split: bool,
    },
    /// A space before what does not begin with one.
    PrefixSpace,
}

/// Where a part of a text goes, and where it began in it.
type Sink<'s> = &'s mut dyn FnMut(usize, &str);

/// # Errors
/// If there are more steps than that.
pub(super) fn check_count(of: &str, steps: usize) -> Result<(), Malformed> {
    match steps > MAX_STEPS {
        true => Err(malformed(format!("its {of} has {steps} steps: up to {MAX_STEPS} are supported"))),
        false => Ok(()),
    }
}

impl Cutter {
    /// # Errors
    /// If a step is not known, an expression cannot be used, or a step does not fit the kind.
    pub fn new(spec: &Spec) -> Result<Cutter, Malformed> {
        let Some(cuts) = &spec.pre_tokenizer else {
            let of_kind = match spec.kind {
                Kind::Metaspace => Vec::new(),
                Kind::ByteLevel => {
                    vec![Step::Named(PreTokenizer::named(spec.pre.as_deref().unwrap_or("gpt-2"))?)]
                }
            };
            return Ok(Cutter(of_kind));
        };
        if spec.pre.is_some() {
            return Err(malformed("pre goes without a pre_tokenizer of its own".to_owned()));
        }
        check_count("pre_tokenizer", cuts.len())?;
        let bytes_at = cuts.iter().position(|cut| matches!(cut, Cut::ByteLevel { .. }));
        if bytes_at.is_some_and(|at| spec.kind != Kind::ByteLevel || at + 1 < cuts.len()) {
            let problem = "ByteLevel is the last step of a pre_tokenizer, with the kind byte_level only";
            return Err(malformed(problem.to_owned()));
        }
        let mut steps = Vec::new();
        for cut in cuts {
            Step::push(cut, &mut steps)?;
        }
        Ok(Cutter(steps))
    }

    /// Calls `word` with every word of `text`, in order; `first` if it begins where the whole text does.
    pub fn words(&self, text: &str, first: bool, mut word: impl FnMut(&str)) {
        match &self.0[..] {
            // Nearly all models', without a call through a pointer for each word.
            [Step::Named(pre)] => pre.split(text, word),
            steps => cut(steps, text, first, &mut word),
        }
    }
}

impl Step {
    fn push(cut: &Cut, steps: &mut Vec<Step>) -> Result<(), Malformed> {
        let characters = |at, behavior| Step::Characters { at, behavior };
        steps.push(match cut {
            Cut::ByteLevel { add_prefix_space, use_regex } => {
                let prefix = add_prefix_space.then_some(Step::PrefixSpace);
                let gpt_2 = use_regex.then_some(Step::Named(PreTokenizer::Gpt2));
                steps.extend(prefix.into_iter().chain(gpt_2));
                return Ok(());
            }
            Cut::Split { pattern, behavior, invert } => {
                Step::Split { pattern: Expression::new(pattern)?, behavior: *behavior, invert: *invert }
            }
            Cut::Digits { individual_digits: true } => characters(char::is_numeric, Behavior::Isolated),
            Cut::Digits { individual_digits: false } => characters(char::is_numeric, Behavior::Contiguous),
            Cut::Punctuation { behavior } => characters(is_punctuation, *behavior),
            Cut::Whitespace {} => Step::Words,
            Cut::WhitespaceSplit {} => characters(char::is_whitespace, Behavior::Removed),
            &Cut::Metaspace { replacement, prepend_scheme: prepend, split } => {
                Step::Metaspace { replacement, prepend, split }
            }
        });
        Ok(())
    }
}

/// Applies the first step, and to each part the others.
fn cut(steps: &[Step], text: &str, first: bool, word: &mut dyn FnMut(&str)) {
    if text.is_empty() {
        return;
    }
    let Some((step, rest)) = steps.split_first() else { return word(text) };
    let mut part = |at: usize, part: &str| cut(rest, part, first && at == 0, word);
    match step {
        Step::Named(pre) => {
            let mut at = 0;
            pre.split(text, |word| {
                part(at, word);
                at += word.len();
            });
        }
        Step::Split { pattern, behavior, invert } => {
            let matches = alternate(text, pattern.matches(text), *invert);
            split(text, matches, *behavior, &mut part);
        }
        Step::Characters { at, behavior } => {
            let found = text.char_indices().filter(|&(_, c)| at(c));
            let found = found.map(|(at, c)| (at, at + c.len_utf8()));
            split(text, alternate(text, found, false), *behavior, &mut part);
        }
        Step::Words => split(text, alternate(text, runs(text), true), Behavior::Removed, &mut part),
        Step::PrefixSpace if text.starts_with(' ') => part(0, text),
        Step::PrefixSpace => part(0, &format!(" {text}")),
        Step::Metaspace { replacement, prepend, split: cuts } => {
            let text = metaspace(text, *replacement, *prepend, first);
            match cuts {
                false => part(0, &text),
                true => {
                    let found = text.match_indices(*replacement).map(|(at, found)| (at, at + found.len()));
                    split(&text, alternate(&text, found, false), Behavior::MergedWithNext, &mut part);
                }
            }
        }
    }
}

fn metaspace(text: &str, replacement: char, prepend: Prepend, first: bool) -> String {
    let mut spelled = String::with_capacity(text.len() + text.len() / 4);
    let begins = text.starts_with([' ', replacement]);
    if !begins && (prepend == Prepend::Always || prepend == Prepend::First && first) {
        spelled.push(replacement);
    }
    spelled.extend(text.chars().map(|c| if c == ' ' { replacement } else { c }));
    spelled
}

/// A part of a text, and whether it matched.
#[derive(Debug, Clone, Copy)]
struct Piece {
    from: usize,
    to: usize,
    matched: bool,
}

/// Matches, and what is between them.
fn alternate(text: &str, matches: impl Iterator<Item = (usize, usize)>, invert: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut end = 0;
    for (from, to) in matches {
        if end < from {
            pieces.push(Piece { from: end, to: from, matched: invert });
        }
        pieces.push(Piece { from, to, matched: !invert });
        end = to;
    }
    if end < text.len() {
        pieces.push(Piece { from: end, to: text.len(), matched: invert });
    }
    pieces
}

/// Calls `part` with what the pieces become.
fn split(text: &str, pieces: Vec<Piece>, behavior: Behavior, part: Sink) {
    let mut emit = |piece: Piece| {
        if !(behavior == Behavior::Removed && piece.matched) {
            part(piece.from, text.get(piece.from..piece.to).unwrap_or_default());
        }
    };
    let mut joined: Option<Piece> = None;
    for piece in pieces {
        let joins = match (behavior, &joined) {
            (Behavior::Contiguous, Some(last)) => last.matched == piece.matched,
            (Behavior::MergedWithPrevious, Some(last)) => piece.matched && !last.matched,
            // Of matches in a row only the last belongs to what follows.
            (Behavior::MergedWithNext, Some(last)) => last.matched && !piece.matched,
            _ => false,
        };
        match &mut joined {
            Some(last) if joins => *last = Piece { from: last.from, ..piece },
            last => last.replace(piece).into_iter().for_each(&mut emit),
        }
    }
    joined.into_iter().for_each(emit);
}

/// Runs of characters of words, and of those that are neither of words nor white space.
fn runs(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let kind = |c: char| match c {
        _ if is_word(c) => 1,
        _ if c.is_whitespace() => 0,
        _ => 2,
    };
    let mut from = 0;
    let ends = text.char_indices().zip(text.chars().skip(1).map(Some).chain([None]));
    ends.filter_map(move |((at, c), next)| {
        let end = at + c.len_utf8();
        if next.is_some_and(|next| kind(next) == kind(c)) {
            return None;
        }
        let run = (std::mem::replace(&mut from, end), end);
        (kind(c) != 0).then_some(run)
    })
}

/// `\w`
pub(super) fn is_word(c: char) -> bool {
    c.is_alphabetic()
        || matches!(c, '\u{200c}' | '\u{200d}')
        || c.general_category_group() == GeneralCategoryGroup::Mark
        || matches!(
            c.general_category(),
            GeneralCategory::DecimalNumber | GeneralCategory::ConnectorPunctuation
        )
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || c.general_category_group() == GeneralCategoryGroup::Punctuation
}
