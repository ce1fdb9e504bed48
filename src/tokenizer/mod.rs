//! Text to token ids and back: byte-pair encoding behind two front ends.
//!
//! [`Kind::Metaspace`] gives SentencePiece's ids (Mistral, Llama 2, Gemma), [`Kind::ByteLevel`] those of GPT-2's descendants
//! (SmolLM2, Llama 3, Qwen, Mistral-Nemo).
//!
//! As in Hugging Face's tokenizers, a text goes through these steps: tokens that are not normalised are found in it; what is
//! between them is normalised; the other tokens are found in that; what is between those is cut into words
//! ([`Cut`]); and each word's symbols are merged.

mod bpe;
mod byte_level;
mod cut;
mod decode;
mod expression;
mod metaspace;
mod normalize;
mod pretokenize;
mod recognize;
mod spec;
mod spm;
mod steps;
mod trie;
mod vocab;
mod written;

pub(crate) use byte_level::spell_bytes;
pub use decode::Decoder;
pub use spec::{DecodeStart, Kind, Spec, TokenRule};
pub use spm::{ScoredMerges, merges_from_scores, scores_for_merges};
pub use steps::{Behavior, Cut, Normalize, Pattern, Prepend};

use crate::Malformed;

use bpe::{Merger, Merges, Scratch};
use byte_level::ByteLevel;
use cut::Cutter;
use metaspace::Metaspace;
use normalize::Normalizer;
use recognize::Recognizer;
use trie::Trie;
use vocab::{Class, Vocab};

/// A vocabulary with its merges, ready to encode and decode. Immutable; share it between threads as you like.
#[derive(Debug)]
pub struct Tokenizer {
    spec: Spec,
    vocab: Vocab,
    merges: Merges,
    normalizer: Normalizer,
    cutter: Cutter,
    front: FrontEnd,
    /// What is recognised in any text, and what where special tokens are.
    added: Recognizer,
    special: Recognizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Built when a grammar first asks for it.
    trie: Trie,
}

#[derive(Debug)]
enum FrontEnd {
    Metaspace(Metaspace),
    ByteLevel(ByteLevel),
}

/// What [`Tokenizer::encode`] does besides encoding plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Begin with BOS where the model's convention ([`Spec::add_bos`]) says so: true for the beginning of a text,
    /// false for the middle of one.
    pub bos: bool,
    /// Recognise special tokens written out in the text (a rendered chat template). If false they are plain text,
    /// which is what text from strangers should be.
    pub special: bool,
}

impl Default for EncodeOptions {
    /// The beginning of a plain text: BOS where the model wants it, special tokens not recognised.
    fn default() -> Self {
        EncodeOptions { bos: true, special: false }
    }
}

impl Tokenizer {
    /// The largest id a vocabulary may use; more is taken for a damaged file.
    pub const MAX_ID: u32 = (1 << 24) - 1;

    /// Checks a specification and builds its tables.
    ///
    /// Special and added tokens that the vocabulary lacks are put into it. With [`Kind::Metaspace`], `<unk>`, `<s>` and `</s>`
    /// are special wherever the vocabulary has them, and BOS and EOS unless the specification names others. Merges
    /// that cannot apply (a part or the result is missing from the vocabulary, or the result is a special token or a
    /// byte) are ignored, so that files whose vocabulary was cut down still load.
    ///
    /// # Errors
    /// [`Malformed`] if an id is above [`Tokenizer::MAX_ID`], an id or a piece occurs twice, a special or
    /// added token contradicts the vocabulary or is empty, BOS or EOS has no piece, merges that are not there are equal, a step
    /// is not known, contradicts the kind or has an expression that cannot be used, there are merges and scores, or
    /// special and added tokens have more text than can be looked for.
    pub fn new(mut spec: Spec) -> Result<Tokenizer, Malformed> {
        let vocab = Vocab::new(&mut spec)?;
        let merges = Merges::new(&spec, &vocab)?;
        let normalizer = Normalizer::new(&spec)?;
        let cutter = Cutter::new(&spec)?;
        let front = match spec.kind {
            Kind::Metaspace => FrontEnd::Metaspace(Metaspace::new(&spec, &vocab)),
            Kind::ByteLevel => FrontEnd::ByteLevel(ByteLevel::new(&spec, &vocab)),
        };
        let default = |piece| vocab.id_of(piece).filter(|_| spec.kind == Kind::Metaspace);
        let bos = spec.bos_token_id.or_else(|| default("<s>"));
        let mut eos = spec.eos_token_ids.clone();
        if eos.is_empty() {
            eos.extend(default("</s>"));
        }
        let recognizer = |classes: &[Class]| Recognizer::new(&spec, &vocab, &normalizer, classes);
        let added = recognizer(&[Class::Added, Class::AddedText])?;
        let special = recognizer(&[Class::Added, Class::AddedText, Class::Special])?;
        let trie = Trie::default();
        Ok(Tokenizer { spec, vocab, merges, normalizer, cutter, front, added, special, bos, eos, trie })
    }

