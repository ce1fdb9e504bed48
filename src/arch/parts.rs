//! What hyper-parameters consist of that are more than a number.

/// The parameters of a rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Whether the file has a factor that each frequency is divided by: rope scaling.
    pub scaled: bool,
    /// What cosines and sines are multiplied by: the attention factor of YaRN and LongRoPE.
    pub magnitude: f32,
}

impl RopeConfig {
    /// Nothing scaled.
    pub fn plain(theta: f64) -> Self {
        Self { theta, scaled: false, magnitude: 1.0 }
    }
}

/// The rotary embedding of long sequences (LongRoPE, arXiv 2402.13753).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LongRope {
    /// The longest sequence, in positions, that has the ordinary one.
    pub beyond: usize,
    /// Its parameters.
    pub rope: RopeConfig,
}

/// Whose rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeOf {
    /// That of all layers, or of those without a window.
    Layers,
    /// That of layers with a window.
    Windows,
}

/// A query at position p is multiplied by `1 + beta · ln(1 + ⌊p / original⌋)` (Llama 4's scaling).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// How fast queries grow.
    pub beta: f32,
    /// Positions.
    pub original: usize,
}

impl Temperature {
    /// What a query at `position` is multiplied by.
    pub fn at(&self, position: usize) -> f32 {
        let steps = position / self.original.max(1);
        (1.0 + f64::from(self.beta) * libm::log1p(steps as f64)) as f32
    }
}

/// The function that the MLP's gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`
    Silu,
    /// GELU by way of tanh.
    GeluTanh,
}

impl Activation {
    /// Under the names of Hugging Face's `hidden_act`; of several the first is written.
    const NAMES: [(&'static str, Self); 5] = [
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_new", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
    ];

    /// The function of this name; `None` for those that are not supported.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, activation)| activation)
    }

    /// Hugging Face's name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|&&(_, activation)| activation == self).map_or("", |&(name, _)| name)
    }
}
