//! Text to token ids and back.

pub mod spec;
pub mod spm;

pub use spec::{Kind, Spec};
