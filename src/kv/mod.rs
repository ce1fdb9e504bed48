//! Keys and values of the tokens seen so far: where each lies, and in which type.

mod cache;
mod huge_pages;

pub use cache::KvType;
pub(crate) use cache::{Cache, HeadsMut, KvBlock, KvCache};
