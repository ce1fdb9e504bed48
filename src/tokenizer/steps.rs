//! The steps from a text to its words, as `tokenizer.json` and the `.bin` header write them.

use serde::{Deserialize, Serialize};

/// One step of a normalizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum Normalize {
    /// Unicode's canonical composition.
    #[serde(rename = "NFC")]
    Nfc {},
    /// Its canonical decomposition.
    #[serde(rename = "NFD")]
    Nfd {},
    /// Its compatibility composition.
    #[serde(rename = "NFKC")]
    Nfkc {},
    /// Its compatibility decomposition.
    #[serde(rename = "NFKD")]
    Nfkd {},
    /// Lower case, character by character.
    Lowercase {},
    /// Combining marks are left out.
    StripAccents {},
    /// White space at the ends is left out.
    Strip {
        /// At the beginning.
        #[serde(rename = "strip_left")]
        left: bool,
        /// At the end.
        #[serde(rename = "strip_right")]
        right: bool,
    },
    /// Put before a text that is not empty.
    Prepend {
        /// What is.
        prepend: String,
    },
    /// Put in place of every match.
    Replace {
        /// Of what.
        pattern: Pattern,
        /// What is put there, as it stands.
        content: String,
    },
}

/// One step of a pre-tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum Cut {
    /// At matches.
    Split {
        /// Of what.
        pattern: Pattern,
        /// What becomes of them.
        behavior: Behavior,
        /// What matches and what does not are exchanged.
        #[serde(default)]
        invert: bool,
    },
    /// At characters that are numbers.
    Digits {
        /// Each for itself, or runs of them.
        individual_digits: bool,
    },
    /// At punctuation.
    Punctuation {
        /// What becomes of it.
        #[serde(default)]
        behavior: Behavior,
    },
    /// Into runs of letters and digits, and of symbols; white space is left out.
    Whitespace {},
    /// Into what stands between white space.
    WhitespaceSplit {},
    /// A character for every space and, by the scheme, before the text.
    Metaspace {
        /// The character.
        replacement: char,
        /// Where it is put before a text that does not begin with it.
        prepend_scheme: Prepend,
        /// Whether the text is cut before each of them.
        split: bool,
    },
    /// GPT-2's, which spells the words in bytes; the last step, with [`Kind::ByteLevel`](super::Kind::ByteLevel) only.
    ByteLevel {
        /// Whether a space is put before a text that does not begin with one.
        add_prefix_space: bool,
        /// Whether it cuts by GPT-2's expression.
        #[serde(default = "yes")]
        use_regex: bool,
    },
}

fn yes() -> bool {
    true
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// This text.
    String(String),
    /// What this expression matches, in the language of Oniguruma.
    Regex(String),
}

/// What becomes of the matches that a text is cut at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Behavior {
    /// They are left out.
    Removed,
    /// Each is a word.
    #[default]
    Isolated,
    /// Each belongs to the word before it.
    MergedWithPrevious,
    /// Each belongs to the word after it.
    MergedWithNext,
    /// Those that follow each other are one word.
    Contiguous,
}

/// Where `▁` is put before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prepend {
    /// At the beginning of the whole.
    First,
    /// Nowhere.
    Never,
    /// Also after recognised tokens.
    Always,
}
