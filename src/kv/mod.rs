//! Keys and values of the tokens seen so far: where each lies, and in which type.

mod cache;
mod huge_pages;
mod int8;
mod pool;
mod store;
mod table;

pub use cache::KvType;
pub(crate) use cache::{Cache, KvBlock, KvCache};
pub(crate) use int8::{Int8Cache, Int8HeadsMut};
pub(crate) use pool::{Chain, Pool};
pub(crate) use store::HeadsMut;
pub(crate) use table::{PageTable, needed_from, pages_of_a_sequence};
