//! Attention: of queries in f32 over keys and values in f32 or f16 ([`float`]), and of quantised queries over quantised keys and
//! values ([`int8`], which lie in blocks as [`block`] says).

pub(crate) mod block;
pub(crate) mod float;
pub(crate) mod int8;
