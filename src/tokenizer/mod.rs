//! Text to token ids and back: byte-pair encoding behind two front ends.
//!
//! [`Kind::Metaspace`] gives SentencePiece's ids (Mistral, Llama 2), [`Kind::ByteLevel`] those of GPT-2's descendants
//! (SmolLM2, Llama 3, Qwen, Mistral-Nemo).

mod bpe;
mod byte_level;
mod decode;
mod metaspace;
mod pretokenize;
mod spec;
mod spm;
mod trie;
mod vocab;
mod written;

pub use decode::Decoder;
pub use spec::{Kind, Spec};
pub use spm::{ScoredMerges, merges_from_scores};

use crate::Malformed;
use unicode_normalization::{UnicodeNormalization, is_nfc};

use bpe::{Merges, Scratch};
use byte_level::ByteLevel;
use metaspace::Metaspace;
use trie::Trie;
use vocab::{Class, Vocab};
use written::WrittenTokens;

/// A vocabulary with its merges, ready to encode and decode. Immutable; share it between threads as you like.
#[derive(Debug)]
pub struct Tokenizer {
    spec: Spec,
    vocab: Vocab,
    merges: Merges,
    front: FrontEnd,
    /// What is recognised in any text, and what where special tokens are.
    added: WrittenTokens,
    special: WrittenTokens,
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
    /// added token contradicts the vocabulary or is empty, BOS or EOS has no piece, merges that are not there are equal, the
    /// pre-tokenizer is not known, or special and added tokens have more text than can be looked for.
    pub fn new(mut spec: Spec) -> Result<Tokenizer, Malformed> {
        let vocab = Vocab::new(&mut spec)?;
        let merges = Merges::new(&spec, &vocab)?;
        let front = match spec.kind {
            Kind::Metaspace => FrontEnd::Metaspace(Metaspace::new(&spec, &vocab)),
            Kind::ByteLevel => FrontEnd::ByteLevel(ByteLevel::new(&spec, &vocab)?),
        };
        let default = |piece| vocab.id_of(piece).filter(|_| spec.kind == Kind::Metaspace);
        let bos = spec.bos_token_id.or_else(|| default("<s>"));
        let mut eos = spec.eos_token_ids.clone();
        if eos.is_empty() {
            eos.extend(default("</s>"));
        }
        let added = WrittenTokens::new(&spec, &vocab, &[Class::Added])?;
        let special = WrittenTokens::new(&spec, &vocab, &[Class::Added, Class::Special])?;
        Ok(Tokenizer { spec, vocab, merges, front, added, special, bos, eos, trie: Trie::default() })
    }

    /// The ids of `text`.
    ///
    /// Added tokens are recognised in any text, special tokens where the options say so.
    ///
    /// BOS is never doubled: it is not added to a text that begins with it as a recognised special token. Text after
    /// a recognised token is encoded as the beginning of a text is, so for [`Kind::Metaspace`] it gets a `▁` of
    /// its own, as Hugging Face's `LlamaTokenizer` (legacy), llama.cpp and mistral-common have it, unless the model's
    /// tokenizer says otherwise ([`Spec::prefix_first`]). A character that
    /// the vocabulary has no way to spell becomes `<unk>` ([`Kind::Metaspace`] with that piece) or is left out.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut scratch = Scratch::default();
        let written_bos =
            options.special && self.special.at_start(text).is_some_and(|id| Some(id) == self.bos);
        if options.bos && self.adds_bos() && !written_bos {
            ids.extend(self.bos);
        }
        let written = if options.special { &self.special } else { &self.added };
        self.encode_written(written, text, true, &mut scratch, &mut ids);
        ids
    }

    /// The ids of a text with special tokens, without BOS; the text between those goes through `restore` first.
    pub(crate) fn encode_disguised(&self, text: &str, restore: impl Fn(&str) -> String) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut scratch = Scratch::default();
        let mut prefix = true;
        for (plain, id) in self.special.split(text) {
            self.encode_written(&self.added, &restore(plain), prefix, &mut scratch, &mut ids);
            ids.extend(id);
            prefix = !self.spec.prefix_first;
        }
        ids
    }

    /// Encodes a text in which the tokens `written` are recognised.
    fn encode_written(
        &self,
        written: &WrittenTokens,
        text: &str,
        prefix: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let mut prefix = prefix;
        for (plain, id) in written.split(text) {
            self.encode_plain(plain, prefix, scratch, ids);
            ids.extend(id);
            prefix = !self.spec.prefix_first;
        }
    }

    fn encode_plain(&self, text: &str, prefix: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let composed: String;
        let text = match self.spec.nfc && !is_nfc(text) {
            true => {
                composed = text.nfc().collect();
                &composed
            }
            false => text,
        };
        match &self.front {
            FrontEnd::Metaspace(front) => front.encode(text, prefix, &self.merges, scratch, ids),
            FrontEnd::ByteLevel(front) => front.encode(text, &self.merges, scratch, ids),
        }
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// Bytes that are not UTF-8 show as U+FFFD, as [`String::from_utf8_lossy`] has it. With [`Kind::Metaspace`] one
    /// space at the very start is dropped. Ids that have no piece give nothing.
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
        self.special.iter().filter(|&(_, id)| self.is_special(id))
    }

    /// The special or added token that `text` begins with; the longest if there are several.
    pub(crate) fn token_at_start(&self, text: &str) -> Option<u32> {
        self.special.at_start(text)
    }

    /// Where `text` spells special or added tokens, in order, with the longest at each place.
    pub(crate) fn written_tokens(&self, text: &str) -> impl Iterator<Item = (usize, u32)> {
        self.special.places(text)
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
