//! `config.json`: the hyper-parameters, and the refusal of what the supported architectures do not have.

use serde_json::Value;

use super::json::{Json, excerpt};
use super::{fp8, rope};
use crate::arch::architectures::{ARCHITECTURES, Architecture, Bias, Window, names};
use crate::arch::{Activation, Config, unmarked};
use crate::format::source::head_dim;
use crate::{Error, Malformed};

/// What `config.json` says.
pub struct Read {
    pub architecture: &'static Architecture,
    /// Token ids and tying are left to the caller.
    pub config: Config,
    /// Of each of [`Config::ropes`].
    pub rope_factors: [Option<Vec<f32>>; 3],
}

/// The text models of models that take more than text, where their configuration does not name them.
const TEXT_MODELS: [(&str, &str); 3] =
    [("gemma3", "gemma3_text"), ("mistral3", "mistral"), ("llava", "llama")];

/// The configuration of the text model in one that takes more than text; `None` where it is all there is.
pub fn text_config(json: &Json) -> Option<Json> {
    let mut text = json.object("text_config")?;
    let outer = json.get("model_type").and_then(Value::as_str);
    if let (None, Some((_, inner))) =
        (text.get("model_type"), TEXT_MODELS.iter().find(|(name, _)| Some(*name) == outer))
    {
        text.set("model_type", (*inner).into());
    }
    Some(text)
}

/// Reads the hyper-parameters.
pub fn read(json: &Json) -> Result<Read, Error> {
    let architecture = architecture(json)?;
    refuse_variants(json, architecture)?;
    let mut config = sizes(json, architecture)?;
    // Before there are lists of layers.
    config.check().map_err(|Malformed(problem)| json.error(problem))?;
    extras(json, architecture, &mut config)?;
    no_rope_layers(json, architecture, &mut config)?;
    window(json, architecture, &mut config)?;
    let rope_factors = rope::read(json, architecture, &mut config)?;
    config.check().map_err(|Malformed(problem)| json.error(problem))?;
    Ok(Read { architecture, config, rope_factors })
}

fn sizes(json: &Json, architecture: &Architecture) -> Result<Config, Error> {
    let defaults = &architecture.defaults;
    let required = |key: &str| json.usize(key)?.ok_or_else(|| json.error(format!("{key} is missing")));
    // A field that is `null` has no default.
    let or_default =
        |key: &str, default| Ok(json.usize(key)?.or(if json.is_null(key) { None } else { default }));
    let hidden_size = required("hidden_size")?;
    let n_heads = or_default("num_attention_heads", defaults.n_heads)?;
    let n_heads = n_heads.ok_or_else(|| json.error("num_attention_heads is missing"))?;
    let vocab_size = or_default("vocab_size", defaults.vocab_size)?;
    let head_dim = match or_default("head_dim", defaults.head_dim)? {
        Some(head_dim) => head_dim,
        None => head_dim(hidden_size, n_heads).map_err(|problem| json.error(problem.0))?,
    };
    Ok(Config {
        architecture: architecture.model_type.to_owned(),
        hidden_size,
        intermediate_size: match architecture.hybrid {
            true => required("shared_intermediate_size")?,
            false => required("intermediate_size")?,
        },
        n_layers: required("num_hidden_layers")?,
        n_heads,
        n_kv_heads: or_default("num_key_value_heads", defaults.n_kv_heads)?.unwrap_or(n_heads),
        head_dim,
        vocab_size: vocab_size.ok_or_else(|| json.error("vocab_size is missing"))?,
        max_position_embeddings: json
            .usize("max_position_embeddings")?
            .unwrap_or(defaults.max_position_embeddings),
        norm_eps: json.f64("rms_norm_eps")?.unwrap_or(defaults.norm_eps) as f32,
        ..Config::default()
    })
}

