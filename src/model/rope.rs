//! Rotary position embedding (Su et al. 2021): the angles.

/// The frequencies of the rotary embedding, and from them the cosines and sines of any position.
///
/// All in f64 with the pure-Rust `libm`, rounded to f32 once: no platform's mathematics library has a say.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Radians a position: `theta^(−2i/head_dim)` for each of the `head_dim/2` pairs.
    frequencies: Vec<f64>,
}

impl Rope {
    pub fn new(theta: f64, head_dim: usize) -> Self {
        let exponent = |i| -2.0 * i as f64 / head_dim as f64;
        Self { frequencies: (0..head_dim / 2).map(|i| libm::pow(theta, exponent(i))).collect() }
    }

    /// Fills `cos` and `sin`, `head_dim/2` values each, for the token at `position`.
    pub fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (s, c) = libm::sincos(position as f64 * frequency);
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}
