//! How well a model predicts a text, and how far its predictions are from another model's.

use crate::runtime::Session;
use crate::sampling::log_probability;
use crate::{Error, Model};

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

/// Tokens whose logits of the reference are kept until the model's are there: 13 MB where the vocabulary has 49152 tokens,
/// 39 MB where it has 152064.
const BLOCK: usize = 64;

/// How far a model's predictions of a text are from those of a reference, by the method of llama.cpp's
/// `llama-perplexity --kl-divergence`.
///
/// The text is cut into chunks of `ctx` tokens, each worked out from its own start; what is left at the end is not used. Counted
/// are the predictions of a chunk's tokens `ctx/2 + 1 ..= ctx - 1`, so that each has at least `ctx/2 + 1` tokens before it.
/// llama.cpp keeps the reference's log-probabilities in 16 bits and none of them more than 16 below the largest, so that its
/// perplexity of the reference is a little lower; here nothing is rounded or left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Divergence {
    ctx: usize,
    chunks: usize,
    /// Smallest first.
    kl: Vec<f64>,
    same_top: usize,
    /// Sums over the counted positions.
    nll: f64,
    nll_against: f64,
}

impl Divergence {
    /// Has both sessions predict `tokens`, in chunks of as many as both have room for, and compares the model of `session` with
    /// that of `against`, the reference.
    ///
    /// `bos` takes the place of the first token of each chunk; give the tokenizer's where it [begins a text with
    /// it](crate::tokenizer::Tokenizer::adds_bos). `on_tokens` is called with the number of tokens that one of the
    /// models has done: 2 · ctx for each chunk in all.
    ///
    /// Memory besides the sessions': the logits of 64 tokens, and 8 bytes for each counted position, about as much as `tokens`
    /// take.
    ///
    /// # Errors
    /// If the models' vocabularies are not the same, the text has no whole chunk, a chunk has fewer than three tokens, or a
    /// token is not in the vocabulary; as [`Error::File`], which says whose it is, if a logit is NaN or infinite.
    pub fn measure(
        session: &mut Session,
        against: &mut Session,
        tokens: &[u32],
        bos: Option<u32>,
        mut on_tokens: impl FnMut(usize),
    ) -> Result<Self, Error> {
        check_vocabularies(session.model(), against.model())?;
        let vocab_size = session.model().config().vocab_size;
        let ctx = session.ctx().min(against.ctx());
        if ctx < 3 {
            let problem = format!("nothing to count in chunks of {ctx}: three tokens are needed at least");
            return Err(Error::Request(problem));
        }
        if tokens.len() < ctx {
            return Err(Error::TextTooShort { tokens: tokens.len(), ctx });
        }
        // Those that are only predicted no session would check before they are looked up.
        if let Some(&id) = tokens.iter().chain(&bos).find(|&&id| id as usize >= vocab_size) {
            return Err(Error::UnknownToken { id, vocab_size });
        }
        let mut found = Self { ctx, ..Self::default() };
        let mut reference = Vec::new();
        for chunk in tokens.chunks_exact(ctx) {
            let mut chunk = chunk.to_vec();
            if let (Some(first), Some(bos)) = (chunk.first_mut(), bos) {
                *first = bos;
            }
            let (context, counted) = chunk.split_at(ctx / 2);
            for session in [&mut *session, &mut *against] {
                session.reset();
                session.feed(context)?;
                on_tokens(context.len());
            }
            let mut next = counted.iter().skip(1);
            for block in counted.chunks(BLOCK) {
                reference.clear();
                against.score(block, |_, logits| reference.extend_from_slice(logits))?;
                check_finite(against.model(), is_finite(&reference))?;
                on_tokens(block.len());
                let mut finite = true;
                let mut reference = reference.chunks_exact(vocab_size);
                session.score(block, |_, logits| {
                    finite &= is_finite(logits);
                    // Nothing comes after the chunk's last token.
                    if let (true, Some(reference), Some(&next)) = (finite, reference.next(), next.next()) {
                        found.count(reference, logits, next);
                    }
                })?;
                check_finite(session.model(), finite)?;
                on_tokens(block.len());
            }
            found.chunks += 1;
        }
        found.kl.sort_unstable_by(f64::total_cmp);
        Ok(found)
    }