/// What not every architecture has.
fn extras(json: &Json, architecture: &Architecture, config: &mut Config) -> Result<(), Error> {
    let attention_bias = json.bool("attention_bias")? == Some(true);
    if attention_bias && architecture.o_bias == Bias::Never {
        let name = architecture.model_type;
        return Err(json.error(format!("attention_bias is true: such biases are not part of a {name} model")));
    }
    let has = |bias: &Bias| *bias == Bias::Always || attention_bias && *bias == Bias::IfAsked;
    config.qkv_bias = has(&architecture.qkv_bias);
    config.o_bias = has(&architecture.o_bias);
    architecture.equip(config);
    config.activation = activation(json, architecture)?;
    if let Some(default) = architecture.query_scalar {
        let scalar = json.f64("query_pre_attn_scalar")?.unwrap_or(default);
        config.attention_multiplier = Some((1.0 / scalar.sqrt()) as f32);
    }
    let cap = |key: &str, default: Option<f64>| {
        let cap = json.f64(key)?.or(if json.is_null(key) { None } else { default });
        Ok::<_, Error>(cap.map(|cap| cap as f32))
    };
    if let Some([attention, logits]) = architecture.softcaps {
        config.attn_logit_softcapping = cap("attn_logit_softcapping", attention)?;
        config.final_logit_softcapping = cap("final_logit_softcapping", logits)?;
    }
    if architecture.multipliers {
        let multiplier = |key: &str| Ok::<_, Error>(json.f64(key)?.unwrap_or(1.0) as f32);
        config.embedding_multiplier = multiplier("embedding_multiplier")?;
        config.residual_multiplier = multiplier("residual_multiplier")?;
        config.attention_multiplier = Some(multiplier("attention_multiplier")?);
        config.logits_scaling = multiplier("logits_scaling")?;
    }
    Ok(())
}

/// Older files of some models name a function in `hidden_act` that the model does not have, and beside it the one it has.
fn activation(json: &Json, architecture: &Architecture) -> Result<Activation, Error> {
    let key = ["hidden_activation", "hidden_act"].into_iter().find(|key| json.get(key).is_some());
    let Some(key) = key.filter(|key| *key == "hidden_activation" || !architecture.scaled_embedding) else {
        return Ok(architecture.defaults.activation);
    };
    let name = json.str(key)?.unwrap_or_default();
    Activation::named(name).ok_or_else(|| json.error(format!("{key} is {name:?}: not supported")))
}

fn architecture(json: &Json) -> Result<&'static Architecture, Error> {
    let model_type = json.str("model_type")?;
    let class = json.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    let fits = |architecture: &&Architecture| {
        (model_type.is_some() || class.is_some())
            && model_type.is_none_or(|name| name == architecture.model_type)
            && class.is_none_or(|name| architecture.is_class(name))
    };
    ARCHITECTURES.iter().find(fits).ok_or_else(|| {
        json.error(format!(
            "model_type {:?}, architecture {:?}: supported are {}",
            model_type.unwrap_or_default(),
            class.unwrap_or_default(),
            names()
        ))
    })
}

/// Refuses fields that make the model compute something else.
fn refuse_variants(json: &Json, architecture: &Architecture) -> Result<(), Error> {
    let refuse = |key: &str, value: &Value| json.error(format!("{key} is {}: not supported", excerpt(value)));
    if json.bool("mlp_bias")? == Some(true) {
        return Err(json.error("mlp_bias is true: biases in the MLP are not supported"));
    }
    let none = |key: &str| match (key, json.get(key)) {
        ("num_local_experts", Some(value)) => value == 0,
        ("quantization_config", Some(value)) => fp8::is_asked(value),
        _ => false,
    };
    let caps = ["attn_logit_softcapping", "final_logit_softcapping"];
    let multipliers =
        ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"];
    let absent = ["quantization_config", "num_local_experts"].into_iter().filter(|key| !none(key));
    let absent = absent.chain(caps.into_iter().filter(|_| architecture.softcaps.is_none()));
    let absent = absent.chain(multipliers.into_iter().filter(|_| !architecture.multipliers));
    let absent = absent.chain((!architecture.temperature).then_some("llama_4_scaling"));
    for key in absent {
        if let Some(value) = json.get(key) {
            return Err(refuse(key, value));
        }
    }
    if architecture.hybrid && json.get("num_local_experts").is_none() {
        return Err(json.error("num_local_experts is missing: a mixture of experts is not supported"));
    }
    for key in ["rope_interleaved", "use_bidirectional_attention"] {
        if json.bool(key)? == Some(true) {
            return Err(refuse(key, &Value::Bool(true)));
        }
    }
    Ok(())
}

