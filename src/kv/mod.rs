//! Keys and values of the tokens seen so far: where each lies, and in which type.

mod cache;
mod huge_pages;
mod store;

pub use cache::KvType;
pub(crate) use cache::{Cache, KvBlock, KvCache};
pub(crate) use store::HeadsMut;
