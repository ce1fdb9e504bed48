//! Finding tokens that are written out in a text.

use aho_corasick::automaton::Automaton;
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, PatternID};

use super::cut::is_word;
use super::spec::TokenRule;
use crate::Malformed;

/// Tokens, and how they are recognised.
#[derive(Debug)]
pub(super) struct WrittenTokens {
    /// Sorted by their bytes.
    tokens: Vec<Token>,
    /// Finds them in a text that is read from its end. Where it has read the beginning of some tokens, the longest of them is
    /// the first that it names: all that start at one place are found at once, however long they are.
    backwards: NFA,
    /// Whether any begins with this byte.
    starts: Box<[bool; 256]>,
}

/// A token as it is looked for.
#[derive(Debug)]
pub(super) struct Token {
    pub written: Box<str>,
    pub id: u32,
    pub rule: TokenRule,
}

/// A token that could be recognised at a place of a text: the longest that is written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    at: usize,
    token: PatternID,
}

impl WrittenTokens {
    /// Of several that are written alike the first is recognised, and none that is empty.
    ///
    /// # Errors
    /// If there is more to them than an automaton can hold.
    pub fn new(mut tokens: Vec<Token>) -> Result<WrittenTokens, Malformed> {
        tokens.retain(|token| !token.written.is_empty());
        tokens.sort_by(|a, b| a.written.cmp(&b.written));
        tokens.dedup_by(|a, b| a.written == b.written);
        let mut starts = Box::new([false; 256]);
        for first in tokens.iter().filter_map(|token| token.written.bytes().next()) {
            if let Some(start) = starts.get_mut(usize::from(first)) {
                *start = true;
            }
        }
        let reversed = tokens.iter().map(|token| token.written.bytes().rev().collect::<Vec<u8>>());
        let backwards = NFA::builder().prefilter(false).build(reversed);
        let backwards = backwards.map_err(|e| Malformed(format!("the special and added tokens: {e}")))?;
        Ok(WrittenTokens { tokens, backwards, starts })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|token| (&*token.written, token.id))
    }

    /// The token that `text` begins with; the longest if there are several.
    pub fn at_start(&self, text: &str) -> Option<u32> {
        // Those that agree with the text so far; a piece sorts before its extensions.
        let mut agree = self.tokens.as_slice();
        let mut longest = None;
        for (depth, byte) in text.bytes().enumerate() {
            let start = agree.partition_point(|token| token.written.as_bytes().get(depth) < Some(&byte));
            let end = agree.partition_point(|token| token.written.as_bytes().get(depth) <= Some(&byte));
            agree = agree.get(start..end).unwrap_or_default();
            let Some(token) = agree.first() else { break };
            if token.written.len() == depth + 1 {
                longest = Some(token.id);
            }
        }
        longest
    }

    /// Every place of `text` where a token is written, in order, with the longest one; they may overlap.
    pub fn places(&self, text: &str) -> impl Iterator<Item = (usize, u32)> {
        let starts = self.starts(text);
        starts
            .into_iter()
            .rev()
            .filter_map(|start| Some((start.at, self.tokens.get(start.token.as_usize())?.id)))
    }

    /// The parts of `text`: from the left the tokens, of those that start at one place the longest, with the text before
    /// each; and the text that remains, or no text and no token. What a token's rule forbids is text, and nothing else is recognised in it. Takes a
    /// time in proportion to the text.
    pub fn split<'t>(&self, text: &'t str) -> impl Iterator<Item = (&'t str, Option<u32>)> {
        let mut starts = self.starts(text);
        // Up to where the text is done; up to where tokens have been found, those with it that did not count.
        let (mut done, mut found) = (Some(0), 0);
        std::iter::from_fn(move || {
            let from = done?;
            while let Some(start) = starts.pop() {
                let Some(token) = self.tokens.get(start.token.as_usize()) else { continue };
                let end = start.at + token.written.len();
                if start.at < found {
                    continue;
                }
                found = end;
                let (Some(before), Some(after)) = (text.get(..start.at), text.get(end..)) else { continue };
                if token.rule.single_word && (before.ends_with(is_word) || after.starts_with(is_word)) {
                    continue;
                }
                // The token before may have taken white space, or all of this one where it is white space itself.
                let before = text.get(from..start.at).unwrap_or_default();
                let before = if token.rule.lstrip { before.trim_end() } else { before };
                let space = if token.rule.rstrip { after.len() - after.trim_start().len() } else { 0 };
                let end = end + space;
                done = Some(end);
                let id = (!token.rule.lstrip || from < end).then_some(token.id);
                return Some((before, id));
            }
            done = None;
            text.get(from..).map(|rest| (rest, None))
        })
    }

    /// As [`WrittenTokens::places`], the last place first.
    fn starts(&self, text: &str) -> Vec<Start> {
        let mut found = Vec::new();
        let may_start = |byte| self.starts.get(usize::from(byte)).is_some_and(|&starts| starts);
        if self.tokens.is_empty() || !text.bytes().any(may_start) {
            return found;
        }
        // Anchored or not is all that can be wrong about it.
        let Ok(mut state) = self.backwards.start_state(Anchored::No) else { return found };
        for (at, byte) in text.bytes().enumerate().rev() {
            state = self.backwards.next_state(Anchored::No, state, byte);
            if self.backwards.is_match(state) {
                found.push(Start { at, token: self.backwards.match_pattern(state, 0) });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(pieces: &[String]) -> WrittenTokens {
        let mut pieces = pieces.to_vec();
        pieces.sort();
        pieces.dedup();
        let token =
            |(piece, id): (String, u32)| Token { written: piece.into(), id, rule: TokenRule::default() };
        WrittenTokens::new(pieces.into_iter().zip(0..).map(token).collect()).unwrap()
    }

    /// The longest of the leftmost, by looking everywhere.
    fn naive<'t>(tokens: &WrittenTokens, mut text: &'t str) -> Vec<(&'t str, Option<u32>)> {
        let mut parts = Vec::new();
        'next: loop {
            for at in (0..text.len()).filter(|&at| text.is_char_boundary(at)) {
                let written = tokens.iter().filter(|(piece, _)| text[at..].starts_with(piece));
                if let Some((piece, id)) = written.max_by_key(|(piece, _)| piece.len()) {
                    assert_eq!(tokens.at_start(&text[at..]), Some(id));
                    parts.push((&text[..at], Some(id)));
                    text = &text[at + piece.len()..];
                    continue 'next;
                }
                assert_eq!(tokens.at_start(&text[at..]), None);
            }
            parts.push((text, None));
            return parts;
        }
    }

    proptest! {
        #[test]
        fn the_longest_of_the_leftmost(pieces in prop::collection::vec("[abé]{1,4}|a{1,9}", 0..8), text in "[abéc]{0,40}") {
            let tokens = tokens(&pieces);
            prop_assert_eq!(tokens.split(&text).collect::<Vec<_>>(), naive(&tokens, &text));
            let places = text.char_indices().filter_map(|(at, _)| Some((at, tokens.at_start(&text[at..])?)));
            prop_assert_eq!(tokens.places(&text).collect::<Vec<_>>(), places.collect::<Vec<_>>());
        }
    }
}
