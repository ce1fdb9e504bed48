//! Ids, pieces, and what each piece is.

use super::{Kind, Spec, Tokenizer};
use crate::Malformed;
use rustc_hash::{FxHashMap, FxHashSet};

/// What a piece stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Text, spelled as the tokenizer's [`Kind`] spells it.
    Text,
    /// One byte: `<0xXX>` of a [`Kind::Metaspace`] vocabulary.
    Byte(u8),
    /// A special token, never made from plain text.
    Special,
    /// Its own text, recognised in one but never made by merging.
    Added,
    /// Recognised like an added token, and made by merging and spelled like text.
    AddedText,
}

/// The index of a [`Spec`]'s vocabulary, in both directions. A slot is a position in [`Spec::vocab`].
#[derive(Debug)]
pub(super) struct Vocab {
    /// By id: slot + 1, or 0 for a hole.
    slots: Vec<u32>,
    ids: FxHashMap<Box<str>, u32>,
    /// By slot.
    classes: Vec<Class>,
}

impl Vocab {
    /// Checks and indexes the vocabulary, special and added tokens put into it where it lacks them.
    #[expect(
        clippy::indexing_slicing,
        reason = "there are slots up to the largest id, and they hold places in the vocabulary"
    )]
    pub fn new(spec: &mut Spec) -> Result<Vocab, Malformed> {
        let ids = unique_pieces(spec)?;
        let mut slots = vec![0u32; spec.vocab.iter().map(|&(_, id)| id as usize + 1).max().unwrap_or(0)];
        for (slot, (piece, id)) in (1..).zip(&spec.vocab) {
            let of_id = &mut slots[*id as usize];
            if *of_id != 0 {
                let other = &spec.vocab[*of_id as usize - 1].0;
                return Err(malformed(format!(
                    "pieces {} and {} share id {id}",
                    quoted(other),
                    quoted(piece)
                )));
            }
            *of_id = slot;
        }
        let classes = spec.vocab.iter().map(|(piece, _)| class_of(piece, spec.kind)).collect();
        let mut vocab = Vocab { slots, ids, classes };
        vocab.mark_tokens(spec)?;
        Ok(vocab)
    }

    fn mark_tokens(&mut self, spec: &Spec) -> Result<(), Malformed> {
        let mergeable: FxHashSet<u32> =
            spec.token_rules.iter().filter(|(_, rule)| rule.mergeable).map(|&(id, _)| id).collect();
        for &(_, id) in &spec.added_tokens {
            self.set(id, if mergeable.contains(&id) { Class::AddedText } else { Class::Added });
        }
        for &(_, id) in &spec.special_tokens {
            self.set(id, Class::Special);
        }
        for &(id, _) in &spec.token_rules {
            if !matches!(self.class(id), Some(Class::Added | Class::AddedText | Class::Special)) {
                return Err(malformed(format!("token {id} has a rule, but is neither special nor added")));
            }
        }
        for (name, id) in (spec.bos_token_id.iter().map(|id| ("BOS", id)))
            .chain(spec.start_tokens.iter().map(|id| ("start", id)))
            .chain(spec.eos_token_ids.iter().map(|id| ("EOS", id)))
        {
            if !self.set(*id, Class::Special) {
                return Err(malformed(format!("the {name} token's id {id} is not in the vocabulary")));
            }
        }
        Ok(())
    }

    fn set(&mut self, id: u32, class: Class) -> bool {
        let of_id = self.slot(id).and_then(|slot| self.classes.get_mut(slot));
        of_id.map(|of_id| *of_id = class).is_some()
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn slot(&self, id: u32) -> Option<usize> {
        (*self.slots.get(id as usize)? as usize).checked_sub(1)
    }

    pub fn class(&self, id: u32) -> Option<Class> {
        self.classes.get(self.slot(id)?).copied()
    }

    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// Whether plain text may become the piece with this id.
    pub fn is_text(&self, id: u32) -> bool {
        matches!(self.class(id), Some(Class::Text | Class::AddedText))
    }

    /// The id of a piece that plain text may become.
    pub fn text_id(&self, piece: &str) -> Option<u32> {
        self.id_of(piece).filter(|&id| self.is_text(id))
    }
}

/// Maps pieces to ids, after putting into the vocabulary the special and added tokens that it lacks.
fn unique_pieces(spec: &mut Spec) -> Result<FxHashMap<Box<str>, u32>, Malformed> {
    let mut ids: FxHashMap<Box<str>, u32> = FxHashMap::default();
    ids.reserve(spec.vocab.len());
    for (piece, id) in &spec.vocab {
        check_id(piece, *id)?;
        if ids.insert(piece.as_str().into(), *id).is_some() {
            return Err(malformed(format!("piece {} occurs twice", quoted(piece))));
        }
    }
    let special = spec.special_tokens.iter().map(|token| ("special", token));
    for (kind, (piece, id)) in special.chain(spec.added_tokens.iter().map(|token| ("added", token))) {
        check_id(piece, *id)?;
        if piece.is_empty() {
            return Err(malformed(format!("{kind} token {id} is empty")));
        }
        match ids.get(piece.as_str()) {
            Some(known) if known != id => {
                let piece = quoted(piece);
                return Err(malformed(format!(
                    "{kind} token {piece} has id {id}, but {known} in the vocabulary"
                )));
            }
            Some(_) => {}
            None => {
                ids.insert(piece.as_str().into(), *id);
                spec.vocab.push((piece.clone(), *id));
            }
        }
    }
    Ok(ids)
}

fn check_id(piece: &str, id: u32) -> Result<(), Malformed> {
    if id > Tokenizer::MAX_ID {
        let max = Tokenizer::MAX_ID;
        return Err(malformed(format!("piece {} has id {id}, above the limit of {max}", quoted(piece))));
    }
    Ok(())
}

fn class_of(piece: &str, kind: Kind) -> Class {
    match (kind, piece) {
        (Kind::Metaspace, "<unk>" | "<s>" | "</s>") => Class::Special,
        (Kind::Metaspace, _) => byte_piece(piece).map_or(Class::Text, Class::Byte),
        (Kind::ByteLevel, _) => Class::Text,
    }
}

/// The byte that `<0xXX>` (two upper-case hexadecimal digits) stands for.
fn byte_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    if digits.len() != 2 || !digits.bytes().all(upper_hex) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

pub(super) fn malformed(problem: String) -> Malformed {
    Malformed(format!("tokenizer: {problem}"))
}

/// A piece as an error message shows it: escaped, in quotes, not too long.
pub(super) fn quoted(piece: &str) -> String {
    match piece.char_indices().nth(40) {
        Some((end, _)) => format!("{:?}…", &piece[..end]),
        None => format!("{piece:?}"),
    }
}
