//! Keys and values of the tokens seen so far: where each lies, and in which type.

mod cache;
mod huge_pages;
mod int8;
mod store;

pub use cache::KvType;
pub(crate) use cache::{Cache, KvBlock, KvCache};
pub(crate) use int8::{Int8Cache, Int8HeadsMut};
pub(crate) use store::HeadsMut;
