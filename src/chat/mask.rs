//! Characters that stand in for those of a message, so that nothing a message says can become a special token.

use std::collections::BTreeSet;

use crate::Error;
use crate::tokenizer::Tokenizer;

/// A one-to-one map between the characters that begin or end a special token and characters of a private area
/// (planes 15 and 16 of Unicode) that occur in none of the texts at hand.
#[derive(Debug)]
pub(super) struct Mask {
    edges: Vec<char>,
    /// `edges[i]` is disguised as `private + i`.
    private: u32,
}

/// Private characters of one plane, and of the other.
const PRIVATE: [std::ops::RangeInclusive<u32>; 2] = [0xf_0000..=0xf_fffd, 0x10_0000..=0x10_fffd];

impl Mask {
    /// A mask for the special tokens of `tokenizer`, beside these texts.
    ///
    /// # Errors
    /// If the texts leave no stretch of private characters free.
    pub fn new<'t>(tokenizer: &Tokenizer, texts: impl Iterator<Item = &'t str>) -> Result<Self, Error> {
        let edges: BTreeSet<char> = tokenizer
            .special_tokens()
            .flat_map(|(piece, _)| [piece.chars().next(), piece.chars().next_back()])
            .flatten()
            .collect();
        let used: BTreeSet<u32> =
            texts.flat_map(str::chars).map(u32::from).filter(|&c| c >= 0xf_0000).collect();
        let n = edges.len().max(1) as u32;
        let free = |&at: &u32| used.range(at..at + n).next().is_none();
        let fits = |plane: std::ops::RangeInclusive<u32>| {
            (*plane.start()..=plane.end().saturating_sub(n)).step_by(n as usize).find(free)
        };
        match PRIVATE.into_iter().find_map(fits) {
            Some(private) => Ok(Self { edges: edges.into_iter().collect(), private }),
            None => Err(Error::Request("the messages use all of Unicode's private characters".to_owned())),
        }
    }

    /// `text` with all characters disguised that begin or end any special token.
    pub fn edges(&self, text: &str) -> String {
        text.chars().map(|c| self.disguise(c)).collect()
    }

    /// `text` with the first character disguised of each special token that it spells.
    pub fn special_tokens(&self, tokenizer: &Tokenizer, text: &str) -> String {
        let mut special =
            tokenizer.written_tokens(text).filter(|&(_, id)| tokenizer.is_special(id)).peekable();
        let disguised = text.char_indices().map(|(at, c)| match special.next_if(|&(start, _)| start == at) {
            Some(_) => self.disguise(c),
            None => c,
        });
        disguised.collect()
    }

    /// The text as it was.
    pub fn restore(&self, text: &str) -> String {
        let original = |c| u32::from(c).checked_sub(self.private).and_then(|i| self.edges.get(i as usize));
        text.chars().map(|c| original(c).copied().unwrap_or(c)).collect()
    }

    fn disguise(&self, c: char) -> char {
        let index = self.edges.binary_search(&c).ok();
        index.and_then(|i| char::from_u32(self.private + i as u32)).unwrap_or(c)
    }
}
