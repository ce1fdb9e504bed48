//! How probable a token is.

use torchless_kernels::scalar;

use super::best::best_of;

/// Natural logarithms of probabilities, as the logits have them: at temperature 1, before anything is penalised or cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The chosen token's.
    pub chosen: f64,
    /// The most probable tokens and theirs, best first, the lower id first among equals.
    pub top: Vec<(u32, f64)>,
}

impl Logprobs {
    /// Of the token `chosen`, and of the `n` most probable ones.
    pub(crate) fn new(logits: &[f32], chosen: u32, n: usize) -> Self {
        let logprob = log_probabilities(logits);
        let (mut best, mut runs) = (Vec::new(), Vec::new());
        best_of(logits, n, &mut best, &mut runs);
        Self { chosen: logprob(chosen), top: best.into_iter().map(|(id, _)| (id, logprob(id))).collect() }
    }
}

/// The natural logarithm of the probability that `logits` give the token `id`; NaN where any of them is, or the largest is
/// infinite.
///
/// # Panics
/// If `id` is out of range.
pub fn log_probability(logits: &[f32], id: u32) -> f64 {
    log_probabilities(logits)(id)
}

/// [`log_probability`] for several tokens.
#[expect(clippy::indexing_slicing, reason = "callers check the ids")]
fn log_probabilities(logits: &[f32]) -> impl Fn(u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &l| max.max(l));
    let sum: f64 = logits.iter().map(|l| f64::from(scalar::exp(l - max))).sum();
    // The maximum passes over NaN, and so would the sum.
    let sound = max.is_finite() && !logits.iter().any(|l| l.is_nan());
    let total = if sound { libm::log(sum) } else { f64::NAN };
    move |id| f64::from(logits[id as usize] - max) - total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_nan_leaves_no_probability() {
        assert!(log_probability(&[1.0, f32::NEG_INFINITY, 3.0], 0).is_finite());
        for broken in [f32::NAN, f32::INFINITY] {
            for id in 0..3 {
                assert!(log_probability(&[1.0, 2.0, broken], id).is_nan(), "{broken}, {id}");
            }
        }
    }
}
