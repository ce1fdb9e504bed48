//! Several sequences on their way through a model, in one pass: each weight is read once for all of them.
//!
//! Keys and values lie in pages of 64 positions from one arena. Sequences that begin with the same tokens share the pages of that
//! beginning (hash chains of tokens, counted pages: Kwon et al. 2023, "PagedAttention"). What is computed for a sequence depends on
//! neither its neighbours nor on what was found.

mod options;
mod sequences;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;
use torchless_kernels::{Allocator, BLOCK, Kernels};

use super::session::{Memory, Session, SessionOptions};
use crate::Error;
use crate::kv::KvCache;
use crate::model::Model;
use crate::model::forward::Pass;
use crate::model::segment::Segment;
use crate::model::workspace::Workspace;
use crate::parallel::threads::Threads;

pub use options::BatchOptions;
pub use sequences::SequenceId;
use sequences::Sequences;

/// Tokens for one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Feed<'a> {
    /// Whose.
    pub sequence: SequenceId,
    /// At least one.
    pub tokens: &'a [u32],
    /// Whether the logits after the last of them are wanted.
    pub logits: bool,
}

/// What became of a feed.
#[derive(Clone, Copy)]
enum Outcome {
    Fed,
    Logits(usize),
    Overflowed,
}

/// Sequences of tokens, the keys and values they left, and the memory to work out the next.
///
/// ```
/// # use std::sync::Arc;
/// # use torchless::Model;
/// use torchless::runtime::{Batch, BatchOptions, Feed};
///
/// # let model = Arc::new(Model::open("tests/fixtures/models/llama-int8.bin")?);
/// let mut batch = Batch::new(&model, &BatchOptions::new(&model))?;
/// let (one, other) = (batch.add().unwrap(), batch.add().unwrap());
/// // A prompt of one sequence and a token of another, in one pass.
/// batch.feed(&[
///     Feed { sequence: one, tokens: &[1, 2, 3], logits: true },
///     Feed { sequence: other, tokens: &[7], logits: true },
/// ])?;
/// assert_eq!(batch.logits(1)?.len(), model.config().vocab_size);
/// batch.remove(one);
/// # Ok::<(), torchless::Error>(())
/// ```
pub struct Batch {
    model: Arc<Model>,
    kernels: Kernels,
    ctx: usize,
    threads: Arc<Threads>,
    cache: KvCache,
    sequences: Sequences,
    workspace: Workspace,
    /// Of the pass under way.
    tokens: Vec<u32>,
    /// Of each feed of the last pass.
    outcomes: Vec<Outcome>,
}

impl Batch {
    /// An empty batch, on threads of its own. All memory is reserved here.
    ///
    /// # Errors
    /// If the context is longer than the model allows or does not fit in memory, or the threads cannot be started.
    pub fn new(model: &Arc<Model>, options: &BatchOptions) -> Result<Self, Error> {
        Session::check_length(model, &options.session)?;
        let pages = options.pages(model)?;
        let threads = Arc::new(Threads::new(options.session.threads)?);
        Self::with_pages(model, options, pages, threads, true)
    }

    /// The batch of a single sequence, on these threads: it shares with nobody.
    pub(super) fn of_one(
        model: &Arc<Model>,
        options: &SessionOptions,
        threads: Arc<Threads>,
    ) -> Result<Self, Error> {
        let options = BatchOptions { session: options.clone(), parallel: 1, kv_memory: None };
        Self::with_pages(model, &options, options.pages_of_a_sequence(model), threads, false)
    }

    fn with_pages(
        model: &Arc<Model>,
        options: &BatchOptions,
        pages: usize,
        threads: Arc<Threads>,
        share: bool,
    ) -> Result<Self, Error> {
        let (ctx, kv, n) = (options.session.ctx, options.session.kv, options.sequences());
        let cache = KvCache::new(model.config(), kv, pages).ok_or_else(|| Error::OutOfMemory {
            ctx,
            problem: "does not fit in memory: choose a smaller one".to_owned(),
        })?;
        let room = options.room(threads.count());
        Ok(Self {
            model: Arc::clone(model),
            kernels: options.session.kernels,
            ctx,
            threads,
            cache,
            sequences: Sequences::new(n, pages, ctx, model.config(), share),
            workspace: Workspace::new(&mut Allocator::heap(), model, room),
            tokens: Vec::with_capacity(room.chunk),
            outcomes: Vec::with_capacity(n),
        })
    }

