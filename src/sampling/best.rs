//! The best of a vocabulary, without sorting all of it.

use std::cmp::Ordering;

/// Tokens whose largest logit is looked for together.
pub(super) const RUN: usize = 64;

/// Higher logits first, lower ids among equals.
pub(super) fn better(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Puts the `n` best of `logits`, none of which is NaN, into `best`, sorted. `runs` is for its own use.
pub(super) fn best_of(logits: &[f32], n: usize, best: &mut Vec<(u32, f32)>, runs: &mut Vec<f32>) {
    best.clear();
    runs.clear();
    runs.extend(logits.chunks(RUN).map(largest));
    let least = match n.checked_sub(1).filter(|&last| last < runs.len()) {
        // So many runs have one that is not below this; so none that is below it is among the `n` best.
        Some(last) => *runs.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1,
        None => f32::NEG_INFINITY,
    };
    at_least(logits, least, logits, best);
    if n > 0 && n < best.len() {
        best.select_nth_unstable_by(n - 1, better);
    }
    best.truncate(n);
    best.sort_unstable_by(better);
}

/// The tokens whose `value` is not below `least`, with their logits, in the order of their ids.
pub(super) fn at_least(values: &[f32], least: f32, logits: &[f32], out: &mut Vec<(u32, f32)>) {
    out.clear();
    for (first, (values, logits)) in (0..).step_by(RUN).zip(values.chunks(RUN).zip(logits.chunks(RUN))) {
        // Most runs have none.
        if largest(values) >= least {
            let tokens = (first..).zip(values.iter().zip(logits));
            out.extend(
                tokens.filter(|(_, (value, _))| **value >= least).map(|(id, (_, &logit))| (id, logit)),
            );
        }
    }
}

/// Sorts some more of the candidates, the first `sorted` of which are; returns how many are then.
pub(super) fn sort_more(candidates: &mut [(u32, f32)], sorted: usize) -> usize {
    let n = (4 * sorted).max(RUN).min(candidates.len());
    let (_, rest) = candidates.split_at_mut(sorted);
    let more = n - sorted;
    if more > 0 && more < rest.len() {
        rest.select_nth_unstable_by(more - 1, better);
    }
    let (more, _) = rest.split_at_mut(more);
    more.sort_unstable_by(better);
    n
}

/// The largest of some values; −∞ where there are none. Written so that it becomes vector code, which `f32::max` does not.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |largest, &value| if value > largest { value } else { largest })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_best_are_those_that_sorting_gives(
            // Few values, so that many are equal.
            logits in prop::collection::vec((-9i8..9).prop_map(|l| if l < -7 { f32::NEG_INFINITY } else { f32::from(l) }), 1..400),
            n in 0usize..450,
        ) {
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(better);
            let (mut best, mut runs) = (Vec::new(), Vec::new());
            best_of(&logits, n, &mut best, &mut runs);
            prop_assert_eq!(&best[..], &sorted[..n.min(sorted.len())]);

            let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            let mut done = 0;
            while done < all.len() {
                done = sort_more(&mut all, done);
                prop_assert_eq!(&all[..done], &sorted[..done]);
            }
        }
    }
}
