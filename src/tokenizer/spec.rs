//! The data a tokenizer is built from: what the `.bin` header's `tokenizer` object holds, and what
//! the converters gather from a `tokenizer.json` or a GGUF file.

use std::ops::Range;

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
    /// Pieces that are control tokens, not text: recognised in text only where asked for, dropped when decoding.
    pub special_tokens: Vec<(String, u32)>,
    /// Pieces that are text, but recognised wherever they stand in one before anything else is done with it (Qwen 3's
    /// `<think>`).
    pub added_tokens: Vec<(String, u32)>,
    /// Whether a text is brought into Unicode's composed form (NFC) first.
    pub nfc: bool,
    /// [`Kind::Metaspace`] only: the `▁` that is put before a text is not put before what follows a recognised token.
    pub prefix_first: bool,
    /// The token a text begins with.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether `encode` begins a text with BOS. Absent: yes for [`Kind::Metaspace`], no for [`Kind::ByteLevel`].
    pub add_bos: Option<bool>,
    /// The chat template (Jinja), kept for those who apply it.
    pub chat_template: Option<String>,
}
