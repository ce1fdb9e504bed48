//! How a forward pass is spread over threads: work is forked among them, and each has memory of its own.

pub(crate) mod fork;
pub(crate) mod spread;
pub(crate) mod threads;
