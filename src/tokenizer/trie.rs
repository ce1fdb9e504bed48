//! The pieces of a vocabulary as a trie: what a grammar walks to find the tokens that may come next.

use std::fmt;
use std::sync::OnceLock;

use llguidance::toktrie::{TokRxInfo, TokTrie};

use super::Tokenizer;

/// Longer pieces are not used: the trie of pieces goes no deeper.
const MAX_PIECE: usize = 200;

/// A trie that is built when it is first asked for.
#[derive(Default)]
pub(super) struct Trie(OnceLock<TokTrie>);

impl fmt::Debug for Trie {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Trie")
    }
}

impl Tokenizer {
    /// The trie of the first `vocab_size` pieces, for a model with so many tokens.
    pub(crate) fn trie(&self, vocab_size: usize) -> &TokTrie {
        self.trie.0.get_or_init(|| {
            let pieces: Vec<Vec<u8>> = (0..vocab_size as u32).map(|id| self.trie_bytes(id)).collect();
            TokTrie::from(&TokRxInfo::new(vocab_size as u32, 0), &pieces)
        })
    }

    fn trie_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.push_text(id, &mut bytes) && self.is_special(id) {
            bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
            bytes.extend_from_slice(self.piece(id).unwrap_or_default().as_bytes());
        }
        if bytes.len() > MAX_PIECE { Vec::new() } else { bytes }
    }
}
