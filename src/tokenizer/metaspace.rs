//! SentencePiece's spelling of text: `▁` for spaces and before the text, `<0xXX>` for characters without a piece.

use super::Spec;
use super::bpe::{Merges, Scratch};
use super::vocab::{Class, Vocab};
use rustc_hash::{FxHashMap, FxHashSet};

/// The character that stands for a space.
const SPACE: char = '▁';

#[derive(Debug)]
pub(super) struct Metaspace {
    chars: FxHashMap<char, u32>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    /// (last character of the left part, first of the right) of every merge. Between other characters nothing merges,
    /// so the text can be cut there: short words instead of one long one.
    joints: FxHashSet<(char, char)>,
}

impl Metaspace {
    #[expect(clippy::indexing_slicing, reason = "a byte is an index of 256")]
    pub fn new(spec: &Spec, vocab: &Vocab) -> Metaspace {
        let mut chars = FxHashMap::default();
        let mut bytes = [None; 256];
        for (piece, id) in &spec.vocab {
            let mut spelling = piece.chars();
            match (vocab.class(*id), spelling.next(), spelling.next()) {
                (Some(Class::Byte(byte)), ..) => bytes[usize::from(byte)] = Some(*id),
                (Some(Class::Text), Some(only), None) => {
                    chars.insert(only, *id);
                }
                _ => {}
            }
        }
        let joint =
            |(left, right): &(String, String)| Some((left.chars().next_back()?, right.chars().next()?));
        Metaspace {
            chars,
            bytes,
            unk: vocab.id_of("<unk>"),
            joints: spec.merges.iter().filter_map(joint).collect(),
        }
    }

    /// Appends the ids of `text`, a `▁` before it if `prefix`. A run of characters that cannot be spelled gives one `<unk>`,
    /// as in SentencePiece.
    pub fn encode(
        &self,
        text: &str,
        prefix: bool,
        merges: &Merges,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        if text.is_empty() {
            return;
        }
        let spelled = text.chars().map(|c| if c == ' ' { SPACE } else { c });
        let mut before = SPACE;
        let mut unknown = false;
        for c in prefix.then_some(SPACE).into_iter().chain(spelled) {
            if !self.joints.contains(&(before, c)) {
                merges.apply(scratch, out);
            }
            before = c;
            let after_unknown = std::mem::take(&mut unknown);
            if let Some(&id) = self.chars.get(&c) {
                scratch.symbols.push(id);
                continue;
            }
            merges.apply(scratch, out);
            unknown = !self.spell(c, out);
            if unknown && !after_unknown {
                out.extend(self.unk);
            }
        }
        merges.apply(scratch, out);
    }

    /// Appends the byte pieces of `c`, unless the vocabulary lacks any of them.
    #[expect(clippy::indexing_slicing, reason = "a byte is an index of 256")]
    fn spell(&self, c: char, out: &mut Vec<u32>) -> bool {
        let mut utf8 = [0; 4];
        let pieces = c.encode_utf8(&mut utf8).bytes().map(|byte| self.bytes[usize::from(byte)]);
        let complete = pieces.clone().all(|piece| piece.is_some());
        if complete {
            out.extend(pieces.flatten());
        }
        complete
    }
}

/// Appends the text that `piece` spells.
pub(super) fn push_bytes(piece: &str, out: &mut Vec<u8>) {
    for (at, part) in piece.split(SPACE).enumerate() {
        if at > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(part.as_bytes());
    }
}
