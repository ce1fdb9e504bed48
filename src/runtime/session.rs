//! One sequence of tokens on its way through a model: a batch of one.

use std::ops::ControlFlow;
use std::sync::Arc;

use torchless_kernels::Kernels;

use super::batch::{Batch, Feed, SequenceId, check_tokens};
use super::memory;
use crate::Error;
use crate::kv::KvType;
use crate::model::Model;
use crate::parallel::threads::Threads;

/// How a session runs. Nothing here changes the logits of an int8 model, except [`SessionOptions::kv`].
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Positions there is room for, prompt and answer together.
    pub ctx: usize,
    /// What keys and values are stored as.
    pub kv: KvType,
    /// Worker threads, up to [`Threads::most`]. Those that sessions share ([`Session::on_threads`]) are as many as there are.
    pub threads: usize,
    /// Most tokens that go through the layers together.
    pub chunk: usize,
    /// The instruction set to compute with.
    pub kernels: Kernels,
}

impl SessionOptions {
    /// The defaults for `model`: its longest context; f16 keys and values, but f32 where all weights are f32; as many
    /// threads as this process may use CPUs; the fastest kernels.
    pub fn new(model: &Model) -> Self {
        Self {
            ctx: model.config().max_position_embeddings,
            kv: if model.file().is_f32() { KvType::F32 } else { KvType::F16 },
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            chunk: 512,
            kernels: Kernels::detect(),
        }
    }
}

/// A sequence of tokens, the keys and values they left, and the memory to work out the next.
pub struct Session {
    batch: Batch,
    sequence: SequenceId,
    observer: Box<dyn FnMut(ChunkProgress) -> ControlFlow<()> + Send>,
}

/// Bytes a session allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Keys and values.
    pub kv_cache: usize,
    /// The forward pass' buffers.
    pub scratch: usize,
}

impl Memory {
    /// All of it.
    pub fn total(self) -> usize {
        self.kv_cache.saturating_add(self.scratch)
    }
}

/// How far a chunk of tokens has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkProgress {
    /// The chunk's first position.
    pub position: usize,
    /// Tokens in the chunk.
    pub tokens: usize,
    /// Layers that are done.
    pub layers: usize,
}

impl Session {
    /// Starts an empty sequence, on threads of its own. All memory is reserved here.
    ///
    /// # Errors
    /// If the context is longer than the model allows or does not fit in memory, or the threads cannot be started.
    pub fn new(model: &Arc<Model>, options: &SessionOptions) -> Result<Self, Error> {
        // Before threads are started for nothing.
        check_context(model, options)?;
        Self::reserve(model, options, Arc::new(Threads::new(options.threads)?))
    }

    /// Starts an empty sequence on threads that it shares with other sessions, of any models.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use torchless::Model;
    /// use torchless::runtime::{Session, SessionOptions, Threads};
    ///
    /// # let model = Arc::new(Model::open("tests/fixtures/models/llama-int8.bin")?);
    /// let threads = Arc::new(Threads::new(2)?);
    /// let options = SessionOptions::new(&model);
    /// let mut first = Session::on_threads(&model, &options, &threads)?;
    /// let mut second = Session::on_threads(&model, &options, &threads)?;
    /// assert_eq!(first.feed(&[1, 2, 3])?, second.feed(&[1, 2, 3])?);
    /// # Ok::<(), torchless::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the context is longer than the model allows or does not fit in memory.
    pub fn on_threads(
        model: &Arc<Model>,
        options: &SessionOptions,
        threads: &Arc<Threads>,
    ) -> Result<Self, Error> {
        check_context(model, &SessionOptions { threads: threads.count(), ..options.clone() })?;
        Self::reserve(model, options, Arc::clone(threads))
    }

    /// Reserves the memory of a session whose context has been checked.
    fn reserve(model: &Arc<Model>, options: &SessionOptions, threads: Arc<Threads>) -> Result<Self, Error> {
        let mut batch = Batch::of_one(model, options, threads)?;
        let full = || Error::Request("the batch has no room for a sequence".to_owned());
        let sequence = batch.add().ok_or_else(full)?;
        Ok(Self { batch, sequence, observer: Box::new(|_| ControlFlow::Continue(())) })
    }

    /// # Errors
    /// [`Error::ContextLength`] if the model does not allow the options' context.
    pub fn check_length(model: &Model, options: &SessionOptions) -> Result<(), Error> {
        let (ctx, max) = (options.ctx, model.config().max_position_embeddings);
        if ctx == 0 || ctx > max { Err(Error::ContextLength { ctx, max }) } else { Ok(()) }
    }

    /// Bytes a session with these options allocates, for a context that the model allows (or the nearest one). Memory that is
    /// not used yet costs nothing: the system provides it page by page as the context fills.
    pub fn memory(model: &Model, options: &SessionOptions) -> Memory {
        let ctx = options.ctx.clamp(1, model.config().max_position_embeddings);
        Batch::memory_of_one(model, &SessionOptions { ctx, ..options.clone() })
    }

    /// The longest context that takes no more than `bytes` with otherwise these options; 0 where none does.
    pub fn longest_context(model: &Model, options: &SessionOptions, bytes: usize) -> usize {
        let fits = |ctx| Self::memory(model, &SessionOptions { ctx, ..options.clone() }).total() <= bytes;
        let (mut fitting, mut above) = (0, model.config().max_position_embeddings.saturating_add(1));
        while above - fitting > 1 {
            let middle = fitting + (above - fitting) / 2;
            (fitting, above) = if fits(middle) { (middle, above) } else { (fitting, middle) };
        }
        fitting
    }

