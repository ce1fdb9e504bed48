//! What each architecture that is supported has: what its configuration leaves out because it is always so, and what holds where
//! the configuration says nothing (transformers' defaults).

use super::{Activation, Config};

/// One architecture. A field says what holds whatever the configuration says, or, where it is named so, by default.
pub(crate) struct Architecture {
    /// Hugging Face's `model_type`; it is also what [`Config::architecture`](super::Config::architecture) is.
    pub model_type: &'static str,
    /// Hugging Face's class.
    pub class: &'static str,
    /// GGUF's `general.architecture`.
    pub gguf: &'static str,
    pub defaults: Defaults,
    pub qkv_bias: Bias,
    pub o_bias: Bias,
    pub qk_norm: bool,
    pub post_norms: bool,
    /// Norms multiply by one more than their weight, in Hugging Face's files.
    pub norm_plus_one: bool,
    /// Embeddings are multiplied by `√hidden_size`.
    pub scaled_embedding: bool,
    /// Scores are multiplied by `1/√query_pre_attn_scalar`, which has this default.
    pub query_scalar: Option<f64>,
    /// `attn_logit_softcapping` and `final_logit_softcapping` are followed; these are their defaults.
    pub softcaps: Option<[Option<f64>; 2]>,
    /// Granite's multipliers are followed.
    pub multipliers: bool,
    /// Queries that grow with their position are followed.
    pub temperature: bool,
    /// A mixture of experts with an MLP for all tokens, and a choice of attention and other things: supported without experts
    /// and with attention in all layers.
    pub hybrid: bool,
    pub window: Window,
    /// The base of the rotary embedding of layers with a window, by default.
    pub window_rope_theta: Option<f64>,
    /// One layer of so many, the last, has no rotary embedding, by default.
    pub no_rope_interval: Option<usize>,
    /// Long and short factors of the rotary embedding, and heads that are rotated in part, are followed.
    pub long_rope: bool,
    /// Queries' and keys' rows in GGUF are those of the interleaved rotary embedding.
    pub gguf_interleaved: bool,
}

/// What holds where the configuration says nothing.
pub(crate) struct Defaults {
    /// `None`: the configuration must say it.
    pub n_heads: Option<usize>,
    pub vocab_size: Option<usize>,
    /// `None`: as many as query heads.
    pub n_kv_heads: Option<usize>,
    /// `None`: the width over the number of heads.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub activation: Activation,
    pub tie_word_embeddings: Option<bool>,
    pub sliding_window: Option<usize>,
}

#[derive(PartialEq)]
pub(crate) enum Bias {
    Never,
    Always,
    /// If `attention_bias` is true.
    IfAsked,
}

/// Which layers have a window, where `layer_types` does not say.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Window {
    Never,
    EveryLayer,
    /// Those that `layer_types` names; every layer, where it is absent.
    NamedLayers,
    /// From layer `max_window_layers` on, if `use_sliding_window` is true.
    LaterLayers,
    /// All but the last of so many, again and again.
    AllButOneOf(usize),
    /// None, if `use_sliding_window` is not true; else all but those without rotary embedding.
    IfUsed,
}

const LLAMA: Architecture = Architecture {
    model_type: "llama",
    class: "LlamaForCausalLM",
    gguf: "llama",
    defaults: Defaults {
        n_heads: None,
        vocab_size: None,
        n_kv_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        norm_eps: 1e-6,
        rope_theta: 10000.0,
        activation: Activation::Silu,
        tie_word_embeddings: None,
        sliding_window: None,
    },
    qkv_bias: Bias::IfAsked,
    o_bias: Bias::IfAsked,
    qk_norm: false,
    post_norms: false,
    norm_plus_one: false,
    scaled_embedding: false,
    query_scalar: None,
    softcaps: None,
    multipliers: false,
    temperature: false,
    hybrid: false,
    window: Window::Never,
    window_rope_theta: None,
    no_rope_interval: None,
    long_rope: false,
    gguf_interleaved: true,
};

const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    class: "MistralForCausalLM",
    gguf: "mistral",
    defaults: Defaults {
        n_kv_heads: Some(8),
        max_position_embeddings: 131_072,
        sliding_window: Some(4096),
        ..LLAMA.defaults
    },
    qkv_bias: Bias::Never,
    o_bias: Bias::Never,
    window: Window::EveryLayer,
    ..LLAMA
};

