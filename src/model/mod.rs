//! The transformer: its configuration, its weights as views into the file, and the forward pass.

pub mod config;

pub use config::Config;
