//! Files of the operating system: mapped for reading, written beside their destination and renamed.

mod atomic;
mod map;
#[expect(clippy::arithmetic_side_effects, reason = "lengths of slices and a piece")]
mod pieces;
pub(crate) mod temporary;

pub use atomic::AtomicFile;
#[cfg(feature = "pull")]
pub(crate) use atomic::check_inputs;
pub(crate) use atomic::folder_of;
pub(crate) use map::{check_len, map_file};
pub(crate) use pieces::Pieces;
