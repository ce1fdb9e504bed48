//! The data a tokenizer is built from: what the `.bin` header's `tokenizer` object holds, and what
//! the converters gather from a `tokenizer.json` or a GGUF file.

use std::ops::Range;

use super::steps::{Cut, Normalize};

/// How text becomes the symbols that byte-pair encoding starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// SentencePiece-style BPE: `▁` for spaces, unknown characters as `<0xXX>` byte pieces (Mistral, Llama 2).
    #[default]
    Metaspace,
    /// GPT-2 style: a pre-tokenizer splits the text, bytes are spelled as printable characters (SmolLM2,
    /// Llama 3, Qwen, Mistral-Nemo).
    ByteLevel,
}

/// A tokenizer's vocabulary, merges and conventions. Untrusted until `Tokenizer::new` has checked it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Spec {
    /// The front end.
    pub kind: Kind,
    /// What is done to a text before it is cut. Absent: as the kind has it, which is `▁` before the text and for every space
    /// with [`Kind::Metaspace`], nothing with [`Kind::ByteLevel`]; either with [`Spec::nfc`] before.
    pub normalizer: Option<Vec<Normalize>>,
    /// How it is cut into words, which are merged each for itself. Absent: by [`Spec::pre`] with [`Kind::ByteLevel`], not
    /// at all with [`Kind::Metaspace`].
    pub pre_tokenizer: Option<Vec<Cut>>,
    /// The pre-tokenizer's name for [`Kind::ByteLevel`], in GGUF's spelling: `gpt-2`, `smollm`, `llama-bpe`, `qwen2`,
    /// `tekken`.
    pub pre: Option<String>,
    /// Every piece and its id. Ids may have holes.
    pub vocab: Vec<(String, u32)>,
    /// Whether a word that is a piece is taken as it is, whatever the merges say; [`Kind::ByteLevel`] only. Absent: with
    /// the pre-tokenizers `llama-bpe` and `tekken`.
    pub ignore_merges: Option<bool>,
    /// Pairs of pieces in order of rank, best first.
    pub merges: Vec<(String, String)>,
    /// Which of [`Spec::merges`] share a rank, so that the leftmost in a text goes first: ranges in order. The others have a
    /// rank each.
    pub equal_merges: Vec<Range<usize>>,
    /// By place in [`Spec::vocab`], in place of merges: two pieces become the one that they spell together, that of the best
    /// score first, the leftmost in a text among equals (SentencePiece). Pieces past the end, or longer than 128 bytes, are not made.
    pub scores: Vec<f32>,
    /// Pieces that are control tokens, not text: recognised in text only where asked for, dropped when decoding.
    pub special_tokens: Vec<(String, u32)>,
    /// Pieces that are text, but recognised wherever they stand in one before anything else is done with it (Qwen 3's
    /// `<think>`).
    pub added_tokens: Vec<(String, u32)>,
    /// How special and added tokens are recognised, by id, where not as they are written.
    pub token_rules: Vec<(u32, TokenRule)>,
    /// Whether a text is brought into Unicode's composed form (NFC) first. Only without a [`Spec::normalizer`].
    pub nfc: bool,
    /// [`Kind::Metaspace`] without a [`Spec::normalizer`]: the `▁` that is put before a text is not put before what follows a
    /// recognised token.
    pub prefix_first: bool,
    /// What of the first piece is not text when it is decoded. Absent: a space with [`Kind::Metaspace`], nothing with
    /// [`Kind::ByteLevel`].
    pub decode_start: Option<DecodeStart>,
    /// The token a text begins with.
    pub bos_token_id: Option<u32>,
    /// The tokens a text begins with, where they are several: in place of BOS.
    pub start_tokens: Vec<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether `encode` begins a text with BOS. Absent: yes for [`Kind::Metaspace`], no for [`Kind::ByteLevel`].
    pub add_bos: Option<bool>,
    /// The chat template (Jinja), kept for those who apply it.
    pub chat_template: Option<String>,
}

/// How a special or added token is recognised in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenRule {
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space after it belongs to it.
    pub rstrip: bool,
    /// Not within a word.
    pub single_word: bool,
    /// Looked for in the normalised text, itself normalised; the others are found before, in the text as it is.
    pub normalized: bool,
    /// An added token that is also a piece like others, which merging may make.
    pub mergeable: bool,
}

/// What a decoder drops at the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeStart {
    /// Nothing.
    Keep,
    /// One space.
    Space,
    /// All spaces of the first piece.
    Spaces,
}
