//! Files: the `.bin` model file, and the GGUF files and Hugging Face folders it is converted from.

#![warn(clippy::arithmetic_side_effects)]

pub mod atomic;
pub mod bin;
mod bin_header;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "sizes that `lay_out` has bounded"
)]
pub mod bin_writer;
pub mod convert;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "blocks of a length asserted once"
)]
pub mod dequant;
mod entries;
pub mod gguf;
pub mod hf;
pub mod map;
#[expect(clippy::arithmetic_side_effects, reason = "lengths of slices and a piece")]
mod pieces;
pub mod source;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "sizes of a configuration that was checked"
)]
pub mod synthetic;
pub(crate) mod temporary;
