//! Rotary position embedding (Su et al. 2021): the angles.

use super::{Config, RopeConfig};
use crate::Malformed;

/// The frequencies of a rotary embedding, and from them the cosines and sines of any position.
///
/// All in f64 with the pure-Rust `libm`, rounded to f32 once: no platform's mathematics library has a say.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Radians a position for each of the `rotary_dim/2` pairs that are rotated.
    frequencies: Vec<f64>,
    magnitude: f64,
}

/// Radians a position, `theta^(−2i/rotary_dim)` for each of the `rotary_dim/2` pairs.
pub(crate) fn frequencies(theta: f64, rotary_dim: usize) -> Vec<f64> {
    let exponent = |i| -2.0 * i as f64 / rotary_dim as f64;
    (0..rotary_dim / 2).map(|i| libm::pow(theta, exponent(i))).collect()
}

impl Rope {
    /// One of a model's embeddings, each frequency divided by its factor if there are `rotary_dim/2` factors.
    ///
    /// # Errors
    /// If a factor is not a positive number.
    pub fn new(config: &Config, rope: &RopeConfig, factors: Option<&[f32]>) -> Result<Self, Malformed> {
        let mut frequencies = frequencies(rope.theta, config.rotary_dim());
        for (i, (frequency, &factor)) in frequencies.iter_mut().zip(factors.unwrap_or_default()).enumerate() {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(Malformed(format!(
                    "the rotary embedding's factor {i} is {factor}: a positive number is needed"
                )));
            }
            *frequency /= f64::from(factor);
        }
        Ok(Self { frequencies, magnitude: rope.magnitude.into() })
    }

    /// Fills `cos` and `sin`, `head_dim/2` values each, for the token at `position`. Pairs that are not rotated come last.
    pub fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        let rotated = self.frequencies.len();
        for (cos, sin) in cos.iter_mut().zip(&mut *sin).skip(rotated) {
            (*cos, *sin) = (1.0, 0.0);
        }
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (s, c) = libm::sincos(position as f64 * frequency);
            (*cos, *sin) = ((c * self.magnitude) as f32, (s * self.magnitude) as f32);
        }
    }
}
