//! The hyper-parameters that the keys `<architecture>.*` of a GGUF file give.

use super::Gguf;
use super::rope;
use crate::Malformed;
use crate::arch::architectures::{ARCHITECTURES, Architecture, Bias, Window};
use crate::arch::{Config, unmarked};
use crate::format::source::head_dim;

/// Keys below the architecture's name that say what [`read`] reads, or nothing that changes the computation.
const KNOWN_KEYS: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.temperature_scale",
    "attention.value_length",
    "attn_logit_softcapping",
    "block_count",
    "context_length",
    "embedding_length",
    "embedding_scale",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
];

/// The keys below the architecture's name.
pub(super) struct Keys<'g, 'a> {
    pub gguf: &'g Gguf<'a>,
    pub architecture: &'static Architecture,
    name: &'a str,
}

impl Keys<'_, '_> {
    /// A key's full name.
    pub fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    pub fn size(&self, name: &str) -> Result<Option<usize>, Malformed> {
        match self.gguf.integer(&self.name(name))?.map(usize::try_from) {
            Some(Err(_)) => Err(Malformed(format!("key {} is too large", self.name(name)))),
            Some(Ok(value)) => Ok(Some(value)),
            None => Ok(None),
        }
    }

    fn required(&self, name: &str) -> Result<usize, Malformed> {
        self.size(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Malformed {
        Malformed(format!("key {} is missing", self.name(name)))
    }

    pub fn float(&self, name: &str) -> Result<Option<f64>, Malformed> {
        self.gguf.float(&self.name(name))
    }

    /// A number of which 0 stands for none.
    fn present(&self, name: &str) -> Result<Option<f32>, Malformed> {
        Ok(self.float(name)?.filter(|value| *value != 0.0).map(|value| value as f32))
    }
}

/// The hyper-parameters, without the token ids; the factors of each of [`Config::ropes`]; and what the architecture has.
pub(super) fn read(gguf: &Gguf<'_>) -> Result<(&'static Architecture, Config, rope::Factors), Malformed> {
    let name = gguf.str("general.architecture")?.unwrap_or_default();
    // What converters that are no longer in use called it.
    let wanted = if name == "mistral" { "llama" } else { name };
    let architecture = ARCHITECTURES.iter().find(|known| known.gguf == wanted && !wanted.is_empty());
    let Some(architecture) = architecture else {
        let names: Vec<_> =
            ARCHITECTURES.iter().map(|known| known.gguf).filter(|name| !name.is_empty()).collect();
        let text = format!("general.architecture is {name:?}: supported are {}", names.join(", "));
        return Err(Malformed(text));
    };
    let keys = Keys { gguf, architecture, name };
    check_keys(&keys)?;
    let mut config = sizes(&keys)?;
    // Before there are lists of layers.
    config.check()?;
    extras(&keys, &mut config)?;
    window(&keys, &mut config)?;
    let factors = rope::read(&keys, &mut config)?;
    config.check()?;
    Ok((architecture, config, factors))
}

fn sizes(keys: &Keys) -> Result<Config, Malformed> {
    let hidden_size = keys.required("embedding_length")?;
    let n_heads = keys.required("attention.head_count")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(length) => length,
        None => head_dim(hidden_size, n_heads)?,
    };
    if let Some(other) = keys.size("attention.value_length")?.filter(|&other| other != head_dim) {
        let name = keys.name("attention.value_length");
        return Err(Malformed(format!("key {name} is {other}, not the head's {head_dim}: not supported")));
    }
    let embedding = tensor(keys.gguf, "token_embd.weight")
        .ok_or_else(|| Malformed("tensor token_embd.weight is missing".into()))?;
    Ok(Config {
        architecture: match keys.name {
            "mistral" => keys.name.to_owned(),
            _ => keys.architecture.model_type.to_owned(),
        },
        hidden_size,
        intermediate_size: keys.required("feed_forward_length")?,
        n_layers: keys.required("block_count")?,
        n_heads,
        n_kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        vocab_size: embedding.shape.first().copied().unwrap_or_default(),
        max_position_embeddings: keys.required("context_length")?,
        norm_eps: keys
            .float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))? as f32,
        tie_word_embeddings: tensor(keys.gguf, "output.weight").is_none(),
        ..Config::default()
    })
}

/// Whether there is a tensor of this name.
pub(super) fn tensor<'g, 'a>(gguf: &'g Gguf<'a>, name: &str) -> Option<&'g super::GgufTensor<'a>> {
    gguf.tensors.iter().find(|tensor| tensor.name == name)
}

