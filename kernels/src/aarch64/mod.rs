//! aarch64.

pub(crate) mod dotprod;
mod int4;
pub(crate) mod neon;
