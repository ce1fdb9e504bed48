//! The model's hyper-parameters, under Hugging Face's names.

use super::parts::{Activation, LongRope, RopeConfig, RopeOf, Temperature};
use crate::Malformed;

/// Hyper-parameters of a decoder of the Llama family and its relatives. All sizes are counts of elements.
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
    /// The layers whose queries may look at all keys where there is a window, in ascending order (Gemma 2 and 3).
    pub full_attention_layers: Vec<usize>,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// That of the layers with a window, where it is another (Gemma 3).
    pub window_rope: Option<RopeConfig>,
    /// That of long sequences, where it is another (Phi 3).
    pub long_rope: Option<LongRope>,
    /// Elements of a head that are rotated, where that is not all; the others have frequency 0 (Phi 4 mini).
    pub partial_rotary_dim: Option<usize>,
    /// The layers without rotary embedding, in ascending order (SmolLM3).
    pub no_rope_layers: Vec<usize>,
    /// How queries grow with their position (Ministral 3).
    pub attention_temperature: Option<Temperature>,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Whether queries, keys and values have biases (Qwen 2).
    pub qkv_bias: bool,
    /// Whether attention's output has one.
    pub o_bias: bool,
    /// Whether each query and key head goes through an RMSNorm before it is rotated (Qwen 3).
    pub qk_norm: bool,
    /// Whether what attention and the MLP give goes through an RMSNorm before it is added (Gemma 2 and 3).
    pub post_norms: bool,
    /// What the MLP's gate goes through.
    pub activation: Activation,
    /// What embeddings are multiplied by (Gemma, Granite).
    pub embedding_multiplier: f32,
    /// What attention and the MLP give is multiplied by this before it is added (Granite).
    pub residual_multiplier: f32,
    /// What scores are multiplied by; `None`: `1/√head_dim`.
    pub attention_multiplier: Option<f32>,
    /// What logits are divided by (Granite).
    pub logits_scaling: f32,
    /// What scores are capped at, by `cap · tanh(score / cap)` (Gemma 2).
    pub attn_logit_softcapping: Option<f32>,
    /// What logits are capped at (Gemma 2).
    pub final_logit_softcapping: Option<f32>,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// The token a text begins with, where the file says so.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text, where the file says so.
    pub eos_token_ids: Vec<u32>,
}

/// No sizes yet, and nothing that Llama does not have.
impl Default for Config {
    fn default() -> Self {
        Self {
            architecture: String::new(),
            hidden_size: 0,
            intermediate_size: 0,
            n_layers: 0,
            n_heads: 0,
            n_kv_heads: 0,
            head_dim: 0,
            vocab_size: 0,
            max_position_embeddings: 0,
            sliding_window: None,
            full_attention_layers: Vec::new(),
            rope: RopeConfig::plain(10000.0),
            window_rope: None,
            long_rope: None,
            partial_rotary_dim: None,
            no_rope_layers: Vec::new(),
            attention_temperature: None,
            norm_eps: 1e-6,
            qkv_bias: false,
            o_bias: false,
            qk_norm: false,
            post_norms: false,
            activation: Activation::Silu,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            attention_multiplier: None,
            logits_scaling: 1.0,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }
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
        let (rotary_dim, head_dim) = (self.rotary_dim(), self.head_dim);
        if !rotary_dim.is_multiple_of(2) || !(2..=head_dim).contains(&rotary_dim) {
            return bad(format!("rotary_dim is {rotary_dim}: an even number up to {head_dim} is needed"));
        }
        self.check_layers()?;
        self.check_numbers()
    }

    fn check_layers(&self) -> Result<(), Malformed> {
        let lists = [
            ("full_attention_layers", &self.full_attention_layers),
            ("no_rope_layers", &self.no_rope_layers),
        ];
        for (name, layers) in lists {
            let ascending = layers.windows(2).all(|pair| pair.first() < pair.last());
            if !ascending || layers.last().is_some_and(|&last| last >= self.n_layers) {
                let n = self.n_layers;
                return Err(Malformed(format!("{name}: numbers below {n} in ascending order are needed")));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), Malformed> {
        let ropes = ["rope", "window_rope", "long_rope"].into_iter().zip(self.ropes());
        let ropes = ropes.filter_map(|(name, rope)| Some((name, rope?)));
        let thetas = ropes.clone().map(|(name, rope)| (format!("{name}_theta"), rope.theta));
        let magnitudes = ropes.map(|(name, rope)| (format!("{name}_magnitude"), f64::from(rope.magnitude)));
        let others = [
            ("embedding_multiplier", Some(self.embedding_multiplier)),
            ("residual_multiplier", Some(self.residual_multiplier)),
            ("attention_multiplier", self.attention_multiplier),
            ("logits_scaling", Some(self.logits_scaling)),
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
            ("attention_temperature", self.attention_temperature.map(|temperature| temperature.beta)),
        ];
        let others = others.into_iter().filter_map(|(name, n)| Some((name.to_owned(), f64::from(n?))));
        let mut numbers = thetas.chain(magnitudes).chain(others);
        if let Some((name, number)) = numbers.find(|(_, number)| !(number.is_finite() && *number > 0.0)) {
            return Err(Malformed(format!("{name} is {number}: a positive number is needed")));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            let eps = self.norm_eps;
            return Err(Malformed(format!("norm_eps is {eps}: a number not below zero is needed")));
        }
        let lengths =
            [self.long_rope.map(|long| long.beyond), self.attention_temperature.map(|t| t.original)];
        match lengths.into_iter().flatten().find(|n| !(1..=MAX_POSITIONS).contains(n)) {
            Some(n) => {
                Err(Malformed(format!("an original length of {n}: supported are 1 to {MAX_POSITIONS}")))
            }
            None => Ok(()),
        }
    }

    /// The window of a layer.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.full_attention_layers.binary_search(&layer).is_err())
    }

    /// The window of all layers: what lies behind it is never looked at again. `None` where a layer has none.
    pub fn window_of_all(&self) -> Option<usize> {
        self.sliding_window.filter(|_| self.full_attention_layers.is_empty())
    }

    /// Elements of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.partial_rotary_dim.unwrap_or(self.head_dim)
    }

    /// Which rotary embedding a layer has; `None`: none.
    pub fn rope_of(&self, layer: usize) -> Option<RopeOf> {
        if self.no_rope_layers.binary_search(&layer).is_ok() {
            return None;
        }
        Some(match (self.window_rope, self.window_of(layer)) {
            (Some(_), Some(_)) => RopeOf::Windows,
            _ => RopeOf::Layers,
        })
    }

    /// The parameters of [`Config::rope`], [`Config::window_rope`] and [`Config::long_rope`].
    pub fn ropes(&self) -> [Option<RopeConfig>; 3] {
        [Some(self.rope), self.window_rope, self.long_rope.map(|long| long.rope)]
    }

    /// What scores are multiplied by.
    pub fn attention_scale(&self) -> f32 {
        self.attention_multiplier.unwrap_or(1.0 / (self.head_dim as f32).sqrt())
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

/// The layers that are not marked, in ascending order.
pub(crate) fn unmarked(layers: &[bool]) -> Vec<usize> {
    layers.iter().enumerate().filter(|(_, marked)| !**marked).map(|(layer, _)| layer).collect()
}
