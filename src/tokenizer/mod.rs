//! Text to token ids and back.

pub mod spec;

pub use spec::{Kind, Spec};
