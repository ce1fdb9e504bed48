//! What a generation needs beside the model: the session, which is one sequence on its way through it, and its text.

mod generate;
mod memory;
mod session;

pub use crate::parallel::threads::Threads;
pub use generate::{FinishReason, GenerateOptions, Generated, Generation, Piece, Timings, generate};
pub use session::{ChunkProgress, Memory, Session, SessionOptions};