const QWEN: Architecture = Architecture {
    defaults: Defaults {
        n_kv_heads: Some(32),
        max_position_embeddings: 32_768,
        sliding_window: Some(4096),
        ..LLAMA.defaults
    },
    window: Window::LaterLayers,
    gguf_interleaved: false,
    ..LLAMA
};

const GEMMA: Architecture = Architecture {
    defaults: Defaults {
        n_kv_heads: Some(4),
        head_dim: Some(256),
        activation: Activation::GeluTanh,
        tie_word_embeddings: Some(true),
        sliding_window: Some(4096),
        ..LLAMA.defaults
    },
    post_norms: true,
    norm_plus_one: true,
    scaled_embedding: true,
    query_scalar: Some(256.0),
    gguf_interleaved: false,
    ..LLAMA
};

const GRANITE: Architecture = Architecture {
    model_type: "granite",
    class: "GraniteForCausalLM",
    gguf: "granite",
    multipliers: true,
    ..LLAMA
};

/// All that are supported.
pub(crate) const ARCHITECTURES: [Architecture; 12] = [
    LLAMA,
    MISTRAL,
    Architecture {
        model_type: "ministral",
        class: "MinistralForCausalLM",
        gguf: "",
        window: Window::NamedLayers,
        ..MISTRAL
    },
    Architecture {
        model_type: "ministral3",
        class: "Ministral3ForCausalLM",
        gguf: "mistral3",
        defaults: Defaults {
            head_dim: Some(128),
            max_position_embeddings: 262_144,
            norm_eps: 1e-5,
            sliding_window: None,
            ..MISTRAL.defaults
        },
        temperature: true,
        ..MISTRAL
    },
    Architecture {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        gguf: "qwen2",
        qkv_bias: Bias::Always,
        o_bias: Bias::Never,
        ..QWEN
    },
    Architecture {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        gguf: "qwen3",
        defaults: Defaults { head_dim: Some(128), ..QWEN.defaults },
        qk_norm: true,
        ..QWEN
    },
    Architecture {
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        gguf: "gemma2",
        defaults: Defaults { max_position_embeddings: 8192, ..GEMMA.defaults },
        softcaps: Some([Some(50.0), Some(30.0)]),
        window: Window::AllButOneOf(2),
        ..GEMMA
    },
    Architecture {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        gguf: "gemma3",
        defaults: Defaults {
            n_heads: Some(8),
            vocab_size: Some(262_208),
            max_position_embeddings: 131_072,
            rope_theta: 1e6,
            ..GEMMA.defaults
        },
        qk_norm: true,
        softcaps: Some([None, None]),
        window: Window::AllButOneOf(6),
        window_rope_theta: Some(10000.0),
        ..GEMMA
    },
    Architecture {
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        gguf: "phi3",
        defaults: Defaults { max_position_embeddings: 4096, norm_eps: 1e-5, ..LLAMA.defaults },
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        window: Window::EveryLayer,
        long_rope: true,
        gguf_interleaved: false,
        ..LLAMA
    },
    GRANITE,
    Architecture {
        model_type: "granitemoehybrid",
        class: "GraniteMoeHybridForCausalLM",
        gguf: "granitehybrid",
        hybrid: true,
        ..GRANITE
    },
    Architecture {
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        gguf: "smollm3",
        defaults: Defaults {
            n_kv_heads: Some(4),
            max_position_embeddings: 32_768,
            rope_theta: 2e6,
            tie_word_embeddings: Some(true),
            ..LLAMA.defaults
        },
        window: Window::IfUsed,
        no_rope_interval: Some(4),
        ..LLAMA
    },
];

impl Architecture {
    /// Puts into a configuration, whose sizes are known, what is so whatever a file says.
    pub fn equip(&self, config: &mut Config) {
        (config.qk_norm, config.post_norms) = (self.qk_norm, self.post_norms);
        if self.scaled_embedding {
            config.embedding_multiplier = (config.hidden_size as f64).sqrt() as f32;
        }
    }

    /// Whether Hugging Face's class of this name computes the same: those that only lack the head do, too.
    pub fn is_class(&self, name: &str) -> bool {
        let stem = self.class.trim_end_matches("ForCausalLM");
        name == self.class || ["Model", "TextModel"].iter().any(|end| name.strip_suffix(end) == Some(stem))
    }
}

/// The names of all.
pub(crate) fn names() -> String {
    ARCHITECTURES.map(|known| format!("{} ({})", known.model_type, known.class)).join(", ")
}