    /// Bytes of [`Batch::of_one`].
    pub(super) fn memory_of_one(model: &Model, options: &SessionOptions) -> Memory {
        let options = BatchOptions { session: options.clone(), parallel: 1, kv_memory: None };
        let positions = options.pages_of_a_sequence(model).saturating_mul(BLOCK);
        let threads = options.session.threads.clamp(1, Threads::most());
        Memory {
            kv_cache: positions.saturating_mul(options.session.kv.bytes_a_position(model.config())),
            scratch: Allocator::count(|memory| Workspace::new(memory, model, options.room(threads))),
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The threads it works on.
    pub fn threads(&self) -> &Arc<Threads> {
        &self.threads
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Positions a sequence has room for.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Most tokens that go through the layers together.
    pub fn chunk(&self) -> usize {
        self.workspace.chunk
    }

    /// Pages of 64 positions: all there are, those that sequences use, and those that nobody uses but that hold tokens which can be
    /// found again.
    pub fn pages(&self) -> [usize; 3] {
        self.sequences.pages()
    }

    /// Runs `f` on one of the batch's threads: what it feeds then need not be handed over to them each time.
    pub fn install<R: Send>(&mut self, f: impl FnOnce(&mut Self) -> R + Send) -> R {
        let threads = Arc::clone(&self.threads);
        threads.install(|| f(self))
    }

    /// Begins a sequence; nothing where there are as many as there may be.
    pub fn add(&mut self) -> Option<SequenceId> {
        self.sequences.add()
    }

    /// Ends a sequence. What it leaves may be found by others that begin like it, as long as its pages are not needed.
    pub fn remove(&mut self, id: SequenceId) {
        self.sequences.remove(id);
    }

    /// Tokens that the sequence holds; none, where there is no such sequence.
    pub fn tokens(&self, id: SequenceId) -> &[u32] {
        self.sequences.get(id).map_or(&[], |sequence| &sequence.tokens)
    }

    /// Takes up pages that hold the next tokens of `context`, which begins with those that the sequence holds: at least one is left to
    /// feed. Returns how many tokens need not be fed.
    pub fn find(&mut self, id: SequenceId, context: &[u32]) -> usize {
        self.sequences.find(id, context)
    }

    /// The sequences, for who decides which of them go on.
    pub(super) fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// The sequences, for who goes back in one.
    pub(super) fn sequences_mut(&mut self) -> &mut Sequences {
        &mut self.sequences
    }

    /// Appends tokens to some sequences, all in one pass. Then [`Batch::logits`] has what is wanted.
    ///
    /// # Errors
    /// If a sequence does not exist or is named twice, there are no tokens, one is not in the vocabulary, they do not fit in a
    /// sequence's context, there are more than [`Batch::chunk`] together, or [`Error::CacheFull`]. Nothing is appended then.
    pub fn feed(&mut self, feeds: &[Feed]) -> Result<(), Error> {
        self.layers(feeds, &mut |_| ControlFlow::Continue(()))?;
        let ends = feeds.iter().scan(0, |end, feed| {
            *end += feed.tokens.len();
            Some((*end - 1, feed.logits))
        });
        let rows = || ends.clone().filter(|(_, wanted)| *wanted).map(|(row, _)| row);
        let mut count = 0;
        for (outcome, _) in self.outcomes.iter_mut().zip(feeds).filter(|(_, feed)| feed.logits) {
            if matches!(outcome, Outcome::Fed) {
                *outcome = Outcome::Logits(count);
            }
            count += 1;
        }
        if count > 0 {
            let Self { model, kernels, threads, workspace, .. } = self;
            threads.with_team(|team| {
                let pass = Pass { model, kernels: *kernels, team, on_input: None };
                pass.keep(workspace, rows());
                pass.logits(workspace, 0, count);
            });
        }
        Ok(())
    }

    /// The logits after feed `i` of the last pass, `vocab_size` of them.
    ///
    /// # Errors
    /// [`Error::CacheOverflow`] if the feed's keys and values are beyond what the cache can keep, and [`Error::Request`] if there is no such
    /// feed, or its logits were not wanted.
    pub fn logits(&self, i: usize) -> Result<&[f32], Error> {
        match self.outcomes.get(i) {
            Some(Outcome::Logits(row)) => {
                let vocab_size = self.model.config().vocab_size;
                Ok(&self.workspace.logits[row * vocab_size..][..vocab_size])
            }
            Some(Outcome::Overflowed) => Err(Error::CacheOverflow),
            _ => Err(Error::Request(format!("feed {i} of the last pass has no logits: none were asked for"))),
        }
    }

    /// Whether feed `i` of the last pass was appended.
    pub(super) fn check_fed(&self, i: usize) -> Result<(), Error> {
        match self.outcomes.get(i) {
            Some(Outcome::Overflowed) => Err(Error::CacheOverflow),
            _ => Ok(()),
        }
    }

    /// Takes tokens of some sequences through the layers, and leaves their residual stream in the workspace.
    pub(super) fn layers(
        &mut self,
        feeds: &[Feed],
        on_layer: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<(), Error> {
        self.outcomes.clear();
        self.check(feeds)?;
        for feed in feeds {
            let len = self.tokens(feed.sequence).len() + feed.tokens.len();
            self.turn_long(feed.sequence, len)?;
        }
        self.outcomes.clear();
        self.tokens.clear();
        for feed in feeds {
            self.sequences.make_room(feed.sequence, feed.tokens.len())?;
            self.tokens.extend_from_slice(feed.tokens);
        }
        if self.pass(feeds, on_layer).is_break() {
            return Err(Error::Interrupted);
        }
        for feed in feeds {
            let fed = self.sequences.append(feed.sequence, feed.tokens);
            self.outcomes.push(if fed { Outcome::Fed } else { Outcome::Overflowed });
        }
        Ok(())
    }

    /// Makes a sequence one of the long ones where it is to have `len` tokens, in models that tell them apart: works its keys and values
    /// out anew.
    pub(super) fn turn_long(&mut self, sequence: SequenceId, len: usize) -> Result<(), Error> {
        let Some(tokens) = self.sequences.turn_long(sequence, len) else { return Ok(()) };
        for tokens in tokens.chunks(self.chunk()) {
            let feed = Feed { sequence, tokens, logits: false };
            self.layers(&[feed], &mut |_| ControlFlow::Continue(()))?;
        }
        Ok(())
    }

    /// The pass itself.
    fn pass(
        &mut self,
        feeds: &[Feed],
        on_layer: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> ControlFlow<()> {
        let Self { model, kernels, threads, cache, workspace, sequences, tokens, .. } = self;
        let mut row = 0;
        let segments: ArrayVec<Segment, { BatchOptions::MOST_PARALLEL }> = feeds
            .iter()
            .map(|feed| {
                let sequence = sequences.slot(feed.sequence);
                sequence.overflowed.store(false, Relaxed);
                let rows = row..row + feed.tokens.len();
                row = rows.end;
                let (table, overflowed) = (&sequence.table, &sequence.overflowed);
                Segment { rows, start: sequence.tokens.len(), long: sequence.long, table, overflowed }
            })
            .collect();
        threads.with_team(|team| {
            let pass = Pass { model, kernels: *kernels, team, on_input: None };
            match cache {
                KvCache::F32(cache) => pass.layers(cache, workspace, tokens, &segments, on_layer),
                KvCache::F16(cache) => pass.layers(cache, workspace, tokens, &segments, on_layer),
                KvCache::Int8(cache) => pass.layers(cache, workspace, tokens, &segments, on_layer),
            }
        })
    }

    /// The logits of `count` tokens of the last pass, from `first` on: `[count][vocab_size]`.
    pub(super) fn logits_of(&mut self, first: usize, count: usize) -> &[f32] {
        let Self { model, kernels, threads, workspace, .. } = self;
        threads.with_team(|team| {
            Pass { model, kernels: *kernels, team, on_input: None }.logits(workspace, first, count)
        })
    }

    /// Tokens whose logits can be worked out at once.
    pub(super) fn logit_rows(&self) -> usize {
        self.workspace.logit_rows
    }

    fn check(&self, feeds: &[Feed]) -> Result<(), Error> {
        let mut all = 0;
        for (i, feed) in feeds.iter().enumerate() {
            self.check_tokens(feed)?;
            all += feed.tokens.len();
            if feeds[..i].iter().any(|other| other.sequence == feed.sequence) {
                return Err(Error::Request("a sequence is fed twice in one pass".to_owned()));
            }
        }
        let most = self.chunk();
        if all > most || all == 0 {
            return Err(Error::Request(format!("{all} tokens in one pass: give 1 to {most}")));
        }
        let missing = feeds.iter().map(|feed| self.sequences.pages_missing(feed.sequence, feed.tokens.len()));
        if !self.sequences.has_room(missing.sum()) {
            return Err(Error::CacheFull);
        }
        Ok(())
    }

    /// Whether a sequence can take these tokens, in as many passes as it takes.
    pub(super) fn check_tokens(&self, feed: &Feed) -> Result<(), Error> {
        let position = self.sequences.get(feed.sequence)?.tokens.len();
        check_tokens(&self.model, feed.tokens, position, self.ctx)
    }
}

/// Whether these tokens can follow `position` others in a context of `ctx` positions.
pub(super) fn check_tokens(model: &Model, tokens: &[u32], position: usize, ctx: usize) -> Result<(), Error> {
    if tokens.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let vocab_size = model.config().vocab_size;
    if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(Error::UnknownToken { id, vocab_size });
    }
    if tokens.len() > ctx - position {
        let max = model.config().max_position_embeddings;
        return Err(Error::ContextFull { tokens: position + tokens.len(), ctx, max });
    }
    Ok(())
}
