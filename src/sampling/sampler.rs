//! From logits to the next token.
//!
//! The steps, their order and their defaults are llama.cpp's: bias, penalties, top-k, typical, top-p, min-p, temperature,
//! draw. Everything is deterministic arithmetic: one seed gives one text on every machine.

pub use super::settings::{Mirostat, Sampling};

use torchless_kernels::{Kernels, scalar};

use super::best::{RUN, at_least, best_of, better, sort_more};
use super::pcg::Pcg32;
use crate::Error;

/// The weight of a token that may well be drawn, beside 1 of the best.
const LIKELY: f32 = 1.0 / 256.0;

/// Chooses tokens; holds its random state and its buffers.
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    kernels: Kernels,
    rng: Pcg32,
    /// Mirostat's limit, in bits.
    most_surprise: f32,
    /// `vocab_size` logits, biased and penalised.
    logits: Vec<f32>,
    /// How often each of `vocab_size` tokens is among the recent ones, while that is counted.
    times: Vec<u32>,
    /// Tokens and their logits, most probable first as far as they are sorted.
    candidates: Vec<(u32, f32)>,
    /// `vocab_size` weights, where those of all are needed.
    weights: Vec<f32>,
    /// For [`best_of`].
    runs: Vec<f32>,
}

impl Sampler {
    /// A sampler for models of `vocab_size` tokens.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(settings: Sampling, vocab_size: usize) -> Result<Self, Error> {
        settings.check()?;
        if let Some((token, _)) = settings.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size)
        {
            return Err(Error::Setting {
                name: "logit_bias",
                problem: format!("{token}: this model's vocabulary ends at {}", vocab_size.saturating_sub(1)),
            });
        }
        Ok(Self {
            rng: Pcg32::new(settings.seed),
            most_surprise: 2.0 * settings.mirostat.unwrap_or_default().tau,
            logits: vec![0.0; vocab_size],
            times: vec![0; vocab_size],
            candidates: Vec::with_capacity(vocab_size),
            weights: vec![0.0; vocab_size],
            runs: Vec::with_capacity(vocab_size.div_ceil(RUN)),
            kernels: Kernels::detect(),
            settings,
        })
    }

    /// The same with other kernels, which changes its speed only.
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// Chooses the token to follow `recent`, whose logits these are.
    ///
    /// # Errors
    /// If a logit is NaN or +∞: the weights are damaged, or overflowed; or biases or penalties made it so. If all logits are
    /// −∞ in the end.
    ///
    /// # Panics
    /// If `logits` is not `vocab_size` long.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32, Error> {
        if any_overflows(logits) {
            return Err(Error::NotANumber);
        }
        self.logits.copy_from_slice(logits);
        self.bias();
        self.penalise(recent);
        if any_overflows(&self.logits) {
            return Err(Error::LogitOverflow);
        }
        let best = self.kernels.argmax(&self.logits);
        if self.logits.get(best).is_none_or(|&logit| logit == f32::NEG_INFINITY) {
            return Err(Error::NoTokenLeft);
        }
        let Sampling { temperature, top_k, mirostat, typical_p, .. } = self.settings;
        if temperature == 0.0 || (top_k == 1 && mirostat.is_none()) {
            return Ok(best as u32);
        }
        if let Some(mirostat) = mirostat {
            return Ok(self.draw_mirostat(mirostat));
        }
        if top_k == 0 && typical_p >= 1.0 {
            return Ok(self.draw_of_all());
        }
        self.cut();
        Ok(self.draw().0)
    }

    /// Draws where neither top-k nor typical has a say: then nearly all of a large vocabulary need not be sorted.
    fn draw_of_all(&mut self) -> u32 {
        let Sampling { top_p, min_p, temperature, .. } = self.settings;
        if top_p < 1.0 {
            let mass = top_p * self.weigh_all(1.0);
            // All of them, where rounding leaves them below it.
            let keep = self.exceed(mass.next_down()).unwrap_or(self.candidates.len());
            self.candidates.truncate(keep);
            self.cut_min_p();
        } else if min_p > 0.0 {
            self.weigh_all(1.0);
            at_least(&self.weights, min_p, &self.logits, &mut self.candidates);
            self.candidates.sort_unstable_by(better);
        } else {
            let left = self.rng.unit() * self.weigh_all(temperature);
            // Rounding can leave a crumb: it belongs to the best.
            let at = self.exceed(left).map_or(0, |n| n - 1);
            return self.candidates.get(at).copied().unwrap_or_default().0;
        }
        self.draw().0
    }

    /// Works out the weights of all tokens at a temperature, and their sum.
    fn weigh_all(&mut self, temperature: f32) -> f32 {
        let best = self.logits.get(self.kernels.argmax(&self.logits)).copied().unwrap_or_default();
        for (weight, logit) in self.weights.iter_mut().zip(&self.logits) {
            *weight = (logit - best) / temperature;
        }
        self.kernels.softmax_block(&mut self.weights).1
    }

    /// How many of the best tokens it takes until their weights are more than `mass`: they are the first candidates then, sorted.
    fn exceed(&mut self, mass: f32) -> Option<usize> {
        // Nearly always these few are enough.
        at_least(&self.weights, LIKELY, &self.logits, &mut self.candidates);
        self.exceed_with_candidates(mass).or_else(|| {
            self.take_all();
            self.exceed_with_candidates(mass)
        })
    }

    fn exceed_with_candidates(&mut self, mass: f32) -> Option<usize> {
        // In f64: a small weight must not vanish beside the sum of many.
        let (mut reached, mut sorted) = (0.0, 0);
        while sorted < self.candidates.len() {
            let before = sorted;
            sorted = sort_more(&mut self.candidates, sorted);
            let (_, more) = self.candidates.split_at(before);
            for (i, (id, _)) in more.iter().take(sorted - before).enumerate() {
                reached += self.weights.get(*id as usize).copied().map_or(0.0, f64::from);
                if reached > f64::from(mass) {
                    return Some(before + i + 1);
                }
            }
        }
        None
    }

    /// Makes all tokens candidates, in the order of their ids.
    fn take_all(&mut self) {
        self.candidates.clear();
        self.candidates.extend((0..).zip(self.logits.iter().copied()));
    }

    fn bias(&mut self) {
        for &(token, bias) in &self.settings.logit_bias {
            if let Some(logit) = self.logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    fn penalise(&mut self, recent: &[u32]) {
        let Sampling { repeat_penalty, frequency_penalty, presence_penalty, repeat_last_n, .. } =
            self.settings;
        if (repeat_penalty, frequency_penalty, presence_penalty) == (1.0, 0.0, 0.0) {
            return;
        }
        let (_, recent) = recent.split_at(recent.len().saturating_sub(repeat_last_n));
        for &id in recent {
            if let Some(times) = self.times.get_mut(id as usize) {
                *times += 1;
            }
        }
        for &id in recent {
            // Once each; then all are 0 again.
            let times = self.times.get_mut(id as usize).map_or(0, std::mem::take);
            let Some(logit) = self.logits.get_mut(id as usize).filter(|_| times > 0) else { continue };
            *logit = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
            if (frequency_penalty, presence_penalty) != (0.0, 0.0) {
                *logit -= times as f32 * frequency_penalty + presence_penalty;
            }
        }
    }

    /// The first candidate, which is the best where they are sorted. There is one as long as there is a vocabulary.
    fn best(&self) -> (u32, f32) {
        self.candidates.first().copied().unwrap_or_default()
    }

    /// Leaves the candidates that may be drawn, sorted.
    fn cut(&mut self) {
        self.top_k();
        self.typical();
        self.top_p_min_p();
    }

    /// Keeps the `top_k` best, sorted; lower ids first among equals.
    fn top_k(&mut self) {
        match self.settings.top_k {
            0 => {
                self.take_all();
                self.candidates.sort_unstable_by(better);
            }
            k => best_of(&self.logits, k, &mut self.candidates, &mut self.runs),
        }
    }

    /// Keeps those whose surprise −ln p is nearest to its mean, the entropy.
    fn typical(&mut self) {
        if self.settings.typical_p >= 1.0 {
            return;
        }
        let (_, best) = self.best();
        // Relative to the best, whose surprise is the same summand everywhere. What is impossible has no surprise.
        let possible = self.candidates.partition_point(|c| weight(best, c.1) > 0.0);
        self.candidates.truncate(possible.max(1));
        let total: f32 = self.candidates.iter().map(|c| weight(best, c.1)).sum();
        let mean = self.candidates.iter().map(|c| weight(best, c.1) * (c.1 - best)).sum::<f32>() / total;
        let distance = |c: &(u32, f32)| (c.1 - best - mean).abs();
        self.candidates.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(better(a, b)));
        self.keep_mass(best, self.settings.typical_p * total);
        self.candidates.sort_unstable_by(better);
    }

    /// Cuts the sorted candidates where `top_p` is reached, and then where they fall below `min_p` of the best.
    fn top_p_min_p(&mut self) {
        let (_, best) = self.best();
        if self.settings.top_p < 1.0 {
            let total: f32 = self.candidates.iter().map(|c| weight(best, c.1)).sum();
            self.keep_mass(best, self.settings.top_p * total);
        }
        self.cut_min_p();
    }

    /// Cuts the sorted candidates where they fall below `min_p` of the best.
    fn cut_min_p(&mut self) {
        let (_, best) = self.best();
        let keep = self.candidates.iter().take_while(|c| weight(best, c.1) >= self.settings.min_p).count();
        self.candidates.truncate(keep.max(1));
    }

    /// Keeps the first candidates, one at least, until their weights reach `mass`.
    fn keep_mass(&mut self, best: f32, mass: f32) {
        let mut reached = 0.0;
        let needed = self.candidates.iter().take_while(|c| {
            let needed = reached < mass;
            reached += weight(best, c.1);
            needed
        });
        let keep = needed.count();
        self.candidates.truncate(keep.max(1));
    }

    /// Draws one of the candidates by its probability at the temperature; returns its surprise in bits as well.
    fn draw(&mut self) -> (u32, f32) {
        let ((first, best), temperature) = (self.best(), self.settings.temperature);
        let weight = |logit: f32| scalar::exp((logit - best) / temperature);
        let total: f32 = self.candidates.iter().map(|c| weight(c.1)).sum();
        let surprise =
            |logit: f32| (libm::logf(total) - (logit - best) / temperature) / std::f32::consts::LN_2;
        let mut left = self.rng.unit() * total;
        for &(id, logit) in &self.candidates {
            left -= weight(logit);
            if left < 0.0 {
                return (id, surprise(logit));
            }
        }
        // Rounding can leave a crumb: it belongs to the best.
        (first, surprise(best))
    }

    fn draw_mirostat(&mut self, Mirostat { tau, eta }: Mirostat) -> u32 {
        self.take_all();
        self.candidates.sort_unstable_by(better);
        let ((_, best), temperature) = (self.best(), self.settings.temperature);
        let total: f32 = self.candidates.iter().map(|c| scalar::exp((c.1 - best) / temperature)).sum();
        let least = libm::logf(total) - self.most_surprise * std::f32::consts::LN_2;
        let keep = self.candidates.partition_point(|c| (c.1 - best) / temperature >= least);
        self.candidates.truncate(keep.max(1));
        let (token, surprise) = self.draw();
        // Settings near the largest number can make ∞ − ∞ of this: then the limit stays.
        let next = self.most_surprise - eta * (surprise - tau);
        if !next.is_nan() {
            self.most_surprise = next;
        }
        token
    }
}

/// Whether there is a logit that no probability can be made of. −∞ is one that can: 0. Looks at all of them: so it is vector code.
fn any_overflows(logits: &[f32]) -> bool {
    logits.iter().fold(false, |any, &logit| any | (logit.is_nan() | (logit == f32::INFINITY)))
}

/// How probable a token is, relative to the best.
fn weight(best: f32, logit: f32) -> f32 {
    scalar::exp(logit - best)
}

#[cfg(test)]
mod tests;