    /// Counts the prediction of `next`. All logits are finite.
    fn count(&mut self, reference: &[f32], logits: &[f32], next: u32) {
        let (wider, model) = (Peak::of(reference), Peak::of(logits));
        let (mut sum, mut model_sum, mut difference) = (0.0, 0.0, 0.0);
        for (&r, &m) in reference.iter().zip(logits) {
            let (r, m) = (f64::from(r) - wider.logit, f64::from(m) - model.logit);
            let p = libm::exp(r);
            sum += p;
            model_sum += libm::exp(m);
            difference += p * (r - m);
        }
        let (log_sum, model_log_sum) = (libm::log(sum), libm::log(model_sum));
        // Never below 0, but for the rounding of these sums.
        self.kl.push((difference / sum - log_sum + model_log_sum).max(0.0));
        self.same_top += usize::from(wider.token == model.token);
        let of_next = |logits: &[f32]| logits.get(next as usize).map_or(f64::NAN, |&logit| f64::from(logit));
        self.nll_against += wider.logit + log_sum - of_next(reference);
        self.nll += model.logit + model_log_sum - of_next(logits);
    }

    /// Tokens of a chunk.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Chunks that were worked out.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Predictions that were counted: `ctx - 1 - ctx/2` (rounded down) of each chunk.
    pub fn counted(&self) -> usize {
        self.kl.len()
    }

    /// `KL(reference ‖ model) = Σ p_reference · (ln p_reference - ln p_model)` over the vocabulary, in nats, of each counted
    /// prediction; smallest first.
    pub fn kl(&self) -> &[f64] {
        &self.kl
    }

    /// The mean of [`Divergence::kl`]; 0 where nothing was counted, as everything here.
    pub fn kl_mean(&self) -> f64 {
        self.a_prediction(self.kl.iter().sum())
    }

    /// The quantile `q` of [`Divergence::kl`] (0.5: the median; 1: the largest), linear between the two nearest values.
    pub fn kl_quantile(&self, q: f64) -> f64 {
        let at = q.clamp(0.0, 1.0) * self.kl.len().saturating_sub(1) as f64;
        let kl = |at: f64| self.kl.get(at as usize).copied().unwrap_or_default();
        let (below, above) = (kl(libm::floor(at)), kl(libm::ceil(at)));
        below + (above - below) * (at - libm::floor(at))
    }

    /// The share of predictions, from 0 to 1, whose most probable token is the reference's; the lowest id is where several are.
    pub fn same_top(&self) -> f64 {
        self.a_prediction(self.same_top as f64)
    }

    /// The model's mean negative log-probability of the text's tokens, in nats.
    pub fn nll(&self) -> f64 {
        self.a_prediction(self.nll)
    }

    /// The model's perplexity over the counted predictions: `e^nll`.
    pub fn ppl(&self) -> f64 {
        libm::exp(self.nll())
    }

    /// The reference's perplexity over the same predictions.
    pub fn ppl_against(&self) -> f64 {
        libm::exp(self.a_prediction(self.nll_against))
    }

    /// [`Divergence::ppl`] / [`Divergence::ppl_against`]: above 1 where the reference predicts better.
    pub fn ppl_ratio(&self) -> f64 {
        libm::exp(self.a_prediction(self.nll - self.nll_against))
    }

    fn a_prediction(&self, sum: f64) -> f64 {
        sum / self.kl.len().max(1) as f64
    }
}

/// The largest of finite logits, and the first token that has it.
struct Peak {
    token: usize,
    logit: f64,
}

impl Peak {
    fn of(logits: &[f32]) -> Self {
        let mut peak = (0, f32::NEG_INFINITY);
        for (token, &logit) in logits.iter().enumerate() {
            if logit > peak.1 {
                peak = (token, logit);
            }
        }
        Self { token: peak.0, logit: f64::from(peak.1) }
    }
}

fn is_finite(logits: &[f32]) -> bool {
    logits.iter().all(|logit| logit.is_finite())
}

/// Of two models, it has to be said which is broken.
fn check_finite(model: &Model, finite: bool) -> Result<(), Error> {
    if finite { Ok(()) } else { Err(Error::file(model.file().path(), Error::NotANumber.to_string())) }
}

