//! What the frequencies of a rotary embedding are divided by, so that it reaches further than it was trained for.

use std::f64::consts::TAU;

use super::rope::frequencies;

/// Llama 3.1's: wavelengths up to `original / high` positions stay, those from `original / low` on are stretched by `factor`, and in
/// between the frequencies are interpolated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Llama3 {
    pub factor: f64,
    pub low: f64,
    pub high: f64,
    /// Positions the model was first trained for.
    pub original: f64,
}

impl Llama3 {
    pub fn factors(&self, theta: f64, rotary_dim: usize) -> Vec<f32> {
        let scaled = |frequency: &f64| {
            let turns = self.original * frequency / TAU;
            let kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / self.factor + kept)) as f32
        };
        frequencies(theta, rotary_dim).iter().map(scaled).collect()
    }
}

/// YaRN's (Peng et al. 2023, arXiv 2309.00071): pairs that turn more than `beta_fast` times within the original length stay, those that
/// turn less than `beta_slow` times are stretched by `factor`, and in between the frequencies are interpolated by the number of the pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Yarn {
    pub factor: f64,
    /// Positions the model was first trained for.
    pub original: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Whether interpolation begins and ends at whole pairs.
    pub truncate: bool,
}

impl Yarn {
    /// The paper's for this factor and length.
    pub fn new(factor: f64, original: f64) -> Self {
        Self { factor, original, beta_fast: 32.0, beta_slow: 1.0, truncate: true }
    }

    pub fn factors(&self, theta: f64, rotary_dim: usize) -> Vec<f32> {
        let dim = rotary_dim as f64;
        let pair = |turns: f64| dim * libm::log(self.original / (turns * TAU)) / (2.0 * libm::log(theta));
        let (low, high) = (pair(self.beta_fast), pair(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let width = if low == high { 0.001 } else { high - low };
        let scaled = |i: usize| {
            let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
            (1.0 / (stretched / self.factor + (1.0 - stretched))) as f32
        };
        (0..rotary_dim / 2).map(scaled).collect()
    }

    /// What cosines and sines are multiplied by, less what `all_dim` takes back; 1 and 0 in the paper.
    pub fn magnitude(&self, mscale: f64, all_dim: f64) -> f32 {
        let of = |mscale: f64| 1.0 + 0.1 * mscale * libm::log(self.factor.max(1.0));
        (of(mscale) / of(all_dim)) as f32
    }
}
