//! `config.json`: the hyper-parameters, and the refusal of what the supported architectures do not have.

use serde_json::Value;

use super::json::{Json, excerpt};
use super::rope;
use crate::arch::Config;
use crate::format::source::head_dim;
use crate::{Error, Malformed};

/// What an architecture has whatever its file says, and transformers' defaults where the file says nothing.
struct Architecture {
    model_type: &'static str,
    class: &'static str,
    /// `None`: as many as query heads.
    n_kv_heads: Option<usize>,
    /// `None`: the width over the number of heads.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    qkv_bias: Bias,
    o_bias: Bias,
    qk_norm: bool,
    window: Window,
}

#[derive(PartialEq)]
enum Bias {
    Never,
    Always,
    /// If `attention_bias` is true.
    IfAsked,
}

enum Window {
    Never,
    EveryLayer,
    /// From layer `max_window_layers` on, if `use_sliding_window` is true.
    LaterLayers,
}

const ARCHITECTURES: [Architecture; 4] = [
    Architecture {
        model_type: "llama",
        class: "LlamaForCausalLM",
        n_kv_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        qkv_bias: Bias::IfAsked,
        o_bias: Bias::IfAsked,
        qk_norm: false,
        window: Window::Never,
    },
    Architecture {
        model_type: "mistral",
        class: "MistralForCausalLM",
        n_kv_heads: Some(8),
        head_dim: None,
        max_position_embeddings: 131_072,
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        qk_norm: false,
        window: Window::EveryLayer,
    },
    Architecture {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        n_kv_heads: Some(32),
        head_dim: None,
        max_position_embeddings: 32_768,
        qkv_bias: Bias::Always,
        o_bias: Bias::Never,
        qk_norm: false,
        window: Window::LaterLayers,
    },
    Architecture {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        n_kv_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        qkv_bias: Bias::IfAsked,
        o_bias: Bias::IfAsked,
        qk_norm: true,
        window: Window::LaterLayers,
    },
];

/// The hyper-parameters, and the factors of the rotary embedding's frequencies where they are scaled. Token ids and
/// tying are left to the caller.
pub fn read(json: &Json) -> Result<(Config, Option<Vec<f32>>), Error> {
    let architecture = architecture(json)?;
    refuse_variants(json)?;
    let required = |key: &str| json.usize(key)?.ok_or_else(|| json.error(format!("{key} is missing")));
    // A field that is `null` has no default.
    let or_default =
        |key: &str, default| Ok(json.usize(key)?.or(if json.is_null(key) { None } else { default }));
    let hidden_size = required("hidden_size")?;
    let n_heads = required("num_attention_heads")?;
    let attention_bias = json.bool("attention_bias")? == Some(true);
    if attention_bias && architecture.o_bias == Bias::Never {
        let name = architecture.model_type;
        return Err(json.error(format!("attention_bias is true: such biases are not part of a {name} model")));
    }
    let has = |bias: &Bias| *bias == Bias::Always || attention_bias && *bias == Bias::IfAsked;
    let mut config = Config {
        architecture: architecture.model_type.to_owned(),
        hidden_size,
        intermediate_size: required("intermediate_size")?,
        n_layers: required("num_hidden_layers")?,
        n_heads,
        n_kv_heads: or_default("num_key_value_heads", architecture.n_kv_heads)?.unwrap_or(n_heads),
        head_dim: match or_default("head_dim", architecture.head_dim)? {
            Some(head_dim) => head_dim,
            None => head_dim(hidden_size, n_heads).map_err(|problem| json.error(problem.0))?,
        },
        vocab_size: required("vocab_size")?,
        max_position_embeddings: json
            .usize("max_position_embeddings")?
            .unwrap_or(architecture.max_position_embeddings),
        sliding_window: None,
        rope_theta: rope::theta(json)?,
        norm_eps: json.f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        scaled_rope: false,
        qkv_bias: has(&architecture.qkv_bias),
        o_bias: has(&architecture.o_bias),
        qk_norm: architecture.qk_norm,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    };
    config.sliding_window = sliding_window(json, &architecture.window, &config)?;
    config.check().map_err(|Malformed(problem)| json.error(problem))?;
    let factors = rope::factors(json, &config)?;
    config.scaled_rope = factors.is_some();
    Ok((config, factors))
}

