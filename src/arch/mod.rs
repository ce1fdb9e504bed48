//! What a model *is*: its hyper-parameters, the tensors it consists of, the frequencies of its rotary embedding.
//!
//! Knows neither files nor kernels.

mod config;
mod generation;
pub(crate) mod rope;
mod shapes;
pub(crate) mod tensors;

pub use config::Config;
pub(crate) use config::{MAX_HEAD_DIM, MAX_POSITIONS};
pub use generation::GenerationDefaults;
pub use shapes::{SHAPES, shape};
