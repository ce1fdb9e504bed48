//! Any vocabulary, merges and text: nothing panics, text that comes piece by piece is the text that comes at once, and
//! a vocabulary with every byte loses nothing.
#![no_main]

use arbitrary::Arbitrary;
use torchless::tokenizer::{
    Behavior, Cut, DecodeStart, EncodeOptions, Kind, Normalize, Pattern, Prepend, Spec, TokenRule, Tokenizer,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    byte_level: bool,
    /// With all bytes and the space in the vocabulary: then nothing may be lost.
    all_bytes: bool,
    pre: u8,
    pieces: Vec<(&'a str, u16)>,
    merges: Vec<(&'a str, &'a str)>,
    /// Merges by the place of their parts among the pieces, so that some apply.
    merged: Vec<(u8, u8)>,
    special: Vec<(&'a str, u16)>,
    added: Vec<(&'a str, u16)>,
    /// Steps of a normalizer and of a pre-tokenizer, by what `normalize` and `cut` make of them.
    normalizer: Option<Vec<(u8, &'a str)>>,
    cuts: Option<Vec<(u8, u8, &'a str)>>,
    /// Rules of the special and added tokens, by the bits of a number.
    rules: Vec<(u16, u8)>,
    decode_start: u8,
    bos: Option<u16>,
    add_bos: Option<bool>,
    text: &'a str,
    ids: Vec<u32>,
}

fn spec(input: &Input) -> Spec {
    let kind = if input.byte_level { Kind::ByteLevel } else { Kind::Metaspace };
    let owned = |entries: &[(&str, u16)]| -> Vec<(String, u32)> {
        entries.iter().map(|&(piece, id)| (piece.to_owned(), id.into())).collect()
    };
    let mut spec = Spec {
        kind,
        pre: input.byte_level.then(|| {
            ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"][usize::from(input.pre) % 5].to_owned()
        }),
        vocab: owned(&input.pieces),
        merges: input.merges.iter().map(|(l, r)| (l.to_string(), r.to_string())).collect(),
        special_tokens: owned(&input.special),
        added_tokens: owned(&input.added),
        normalizer: input.normalizer.as_ref().map(|steps| steps.iter().take(6).map(normalize).collect()),
        token_rules: input.rules.iter().map(|&(id, bits)| (id.into(), rule(bits))).collect(),
        decode_start: [None, Some(DecodeStart::Keep), Some(DecodeStart::Space), Some(DecodeStart::Spaces)]
            [usize::from(input.decode_start) % 4],
        bos_token_id: input.bos.map(u32::from),
        add_bos: input.add_bos,
        ..Spec::default()
    };
    if let Some(cuts) = &input.cuts {
        let bytes = Cut::ByteLevel { add_prefix_space: false, use_regex: false };
        spec.pre = None;
        spec.pre_tokenizer =
            Some(cuts.iter().take(6).map(cut).chain(input.byte_level.then_some(bytes)).collect());
    }
    if input.all_bytes {
        let known: Vec<String> = spec.vocab.iter().map(|(piece, _)| piece.clone()).collect();
        let add = |byte: u8| {
            let piece =
                if input.byte_level { byte_level(byte).to_string() } else { format!("<0x{byte:02X}>") };
            (!known.contains(&piece)).then_some((piece, 70_000 + u32::from(byte)))
        };
        spec.vocab.extend((0..=255).filter_map(add));
        if !known.contains(&"▁".to_owned()) {
            spec.vocab.push(("▁".to_owned(), 70_256));
        }
    }
    for &(left, right) in &input.merged {
        let parts = (spec.vocab.get(usize::from(left)), spec.vocab.get(usize::from(right)));
        if let (Some((left, _)), Some((right, _))) = parts {
            let (left, right) = (left.clone(), right.clone());
            let whole = format!("{left}{right}");
            if whole.len() < 100 && spec.vocab.iter().all(|(piece, _)| *piece != whole) {
                spec.vocab.push((whole, 80_000 + spec.vocab.len() as u32));
            }
            spec.merges.push((left, right));
        }
    }
    spec
}

/// A short text or expression.
fn pattern(kind: u8, text: &str) -> Pattern {
    let text = text.chars().take(12).collect();
    if kind % 2 == 0 { Pattern::String(text) } else { Pattern::Regex(text) }
}

fn normalize(&(kind, text): &(u8, &str)) -> Normalize {
    match kind % 10 {
        0 => Normalize::Nfc {},
        1 => Normalize::Nfd {},
        2 => Normalize::Nfkc {},
        3 => Normalize::Nfkd {},
        4 => Normalize::Lowercase {},
        5 => Normalize::StripAccents {},
        6 => Normalize::Strip { left: kind & 16 != 0, right: kind & 32 != 0 },
        7 => Normalize::Prepend { prepend: text.chars().take(3).collect() },
        _ => Normalize::Replace { pattern: pattern(kind, text), content: text.chars().rev().take(3).collect() },
    }
}

fn cut(&(kind, more, text): &(u8, u8, &str)) -> Cut {
    let behavior = [
        Behavior::Removed,
        Behavior::Isolated,
        Behavior::MergedWithPrevious,
        Behavior::MergedWithNext,
        Behavior::Contiguous,
    ][usize::from(more) % 5];
    match kind % 7 {
        0 => Cut::Digits { individual_digits: more % 2 == 0 },
        1 => Cut::Punctuation { behavior },
        2 => Cut::Whitespace {},
        3 => Cut::WhitespaceSplit {},
        4 => Cut::Metaspace {
            replacement: text.chars().next().unwrap_or('▁'),
            prepend_scheme: [Prepend::First, Prepend::Never, Prepend::Always][usize::from(more) % 3],
            split: more & 16 != 0,
        },
        _ => Cut::Split { pattern: pattern(kind, text), behavior, invert: more & 128 != 0 },
    }
}

fn rule(bits: u8) -> TokenRule {
    TokenRule {
        lstrip: bits & 1 != 0,
        rstrip: bits & 2 != 0,
        single_word: bits & 4 != 0,
        normalized: bits & 8 != 0,
        mergeable: bits & 16 != 0,
    }
}

/// GPT-2's character for a byte.
fn byte_level(byte: u8) -> char {
    match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap(),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap(),
        0xad => '\u{143}',
    }
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = tokenizer.decoder();
    let mut text: String = ids.iter().map(|&id| decoder.push(tokenizer, id).to_owned()).collect();
    text.push_str(decoder.finish());
    text
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let Ok(tokenizer) = Tokenizer::new(spec(&input)) else { return };
    assert_eq!(stream(&tokenizer, &input.ids), tokenizer.decode(&input.ids));
    for (bos, special) in [(true, true), (false, false)] {
        let ids = tokenizer.encode(input.text, EncodeOptions { bos, special });
        assert!(ids.iter().all(|&id| tokenizer.piece(id).is_some()), "{ids:?}");
        let decoded = tokenizer.decode(&ids);
        assert_eq!(stream(&tokenizer, &ids), decoded);
        let as_ever = input.normalizer.is_none() && input.cuts.is_none() && input.decode_start % 4 == 0;
        let only_text = as_ever && input.special.is_empty() && input.added.is_empty() && input.bos.is_none();
        let plain = !special && only_text && input.all_bytes;
        // SentencePiece's ▁ is a space when it comes back.
        let faithful =
            !input.text.contains('▁') && !input.pieces.iter().any(|(piece, _)| piece.starts_with("<"));
        if plain && (input.byte_level || faithful) {
            assert_eq!(decoded, input.text);
        }
    }
});
