//! Logits as bits.

use std::sync::Arc;
use torchless::Model;
use torchless::runtime::{Session, SessionOptions};

/// The bits of all logits of a sequence.
pub fn bits(model: &Arc<Model>, options: &SessionOptions, tokens: &[u32]) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut session = Session::new(model, options).unwrap();
    session.score(tokens, |_, logits| bits.extend(logits.iter().map(|l| l.to_bits()))).unwrap();
    bits
}
