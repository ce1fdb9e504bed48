//! Finding tokens that are written out in a text.

#![expect(
    clippy::indexing_slicing,
    reason = "a byte is an index of 256, and the others come from the lengths"
)]

use super::Spec;
use super::vocab::{Class, Vocab};

/// The tokens of some classes, sorted by their bytes.
#[derive(Debug)]
pub(super) struct WrittenTokens {
    sorted: Vec<(Box<str>, u32)>,
    /// Whether any begins with this byte.
    starts: [bool; 256],
}

impl WrittenTokens {
    pub fn new(spec: &Spec, vocab: &Vocab, classes: &[Class]) -> WrittenTokens {
        let of_classes = spec
            .vocab
            .iter()
            .filter(|(_, id)| vocab.class(*id).is_some_and(|class| classes.contains(&class)));
        let mut sorted: Vec<(Box<str>, u32)> =
            of_classes.map(|(piece, id)| (piece.as_str().into(), *id)).collect();
        sorted.sort();
        let mut starts = [false; 256];
        for (piece, _) in &sorted {
            if let Some(&first) = piece.as_bytes().first() {
                starts[usize::from(first)] = true;
            }
        }
        WrittenTokens { sorted, starts }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.sorted.iter().map(|(piece, id)| (&**piece, *id))
    }

    /// The token that `text` begins with; the longest if there are several.
    pub fn at_start(&self, text: &str) -> Option<u32> {
        self.longest(text.as_bytes()).map(|(_, id)| *id)
    }

    /// The text before the first token, the token, and the text after it.
    pub fn split_first<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        let bytes = text.as_bytes();
        let candidates = (0..bytes.len()).filter(|&at| self.starts[usize::from(bytes[at])]);
        let (at, (piece, id)) = candidates.filter_map(|at| Some((at, self.longest(&bytes[at..])?))).next()?;
        Some((&text[..at], *id, &text[at + piece.len()..]))
    }

    fn longest(&self, text: &[u8]) -> Option<&(Box<str>, u32)> {
        // Those that agree with the text so far; a piece sorts before its extensions.
        let mut agree = self.sorted.as_slice();
        let mut longest = None;
        for (depth, byte) in text.iter().enumerate() {
            let start = agree.partition_point(|(piece, _)| piece.as_bytes().get(depth) < Some(byte));
            let end = agree.partition_point(|(piece, _)| piece.as_bytes().get(depth) <= Some(byte));
            agree = &agree[start..end];
            let Some(first) = agree.first() else { break };
            if first.0.len() == depth + 1 {
                longest = Some(first);
            }
        }
        longest
    }
}
