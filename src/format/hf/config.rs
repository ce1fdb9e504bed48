//! `config.json`: the hyper-parameters, and the refusal of what a plain Mistral or Llama model does not have.

use serde_json::Value;

use super::json::{Json, excerpt};
use crate::format::source::{check_config, head_dim};
use crate::model::Config;
use crate::{Error, Malformed};

/// The hyper-parameters, with transformers' defaults for absent fields; token ids and tying are left to the caller.
pub fn read(json: &Json) -> Result<Config, Error> {
    let architecture = architecture(json)?;
    refuse_variants(json)?;
    let mistral = architecture == "mistral";
    let required = |key: &str| json.usize(key)?.ok_or_else(|| json.error(format!("{key} is missing")));
    let hidden_size = required("hidden_size")?;
    let n_heads = required("num_attention_heads")?;
    let config = Config {
        architecture: architecture.to_owned(),
        hidden_size,
        intermediate_size: required("intermediate_size")?,
        n_layers: required("num_hidden_layers")?,
        n_heads,
        n_kv_heads: json.usize("num_key_value_heads")?.unwrap_or(if mistral { 8 } else { n_heads }),
        head_dim: match json.usize("head_dim")? {
            Some(head_dim) => head_dim,
            None => head_dim(hidden_size, n_heads).map_err(|problem| json.error(problem.0))?,
        },
        vocab_size: required("vocab_size")?,
        max_position_embeddings: json.usize("max_position_embeddings")?.unwrap_or(if mistral {
            131_072
        } else {
            2048
        }),
        sliding_window: if mistral { sliding_window(json)? } else { None },
        rope_theta: rope_theta(json)?,
        norm_eps: json.f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    };
    check_config(&config).map_err(|Malformed(problem)| json.error(problem))?;
    Ok(config)
}

fn architecture(json: &Json) -> Result<&'static str, Error> {
    let model_type = json.str("model_type")?;
    let class = json.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    match (model_type, class) {
        (Some("llama"), Some("LlamaForCausalLM") | None) | (None, Some("LlamaForCausalLM")) => Ok("llama"),
        (Some("mistral"), Some("MistralForCausalLM") | None) | (None, Some("MistralForCausalLM")) => Ok("mistral"),
        _ => Err(json.error(format!(
            "model_type {:?}, architecture {:?}: only mistral (MistralForCausalLM) and llama (LlamaForCausalLM) are \
             supported",
            model_type.unwrap_or_default(),
            class.unwrap_or_default()
        ))),
    }
}

/// Refuses fields that make the model compute something else.
fn refuse_variants(json: &Json) -> Result<(), Error> {
    let refuse = |key: &str, value: &Value| json.error(format!("{key} is {}: not supported", excerpt(value)));
    for key in ["attention_bias", "mlp_bias"] {
        if json.bool(key)? == Some(true) {
            return Err(json.error(format!("{key} is true: biases are not supported")));
        }
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
    for key in ["rope_scaling", "rope_parameters"] {
        if let Some(value) = json.get(key).filter(|value| !is_plain_rope(value)) {
            return Err(json.error(format!("{key} is {}: rope scaling is not supported", excerpt(value))));
        }
    }
    Ok(())
}

/// Whether an object that describes the rotary embedding asks for nothing but a `rope_theta`.
fn is_plain_rope(value: &Value) -> bool {
    let plain = |(key, value): (&String, &Value)| match key.as_str() {
        "rope_type" | "type" => value == "default",
        "rope_theta" => true,
        "partial_rotary_factor" => value.as_f64() == Some(1.0),
        _ => value.is_null(),
    };
    value.as_object().is_some_and(|fields| fields.iter().all(plain))
}

fn rope_theta(json: &Json) -> Result<f64, Error> {
    if let Some(theta) = json.f64("rope_theta")? {
        return Ok(theta);
    }
    // Newer files keep it with the rest of the rotary embedding.
    let theta = json.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    match theta.map(|value| value.as_f64().ok_or_else(|| json.error("rope_theta is not a number"))) {
        Some(theta) => theta,
        None => Ok(10000.0),
    }
}

/// A Mistral model's window: 4096 where the file does not say, none where it says `null`.
fn sliding_window(json: &Json) -> Result<Option<usize>, Error> {
    let kinds: Vec<&Value> =
        json.get("layer_types").and_then(Value::as_array).into_iter().flatten().collect();
    if kinds.iter().any(|kind| Some(kind) != kinds.first()) {
        return Err(json.error("layer_types differ from layer to layer: not supported"));
    }
    if kinds.first().is_some_and(|kind| *kind == "full_attention") || json.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(Some(json.usize("sliding_window")?.unwrap_or(4096)))
}
