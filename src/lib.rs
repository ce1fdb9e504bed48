//! Torchless: inference for Mistral-, Llama- and Qwen-family language models on the CPU.
//!
//! Weights are int8 or f32 straight from a memory-mapped `.bin` file. With int8 weights the logits are the same bits on
//! every CPU, at every thread count, and however the prompt was split into batches.
//!
//! A [`Model`] is a file and its tokenizer. A [`Session`](runtime::Session) is a sequence of tokens on its way
//! through the model: tokens in, logits out; [`generate`](runtime::Session::generate) makes it an iterator of
//! tokens and text.
//!
//! ```
//! use std::sync::Arc;
//! use torchless::Model;
//! use torchless::runtime::{GenerateOptions, Session, SessionOptions};
//! use torchless::sampling::Sampling;
//!
//! # let model_path = "tests/fixtures/models/llama-int8.bin";
//! let model = Arc::new(Model::open(model_path)?);
//! let mut session = Session::new(&model, &SessionOptions::new(&model))?;
//! let prompt = model.tokenizer().encode("Once upon a time", Default::default());
//! let options = GenerateOptions {
//!     max_tokens: 20,
//!     sampling: Sampling::default().temperature(0.7).seed(1),
//!     ..GenerateOptions::default()
//! };
//! for piece in session.generate(&prompt, &options)? {
//!     print!("{}", piece?.text);
//! }
//! # Ok::<(), torchless::Error>(())
//! ```
//!
//! There is no global state. A model is shared by any number of sessions, each of which owns a share of it and may go to a
//! thread of its own:
//!
//! ```
//! use std::sync::Arc;
//! # use torchless::Model;
//! # use torchless::runtime::{Session, SessionOptions};
//!
//! # let model_path = "tests/fixtures/models/llama-int8.bin";
//! let model = Arc::new(Model::open(model_path)?);
//! let threads = [1, 2, 3].map(|token| {
//!     let model = Arc::clone(&model);
//!     std::thread::spawn(move || {
//!         let options = SessionOptions { threads: 1, ..SessionOptions::new(&model) };
//!         let mut session = Session::new(&model, &options)?;
//!         session.feed(&[token]).map(<[f32]>::len)
//!     })
//! });
//! for thread in threads {
//!     assert_eq!(thread.join().unwrap()?, model.config().vocab_size);
//! }
//! # fn is_send<T: Send>(_: T) {}
//! # is_send(Session::new(&model, &SessionOptions::new(&model))?);
//! # Ok::<(), torchless::Error>(())
//! ```
//!
//! Conversations are in [`chat`], a server in `serve`, converting other formats in [`format::convert`], getting models in `pull`, the arithmetic alone in [`kernels`].

#![deny(unsafe_code)]
// What comes from outside is an error value; what cannot happen says why. Sums that overflow panic in every build, and
// `format/`, where the sizes come from, checks them.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing
)]

pub mod arch;
pub mod bench;
#[allow(clippy::indexing_slicing, reason = "sizes of a configuration that was checked")]
pub mod calibrate;
pub mod chat;
pub mod error;
pub mod format;
#[expect(
    clippy::indexing_slicing,
    reason = "layers, heads and positions of the forward pass, for which `Cache::new` made room"
)]
pub mod kv;
#[allow(
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "sizes of a configuration that was checked, and tensors of those sizes"
)]
pub mod model;
#[allow(clippy::indexing_slicing, reason = "shares and buffers, one for each thread")]
mod parallel;
pub mod perplexity;
#[cfg(feature = "pull")]
pub mod pull;
pub mod runtime;
pub mod sampling;
#[cfg(feature = "serve")]
pub mod serve;
pub mod tokenizer;

pub use error::{Error, Malformed};
pub use model::Model;
pub use torchless_kernels as kernels;

#[cfg(target_endian = "big")]
compile_error!("weights are used as they lie in the file, which is little-endian");

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
