//! The JSON header of a `.bin` file: metadata, tokenizer, and the table of tensors.

use std::str::FromStr;

use serde::de::{Deserialize, Deserializer};

use super::tokenizer;
use crate::Malformed;
use crate::arch::tensors::{FIRST_O_BIAS, FIRST_POST_NORM, FIRST_QK_NORM, FIRST_QKV_BIAS, ROPE_FACTORS};
use crate::arch::{Activation, Config, GenerationDefaults, LongRope, MAX_POSITIONS, RopeConfig, Temperature};
use crate::format::entries::Entries;
use crate::tokenizer::Spec;

/// What a header says.
pub(crate) struct Header {
    pub config: Config,
    pub tokenizer: Spec,
    pub generation: GenerationDefaults,
    pub tensors: Vec<(String, RawTensor)>,
}

/// A tensor's entry as it stands: nothing in it has been checked.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct RawTensor {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub offset: usize,
    #[serde(default)]
    pub scale_offset: Option<usize>,
    #[serde(default)]
    pub scale_size: Option<usize>,
}

#[derive(serde::Deserialize)]
struct RawHeader {
    metadata: Entries<Text>,
    tokenizer: tokenizer::Raw,
    tensors: Entries<RawTensor>,
}

/// Reads the header's JSON.
pub(crate) fn parse(json: &[u8]) -> Result<Header, Malformed> {
    let raw: RawHeader = serde_json::from_slice(json).map_err(|e| Malformed(format!("header: {e}")))?;
    let metadata = Metadata(raw.metadata.0);
    let tensors = raw.tensors.0;
    let config = config(&metadata, &tensors)?;
    let tokenizer = raw.tokenizer.spec(config.bos_token_id, config.eos_token_ids.clone())?;
    let generation = generation(&metadata)?;
    Ok(Header { config, tokenizer, generation, tensors })
}

/// The metadata: strings, as the exporters write them.
struct Metadata(Vec<(String, Text)>);

impl Metadata {
    /// The value of `key`; Python's `None` counts as absent.
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.iter().find(|(k, _)| k == key).map(|(_, Text(v))| v.trim());
        value.filter(|v| !matches!(*v, "None" | "null" | ""))
    }

    fn parse<T: FromStr>(&self, key: &str) -> Result<Option<T>, Malformed> {
        let bad = |v: &str| Malformed(format!("metadata.{key}: {v:?} is not a value for it"));
        self.get(key).map(|v| v.parse().map_err(|_| bad(v))).transpose()
    }

    fn require<T: FromStr>(&self, key: &str) -> Result<T, Malformed> {
        self.parse(key)?.ok_or_else(|| Malformed(format!("metadata.{key} is missing")))
    }

    /// Numbers with commas between them.
    fn list<T: FromStr>(&self, key: &str) -> Result<Vec<T>, Malformed> {
        let bad = |v: &str| Malformed(format!("metadata.{key}: {v:?} is not a list of numbers"));
        let list = self.get(key).unwrap_or_default();
        list.split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|s| s.parse().map_err(|_| bad(list)))
            .collect()
    }
}

