//! Torchless: inference for Mistral- and Llama-family language models on the CPU.
//!
//! Weights are int8 or f32 straight from a memory-mapped `.bin` file. With int8 weights the logits are the same bits on
//! every CPU, at every thread count, and however the prompt was split into batches.

#![deny(unsafe_code)]

pub mod chat;
pub mod error;
pub mod format;
pub mod model;
pub mod perplexity;
pub mod pull;
pub mod runtime;
pub mod tokenizer;

pub use error::{Error, Malformed};
pub use model::Model;
pub use torchless_kernels as kernels;

#[cfg(target_endian = "big")]
compile_error!("weights are used as they lie in the file, which is little-endian");

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
