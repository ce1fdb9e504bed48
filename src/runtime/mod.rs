//! What a generation needs beside the model: batches of sequences on their way through it, the session, which is a batch of one, and
//! their texts.

mod answer;
#[expect(clippy::indexing_slicing, reason = "slots of sequences that exist, and tokens that were counted")]
mod batch;
mod generate;
mod memory;
mod pace;
#[expect(clippy::indexing_slicing, reason = "requests that take part, by their number among them")]
mod scheduler;
mod session;

pub use crate::parallel::threads::Threads;
pub use batch::{Batch, BatchOptions, Feed, SequenceId};
pub use generate::{FinishReason, GenerateOptions, Generated, Generation, Piece, Timings, generate};
pub use scheduler::{Event, Finished, Request, RequestId, Scheduler, Stats};
pub use session::{ChunkProgress, Memory, Session, SessionOptions};