fn architecture(json: &Json) -> Result<&'static Architecture, Error> {
    let model_type = json.str("model_type")?;
    let class = json.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    let fits = |architecture: &&Architecture| {
        (model_type.is_some() || class.is_some())
            && model_type.is_none_or(|name| name == architecture.model_type)
            && class.is_none_or(|name| name == architecture.class)
    };
    ARCHITECTURES.iter().find(fits).ok_or_else(|| {
        let names = ARCHITECTURES.map(|known| format!("{} ({})", known.model_type, known.class)).join(", ");
        json.error(format!(
            "model_type {:?}, architecture {:?}: supported are {names}",
            model_type.unwrap_or_default(),
            class.unwrap_or_default()
        ))
    })
}

/// Refuses fields that make the model compute something else.
fn refuse_variants(json: &Json) -> Result<(), Error> {
    let refuse = |key: &str, value: &Value| json.error(format!("{key} is {}: not supported", excerpt(value)));
    if json.bool("mlp_bias")? == Some(true) {
        return Err(json.error("mlp_bias is true: biases in the MLP are not supported"));
    }
    let absent_only = [
        "quantization_config",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "num_local_experts",
        "embedding_multiplier",
        "residual_multiplier",
        "attention_multiplier",
        "logits_scaling",
    ];
    for key in absent_only {
        if let Some(value) = json.get(key) {
            return Err(refuse(key, value));
        }
    }
    if let Some(value) =
        json.get("hidden_act").filter(|value| !matches!(value.as_str(), Some("silu" | "swish")))
    {
        return Err(refuse("hidden_act", value));
    }
    if let Some(value) = json.get("partial_rotary_factor").filter(|value| value.as_f64() != Some(1.0)) {
        return Err(refuse("partial_rotary_factor", value));
    }
    if json.bool("rope_interleaved")? == Some(true) {
        return Err(refuse("rope_interleaved", &Value::Bool(true)));
    }
    Ok(())
}

/// The window of all layers. One that only some layers have is refused, unless it is as long as any context.
fn sliding_window(json: &Json, kind: &Window, config: &Config) -> Result<Option<usize>, Error> {
    if json.is_null("sliding_window") || matches!(kind, Window::Never) {
        return Ok(None);
    }
    let window = json.usize("sliding_window")?.unwrap_or(4096);
    let n_layers = config.n_layers;
    let windowed = match (json.get("layer_types").and_then(Value::as_array), kind) {
        (Some(types), _) => {
            let count = |kind: &str| types.iter().filter(|value| *value == kind).count();
            let windowed = count("sliding_attention");
            if types.len() != n_layers || count("full_attention").checked_add(windowed) != Some(n_layers) {
                return Err(
                    json.error("layer_types are not full_attention or sliding_attention for every layer")
                );
            }
            let asked = match kind {
                Window::LaterLayers => json.bool("use_sliding_window")? == Some(true) || windowed == 0,
                _ => windowed == n_layers || window >= config.max_position_embeddings,
            };
            if !asked {
                return Err(json.error(
                    "layer_types and sliding_window (or use_sliding_window) contradict each other: correct one",
                ));
            }
            windowed
        }
        (None, Window::LaterLayers) if json.bool("use_sliding_window")? == Some(true) => {
            n_layers.saturating_sub(json.usize("max_window_layers")?.unwrap_or(28))
        }
        (None, Window::LaterLayers) => 0,
        (None, _) => n_layers,
    };
    match windowed {
        0 => Ok(None),
        _ if windowed == n_layers => Ok(Some(window)),
        _ if window >= config.max_position_embeddings => Ok(None),
        _ => Err(json.error(format!(
            "a sliding window in {windowed} of {n_layers} layers: only one in all layers is supported"
        ))),
    }
}
