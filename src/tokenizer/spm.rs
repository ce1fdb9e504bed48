//! Stand-in until the tokenizer is merged: take the other side's file.

/// Merges, best first, of a vocabulary that has scores.
pub fn merges_from_scores(tokens: &[String], scores: &[f32]) -> Vec<(String, String)> {
    let rank: std::collections::HashMap<&str, f32> =
        tokens.iter().map(String::as_str).zip(scores.iter().copied()).collect();
    let mut merges = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if rank.contains_key(left) && rank.contains_key(right) {
                merges.push((score, (left.to_owned(), right.to_owned())));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, pair)| pair).collect()
}
