//! Files: the `.bin` model file, and the GGUF files and Hugging Face folders it is converted from.

#![warn(clippy::arithmetic_side_effects)]

pub mod bin;
pub mod convert;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "blocks of a length asserted once"
)]
mod dequant;
pub(crate) mod encoding;
mod entries;
pub(crate) mod fs;
pub(crate) mod gguf;
pub(crate) mod hf;
mod importance;
mod overlap;
mod plan;
mod source;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "sizes of a configuration that was checked"
)]
pub mod synthetic;

pub use fs::AtomicFile;
