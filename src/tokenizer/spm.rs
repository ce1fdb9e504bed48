//! SentencePiece vocabularies that come with scores instead of merges.

use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};

use super::Spec;
use super::vocab::{Vocab, malformed};
use crate::Malformed;

/// Merges in order of rank, and the ranges of them that share one.
pub type ScoredMerges = (Vec<(String, String)>, Vec<Range<usize>>);

/// Bytes of memory that merges may take: some three times those of the largest vocabularies there are. Pieces that are all parts
/// of each other ask for many times their own size.
const MAX_BYTES: usize = 128 << 20;

/// What a merge takes besides its letters, and on its way into a header.
const BYTES_PER_MERGE: usize = 2 * size_of::<String>() + 32;

/// Bytes of the longest piece that merges may make.
pub(super) const MAX_MERGED: usize = 128;

/// The merges that encode as SentencePiece's BPE does with these pieces (`scores[i]` for `tokens[i]`, higher is merged
/// earlier), for [`Spec::merges`](super::Spec::merges), and which of them are as good as each other, for
/// [`Spec::equal_merges`](super::Spec::equal_merges).
///
/// Every way to make a piece from two others is a merge, ranked by the score of the piece that comes out; of pieces of
/// equal score the leftmost in a text is made first. Tokens past the end of `scores` and pieces longer than 128 bytes (SentencePiece
/// makes none beyond 16 characters unless told to) are not merged into: the merges of a long piece are many times its size.
///
/// # Errors
/// When the merges would take more memory than those of any vocabulary do.
pub fn merges_from_scores(tokens: &[String], scores: &[f32]) -> Result<ScoredMerges, Malformed> {
    let known: FxHashSet<&str> = tokens.iter().map(String::as_str).collect();
    // Zero has two signs, which are one score.
    let mut ranked: Vec<(&str, f32)> =
        tokens.iter().map(String::as_str).zip(scores.iter().map(|score| score + 0.0)).collect();
    ranked.retain(|(token, _)| token.len() <= MAX_MERGED);
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let mut merges = Vec::new();
    let mut equal = Vec::new();
    let mut bytes: usize = 0;
    for of_one_score in ranked.chunk_by(|(_, a), (_, b)| a == b) {
        let (start, mut pieces) = (merges.len(), 0);
        for (token, _) in of_one_score {
            let before = merges.len();
            add_ways(token, &known, &mut merges);
            bytes += (merges.len() - before) * (token.len() + BYTES_PER_MERGE);
            if bytes > MAX_BYTES {
                let pieces = tokens.len();
                return Err(malformed(format!(
                    "its {pieces} pieces can be made from each other in too many ways: such a vocabulary is not supported"
                )));
            }
            pieces += usize::from(merges.len() > before);
        }
        // The ways to make one piece never compete with each other.
        if pieces > 1 {
            equal.push(start..merges.len());
        }
    }
    Ok((merges, equal))
}

/// Adds all ways to make `token` from two others.
fn add_ways(token: &str, known: &FxHashSet<&str>, merges: &mut Vec<(String, String)>) {
    let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
    let known = cuts.filter(|(left, right)| known.contains(left) && known.contains(right));
    merges.extend(known.map(|(left, right)| (left.to_owned(), right.to_owned())));
}

/// Puts scores in place of merges that do the same, which are shorter and sooner read; says whether there are any. There are where
/// the merges are all ways to make a piece from two others, one piece after another.
///
/// # Errors
/// If the vocabulary is none, as [`Tokenizer::new`](super::Tokenizer::new) has it.
pub fn scores_for_merges(spec: &mut Spec) -> Result<bool, Malformed> {
    let vocab = Vocab::new(spec)?;
    let pieces = spec.vocab.iter().zip(0..).filter(|((_, id), _)| vocab.is_text(*id));
    let places: FxHashMap<&str, usize> = pieces.map(|((piece, _), place)| (piece.as_str(), place)).collect();
    let Some(scores) = scores_of(&places, &spec.merges, spec.vocab.len()) else { return Ok(false) };
    spec.scores = scores;
    spec.merges = Vec::new();
    Ok(true)
}

fn scores_of(
    places: &FxHashMap<&str, usize>,
    merges: &[(String, String)],
    vocab_len: usize,
) -> Option<Vec<f32>> {
    let mut scores = vec![0.0; vocab_len];
    // Where each piece is cut.
    let mut ways: FxHashMap<&str, Vec<usize>> = FxHashMap::default();
    let (mut last, mut rank) = ("", 0.0);
    let mut merged = String::new();
    for (left, right) in merges {
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        // One of others than pieces of text never applies.
        let parts = [left, right].iter().all(|part| places.contains_key(part.as_str()));
        let Some((piece, place)) = places.get_key_value(merged.as_str()).filter(|_| parts) else { continue };
        if *piece != last {
            // A piece that comes up again, or ranks that an f32 cannot tell apart.
            if ways.contains_key(piece) || rank <= -16_777_216.0 {
                return None;
            }
            (last, rank) = (piece, rank - 1.0);
        }
        *scores.get_mut(*place)? = rank;
        let cuts = ways.entry(piece).or_default();
        if cuts.contains(&left.len()) || piece.len() > MAX_MERGED {
            return None;
        }
        cuts.push(left.len());
    }
    let all_ways = |piece: &str| {
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        cuts.filter(|(left, right)| places.contains_key(left) && places.contains_key(right)).count()
    };
    let complete = |piece: &&str| all_ways(piece) == ways.get(piece).map_or(0, Vec::len);
    places.keys().all(complete).then_some(scores)
}
