//! SentencePiece's spelling of text: its characters, `▁` for spaces, and `<0xXX>` for characters without a piece.

use super::Spec;
use super::bpe::{Merger, Scratch};
use super::vocab::{Class, Vocab};
use rustc_hash::{FxHashMap, FxHashSet};

/// The character that stands for a space.
pub(super) const SPACE: char = '▁';

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
                (Some(Class::Text | Class::AddedText), Some(only), None) => {
                    chars.insert(only, *id);
                }
                _ => {}
            }
        }
        Metaspace { chars, bytes, unk: vocab.id_of("<unk>"), joints: joints(spec, vocab) }
    }

    /// Appends the ids of `text`. A run of characters that cannot be spelled gives one `<unk>`, as in SentencePiece.
    pub fn encode(&self, text: &str, merger: Merger<'_>, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let mut before = SPACE;
        let mut unknown = false;
        for c in text.chars() {
            if !self.joints.contains(&(before, c)) {
                merger.apply(scratch, out);
            }
            before = c;
            let after_unknown = std::mem::take(&mut unknown);
            if let Some(&id) = self.chars.get(&c) {
                scratch.symbols.push(id);
                continue;
            }
            merger.apply(scratch, out);
            unknown = !self.spell(c, out);
            if unknown && !after_unknown {
                out.extend(self.unk);
            }
        }
        merger.apply(scratch, out);
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

fn joints(spec: &Spec, vocab: &Vocab) -> FxHashSet<(char, char)> {
    let joint = |(left, right): &(String, String)| Some((left.chars().next_back()?, right.chars().next()?));
    let mut joints: FxHashSet<_> = spec.merges.iter().filter_map(joint).collect();
    for ((piece, id), _) in spec.vocab.iter().zip(&spec.scores) {
        if vocab.is_text(*id) {
            joints.extend(piece.chars().zip(piece.chars().skip(1)));
        }
    }
    joints
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
