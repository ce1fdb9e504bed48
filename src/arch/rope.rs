//! Rotary position embedding (Su et al. 2021): the angles.

use crate::Malformed;

/// The frequencies of the rotary embedding, and from them the cosines and sines of any position.
///
/// All in f64 with the pure-Rust `libm`, rounded to f32 once: no platform's mathematics library has a say.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Radians a position for each of the `head_dim/2` pairs.
    frequencies: Vec<f64>,
}

/// Radians a position, `theta^(−2i/head_dim)` for each of the `head_dim/2` pairs.
pub(crate) fn frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    let exponent = |i| -2.0 * i as f64 / head_dim as f64;
    (0..head_dim / 2).map(|i| libm::pow(theta, exponent(i))).collect()
}

impl Rope {
    /// The embedding with base `theta`, each frequency divided by its factor if there are `head_dim/2` factors.
    ///
    /// # Errors
    /// If a factor is not a positive number.
    pub fn new(theta: f64, head_dim: usize, factors: Option<&[f32]>) -> Result<Self, Malformed> {
        let mut frequencies = frequencies(theta, head_dim);
        for (i, (frequency, &factor)) in frequencies.iter_mut().zip(factors.unwrap_or_default()).enumerate() {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(Malformed(format!(
                    "the rotary embedding's factor {i} is {factor}: a positive number is needed"
                )));
            }
            *frequency /= f64::from(factor);
        }
        Ok(Self { frequencies })
    }

    /// Fills `cos` and `sin`, `head_dim/2` values each, for the token at `position`.
    pub fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (s, c) = libm::sincos(position as f64 * frequency);
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}