fn config(metadata: &Metadata, tensors: &[(String, RawTensor)]) -> Result<Config, Malformed> {
    let act = metadata.get("act_type").unwrap_or("silu");
    let activation = Activation::named(act).ok_or_else(|| {
        Malformed(format!("metadata.act_type is {act:?}: silu and gelu_pytorch_tanh are supported"))
    })?;
    let n_heads: usize = metadata.require("n_heads")?;
    let has = |name: &str| tensors.iter().any(|(n, _)| n == name);
    let tied = metadata.get("tie_word_embeddings").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let head_dim = match metadata.parse("head_dim")? {
        Some(head_dim) => head_dim,
        None => head_dim_of_q_proj(tensors, n_heads)?,
    };
    let rope = |name: &str, factors: &str| {
        let Some(theta) = metadata.parse(&format!("{name}_theta"))? else { return Ok::<_, Malformed>(None) };
        let magnitude = metadata.parse(&format!("{name}_magnitude"))?.unwrap_or(1.0);
        Ok(Some(RopeConfig { theta, scaled: has(factors), magnitude }))
    };
    let config = Config {
        architecture: metadata.get("architecture").unwrap_or("mistral").to_owned(),
        hidden_size: metadata.require("hidden_size")?,
        intermediate_size: metadata.require("intermediate_size")?,
        n_layers: metadata.require("n_layers")?,
        n_heads,
        n_kv_heads: metadata.require("n_kv_heads")?,
        head_dim,
        vocab_size: metadata.require("vocab_size")?,
        // Some files put "no limit" as a very large number.
        max_position_embeddings: metadata.require::<usize>("max_position_embeddings")?.min(MAX_POSITIONS),
        sliding_window: metadata.parse("sliding_window")?.map(|window: usize| window.min(MAX_POSITIONS)),
        full_attention_layers: metadata.list("full_attention_layers")?,
        rope: rope("rope", ROPE_FACTORS[0])?
            .ok_or_else(|| Malformed("metadata.rope_theta is missing".to_owned()))?,
        window_rope: rope("window_rope", ROPE_FACTORS[1])?,
        long_rope: match (metadata.parse("long_rope_beyond")?, rope("long_rope", ROPE_FACTORS[2])?) {
            (Some(beyond), Some(rope)) => Some(LongRope { beyond, rope }),
            _ => None,
        },
        partial_rotary_dim: metadata.parse("rotary_dim")?,
        no_rope_layers: metadata.list("no_rope_layers")?,
        attention_temperature: match metadata.parse("attention_temperature")? {
            Some(beta) => {
                Some(Temperature { beta, original: metadata.require("attention_temperature_positions")? })
            }
            None => None,
        },
        norm_eps: metadata.require("norm_eps")?,
        post_norms: has(FIRST_POST_NORM),
        activation,
        embedding_multiplier: metadata.parse("embedding_multiplier")?.unwrap_or(1.0),
        residual_multiplier: metadata.parse("residual_multiplier")?.unwrap_or(1.0),
        attention_multiplier: metadata.parse("attention_multiplier")?,
        logits_scaling: metadata.parse("logits_scaling")?.unwrap_or(1.0),
        attn_logit_softcapping: metadata.parse("attn_logit_softcapping")?,
        final_logit_softcapping: metadata.parse("final_logit_softcapping")?,
        qkv_bias: has(FIRST_QKV_BIAS),
        o_bias: has(FIRST_O_BIAS),
        qk_norm: has(FIRST_QK_NORM),
        tie_word_embeddings: tied || !has("lm_head.weight"),
        bos_token_id: metadata.parse("bos_token_id")?,
        eos_token_ids: metadata.list("eos_token_id")?,
    };
    config.check().map_err(|Malformed(problem)| Malformed(format!("metadata: {problem}")))?;
    Ok(config)
}

fn generation(metadata: &Metadata) -> Result<GenerationDefaults, Malformed> {
    let [temperature, top_k, top_p, min_p, repetition_penalty] = GenerationDefaults::NAMES;
    let generation = GenerationDefaults {
        temperature: metadata.parse(temperature)?,
        top_k: metadata.parse(top_k)?,
        top_p: metadata.parse(top_p)?,
        min_p: metadata.parse(min_p)?,
        repetition_penalty: metadata.parse(repetition_penalty)?,
    };
    generation.check().map_err(|Malformed(problem)| Malformed(format!("metadata.{problem}")))
}

/// The original files do not say `head_dim`: it is `q_proj`'s rows over the number of heads.
fn head_dim_of_q_proj(tensors: &[(String, RawTensor)], n_heads: usize) -> Result<usize, Malformed> {
    const NAME: &str = "model.layers.0.self_attn.q_proj.weight";
    let rows = tensors.iter().find(|(n, _)| n == NAME).and_then(|(_, t)| t.shape.first().copied());
    let rows = rows.ok_or_else(|| Malformed(format!("tensor {NAME} is missing")))?;
    match rows.checked_div(n_heads) {
        Some(head_dim) if rows.is_multiple_of(n_heads) => Ok(head_dim),
        _ => Err(Malformed(format!("tensor {NAME}: {rows} rows do not divide into {n_heads} heads"))),
    }
}

/// A metadata value: a string, or (leniently) a bare number or boolean.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(s) => Ok(Self(s)),
            other => Ok(Self(other.to_string())),
        }
    }
}
