//! Texts that are made at the same time: who takes part in the next pass.
//!
//! A pass has a token of each text that is being written, and pieces of the prompts that are next. Who waits, who is put back, and how
//! large the pieces are changes when an answer comes, never what it says.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use arrayvec::ArrayVec;
use torchless_kernels::BLOCK;

use super::answer::Answer;
use super::batch::{Batch, BatchOptions, Feed, SequenceId, check_tokens};
use super::generate::{GenerateOptions, Generated, Piece};
use super::pace::Pace;
use crate::Error;
use crate::model::Model;
use crate::parallel::fork::fork;

/// A text to be made. It may be prepared on any thread: to read a grammar takes up to some seconds.
pub struct Request {
    answer: Answer,
}

impl Request {
    /// A text that follows `prompt`, for a [`Scheduler`] with these options. While a grammar is read, `watch` is called from time to
    /// time, and may break it off.
    ///
    /// # Errors
    /// If the prompt is empty, has a token that is not in the vocabulary or does not fit in the context, a setting is out of range, or
    /// the grammar is wrong; [`Error::Interrupted`] where it is broken off.
    pub fn new(
        model: &Model,
        options: &BatchOptions,
        prompt: Vec<u32>,
        generate: &GenerateOptions,
        watch: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self, Error> {
        let (ctx, kernels) = (options.session.ctx, options.session.kernels);
        check_tokens(model, &prompt, 0, ctx)?;
        let mut answer = Answer::new(model, kernels, ctx, prompt, generate, watch)?;
        answer.begin();
        Ok(Self { answer })
    }
}

/// Which request; the smaller one came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What becomes of a request.
#[derive(Debug)]
pub enum Event {
    /// A token was chosen.
    Piece(Piece),
    /// That was the last.
    Finished(Finished),
    /// Nothing more comes.
    Failed(Error),
}

/// A request that has come to its end.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What came out.
    pub generated: Generated,
    /// Tokens of the prompt whose keys and values were there already.
    pub cached_tokens: usize,
}

/// What a scheduler is doing, and has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that wait.
    pub queued: usize,
    /// Requests that take part.
    pub running: usize,
    /// Pages of 64 positions.
    pub pages: usize,
    /// Of these, those that sequences use.
    pub pages_used: usize,
    /// Those that nobody uses, but that will be found by what begins like them.
    pub pages_cached: usize,
    /// Tokens of prompts that were worked out.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were found.
    pub cached_tokens: u64,
    /// Tokens that were chosen.
    pub generated_tokens: u64,
    /// How often a request was put back, since there were no pages left.
    pub preemptions: u64,
    /// Passes.
    pub steps: u64,
}

/// A request under way.
struct Job {
    id: RequestId,
    answer: Answer,
    /// While it takes part.
    sequence: Option<SequenceId>,
    /// What was found the first time.
    cached: Option<usize>,
    /// Tokens in this pass, and the number of its feed if its logits are wanted.
    tokens: usize,
    feed: Option<usize>,
    outcome: Option<Result<Option<Piece>, Error>>,
}

/// Makes many texts at the same time.
///
/// ```
/// # use std::collections::HashMap;
/// # use std::sync::Arc;
/// # use torchless::Model;
/// use std::ops::ControlFlow;
/// use torchless::runtime::{BatchOptions, Event, GenerateOptions, Request, Scheduler};
///
/// # let model = Arc::new(Model::open("tests/fixtures/models/llama-int8.bin")?);
/// let options = BatchOptions::new(&model);
/// let mut scheduler = Scheduler::new(&model, &options)?;
/// let generate = GenerateOptions { max_tokens: 5, ..GenerateOptions::default() };
/// for prompt in ["The sky is", "The sea is"] {
///     let prompt = model.tokenizer().encode(prompt, Default::default());
///     let request = Request::new(&model, &options, prompt, &generate, &mut || ControlFlow::Continue(()))?;
///     scheduler.submit(request);
/// }
/// let mut texts = HashMap::new();
/// while scheduler.step(&mut |id, event| match event {
///     Event::Piece(piece) => print!("{}", piece.text),
///     Event::Finished(finished) => drop(texts.insert(id, finished.generated.text)),
///     Event::Failed(error) => eprintln!("{error}"),
/// }) {}
/// assert_eq!(texts.len(), 2);
/// # Ok::<(), torchless::Error>(())
/// ```
pub struct Scheduler {
    batch: Batch,
    parallel: usize,
    /// In the order of their ids.
    queue: VecDeque<Job>,
    /// In the order of their ids.
    running: Vec<Job>,
    last_id: u64,
    pace: Pace,
    stats: Stats,
}

