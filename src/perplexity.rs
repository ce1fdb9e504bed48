//! How well a model predicts a text.

use crate::Error;
use crate::runtime::Session;
use crate::sampling::log_probability;

/// How well a sequence was predicted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Perplexity {
    /// `ln p(token i+1 | the tokens before it)`, in order. The first token of each window is not predicted.
    pub logprobs: Vec<f64>,
}

impl Perplexity {
    /// Has the session predict each of `tokens` from those before it.
    ///
    /// What does not fit in the session's context at once is worked out in windows of that size, each from its own start.
    /// `on_token` is called after each token.
    ///
    /// # Errors
    /// If no token has one before it in its window, a token is not in the vocabulary, or any logit comes out as NaN.
    pub fn measure(session: &mut Session, tokens: &[u32], mut on_token: impl FnMut()) -> Result<Self, Error> {
        for (what, n) in [("text", tokens.len()), ("context", session.ctx())] {
            if n < 2 {
                let problem =
                    format!("nothing to predict in a {what} of {n}: two tokens are needed at least");
                return Err(Error::Request(problem));
            }
        }
        let mut logprobs = Vec::with_capacity(tokens.len());
        let mut nan = false;
        for window in tokens.chunks(session.ctx()) {
            session.reset();
            session.score(window, |i, logits| {
                match window.get(i + 1) {
                    Some(&next) => logprobs.push(log_probability(logits, next)),
                    // Nothing comes after the last; the model is broken all the same.
                    None => nan |= logits.iter().any(|logit| logit.is_nan()),
                }
                on_token();
            })?;
        }
        if nan || logprobs.iter().any(|l| l.is_nan()) {
            return Err(Error::NotANumber);
        }
        Ok(Self { logprobs })
    }

    /// Mean negative log-probability, in nats a token; 0 where nothing was predicted.
    pub fn nll(&self) -> f64 {
        if self.logprobs.is_empty() {
            return 0.0;
        }
        -self.logprobs.iter().sum::<f64>() / self.logprobs.len() as f64
    }

    /// `e^nll`.
    pub fn ppl(&self) -> f64 {
        libm::exp(self.nll())
    }
}