    /// The ids of `text`.
    ///
    /// Added tokens are recognised in any text, special tokens where the options say so, each by its rule
    /// ([`Spec::token_rules`]).
    ///
    /// BOS is never doubled: it is not added to a text that begins with it as a recognised special token. With
    /// [`Kind::Metaspace`], unless the model's tokenizer says otherwise, text after a recognised token is encoded as the
    /// beginning of a text is and gets a `▁` of its own, as Hugging Face's `LlamaTokenizer` (legacy), llama.cpp and
    /// mistral-common have it. A character that
    /// the vocabulary has no way to spell becomes `<unk>` ([`Kind::Metaspace`] with that piece) or is left out.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        let mut ids = Vec::new();
        if options.bos && self.adds_bos() {
            let start = match &self.spec.start_tokens[..] {
                [] => self.bos.as_slice(),
                several => several,
            };
            let written = options.special.then(|| self.token_at_start(text)).flatten();
            if written.is_none() || written != start.first().copied() {
                ids.extend(start);
            }
        }
        let recognizer = if options.special { &self.special } else { &self.added };
        self.encode_with(recognizer, text, true, &mut Scratch::default(), &mut ids);
        ids
    }

    /// The ids of a text with special tokens, without BOS; the text between those goes through `restore` first.
    ///
    /// Special tokens are recognised as they are written, those too that are normalised elsewhere: what is restored must not
    /// become one by being normalised.
    pub(crate) fn encode_disguised(&self, text: &str, restore: impl Fn(&str) -> String) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut scratch = Scratch::default();
        let mut first = true;
        for (plain, id) in self.special.as_written().split(text) {
            let restored = restore(plain);
            match restored == plain {
                // Added tokens have been looked for, with what is around.
                true => self.encode_between(&self.added, plain, first, &mut scratch, &mut ids),
                false => self.encode_with(&self.added, &restored, first, &mut scratch, &mut ids),
            }
            ids.extend(id);
            first = false;
        }
        ids
    }

    /// Encodes a text in which `recognizer`'s tokens are recognised; `first` if it is the beginning of the whole.
    fn encode_with(
        &self,
        recognizer: &Recognizer,
        text: &str,
        first: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let mut first = first;
        for (raw, id) in recognizer.raw.split(text) {
            self.encode_between(recognizer, raw, first, scratch, ids);
            ids.extend(id);
            first = false;
        }
    }

    /// Encodes what is between the tokens that are not normalised.
    fn encode_between(
        &self,
        recognizer: &Recognizer,
        raw: &str,
        first: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        if raw.is_empty() {
            return;
        }
        let normal = self.normalizer.apply(raw, first);
        let mut first = normal.first;
        for (plain, id) in recognizer.normalized.split(&normal.text) {
            self.encode_plain(plain, first, scratch, ids);
            ids.extend(id);
            first = false;
        }
    }

    /// Encodes what is between tokens, normalised.
    fn encode_plain(&self, text: &str, first: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let merger = Merger { merges: &self.merges, vocab: &self.vocab, spec: &self.spec };
        self.cutter.words(text, first, |word| match &self.front {
            FrontEnd::Metaspace(front) => front.encode(word, merger, scratch, ids),
            FrontEnd::ByteLevel(front) => front.encode(word, merger, scratch, ids),
        });
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// Bytes that are not UTF-8 show as U+FFFD, as [`String::from_utf8_lossy`] has it. With [`Kind::Metaspace`] one
    /// space at the very start is dropped, unless [`Spec::decode_start`] says otherwise. Ids that have no piece give nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decoder().decode(self, ids)
    }

    /// Like [`Tokenizer::decode`], with special tokens spelled out.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        self.decoder().keep_special().decode(self, ids)
    }

    /// A decoder that takes ids of this tokenizer one at a time.
    pub fn decoder(&self) -> Decoder {
        Decoder::new(self)
    }

    /// The piece with this id, as the vocabulary spells it; `None` for a hole and past the end.
    pub fn piece(&self, id: u32) -> Option<&str> {
        let (piece, _) = self.spec.vocab.get(self.vocab.slot(id)?)?;
        Some(piece)
    }

    /// The id of a piece, spelled as in the vocabulary.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.vocab.id_of(piece)
    }

    /// Whether `id` is a special token: recognised in text only where asked for, not shown when decoding.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.class(id) == Some(Class::Special)
    }

    /// The special tokens, sorted by their bytes.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.special.as_written().iter().filter(|&(_, id)| self.is_special(id))
    }

    /// The special or added token that `text` begins with; the longest if there are several.
    pub(crate) fn token_at_start(&self, text: &str) -> Option<u32> {
        self.special.as_written().at_start(text)
    }

    /// Where `text` spells special or added tokens, in order, with the longest at each place.
    pub(crate) fn written_tokens(&self, text: &str) -> impl Iterator<Item = (usize, u32)> {
        self.special.as_written().places(text)
    }

    /// The largest id + 1; 0 for an empty vocabulary. Ids below it may be holes.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
    }

    /// The token a text begins with, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether [`Tokenizer::encode`] begins a text with BOS.
    pub fn adds_bos(&self) -> bool {
        self.spec.add_bos.unwrap_or(self.spec.kind == Kind::Metaspace)
    }

    /// The tokens that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The specification this was built from, special tokens added to its vocabulary.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
}
