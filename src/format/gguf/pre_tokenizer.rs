//! The byte-level pre-tokenizers, which GGUF files give by name only.

use super::Gguf;
use crate::Malformed;
use crate::tokenizer::{Behavior, Cut, Kind, Pattern, Spec};

/// How the models of a name cut a text.
enum Cuts {
    /// By a pre-tokenizer that has a name of ours.
    Named(&'static str),
    /// At the matches of these expressions, one after another, each match being a word.
    Splits(&'static [&'static str]),
}

/// What a name stands for.
struct Pre {
    names: &'static [&'static str],
    cuts: Cuts,
    /// Whether a word that is a piece is taken whole, whatever the merges say.
    ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    add_bos: bool,
    /// Whether a text is composed first: nothing in the file says so, but these models' own tokenizers do it.
    nfc: bool,
}

const PLAIN: Pre =
    Pre { names: &[], cuts: Cuts::Named("gpt-2"), ignore_merges: false, add_bos: false, nfc: false };

/// White space, and letters of the scripts that have case, those that were known when it was written.
const CASED: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}",
    r"\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}",
    r"\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}",
    r"\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}",
    r"\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}",
    r"\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}",
    r"\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}",
    r"\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}",
    r"\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}",
    r"\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}",
    r"\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}",
    r"]+",
);

/// What llama.cpp makes of the names, with the expressions as the models' own tokenizers have them.
const KNOWN: [Pre; 10] = [
    Pre {
        names: &["gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "trillion", "granite-docling"],
        ..PLAIN
    },
    Pre {
        names: &["smollm", "refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b"],
        cuts: Cuts::Named("smollm"),
        ..PLAIN
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        cuts: Cuts::Named("llama-bpe"),
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre { names: &["dbrx", "smaug-bpe"], cuts: Cuts::Named("llama-bpe"), ..PLAIN },
    Pre { names: &["qwen2", "deepseek-r1-qwen"], cuts: Cuts::Named("qwen2"), nfc: true, ..PLAIN },
    Pre { names: &["tekken"], cuts: Cuts::Named("tekken"), ignore_merges: true, add_bos: true, ..PLAIN },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2"],
        cuts: Cuts::Splits(&[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        ..PLAIN
    },
    Pre {
        names: &["deepseek-llm"],
        cuts: Cuts::Splits(&[
            r"[\r\n]",
            CASED,
            r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
            r"\s+$",
            r"[一-龥\u0800-一가-\ud7ff]+",
            r"\p{N}+",
        ]),
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"],
        cuts: Cuts::Splits(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"]),
        ..PLAIN
    },
    Pre {
        names: &["deepseek-v3"],
        cuts: Cuts::Splits(&[
            r"\p{N}{1,3}",
            r"[一-龥\u3040-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ]),
        ..PLAIN
    },
];

/// A specification with how a text is cut.
pub fn read(gguf: &Gguf<'_>) -> Result<Spec, Malformed> {
    let name = gguf.str("tokenizer.ggml.pre")?.unwrap_or("missing");
    let Some(pre) = known(name) else {
        let names: Vec<&str> = KNOWN.iter().flat_map(|pre| pre.names).copied().collect();
        return Err(Malformed(format!(
            "tokenizer.ggml.pre is {name}: only {} are supported",
            names.join(", ")
        )));
    };
    let mut spec = Spec { kind: Kind::ByteLevel, nfc: pre.nfc, ..Spec::default() };
    match pre.cuts {
        Cuts::Named(name) => spec.pre = Some(name.to_owned()),
        Cuts::Splits(expressions) => {
            let split = |expression: &&str| Cut::Split {
                pattern: Pattern::Regex((*expression).to_owned()),
                behavior: Behavior::Isolated,
                invert: false,
            };
            let bytes = Cut::ByteLevel { add_prefix_space: false, use_regex: false };
            spec.pre_tokenizer = Some(expressions.iter().map(split).chain([bytes]).collect());
        }
    }
    // What a name of ours stands for where nobody says.
    let by_default = matches!(spec.pre.as_deref(), Some("llama-bpe" | "tekken"));
    spec.ignore_merges = Some(pre.ignore_merges).filter(|ignore| *ignore != by_default);
    Ok(spec)
}

/// Whether a text of a byte-level model begins with BOS where the file does not say.
pub fn adds_bos(gguf: &Gguf<'_>) -> Result<bool, Malformed> {
    let name = gguf.str("tokenizer.ggml.pre")?.unwrap_or_default();
    Ok(known(name).is_some_and(|pre| pre.add_bos))
}

fn known(name: &str) -> Option<&'static Pre> {
    KNOWN.iter().find(|pre| pre.names.contains(&name))
}
