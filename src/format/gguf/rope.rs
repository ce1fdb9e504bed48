//! The rotary embeddings of a GGUF file.

use super::config::{Keys, tensor};
use crate::Malformed;
use crate::arch::rope_scaling::Yarn;
use crate::arch::{Config, LongRope, RopeConfig, Temperature};

/// What the frequencies of each of [`Config::ropes`] are divided by.
pub(super) type Factors = [Option<FactorsOf>; 3];

/// Factors that are worked out, or those of a tensor.
pub(super) enum FactorsOf {
    Values(Vec<f32>),
    Tensor(&'static str),
}

const FREQUENCIES: &str = "rope_freqs.weight";
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";

/// Puts the rotary embeddings into `config`.
pub(super) fn read(keys: &Keys, config: &mut Config) -> Result<Factors, Malformed> {
    config.partial_rotary_dim = rotary_dim(keys, config)?;
    let theta = keys.float("rope.freq_base")?.unwrap_or(10000.0);
    let scaling = scaling(keys, config, theta)?;
    let Scaling { factors, magnitude } = scaling;
    config.rope = RopeConfig { theta, scaled: factors.is_some(), magnitude };
    if config.sliding_window.is_some() && !config.full_attention_layers.is_empty() {
        let default = keys.architecture.window_rope_theta;
        let theta = keys.float("rope.freq_base_swa")?.or(default);
        config.window_rope = theta.map(RopeConfig::plain).filter(|rope| *rope != config.rope);
    }
    let mut long_factors = None;
    if tensor(keys.gguf, LONG).is_some() {
        let beyond = original_length(keys, config)?;
        config.long_rope = Some(LongRope { beyond, rope: config.rope });
        long_factors = Some(FactorsOf::Tensor(LONG));
    }
    if let Some(beta) = keys.float("attention.temperature_scale")?.filter(|beta| *beta != 0.0) {
        let original = original_length(keys, config)?;
        config.attention_temperature = Some(Temperature { beta: beta as f32, original });
    }
    Ok([factors, None, long_factors])
}

/// Elements of a head that are rotated, where that is not all.
fn rotary_dim(keys: &Keys, config: &Config) -> Result<Option<usize>, Malformed> {
    let head_dim = config.head_dim;
    match keys.size("rope.dimension_count")? {
        Some(n) if n != head_dim && !(keys.architecture.long_rope && n < head_dim) => {
            let name = keys.name("rope.dimension_count");
            Err(Malformed(format!("key {name} is {n}, not the head's {head_dim}: not supported")))
        }
        n => Ok(n.filter(|n| *n != head_dim)),
    }
}

fn original_length(keys: &Keys, config: &Config) -> Result<usize, Malformed> {
    Ok(keys.size("rope.scaling.original_context_length")?.unwrap_or(config.max_position_embeddings))
}

struct Scaling {
    factors: Option<FactorsOf>,
    magnitude: f32,
}

/// What all frequencies of the rotary embedding are divided by.
fn scaling(keys: &Keys, config: &Config, theta: f64) -> Result<Scaling, Malformed> {
    // A factor of 1, or 0 for "none given", scales nothing.
    let factor = |name: &str| Ok(keys.float(name)?.filter(|&factor| factor != 1.0 && factor != 0.0));
    let kind = keys.gguf.str(&keys.name("rope.scaling.type"))?;
    let attn_factor = factor("rope.scaling.attn_factor")?;
    let factor = match factor("rope.scaling.factor")?.or(factor("rope.scale_linear")?) {
        Some(factor) if !((factor as f32).is_normal() && factor > 0.0) => {
            return Err(Malformed(format!("rope scaling by {factor}: a positive factor is needed")));
        }
        factor => factor,
    };
    let name = [FREQUENCIES, SHORT].into_iter().find(|name| tensor(keys.gguf, name).is_some());
    let own = name.map(FactorsOf::Tensor);
    let (computed, magnitude) = match (kind, factor) {
        (Some("none" | "longrope"), _) | (None | Some("linear"), None) => (None, 1.0),
        (None | Some("linear"), Some(factor)) => (Some(vec![factor as f32; config.rotary_dim() / 2]), 1.0),
        (Some("yarn"), factor) => {
            let (yarn, magnitude) = yarn(keys, config, factor.unwrap_or(1.0))?;
            (Some(yarn.factors(theta, config.rotary_dim())), magnitude)
        }
        (Some(other), _) => {
            return Err(Malformed(format!("rope scaling of type {other:?} is not supported")));
        }
    };
    if own.is_some() && computed.is_some() {
        return Err(Malformed(
            "rope scaling by a tensor of factors and a factor at once: not supported".into(),
        ));
    }
    let magnitude = magnitude * attn_factor.unwrap_or(1.0) as f32;
    Ok(Scaling { factors: own.or(computed.map(FactorsOf::Values)), magnitude })
}

/// YaRN, and what it multiplies cosines and sines by.
fn yarn(keys: &Keys, config: &Config, factor: f64) -> Result<(Yarn, f32), Malformed> {
    let original = original_length(keys, config)?;
    if original == 0 {
        return Err(Malformed("rope scaling from an original length of 0".into()));
    }
    let yarn = Yarn::new(factor, original as f64);
    let beta = |name: &str, default: f64| {
        Ok::<_, Malformed>(
            keys.float(name)?.filter(|beta| beta.is_finite() && *beta > 0.0).unwrap_or(default),
        )
    };
    let yarn = Yarn {
        beta_fast: beta("rope.scaling.yarn_beta_fast", yarn.beta_fast)?,
        beta_slow: beta("rope.scaling.yarn_beta_slow", yarn.beta_slow)?,
        ..yarn
    };
    let all_dim = keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    Ok((yarn, yarn.magnitude(1.0, all_dim)))
}
