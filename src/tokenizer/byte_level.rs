//! GPT-2's spelling of a word: every byte is a printable character.

use super::Spec;
use super::bpe::{Merger, Scratch};
use super::pretokenize::PreTokenizer;
use super::vocab::Vocab;
use rustc_hash::FxHashMap;

#[derive(Debug)]
pub(super) struct ByteLevel {
    bytes: [Option<u32>; 256],
    /// With [`Spec::ignore_merges`]: every piece by its bytes.
    whole: Option<FxHashMap<Box<[u8]>, u32>>,
}

impl ByteLevel {
    #[expect(clippy::indexing_slicing, reason = "a byte is an index of 256")]
    pub fn new(spec: &Spec, vocab: &Vocab) -> ByteLevel {
        let texts = || spec.vocab.iter().filter(|(_, id)| vocab.is_text(*id));
        let mut bytes = [None; 256];
        for (piece, id) in texts() {
            let mut spelling = piece.chars();
            if let (Some(byte), None) = (spelling.next().and_then(byte_of), spelling.next()) {
                bytes[usize::from(byte)] = Some(*id);
            }
        }
        let by_default = spec.pre.as_deref().is_some_and(PreTokenizer::ignores_merges);
        let whole = spec.ignore_merges.unwrap_or(by_default).then(|| {
            let spelled = |piece: &str| piece.chars().map(byte_of).collect::<Option<Box<[u8]>>>();
            texts().filter_map(|(piece, id)| Some((spelled(piece)?, *id))).collect()
        });
        ByteLevel { bytes, whole }
    }

    /// Appends the ids of `word`. Bytes without a piece are left out, as Hugging Face's tokenizers do.
    #[expect(clippy::indexing_slicing, reason = "a byte is an index of 256")]
    pub fn encode(&self, word: &str, merger: Merger<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if let Some(&id) = self.whole.as_ref().and_then(|whole| whole.get(word.as_bytes())) {
            return out.push(id);
        }
        scratch.symbols.extend(word.bytes().filter_map(|byte| self.bytes[usize::from(byte)]));
        merger.apply(scratch, out);
    }
}

/// The byte that a character of a piece stands for.
///
/// Bytes that are printable in Latin-1 stand for themselves. The others, in ascending order, are U+0100 and up.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(), // 0x00..=0x20
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(), // 0x7f..=0xa0
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Bytes as the pieces of a [`Kind::ByteLevel`](super::Kind::ByteLevel) vocabulary spell them.
pub fn spell_bytes(bytes: &[u8]) -> String {
    let char_of = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0x00..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap_or_default(),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap_or_default(),
        0xad => '\u{143}',
    };
    bytes.iter().map(|&byte| char_of(byte)).collect()
}

/// Appends the bytes that `piece` spells; a piece that is not so spelled (an added token) is its own text.
pub(super) fn push_bytes(piece: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in piece.chars() {
        let Some(byte) = byte_of(c) else {
            out.truncate(start);
            return out.extend_from_slice(piece.as_bytes());
        };
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        bytes.sort();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        for byte in 0..=255 {
            let spelled: Vec<_> = spell_bytes(&[byte]).chars().map(byte_of).collect();
            assert_eq!(spelled, [Some(byte)]);
        }
        // Spot checks against the table in GPT-2's encoder.py.
        let known =
            [('Ġ', b' '), ('Ċ', b'\n'), ('ĉ', b'\t'), ('!', b'!'), ('Â', 0xc2), ('ł', 0xa0), ('Ń', 0xad)];
        for (c, byte) in known {
            assert_eq!(byte_of(c), Some(byte), "{c}");
        }
    }

    #[test]
    fn a_piece_that_is_not_spelled_bytes_is_its_own_text() {
        let mut bytes = Vec::new();
        push_bytes("Ġhi", &mut bytes);
        push_bytes("a Ġ", &mut bytes);
        assert_eq!(String::from_utf8(bytes).unwrap(), " hia Ġ");
    }
}
