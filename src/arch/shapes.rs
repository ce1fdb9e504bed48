//! The hyper-parameters of published models.

use super::{Config, RopeConfig};

/// The names [`shape`] knows.
pub const SHAPES: [&str; 4] = ["smollm2-135m", "llama-3.2-1b", "mistral-7b", "llama-3-8b"];

/// The configuration of a published model; `None` for a name that is not one of [`SHAPES`].
pub fn shape(name: &str) -> Option<Config> {
    let llama = Config {
        architecture: "llama".to_owned(),
        hidden_size: 576,
        intermediate_size: 1536,
        n_layers: 30,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        vocab_size: 49152,
        max_position_embeddings: 8192,
        rope: RopeConfig::plain(1e5),
        norm_eps: 1e-5,
        tie_word_embeddings: true,
        ..Config::default()
    };
    let eight_billion = Config {
        hidden_size: 4096,
        intermediate_size: 14336,
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        vocab_size: 128_256,
        rope: RopeConfig::plain(5e5),
        tie_word_embeddings: false,
        ..llama.clone()
    };
    Some(match name {
        "smollm2-135m" => llama,
        "llama-3.2-1b" => Config {
            hidden_size: 2048,
            intermediate_size: 8192,
            n_layers: 16,
            n_heads: 32,
            n_kv_heads: 8,
            vocab_size: 128_256,
            max_position_embeddings: 131_072,
            rope: RopeConfig::plain(5e5),
            ..llama
        },
        "mistral-7b" => Config {
            architecture: "mistral".to_owned(),
            vocab_size: 32000,
            max_position_embeddings: 32768,
            sliding_window: Some(4096),
            rope: RopeConfig::plain(1e4),
            ..eight_billion
        },
        "llama-3-8b" => eight_billion,
        _ => return None,
    })
}
