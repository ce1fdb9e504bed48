//! Ids to text, all at once or as they come.

use super::vocab::Class;
use super::{DecodeStart, FrontEnd, Tokenizer, byte_level, metaspace};

/// Turns ids into text one at a time, without ever showing half a character.
///
/// Whatever the ids, the texts of all [`push`](Decoder::push)es and of [`finish`](Decoder::finish) together are what
/// [`Tokenizer::decode`] makes of all ids at once. To continue a text, push the ids it has so far and discard what
/// they give.
#[derive(Debug, Clone)]
pub struct Decoder {
    keep_special: bool,
    /// Nothing has come yet, and this would be dropped.
    at_start: DecodeStart,
    /// The beginning of a character that is not complete yet: three bytes at most between calls.
    pending: Vec<u8>,
    text: String,
}

impl Decoder {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        Decoder {
            keep_special: false,
            at_start: tokenizer.decode_start(),
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// The same, with special tokens spelled out instead of left out.
    pub fn keep_special(mut self) -> Self {
        self.keep_special = true;
        self
    }

    /// Takes the next id of `tokenizer`, always the one that made this decoder, and gives the text that is complete now; it
    /// may be empty. An id without a piece gives nothing.
    #[expect(clippy::indexing_slicing, reason = "no more can be incomplete than there is")]
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        self.text.clear();
        self.push_bytes(tokenizer, id);
        let complete = self.pending.len() - incomplete(&self.pending);
        self.text.push_str(&String::from_utf8_lossy(&self.pending[..complete]));
        self.pending.drain(..complete);
        &self.text
    }

    /// The rest: U+FFFD if the ids ended within a character.
    pub fn finish(self) -> &'static str {
        if self.pending.is_empty() { "" } else { "\u{fffd}" }
    }

    pub(super) fn decode(mut self, tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut text = String::new();
        for &id in ids {
            text.push_str(self.push(tokenizer, id));
        }
        text.push_str(self.finish());
        text
    }

    fn push_bytes(&mut self, tokenizer: &Tokenizer, id: u32) {
        let start = self.pending.len();
        if !tokenizer.push_text(id, &mut self.pending) && self.keep_special {
            let piece = tokenizer.piece(id).unwrap_or_default();
            self.pending.extend_from_slice(piece.as_bytes());
        }
        if self.pending.len() == start {
            return;
        }
        match std::mem::replace(&mut self.at_start, DecodeStart::Keep) {
            DecodeStart::Keep => {}
            DecodeStart::Space => drop(self.pending.drain(..usize::from(self.pending.starts_with(b" ")))),
            DecodeStart::Spaces if tokenizer.vocab.is_text(id) => self.pending.retain(|&byte| byte != b' '),
            DecodeStart::Spaces => {}
        }
    }
}

impl Tokenizer {
    fn decode_start(&self) -> DecodeStart {
        let by_default = match self.front {
            FrontEnd::Metaspace(_) => DecodeStart::Space,
            FrontEnd::ByteLevel(_) => DecodeStart::Keep,
        };
        self.spec.decode_start.unwrap_or(by_default)
    }

    /// The bytes of text that `id` stands for: not always whole characters. A special token is spelled out; `None` where the
    /// vocabulary has no such id.
    pub fn bytes_of(&self, id: u32) -> Option<Vec<u8>> {
        let piece = self.piece(id)?;
        let mut bytes = Vec::new();
        if !self.push_text(id, &mut bytes) {
            bytes.extend_from_slice(piece.as_bytes());
        }
        Some(bytes)
    }

    /// Appends the bytes of text that `id` stands for; false if it stands for none, as special tokens and holes do.
    pub(crate) fn push_text(&self, id: u32, out: &mut Vec<u8>) -> bool {
        let (Some(class), Some(piece)) = (self.vocab.class(id), self.piece(id)) else {
            return false;
        };
        match (class, &self.front) {
            (Class::Special, _) => return false,
            (Class::Added, _) => out.extend_from_slice(piece.as_bytes()),
            (Class::Byte(byte), _) => out.push(byte),
            (Class::Text | Class::AddedText, FrontEnd::ByteLevel(_)) => byte_level::push_bytes(piece, out),
            (Class::Text | Class::AddedText, FrontEnd::Metaspace(_)) => metaspace::push_bytes(piece, out),
        }
        true
    }
}

/// How many bytes at the end begin a character that is not complete.
fn incomplete(bytes: &[u8]) -> usize {
    let Some(last) = bytes.utf8_chunks().last() else { return 0 };
    let cut_short = std::str::from_utf8(last.invalid()).is_err_and(|error| error.error_len().is_none());
    if cut_short { last.invalid().len() } else { 0 }
}
