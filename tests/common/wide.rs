//! Models whose matrices are large enough to be split among threads, and whose rows are whole groups of 64.
//!
//! They are made when a test begins, since they are too large to be kept. `tests/fixtures/models/wide.py` makes the same
//! weights, by the same rules, for the reference.
//!
//! Their shapes are chosen so that every product is split by its output rows, into pieces the last of which is short:
//!
//! | `qwen2` | rows × columns | rows a piece | what it is for |
//! |---|---|---|---|
//! | q, k and v | 448 × 192 | 256 | the second piece is the end of q, k and v |
//! | o | 192 × 320 | 160 | |
//! | gate, up | 2112 × 192 | 256 | |
//! | down | 192 × 2112 | 32 | 33 groups: two panels of the GEMM |
//! | head | 2075 × 192 | 256 | 27 rows are left, no multiple of 16 |
//!
//! `qwen3` has fewer columns (17 groups in `down`), norms of queries and keys, and every bias.

use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

use super::fixture::fixture;
use super::hash::fnv;
use super::random::random;

/// The model as a Hugging Face folder: `qwen2` or `qwen3`.
pub fn wide_source(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: Vec<u8>| std::fs::write(folder.path().join(name), content).unwrap();
    let config = std::fs::read(wide_config(name)).unwrap();
    write("model.safetensors", weights(&serde_json::from_slice(&config).unwrap()));
    write("config.json", config);
    write("tokenizer.json", std::fs::read(fixture("qwen2-hf/tokenizer.json")).unwrap());
    folder
}

fn wide_config(name: &str) -> PathBuf {
    fixture("wide").join(name).join("config.json")
}

/// The weights of a model with this configuration, as a safetensors file.
fn weights(config: &Value) -> Vec<u8> {
    let tensors: Vec<_> = shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let values: Vec<u8> = (0..n).flat_map(|i| value(&name, shape.len(), i).to_le_bytes()).collect();
            (name, shape, values)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, values)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), values).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// Every tensor's name and shape.
fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, mlp, head_dim) = (size("hidden_size"), size("intermediate_size"), size("head_dim"));
    let (q, kv) = (size("num_attention_heads") * head_dim, size("num_key_value_heads") * head_dim);
    let qwen3 = config["model_type"] == "qwen3";
    let mut out = vec![
        ("model.embed_tokens.weight".to_owned(), vec![size("vocab_size"), hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == false {
        out.push(("lm_head.weight".to_owned(), vec![size("vocab_size"), hidden]));
    }
    for layer in 0..size("num_hidden_layers") {
        let mut add = |name: &str, shape: &[usize]| {
            out.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            add(&format!("self_attn.{name}.weight"), &[rows, hidden]);
            add(&format!("self_attn.{name}.bias"), &[rows]);
        }
        add("self_attn.o_proj.weight", &[hidden, q]);
        if qwen3 {
            add("self_attn.o_proj.bias", &[hidden]);
            add("self_attn.q_norm.weight", &[head_dim]);
            add("self_attn.k_norm.weight", &[head_dim]);
        }
        add("mlp.gate_proj.weight", &[mlp, hidden]);
        add("mlp.up_proj.weight", &[mlp, hidden]);
        add("mlp.down_proj.weight", &[hidden, mlp]);
    }
    out
}

/// Element `i` of a tensor. All are small whole numbers times powers of two: there is nothing to round.
fn value(name: &str, dimensions: usize, i: usize) -> f32 {
    let byte = f32::from(random(fnv(name.bytes()), i as u64) as i8);
    match dimensions {
        2 if name.contains("embed_tokens") => byte / 256.0,
        2 if name.contains("down_proj") => byte / 2048.0,
        2 => byte / 1024.0,
        _ if name.ends_with(".bias") => byte / 128.0,
        _ if name.contains("layernorm") || name == "model.norm.weight" => {
            (1.0 + byte / 512.0) * standing_out(i)
        }
        _ => 1.0 + byte / 512.0,
    }
}

/// The factor of feature `i` in a norm that feeds a product: some features stand out of their group, as they do in real
/// models, one of them by more than 128 times.
fn standing_out(i: usize) -> f32 {
    match i {
        70 => 2.0,
        64..128 => 1.0 / 128.0,
        _ if i % 37 == 5 => 8.0,
        _ => 1.0,
    }
}
