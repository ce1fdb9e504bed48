//! The pre-tokenizers of the byte-level models: where a text is cut before any merging.
//!
//! They are published as regular expressions that need look-ahead. Here they are functions that find the same cuts in
//! one pass; the expression stands above each. Unicode's version is that of the `unicode-properties` crate: letters and
//! numbers newer than another implementation's tables are cut as what they are, where that one takes them for symbols.

use super::vocab::quoted;
use crate::Malformed;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// A pre-tokenizer, by the name that GGUF files give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
    Tekken,
}

const NAMES: [(&str, PreTokenizer); 5] = [
    ("gpt-2", PreTokenizer::Gpt2),
    ("smollm", PreTokenizer::SmolLm),
    ("llama-bpe", PreTokenizer::Llama3),
    ("qwen2", PreTokenizer::Qwen2),
    ("tekken", PreTokenizer::Tekken),
];

impl PreTokenizer {
    /// The pre-tokenizer of that name.
    pub fn named(name: &str) -> Result<PreTokenizer, Malformed> {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map(|&(_, pre)| pre).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            Malformed(format!(
                "tokenizer: pre-tokenizer {} is not supported; known are {names}",
                quoted(name)
            ))
        })
    }

    /// Whether a word that is a piece is taken whole, where nobody says: the descendants of tiktoken do that.
    pub fn ignores_merges(name: &str) -> bool {
        matches!(name, "llama-bpe" | "tekken")
    }

    /// Calls `word` with every word of `text`, in order. Together they are the text.
    pub fn split<'t>(self, text: &'t str, mut word: impl FnMut(&'t str)) {
        match self {
            PreTokenizer::Gpt2 => each(text, gpt2, word),
            PreTokenizer::SmolLm => {
                for part in text.split_inclusive(is_number) {
                    let digit = part.chars().next_back().filter(|&c| is_number(c)).map_or(0, char::len_utf8);
                    let (before, digit) = part.split_at(part.len() - digit);
                    each(before, gpt2, &mut word);
                    each(digit, gpt2, &mut word);
                }
            }
            PreTokenizer::Llama3 => each(text, |text| llama3(text, 3), word),
            PreTokenizer::Qwen2 => each(text, |text| llama3(text, 1), word),
            PreTokenizer::Tekken => each(text, tekken, word),
        }
    }
}

/// Cuts `text` into words; `first` gives the length of a non-empty text's first word.
fn each<'t>(mut text: &'t str, first: impl Fn(&str) -> usize, mut word: impl FnMut(&'t str)) {
    while !text.is_empty() {
        let (head, rest) = text.split_at(first(text));
        word(head);
        text = rest;
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
///
/// SmolLM's isolates every `\p{N}` before it applies this.
fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction(text, |c| c) {
        return len;
    }
    let rest = text.strip_prefix(' ').unwrap_or(text);
    match rest.chars().next().map(class) {
        None | Some(Class::Space) => spaces(text),
        Some(first) => text.len() - rest.len() + run(rest, |c| class(c) == first),
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
///
/// Qwen 2's is the same with one digit at a time.
fn llama3(text: &str, digits: usize) -> usize {
    if let Some(len) = contraction(text, fold) {
        return len;
    }
    let lead = lead(text);
    match run(&text[lead..], |c| class(c) == Class::Letter) {
        0 => no_letters(text, digits, is_newline),
        letters => lead + letters,
    }
}

/// ```text
/// [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+
/// |[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*
/// |\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
/// ```
fn tekken(text: &str) -> usize {
    let lead = lead(text);
    // The lead is optional: what fails with it is tried without.
    let word = [lead, 0].into_iter().find_map(|lead| Some(lead + lower_end(&text[lead..])?));
    word.unwrap_or_else(|| match run(&text[lead..], |c| cases(c).0) {
        0 => no_letters(text, 1, |c| is_newline(c) || c == '/'),
        upper => lead + upper,
    })
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
fn lower_end(text: &str) -> Option<usize> {
    let upper = run(text, |c| cases(c).0);
    match run(&text[upper..], |c| cases(c).1) {
        // The first part gives back what follows its last character that may be in the second.
        0 => text[..upper].char_indices().rfind(|&(_, c)| cases(c).1).map(|(at, c)| at + c.len_utf8()),
        lower => Some(upper + lower),
    }
}

/// Whether a character may stand in the upper-case part of a word, and whether in the lower-case part.
fn cases(c: char) -> (bool, bool) {
    match c {
        'a'..='z' => (false, true),
        'A'..='Z' => (true, false),
        '\0'..='\x7f' => (false, false),
        _ => match (c.general_category(), c.general_category_group()) {
            (GeneralCategory::LowercaseLetter, _) => (false, true),
            (GeneralCategory::UppercaseLetter | GeneralCategory::TitlecaseLetter, _) => (true, false),
            (_, GeneralCategoryGroup::Letter | GeneralCategoryGroup::Mark) => (true, true),
            _ => (false, false),
        },
    }
}

/// `[^\r\n\p{L}\p{N}]?`
fn lead(text: &str) -> usize {
    text.chars().next().map_or(0, |first| match class(first) {
        Class::Letter | Class::Number => 0,
        _ if is_newline(first) => 0,
        _ => first.len_utf8(),
    })
}

/// `\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+trailing*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn no_letters(text: &str, digits: usize, trailing: impl Fn(char) -> bool) -> usize {
    let number = text.chars().take(digits).take_while(|&c| is_number(c)).map(char::len_utf8).sum();
    if number > 0 {
        return number;
    }
    let rest = text.strip_prefix(' ').unwrap_or(text);
    let symbols = run(rest, |c| class(c) == Class::Symbol);
    if symbols > 0 {
        return text.len() - rest.len() + symbols + run(&rest[symbols..], trailing);
    }
    let blank = &text[..run(text, char::is_whitespace)];
    blank.rfind(is_newline).map_or_else(|| spaces(text), |last| last + 1)
}

/// `\s+(?!\S)|\s+`: white space up to the end of the text, or all but the last of it, which goes with what follows.
fn spaces(text: &str) -> usize {
    let len = run(text, char::is_whitespace);
    match text[..len].char_indices().next_back() {
        Some((last, _)) if len < text.len() && last > 0 => last,
        _ => len,
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d` after folding.
fn contraction(text: &str, fold: fn(char) -> char) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let mut letters = rest.chars().map(fold);
    let count = match (letters.next()?, letters.next()) {
        ('s' | 't' | 'm' | 'd', _) => 1,
        ('r' | 'v', Some('e')) | ('l', Some('l')) => 2,
        _ => return None,
    };
    Some(1 + rest.chars().take(count).map(char::len_utf8).sum::<usize>())
}

/// Unicode's simple case folding, as far as it reaches the letters of a contraction.
fn fold(c: char) -> char {
    if c == 'ſ' { 's' } else { c.to_ascii_lowercase() }
}

/// The length in bytes of the longest beginning of `text` whose characters are all `of` a kind.
fn run(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.find(|c| !of(c)).unwrap_or(text.len())
}

/// What the expressions above tell apart: `\p{L}`, `\p{N}`, `\s`, and everything else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Symbol,
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        _ if c.is_whitespace() => Class::Space,
        '\0'..='\x7f' => Class::Symbol,
        _ => match c.general_category_group() {
            GeneralCategoryGroup::Letter => Class::Letter,
            GeneralCategoryGroup::Number => Class::Number,
            _ => Class::Symbol,
        },
    }
}

fn is_number(c: char) -> bool {
    class(c) == Class::Number
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}
