//! What a model *is*: its hyper-parameters, the tensors it consists of, the frequencies of its rotary embedding.
//!
//! Knows neither files nor kernels.

pub(crate) mod architectures;
mod config;
mod generation;
mod parts;
pub(crate) mod rope;
pub(crate) mod rope_scaling;
mod shapes;
pub(crate) mod tensors;

pub use config::Config;
pub(crate) use config::{MAX_HEAD_DIM, MAX_POSITIONS, unmarked};
pub use generation::GenerationDefaults;
pub use parts::{Activation, LongRope, RopeConfig, RopeOf, Temperature};
pub use shapes::{SHAPES, shape};
