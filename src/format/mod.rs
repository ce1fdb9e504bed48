//! Files: the `.bin` model file, and the GGUF files and Hugging Face folders it is converted from.

pub mod atomic;
pub mod bin;
mod bin_header;
pub mod bin_writer;
pub mod convert;
pub mod dequant;
mod entries;
pub mod gguf;
pub mod hf;
pub mod map;
pub mod source;
pub(crate) mod temporary;
