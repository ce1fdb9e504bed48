//! The model's hyper-parameters, under Hugging Face's names.

use crate::Malformed;

/// Hyper-parameters of a Mistral-, Llama- or Qwen-style decoder. All sizes are counts of elements.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// `"mistral"`, `"llama"`, …; informative.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP between `gate`/`up` and `down`.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even. Not necessarily `hidden_size / n_heads`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// The longest context the model was trained for.
    pub max_position_embeddings: usize,
    /// Keys a query may look at, itself included; `None`: all of them.
    pub sliding_window: Option<usize>,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Whether the file has a factor for each of the rotary embedding's frequencies: rope scaling.
    pub scaled_rope: bool,
    /// Whether queries, keys and values have biases (Qwen 2).
    pub qkv_bias: bool,
    /// Whether attention's output has one.
    pub o_bias: bool,
    /// Whether each query and key head goes through an RMSNorm before it is rotated (Qwen 3).
    pub qk_norm: bool,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// The token a text begins with, where the file says so.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text, where the file says so.
    pub eos_token_ids: Vec<u32>,
}

/// Heads wider than this are refused: attention keeps one in a fixed buffer on the stack.
pub const MAX_HEAD_DIM: usize = 1024;

/// Contexts longer than this are not supported, whatever a file claims.
pub const MAX_POSITIONS: usize = 1 << 30;

/// Most keys (or values) that all layers together may keep of one position: a hundred times those of the largest models.
const MAX_KEYS: usize = 1 << 28;

impl Config {
    /// Checks that the numbers are possible and fit together.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn check(&self) -> Result<(), Malformed> {
        let bad = |what: String| Err(Malformed(what));
        // No product of two of these, nor of keys and positions, comes near overflowing 64 bits, a byte size included.
        let sizes = [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 24),
            ("n_layers", self.n_layers, 1 << 12),
            ("n_heads", self.n_heads, 1 << 14),
            ("n_kv_heads", self.n_kv_heads, 1 << 14),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS),
            ("sliding_window", self.sliding_window.unwrap_or(1), MAX_POSITIONS),
        ];
        for (name, size, limit) in sizes {
            if size == 0 || size > limit {
                return bad(format!("{name} is {size}: supported are 1 to {limit}"));
            }
        }
        if self.n_layers * self.kv_dim() > MAX_KEYS {
            return bad(format!(
                "{} layers of {} keys a position: at most {MAX_KEYS} in all are supported",
                self.n_layers,
                self.kv_dim()
            ));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return bad(format!(
                "n_heads {} is not a multiple of n_kv_heads {}",
                self.n_heads, self.n_kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(format!("head_dim {} is odd: rotary embedding takes pairs", self.head_dim));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return bad(format!("rope_theta is {}: a positive number is needed", self.rope_theta));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return bad(format!("norm_eps is {}: a number not below zero is needed", self.norm_eps));
        }
        Ok(())
    }

    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Query heads that share one head of keys and values.
    pub fn queries_per_kv_head(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Width of all key heads (or value heads) together.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}