    /// Has `observer` called after each layer of each chunk. It may break the work off, which is then
    /// [`Error::Interrupted`]: the chunks before are kept, see [`Session::position`]. It is also called from time to time while a
    /// grammar is read, with no tokens and no layers.
    pub fn observe(&mut self, observer: impl FnMut(ChunkProgress) -> ControlFlow<()> + Send + 'static) {
        self.observer = Box::new(observer);
    }

    /// Asks the observer whether to go on.
    pub(super) fn go_on(&mut self) -> ControlFlow<()> {
        let position = self.position();
        (self.observer)(ChunkProgress { position, tokens: 0, layers: 0 })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.batch.model()
    }

    /// The threads it works on.
    pub fn threads(&self) -> &Arc<Threads> {
        self.batch.threads()
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.batch.kernels()
    }

    /// Tokens fed so far.
    pub fn position(&self) -> usize {
        self.batch.tokens(self.sequence).len()
    }

    /// Positions there is room for.
    pub fn ctx(&self) -> usize {
        self.batch.ctx()
    }

    /// Most tokens that go through the layers together.
    pub fn chunk(&self) -> usize {
        self.batch.chunk()
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.batch.sequences_mut().clear(self.sequence);
    }

    /// Forgets the tokens from `position` on, so that others can follow the ones before it: a new turn, or the same
    /// prompt again, costs only what differs.
    ///
    /// # Errors
    /// If there are not so many tokens, or the keys and values of a token that the next would look at have been
    /// overwritten, which happens in models with a sliding window only. Nothing is forgotten then.
    pub fn truncate(&mut self, position: usize) -> Result<(), Error> {
        let fed = self.position();
        if position > fed {
            return Err(Error::Request(format!("position {position}: only {fed} tokens were fed")));
        }
        if !self.batch.sequences_mut().truncate(self.sequence, position) {
            return Err(Error::Request(format!(
                "position {position}: what the next token looks at is there no more, reset the session and feed all tokens again"
            )));
        }
        Ok(())
    }

    /// Appends `tokens` and returns the logits after the last, `vocab_size` of them.
    ///
    /// # Errors
    /// If there are no tokens, one is not in the vocabulary, or they do not fit in the context. Nothing is appended then.
    /// Or if the [observer](Session::observe) breaks it off, or the keys and values of a chunk are beyond what the cache can
    /// keep: the chunks before it are kept then.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        self.begin(tokens)?;
        let mut last = 0;
        for chunk in tokens.chunks(self.chunk()) {
            self.layers(chunk)?;
            last = chunk.len() - 1;
        }
        Ok(self.batch.logits_of(last, 1))
    }

    /// Appends `tokens` and calls `each(i, logits)` with the logits after each.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn score(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        self.begin(tokens)?;
        let mut index = 0;
        let (vocab_size, rows) = (self.model().config().vocab_size, self.batch.logit_rows());
        for chunk in tokens.chunks(self.chunk()) {
            self.layers(chunk)?;
            for first in (0..chunk.len()).step_by(rows) {
                let count = rows.min(chunk.len() - first);
                for logits in self.batch.logits_of(first, count).chunks_exact(vocab_size) {
                    each(index, logits);
                    index += 1;
                }
            }
        }
        Ok(())
    }

    /// Runs `f` on one of the session's threads: what it feeds then need not be handed over to them each time.
    pub fn install<R: Send>(&mut self, f: impl FnOnce(&mut Self) -> R + Send) -> R {
        let threads = Arc::clone(self.threads());
        threads.install(|| f(self))
    }

    /// Takes one chunk through the layers.
    fn layers(&mut self, chunk: &[u32]) -> Result<(), Error> {
        let (position, tokens) = (self.position(), chunk.len());
        let Self { batch, sequence, observer } = self;
        let feed = Feed { sequence: *sequence, tokens: chunk, logits: false };
        batch.layers(&[feed], &mut |i| observer(ChunkProgress { position, tokens, layers: i + 1 }))?;
        batch.check_fed(0)
    }

    /// Checks tokens that are to be fed, in as many passes as it takes.
    fn begin(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let position = self.position();
        check_tokens(self.model(), tokens, position, self.ctx())?;
        self.batch.turn_long(self.sequence, position + tokens.len())
    }
}

/// Refuses a context that the model does not allow, or that needs more memory than there is: better here than when it is
/// half full.
fn check_context(model: &Model, options: &SessionOptions) -> Result<(), Error> {
    Session::check_length(model, options)?;
    let ctx = options.ctx;
    let needed = Session::memory(model, options).total();
    let Some(available) = memory::available().filter(|&available| needed > available) else { return Ok(()) };
    let remedy = match Session::longest_context(model, options, available) {
        0 => "not even one of 1 fits".to_owned(),
        fitting => format!("up to {fitting} fit"),
    };
    let (needed, available) = (needed.div_ceil(1_000_000), available / 1_000_000);
    let problem = format!("needs {needed} MB of memory, {available} MB are available: {remedy}");
    Err(Error::OutOfMemory { ctx, problem })
}