/// Refuses models whose logits are not those of the same tokens.
fn check_vocabularies(model: &Model, reference: &Model) -> Result<(), Error> {
    let sizes = [model, reference].map(|model| model.config().vocab_size);
    let [tokenizer, other] = [model, reference].map(Model::tokenizer);
    let mut ids = (0..).take(tokenizer.vocab_len().max(other.vocab_len()));
    let difference = if sizes[0] != sizes[1] {
        format!("{} and {} logits", sizes[0], sizes[1])
    } else if let Some(id) = ids.find(|&id| tokenizer.piece(id) != other.piece(id)) {
        format!("token {id} is not the same")
    } else {
        return Ok(());
    };
    let [model, reference] = [model, reference].map(|model| model.file().path().display());
    Err(Error::Request(format!(
        "{model} and {reference} do not have the same vocabulary ({difference}): compare models that do"
    )))
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    /// Logits of probabilities in these proportions.
    fn logits(proportions: [f64; 3]) -> [f32; 3] {
        proportions.map(|p| p.ln() as f32)
    }

    #[test]
    fn two_predictions_by_hand() {
        let mut found = Divergence { ctx: 5, chunks: 1, ..Divergence::default() };
        // ½·ln(½ : ¼) + ¼·ln(¼ : ½) + ¼·ln(¼ : ¼) = ¼·ln 2; the best are the tokens 0 and 1.
        found.count(&logits([0.5, 0.25, 0.25]), &logits([3.0, 6.0, 3.0]), 0);
        // (1, 6, 1)/8 and (2, 5, 1)/8: ⅛·ln(1 : 2) + ¾·ln(6 : 5) + ⅛·ln(1 : 1); the best is token 1.
        found.count(&logits([1.0, 6.0, 1.0]), &logits([2.0, 5.0, 1.0]), 2);
        let ln = f64::ln;
        let expected = [0.25 * ln(2.0), 0.125 * ln(0.5) + 0.75 * ln(1.2)];
        assert_abs_diff_eq!(found.kl()[..], expected[..], epsilon = 1e-7);
        assert_eq!((found.counted(), found.same_top()), (2, 0.5));
        // The text's tokens have ½ and ⅛ by the reference, ¼ and ⅛ by the model.
        assert_abs_diff_eq!(found.ppl_against(), 4.0, epsilon = 1e-6);
        assert_abs_diff_eq!(found.ppl(), 32f64.sqrt(), epsilon = 1e-6);
        assert_abs_diff_eq!(found.ppl_ratio(), 2f64.sqrt(), epsilon = 1e-6);
        assert_abs_diff_eq!(found.nll(), 2.5 * ln(2.0), epsilon = 1e-6);
    }

    #[test]
    fn a_prediction_has_no_distance_from_itself_and_little_is_not_below_0() {
        let far = [300.0, -3e38, 299.5, 3e38, -700.0];
        let mut found = Divergence::default();
        found.count(&far, &far, 3);
        found.count(&[0.1, 0.2, 0.3], &[0.1, 0.2, 0.3], 0);
        assert_eq!((found.kl(), found.same_top(), found.ppl_ratio()), (&[0.0, 0.0][..], 1.0, 1.0));
        for i in 1..100 {
            let l = [0.1, 0.2 * i as f32, 0.3, -2.0];
            found.count(&l, &l.map(|l| l + 7.0), 0);
        }
        assert!(found.kl().iter().all(|&kl| (0.0..1e-6).contains(&kl)), "{:?}", found.kl());
    }

    #[test]
    fn quantiles_lie_between_the_values() {
        let found = Divergence { kl: vec![1.0, 2.0, 4.0, 8.0], ..Divergence::default() };
        for (q, expected) in [(0.0, 1.0), (0.5, 3.0), (0.75, 5.0), (0.99, 7.88), (1.0, 8.0), (2.0, 8.0)] {
            assert_abs_diff_eq!(found.kl_quantile(q), expected, epsilon = 1e-12);
        }
        assert_abs_diff_eq!(found.kl_mean(), 3.75);
        let odd = Divergence { kl: vec![1.0, 2.0, 9.0], ..Divergence::default() };
        assert_abs_diff_eq!(odd.kl_quantile(0.5), 2.0);
        let nothing = Divergence::default();
        assert_eq!((nothing.kl_quantile(0.5), nothing.kl_mean(), nothing.ppl_ratio()), (0.0, 0.0, 1.0));
    }
}