impl Scheduler {
    /// A scheduler of a batch of its own. All memory is reserved here.
    ///
    /// # Errors
    /// As [`Batch::new`].
    pub fn new(model: &Arc<Model>, options: &BatchOptions) -> Result<Self, Error> {
        let parallel = options.sequences();
        Ok(Self {
            batch: Batch::new(model, options)?,
            parallel,
            queue: VecDeque::new(),
            running: Vec::with_capacity(parallel),
            last_id: 0,
            pace: Pace::default(),
            stats: Stats::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.batch.model()
    }

    /// The most positions that a text and its prompt may have together.
    pub fn ctx(&self) -> usize {
        self.batch.ctx()
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Requests that take part.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// What it is doing, and has done.
    pub fn stats(&self) -> Stats {
        let [pages, pages_used, pages_cached] = self.batch.pages();
        let (queued, running) = (self.queued(), self.running());
        Stats { queued, running, pages, pages_used, pages_cached, ..self.stats }
    }

    /// Runs `f` on one of the threads that it works on: steps then need not be handed over to them each time.
    pub fn install<R: Send>(&mut self, f: impl FnOnce(&mut Self) -> R + Send) -> R {
        let threads = Arc::clone(self.batch.threads());
        threads.install(|| f(self))
    }

    /// Takes one token through the model and forgets it: then all weights are in memory, and no request waits for the disk.
    ///
    /// # Errors
    /// If as many requests take part as may.
    pub fn warm_up(&mut self) -> Result<(), Error> {
        let sequence = self.batch.add().ok_or(Error::CacheFull)?;
        let fed = self.batch.feed(&[Feed { sequence, tokens: &[0], logits: true }]);
        self.batch.remove(sequence);
        fed
    }

    /// Puts a request to the end of the queue.
    pub fn submit(&mut self, request: Request) -> RequestId {
        self.last_id += 1;
        let id = RequestId(self.last_id);
        let Request { answer } = request;
        self.queue.push_back(Job {
            id,
            answer,
            sequence: None,
            cached: None,
            tokens: 0,
            feed: None,
            outcome: None,
        });
        id
    }

    /// Ends a request: nothing more comes of it, and its pages are free.
    pub fn cancel(&mut self, id: RequestId) {
        self.queue.retain(|job| job.id != id);
        if let Some(at) = self.running.iter().position(|job| job.id == id) {
            let job = self.running.remove(at);
            self.release(&job);
        }
    }

    /// One pass: calls `on_event` with what becomes of the requests that took part. False where there is nothing to do.
    pub fn step(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) -> bool {
        self.admit();
        self.plan();
        if self.running.is_empty() {
            return false;
        }
        match self.pass() {
            Ok(()) => self.choose(),
            // It says that no single request is to blame: all that took part end.
            Err(error) => self.fail(&error),
        }
        self.report(on_event);
        true
    }

    /// Has requests take part that have waited, as long as there is room for their prompts.
    fn admit(&mut self) {
        while let Some(job) = self.queue.front().filter(|_| self.running.len() < self.parallel) {
            let lacks = |job: &Job| {
                job.sequence
                    .map_or(0, |sequence| self.batch.sequences().pages_missing(sequence, self.lacks(job) + 1))
            };
            let promised: usize = self.running.iter().map(lacks).sum();
            let needed = (job.answer.history().len() + 1).div_ceil(BLOCK);
            if !self.running.is_empty() && self.batch.sequences().pages_available() < promised + needed {
                return;
            }
            let Some(sequence) = self.batch.add() else { return };
            if let Some(mut job) = self.queue.pop_front() {
                job.sequence = Some(sequence);
                let at = self.running.partition_point(|other| other.id < job.id);
                self.running.insert(at, job);
            }
        }
    }

    /// Tokens that the batch lacks before the next one can be chosen.
    fn lacks(&self, job: &Job) -> usize {
        let fed = job.sequence.map_or(0, |sequence| self.batch.tokens(sequence).len());
        job.answer.history().len() - fed
    }

    /// Decides how many tokens of each running request are in the next pass.
    fn plan(&mut self) {
        let mut promised = 0;
        let writing = |scheduler: &Self, i: usize| scheduler.lacks(&scheduler.running[i]) == 1;
        self.running.iter_mut().for_each(|job| job.tokens = 0);
        let mut i = 0;
        while i < self.running.len() {
            if writing(self, i) && self.make_room(i, 1, &mut promised) {
                self.running[i].tokens = 1;
            }
            i += 1;
        }
        let tokens = self.running.iter().map(|job| job.tokens).sum::<usize>();
        let mut left = self.pace.prompt_tokens(tokens, self.batch.chunk());
        let mut i = 0;
        while i < self.running.len() && left > 0 {
            if self.running[i].tokens == 0 {
                self.find(i);
                let wanted = self.lacks(&self.running[i]).min(left);
                if self.make_room(i, wanted, &mut promised) {
                    self.running[i].tokens = wanted;
                    left -= wanted;
                }
            }
            i += 1;
        }
    }

    /// Takes up what is there already of a request's tokens.
    fn find(&mut self, i: usize) {
        let Self { batch, running, stats, .. } = self;
        let job = &mut running[i];
        let Some(sequence) = job.sequence else { return };
        let found = batch.find(sequence, job.answer.history());
        stats.cached_tokens += found as u64;
        if job.answer.tokens().is_empty() {
            *job.cached.get_or_insert(0) += found;
        }
    }

    /// Sees to it that there are pages for `tokens` more of the `i`-th running request. Where there are none, later ones are put back;
    /// where there is no later one, it waits for those before it.
    fn make_room(&mut self, i: usize, tokens: usize, promised: &mut usize) -> bool {
        let Some(sequence) = self.running[i].sequence else { return false };
        let missing = self.batch.sequences().pages_missing(sequence, tokens);
        while self.batch.sequences().pages_available() < *promised + missing {
            let last = self.running.len() - 1;
            if last == i {
                // The first of all never comes here: one alone always fits.
                return false;
            }
            let given = self.running[last]
                .sequence
                .map_or(0, |s| self.batch.sequences().pages_missing(s, self.running[last].tokens));
            *promised -= given;
            self.put_back(last);
        }
        *promised += missing;
        true
    }

    /// Puts a running request back into the queue. What it has is worked out again when there is room, to the same bits.
    fn put_back(&mut self, i: usize) {
        let mut job = self.running.remove(i);
        // Counted anew when it goes on.
        job.cached = job.cached.filter(|_| !job.answer.tokens().is_empty());
        self.release(&job);
        job.sequence = None;
        self.stats.preemptions += 1;
        let at = self.queue.partition_point(|other| other.id < job.id);
        self.queue.insert(at, job);
    }

    fn release(&mut self, job: &Job) {
        if let Some(sequence) = job.sequence {
            self.batch.remove(sequence);
        }
    }

    /// Takes what is planned through the model.
    fn pass(&mut self) -> Result<(), Error> {
        let Self { batch, running, pace, stats, .. } = self;
        let mut feeds = ArrayVec::<Feed, { BatchOptions::MOST_PARALLEL }>::new();
        let (mut writing, mut prompt) = (0, 0);
        for job in running.iter_mut() {
            job.feed = None;
            let Some(sequence) = job.sequence.filter(|_| job.tokens > 0) else { continue };
            let lacking = &job.answer.history()[batch.tokens(sequence).len()..];
            let logits = lacking.len() == job.tokens;
            job.feed = Some(feeds.len()).filter(|_| logits);
            match lacking.len() {
                1 => writing += 1,
                _ => prompt += job.tokens,
            }
            feeds.push(Feed { sequence, tokens: &lacking[..job.tokens], logits });
        }
        if feeds.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        batch.feed(&feeds)?;
        pace.note(writing, prompt, start.elapsed());
        stats.steps += 1;
        stats.prompt_tokens += prompt as u64;
        Ok(())
    }

    /// Chooses the next tokens, on all threads.
    fn choose(&mut self) {
        let Self { batch, running, .. } = self;
        let (batch, tokenizer) = (&*batch, batch.model().tokenizer());
        let choose = |job: &mut Job| {
            let Some(feed) = job.feed else { return };
            let logits = batch.logits(feed);
            job.outcome = Some(logits.and_then(|logits| job.answer.choose(tokenizer, logits)));
        };
        let n = running.len();
        if n == 1 {
            return running.iter_mut().for_each(choose);
        }
        batch.threads().with_team(|team| {
            let jobs = &mut running[..];
            fork(team, jobs, 0..n, 1, &|jobs, n| jobs.split_at_mut(n), &|jobs, _| {
                jobs.iter_mut().for_each(choose)
            });
        });
    }

    /// Notes that all requests that took part have failed.
    fn fail(&mut self, error: &Error) {
        for job in self.running.iter_mut().filter(|job| job.tokens > 0) {
            job.outcome = Some(Err(Error::Request(error.to_string())));
        }
    }

    /// Says what became of the requests, and lets those go that are done.
    fn report(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) {
        let mut i = 0;
        while i < self.running.len() {
            let job = &mut self.running[i];
            let outcome = job.outcome.take();
            let failed = match outcome {
                Some(Ok(Some(piece))) => {
                    self.stats.generated_tokens += 1;
                    on_event(job.id, Event::Piece(piece));
                    None
                }
                Some(Err(error)) => Some(error),
                Some(Ok(None)) | None => None,
            };
            if failed.is_none() && job.answer.finish_reason().is_none() {
                i += 1;
                continue;
            }
            let mut job = self.running.remove(i);
            self.release(&job);
            let cached_tokens = job.cached.unwrap_or(0);
            job.answer.set_cached(cached_tokens);
            on_event(
                job.id,
                match failed {
                    Some(error) => Event::Failed(error),
                    None => Event::Finished(Finished { generated: job.answer.finish(), cached_tokens }),
                },
            );
        }
    }
}
