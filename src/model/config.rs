//! The model's hyper-parameters, under Hugging Face's names.

/// Hyper-parameters of a Mistral- or Llama-style decoder. All sizes are counts of elements.
#[derive(Debug, Clone, PartialEq)]
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
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// The token a text begins with, where the file says so.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text, where the file says so.
    pub eos_token_ids: Vec<u32>,
}
