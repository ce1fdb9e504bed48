//! SentencePiece vocabularies that come with scores instead of merges.

use rustc_hash::FxHashSet;

/// Bytes of the longest piece that merges may make.
const MAX_MERGED: usize = 128;

/// The merges that encode as SentencePiece's BPE does with these pieces (`scores[i]` for `tokens[i]`, higher is merged
/// earlier), for [`Spec::merges`](super::Spec::merges).
///
/// Every way to make a piece from two others is a merge, ranked by the score of the piece that comes out; pieces of
/// equal score keep their order. Tokens past the end of `scores` and pieces longer than 128 bytes (SentencePiece
/// makes none beyond 16 characters unless told to) are not merged into: the merges of a long piece are many times its size.
pub fn merges_from_scores(tokens: &[String], scores: &[f32]) -> Vec<(String, String)> {
    let known: FxHashSet<&str> = tokens.iter().map(String::as_str).collect();
    let mut ranked: Vec<(&str, f32)> =
        tokens.iter().map(String::as_str).zip(scores.iter().copied()).collect();
    ranked.retain(|(token, _)| token.len() <= MAX_MERGED);
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let mut merges = Vec::new();
    for (token, _) in ranked {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = cuts.filter(|(left, right)| known.contains(left) && known.contains(right));
        merges.extend(known.map(|(left, right)| (left.to_owned(), right.to_owned())));
    }
    merges
}