/// What not every architecture has.
fn extras(keys: &Keys, config: &mut Config) -> Result<(), Malformed> {
    let (architecture, has) = (keys.architecture, |name: &str| tensor(keys.gguf, name).is_some());
    config.qkv_bias = architecture.qkv_bias == Bias::Always || has("blk.0.attn_q.bias");
    config.o_bias = has("blk.0.attn_output.bias");
    architecture.equip(config);
    config.activation = architecture.defaults.activation;
    if architecture.query_scalar.is_some() {
        // No key has it. The largest models divide by the width of a head that they would have without saying so.
        let largest = matches!((config.n_layers, config.hidden_size), (46, 4608) | (62, 5376));
        let narrow = config.hidden_size.checked_div(config.n_heads).filter(|_| largest);
        let scalar = narrow.unwrap_or(config.head_dim);
        config.attention_multiplier = Some((1.0 / (scalar as f64).sqrt()) as f32);
    }
    if architecture.softcaps.is_some() {
        config.attn_logit_softcapping = keys.present("attn_logit_softcapping")?;
        config.final_logit_softcapping = keys.present("final_logit_softcapping")?;
    }
    if architecture.multipliers {
        config.embedding_multiplier = keys.present("embedding_scale")?.unwrap_or(1.0);
        config.residual_multiplier = keys.present("residual_scale")?.unwrap_or(1.0);
        config.attention_multiplier = keys.present("attention.scale")?;
        config.logits_scaling = keys.present("logit_scale")?.unwrap_or(1.0);
    }
    let finetuned = keys.gguf.bool(&keys.name("rope.scaling.finetuned"))?;
    if architecture.multipliers && finetuned == Some(false) {
        // Granite 4 says so that it has no rotary embedding.
        config.no_rope_layers = (0..config.n_layers).collect();
    }
    if let Some(interval) = architecture.no_rope_interval {
        let numbered = (0..config.n_layers).zip(1usize..);
        config.no_rope_layers =
            numbered.filter(|(_, n)| n.is_multiple_of(interval)).map(|(layer, _)| layer).collect();
    }
    Ok(())
}

/// Finds the window, and which layers have it.
fn window(keys: &Keys, config: &mut Config) -> Result<(), Malformed> {
    // Qwen's configurations name a window and say beside it that it is not used, and Phi's one that llama.cpp does not follow
    // either: transformers takes these models to have none.
    let every = match keys.architecture.window {
        Window::EveryLayer | Window::Never if keys.architecture.gguf != "phi3" => None,
        Window::AllButOneOf(n) => Some(n),
        _ => return Ok(()),
    };
    let window = keys.size("attention.sliding_window")?.filter(|&window| window > 0);
    config.sliding_window = window;
    let pattern = keys.name("attention.sliding_window_pattern");
    let n_layers = config.n_layers;
    let windowed: Vec<bool> = match keys.gguf.bools(&pattern)? {
        Some(list) if list.len() == n_layers => list,
        Some(list) => {
            return Err(Malformed(format!("key {pattern} is for {} layers of {n_layers}", list.len())));
        }
        None => {
            let every = keys.size("attention.sliding_window_pattern")?.or(every);
            (1..=n_layers).map(|layer| every.is_none_or(|n| n == 0 || !layer.is_multiple_of(n))).collect()
        }
    };
    if window.is_some() {
        config.full_attention_layers = unmarked(&windowed);
    }
    Ok(())
}

/// Refuses every key that may change what the model computes and that [`read`] does not read.
fn check_keys(keys: &Keys) -> Result<(), Malformed> {
    let (gguf, prefix) = (keys.gguf, keys.name(""));
    let mut unknown: Vec<&str> = gguf
        .key_names()
        .filter(|key| key.strip_prefix(&prefix).is_some_and(|name| !KNOWN_KEYS.contains(&name)))
        .collect();
    let of_others = |key: &str, has: bool| (!has && gguf.has(&keys.name(key))).then(|| keys.name(key));
    let architecture = keys.architecture;
    let others = [
        of_others("attention.scale", architecture.multipliers),
        of_others("embedding_scale", architecture.multipliers),
        of_others("residual_scale", architecture.multipliers),
        of_others("logit_scale", architecture.multipliers),
        of_others("attn_logit_softcapping", architecture.softcaps.is_some()),
        of_others("final_logit_softcapping", architecture.softcaps.is_some()),
        of_others("attention.temperature_scale", architecture.temperature),
    ];
    unknown.extend(others.iter().flatten().map(String::as_str));
    unknown.sort_unstable();
    if let Some(key) = unknown.first() {
        let name = keys.name;
        return Err(Malformed(format!("key {key} is not part of the {name} models that are supported")));
    }
    if keys.size("expert_count")?.unwrap_or(0) > 0 {
        return Err(Malformed("a mixture of experts: not supported".into()));
    }
    if gguf.bool(&keys.name("attention.causal"))? == Some(false) {
        return Err(Malformed("attention is not causal: not supported".into()));
    }
    Ok(())
}
