//! How a batch runs, and what memory that takes.

use torchless_kernels::BLOCK;

use crate::Error;
use crate::kv::pages_of_a_sequence;
use crate::model::Model;
use crate::model::workspace::Room;
use crate::runtime::memory;
use crate::runtime::session::SessionOptions;

/// How a batch runs. Nothing here changes the logits of an int8 model, except what keys and values are stored as.
#[derive(Debug, Clone)]
pub struct BatchOptions {
    /// Of each sequence: `ctx` is the most positions one may have, `chunk` the most tokens that go through the layers together.
    pub session: SessionOptions,
    /// Most sequences at a time, up to [`BatchOptions::MOST_PARALLEL`].
    pub parallel: usize,
    /// Bytes for keys and values; `None`: for `parallel` full contexts, or half of the memory there is if that is less.
    pub kv_memory: Option<usize>,
}

impl BatchOptions {
    /// The most sequences that a batch can have.
    pub const MOST_PARALLEL: usize = 256;

    /// Eight sequences of the defaults for `model`.
    pub fn new(model: &Model) -> Self {
        Self { session: SessionOptions::new(model), parallel: 8, kv_memory: None }
    }

    /// Sequences there is room for.
    pub(in crate::runtime) fn sequences(&self) -> usize {
        self.parallel.clamp(1, Self::MOST_PARALLEL)
    }

    /// Tokens of a pass: one of each sequence at the least.
    fn chunk(&self) -> usize {
        self.session.chunk.clamp(1, self.session.ctx.max(1)).max(self.sequences())
    }

    /// What the workspace is for.
    pub(super) fn room(&self, threads: usize) -> Room {
        Room { ctx: self.session.ctx, chunk: self.chunk(), sequences: self.sequences(), threads }
    }

    /// Pages that one sequence can need.
    pub(super) fn pages_of_a_sequence(&self, model: &Model) -> usize {
        pages_of_a_sequence(model.config().window_of_all(), self.session.ctx, self.chunk())
    }

    /// Pages of the arena.
    pub(super) fn pages(&self, model: &Model) -> Result<usize, Error> {
        let bytes_a_page = self.session.kv.bytes_a_position(model.config()).saturating_mul(BLOCK);
        let of_a_sequence = self.pages_of_a_sequence(model);
        let all = of_a_sequence.saturating_mul(self.sequences());
        let pages = match self.kv_memory {
            Some(bytes) => bytes / bytes_a_page,
            None => all.min(memory::available().map_or(all, |bytes| bytes / 2 / bytes_a_page)),
        };
        if pages >= of_a_sequence {
            return Ok(pages.min(u32::MAX as usize / 2));
        }
        let (needed, holds) = (of_a_sequence.saturating_mul(bytes_a_page).div_ceil(1_000_000), pages * BLOCK);
        let problem =
            format!("needs {needed} MB for keys and values, and there is room for {holds} positions of it");
        Err(Error::OutOfMemory { ctx: self.session.ctx, problem })
    }
}
