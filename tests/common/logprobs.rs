//! What a model predicts.

use std::sync::Arc;
use torchless::Model;
use torchless::runtime::{Session, SessionOptions};
use torchless::sampling::log_probability;

/// The log-probability of each token but the first.
pub fn logprobs(model: &Arc<Model>, options: &SessionOptions, tokens: &[u32]) -> Vec<f64> {
    let mut out = Vec::new();
    let mut session = Session::new(model, options).unwrap();
    session
        .score(tokens, |i, logits| {
            out.extend(tokens.get(i + 1).map(|&next| log_probability(logits, next)));
        })
        .unwrap();
    out
}
