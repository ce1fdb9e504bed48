//! Files: the `.bin` model file, and the GGUF files and Hugging Face folders it is converted from.

pub mod bin;
mod bin_header;
pub mod map;
