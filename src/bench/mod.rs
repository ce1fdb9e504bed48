//! How fast a model runs here: the tests people know from llama-bench, and what the memory could give at most.

pub mod bandwidth;
#[cfg(feature = "serve")]
pub mod load;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::Error;
use crate::model::Model;
use crate::runtime::{Session, SessionOptions};

/// What is timed: a prompt, then tokens one at a time, behind others that are in the cache already.
///
/// Displays as llama-bench names it: `pp512`, `tg128`, `pp512+tg128`, `tg128 @ d4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// Tokens fed at once.
    pub prompt: usize,
    /// Tokens generated after them.
    pub generate: usize,
    /// Tokens in the cache before the clock starts.
    pub depth: usize,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { prompt, generate, depth } = *self;
        match (prompt, generate) {
            (_, 0) => write!(f, "pp{prompt}")?,
            (0, _) => write!(f, "tg{generate}")?,
            _ => write!(f, "pp{prompt}+tg{generate}")?,
        }
        if depth > 0 { write!(f, " @ d{depth}") } else { Ok(()) }
    }
}

impl Test {
    /// Tokens that pass through the model while the clock runs.
    pub fn tokens(&self) -> usize {
        self.prompt.saturating_add(self.generate)
    }

    /// Checks that there is something to time and that the model's context has room for it.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, model: &Model) -> Result<(), Error> {
        let (needed, max) =
            (self.depth.saturating_add(self.tokens()), model.config().max_position_embeddings);
        match self.tokens() {
            0 => Err(Error::Request("a test without tokens: nothing to time".to_owned())),
            _ if needed > max => Err(Error::Request(format!(
                "{self} takes {needed} positions, and this model has {max}: choose fewer tokens"
            ))),
            _ => Ok(()),
        }
    }

    /// Bytes the test reads at the least, a chunk of the prompt and each generated token reading once: all layers'
    /// weights, the head where logits are wanted, a row of the embedding, and the keys and values in sight.
    pub fn bytes(&self, model: &Model, options: &SessionOptions) -> usize {
        let config = model.config();
        let a_position = options.kv.bytes_a_position(config);
        // Of the positions that all layers look at together, as many as a layer does on average.
        let in_sight = |first: usize, tokens: usize| {
            let behind = |window: usize| (first + 1).saturating_sub(window);
            let all = (0..config.n_layers).map(|i| first + tokens - config.window_of(i).map_or(0, behind));
            all.sum::<usize>() / config.n_layers
        };
        let chunk = options.chunk.max(1);
        let chunks = (0..self.prompt).step_by(chunk).map(|first| (first, chunk.min(self.prompt - first)));
        let passes = chunks.chain((self.prompt..self.tokens()).map(|token| (token, 1)));
        let (mut count, mut positions) = (0, 0);
        for (first, tokens) in passes {
            count += 1;
            positions += in_sight(self.depth + first, tokens);
        }
        let heads = self.generate + usize::from(self.prompt > 0);
        let head = model.weights.head.bytes();
        count * (model.bytes_a_token() - head) + heads * head + positions * a_position
    }
}

/// What came out of the runs of one test.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Tokens a second of each run.
    pub tokens_per_s: Vec<f64>,
    /// Bytes read at the least for each token; see [`Test::bytes`].
    pub bytes_a_token: f64,
}

impl Measurement {
    /// The mean over the runs, in tokens a second.
    pub fn mean(&self) -> f64 {
        self.tokens_per_s.iter().sum::<f64>() / self.tokens_per_s.len() as f64
    }

    /// The sample standard deviation, in tokens a second; 0 for a single run.
    pub fn stddev(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.tokens_per_s.iter().map(|x| (x - mean).powi(2)).sum();
        (squares / (self.tokens_per_s.len().max(2) - 1) as f64).sqrt()
    }

    /// Bytes read in a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.mean() * self.bytes_a_token
    }
}

/// Generated tokens of the run that warms up: enough to have read all weights and woken all threads.
const WARM_UP: usize = 8;

/// Times `test` in `repeats` runs (at least one) after one that warms up; `options.ctx` is not looked at.
///
/// Prompts are fixed pseudo-random ids. Generating is greedy and never ends early. `after_run` is called after each run,
/// the first included, with the session's memory still in place; it can break the test off.
///
/// # Errors
/// As [`Test::check`] and [`Session::new`], or [`Error::Interrupted`].
pub fn measure(
    model: &Arc<Model>,
    options: &SessionOptions,
    test: Test,
    repeats: usize,
    mut after_run: impl FnMut() -> ControlFlow<()>,
) -> Result<Measurement, Error> {
    test.check(model)?;
    let mut session =
        Session::new(model, &SessionOptions { ctx: test.depth + test.tokens(), ..options.clone() })?;
    let tokens = random_tokens(test.depth + test.prompt, model.config().vocab_size);
    let (before, prompt) = tokens.split_at(test.depth);
    let mut run = |generate| {
        go_back(&mut session, before)?;
        let seconds = time(&mut session, prompt, generate)?;
        match after_run() {
            ControlFlow::Continue(()) => Ok(seconds),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    };
    run(test.generate.min(WARM_UP))?;
    let rates = (0..repeats.max(1)).map(|_| Ok(test.tokens() as f64 / run(test.generate)?));
    Ok(Measurement {
        tokens_per_s: rates.collect::<Result<_, Error>>()?,
        bytes_a_token: test.bytes(model, options) as f64 / test.tokens() as f64,
    })
}

/// Leaves exactly `tokens` in the session, fed again only where the ring has lost some of them.
fn go_back(session: &mut Session, tokens: &[u32]) -> Result<(), Error> {
    if session.truncate(tokens.len()).is_ok() {
        return Ok(());
    }
    session.reset();
    if !tokens.is_empty() {
        session.feed(tokens)?;
    }
    Ok(())
}

/// Seconds it takes to feed `prompt` and to generate after it.
fn time(session: &mut Session, prompt: &[u32], generate: usize) -> Result<f64, Error> {
    let kernels = session.kernels();
    session.install(|session| {
        let start = Instant::now();
        let mut id = 0;
        if !prompt.is_empty() {
            id = kernels.argmax(session.feed(prompt)?) as u32;
        }
        for _ in 0..generate {
            id = kernels.argmax(session.feed(&[id])?) as u32;
        }
        Ok(start.elapsed().as_secs_f64())
    })
}

/// The same `n` ids every time.
fn random_tokens(n: usize, vocab_size: usize) -> Vec<u32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab_size as u64) as u32
    };
    (0..n).map(|_| next()).collect()
}
