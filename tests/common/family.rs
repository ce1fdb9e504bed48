//! Tiny random models of the architectures beside Llama, Mistral and Qwen; see `tests/fixtures/models/families.py`.

use std::collections::BTreeMap;
use std::fs;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

use super::fixture::fixture;
use super::hash::fnv;
use super::random::random;

/// What the model is.
#[derive(serde::Deserialize)]
pub struct Family {
    /// Of `config.json`.
    config: Value,
    plus_one: bool,
    tensors: BTreeMap<String, Vec<usize>>,
    pub tokens: Vec<u32>,
}

/// The names of all.
pub const FAMILIES: [&str; 10] = [
    "gemma2",
    "gemma3",
    "granite",
    "granitemoehybrid",
    "ministral",
    "ministral3",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
];

/// What `families.py` says of one.
pub fn json(name: &str) -> Value {
    let path = fixture("families").join(format!("{name}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

impl Family {
    pub fn named(name: &str) -> Self {
        serde_json::from_value(json(name)).unwrap()
    }

    /// Element `i` of a tensor, by the rules of `families.py`.
    fn value(&self, name: &str, dimensions: usize, i: usize) -> f32 {
        let byte = f32::from(random(fnv(name.bytes()), i as u64) as i8);
        match dimensions {
            2 if name.contains("embed_tokens") => byte / 256.0,
            2 => byte / 512.0,
            _ if name.ends_with(".bias") => byte / 128.0,
            _ if self.plus_one => byte / 512.0,
            _ => byte / 512.0 + 1.0,
        }
    }

    /// A tensor's shape and values.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let shape = &self.tensors[name];
        let n = shape.iter().product();
        (shape.clone(), (0..n).map(|i| self.value(name, shape.len(), i)).collect())
    }

    /// The model as a Hugging Face folder.
    pub fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<_> = self
            .tensors
            .keys()
            .map(|name| {
                let (shape, values) = self.tensor(name);
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            ((*name).clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        fs::copy(fixture("llama-bias-hf/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        folder
    }
}