/// Finds the layers without rotary embedding.
fn no_rope_layers(json: &Json, architecture: &Architecture, config: &mut Config) -> Result<(), Error> {
    let n_layers = config.n_layers;
    if architecture.hybrid && json.str("position_embedding_type")? != Some("rope") {
        config.no_rope_layers = (0..n_layers).collect();
    }
    let Some(interval) = architecture.no_rope_interval else { return Ok(()) };
    let rotates: Vec<bool> = match json.get("no_rope_layers").map(Value::as_array) {
        // 1 for layers that have it.
        Some(Some(list)) if list.len() == n_layers => list.iter().map(|value| *value != 0).collect(),
        Some(_) => return Err(json.error("no_rope_layers is not a list of 0 or 1 for every layer")),
        None => {
            let interval = json.usize("no_rope_layer_interval")?.unwrap_or(interval).max(1);
            (1..=n_layers).map(|layer| !layer.is_multiple_of(interval)).collect()
        }
    };
    config.no_rope_layers = unmarked(&rotates);
    Ok(())
}

/// Finds the window, and which layers have it. One that is as long as any context is none.
fn window(json: &Json, architecture: &Architecture, config: &mut Config) -> Result<(), Error> {
    let n_layers = config.n_layers;
    let kind = match json.usize("sliding_window_pattern")? {
        Some(n) if matches!(architecture.window, Window::AllButOneOf(_)) => Window::AllButOneOf(n.max(1)),
        _ => architecture.window,
    };
    let types = layer_types(json, n_layers)?;
    let used = json.bool("use_sliding_window")? == Some(true);
    let window = json.usize("sliding_window")?;
    let window = window.or(architecture.defaults.sliding_window.filter(|_| !json.is_null("sliding_window")));
    let shorter = window.filter(|window| *window < config.max_position_embeddings);
    let contradiction = || {
        json.error(
            "layer_types and sliding_window (or use_sliding_window) contradict each other: correct one",
        )
    };
    let windowed: Vec<bool> = match (kind, types) {
        (Window::Never, _) => vec![false; n_layers],
        // What transformers would do is not what the file says.
        (Window::LaterLayers, Some(types)) if types.contains(&true) && !used => return Err(contradiction()),
        (Window::EveryLayer, Some(types)) if types.contains(&false) && shorter.is_some() => {
            return Err(contradiction());
        }
        (_, Some(types)) => types,
        (Window::EveryLayer | Window::NamedLayers, None) => vec![true; n_layers],
        (Window::AllButOneOf(n), None) => (1..=n_layers).map(|layer| !layer.is_multiple_of(n)).collect(),
        (Window::LaterLayers, None) => {
            let first = json.usize("max_window_layers")?.unwrap_or(28);
            (0..n_layers).map(|layer| used && layer >= first).collect()
        }
        (Window::IfUsed, None) => {
            (0..n_layers).map(|layer| used && config.no_rope_layers.binary_search(&layer).is_ok()).collect()
        }
    };
    // A model of which no layer is told from another keeps what its file says.
    let all = windowed.iter().all(|windowed| *windowed);
    config.sliding_window = if all { window } else { shorter.filter(|_| windowed.contains(&true)) };
    if config.sliding_window.is_some() {
        config.full_attention_layers = unmarked(&windowed);
    }
    Ok(())
}

/// Whether each layer has a window, where `layer_types` says so.
fn layer_types(json: &Json, n_layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let Some(types) = json.get("layer_types") else { return Ok(None) };
    let windowed = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention" | "attention") => Some(false),
        _ => None,
    };
    let types: Option<Vec<bool>> = types.as_array().and_then(|types| types.iter().map(windowed).collect());
    match types.filter(|types| types.len() == n_layers) {
        Some(types) => Ok(Some(types)),
        None => Err(json.error("layer_types are not full_attention or sliding_attention for every layer")),
    }
}
