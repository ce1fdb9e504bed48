//! Texts and regular expressions to look for, as Hugging Face's tokenizers look for them.

use std::fmt;

use fancy_regex::{Regex, RegexBuilder};

use super::steps::Pattern;
use super::vocab::{malformed, quoted};
use crate::Malformed;

/// Characters of the longest expression. The longest in use has some thousand.
const MAX_CHARS: usize = 20_000;

/// Steps back in looking for one match. Real expressions take a few.
const MAX_BACKTRACKS: usize = 20_000;

/// Bytes that a compiled expression, and each automaton made of its parts, may take.
const MAX_BYTES: usize = 16 << 20;

/// A [`Pattern`], ready to be looked for.
pub(super) enum Expression {
    Text(String),
    Regex(Box<Regex>),
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Expression")
    }
}

impl Expression {
    /// # Errors
    /// If it is not an expression, or too large a one.
    pub fn new(pattern: &Pattern) -> Result<Expression, Malformed> {
        let regex = match pattern {
            Pattern::String(text) => return Ok(Expression::Text(text.clone())),
            Pattern::Regex(regex) => regex,
        };
        if regex.len() > MAX_CHARS {
            return Err(malformed(format!(
                "the expression {} is longer than {MAX_CHARS} bytes",
                quoted(regex)
            )));
        }
        // In Oniguruma's language ^ and $ are the ends of lines.
        let compiled = RegexBuilder::new(&translated(regex)?)
            .oniguruma_mode(true)
            .multi_line(true)
            .backtrack_limit(MAX_BACKTRACKS)
            .delegate_size_limit(MAX_BYTES)
            .delegate_dfa_size_limit(MAX_BYTES)
            .max_prog_size(MAX_BYTES >> 8)
            .build();
        compiled.map(|regex| Expression::Regex(Box::new(regex))).map_err(|error| {
            let error = error.to_string();
            let error = error.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            malformed(format!("the expression {} cannot be used: {}", quoted(regex), quoted(&error)))
        })
    }

    /// The places of its matches in `text`, in order; they do not overlap, and there are none in an empty text. An expression that would need very many steps
    /// to find the next one is taken not to match any more.
    pub fn matches<'t>(&'t self, text: &'t str) -> Box<dyn Iterator<Item = (usize, usize)> + 't> {
        if text.is_empty() {
            return Box::new(std::iter::empty());
        }
        match self {
            // An empty text matches between all characters, which cuts nothing out of a text but cuts it everywhere.
            Expression::Text(pattern) => {
                Box::new(text.match_indices(pattern.as_str()).map(|(at, found)| (at, at + found.len())))
            }
            Expression::Regex(regex) => {
                let found = regex.find_iter(text).map_while(Result::ok);
                Box::new(found.map(|found| (found.start(), found.end())))
            }
        }
    }

    /// `text` with `content` in place of every match; `None` if there is none, or it would be longer than `limit` bytes.
    pub fn replace(&self, text: &str, content: &str, limit: usize) -> Option<String> {
        let mut matches = self.matches(text).peekable();
        matches.peek()?;
        let mut replaced = String::with_capacity(text.len() + text.len() / 4);
        let mut end = 0;
        for (from, to) in matches {
            replaced.push_str(text.get(end..from)?);
            replaced.push_str(content);
            end = to;
            if replaced.len() > limit {
                return None;
            }
        }
        replaced.push_str(text.get(end..)?);
        Some(replaced)
    }
}

/// An expression of Oniguruma's in the language of `fancy_regex`, where the two differ.
fn translated(regex: &str) -> Result<String, Malformed> {
    let refuse = |what: &str| {
        Err(malformed(format!("the expression {} cannot be used: it has {what}", quoted(regex))))
    };
    let mut translated = String::with_capacity(regex.len());
    let mut rest = regex.chars();
    while let Some(c) = rest.next() {
        match (c, rest.as_str().chars().next()) {
            ('\\', Some(escaped)) => {
                rest.next();
                match escaped {
                    // Without the two that join letters.
                    'w' => translated.push_str(r"[\w--[\x{200c}\x{200d}]]"),
                    'W' => translated.push_str(r"[\W\x{200c}\x{200d}]"),
                    _ => translated.extend([c, escaped]),
                }
            }
            ('[', Some(':')) => return refuse("a POSIX bracket"),
            ('(', Some('?'))
                if rest.as_str().chars().skip(1).take_while(char::is_ascii_lowercase).any(|c| c == 'm') =>
            {
                return refuse("the option m");
            }
            _ => translated.push(c),
        }
    }
    Ok(translated)
}
