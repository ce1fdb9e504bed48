//! What a generation needs beside the model: scratch memory, the KV cache, sampling, and the session that ties them.

pub mod generate;
pub mod grammar;
#[expect(
    clippy::indexing_slicing,
    reason = "layers, heads and positions of the forward pass, for which `Cache::new` made room"
)]
pub(crate) mod kv_cache;
mod memory;
pub(crate) mod pages;
pub mod sampler;
pub(crate) mod scratch;
pub mod session;
pub mod stop;

pub use kv_cache::KvType;
