//! aarch64.
