//! llguidance on a thread of its own: it recurses as deeply as a grammar is nested, which can be deeper than any other
//! thread's stack, and some grammars keep it busy for ever.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv};
use llguidance::{CancellationHandle, Matcher, ParserFactory};

use crate::Error;

/// The longest that reading a grammar, or one step of it, may take.
const TIME: Duration = Duration::from_secs(10);

/// How often whoever waits is asked whether to go on.
const WATCH: Duration = Duration::from_millis(20);

/// The stack that any grammar has, and what each byte of its text adds: a rule of some bytes can be a level of recursion, which
/// takes 4 KB. Memory that is not touched costs nothing.
const STACK: usize = 64 << 20;
const STACK_A_BYTE: usize = 1 << 10;

/// The longest text of a grammar.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// States that a lexer may have, of one or two KB each.
const MOST_STATES: usize = 100_000;

/// What the thread is asked.
enum Ask {
    Mask,
    Accept(u32),
    Complete,
}

/// What it answers.
enum Answer {
    Ready(Option<CancellationHandle>),
    Mask(SimpleVob),
    Bool(bool),
}

/// A matcher, elsewhere.
pub(super) struct Worker {
    ask: Sender<Ask>,
    answers: Receiver<Result<Answer, String>>,
    cancel: Option<CancellationHandle>,
}

impl Worker {
    /// Reads a grammar whose text has `bytes` bytes. Meanwhile `watch` is called from time to time, and may break it off.
    ///
    /// Where that happens, or it takes too long, the thread is left alone: nothing can stop it before it is done.
    pub fn new(
        grammar: impl FnOnce() -> TopLevelGrammar + Send + 'static,
        bytes: usize,
        vocabulary: TokEnv,
        watch: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self, Error> {
        if bytes > MOST_BYTES {
            return Err(Error::Grammar(format!("{bytes} bytes long: up to {MOST_BYTES} are supported")));
        }
        let (ask, asked) = channel();
        let (answer, answers) = channel();
        let stack = STACK.saturating_add(bytes.saturating_mul(STACK_A_BYTE));
        let serve = move || {
            let mut matcher = match read(grammar(), &vocabulary) {
                Ok(matcher) => matcher,
                Err(error) => return drop(answer.send(Err(error))),
            };
            let _ = answer.send(Ok(Answer::Ready(matcher.cancellation_handle())));
            for asked in asked {
                // Whoever asked may have gone.
                if answer.send(step(&mut matcher, &asked)).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("torchless-grammar".to_owned()).stack_size(stack);
        thread
            .spawn(serve)
            .map_err(|e| Error::Request(format!("the thread for the grammar cannot be started: {e}")))?;
        let mut worker = Self { ask, answers, cancel: None };
        if let Answer::Ready(cancel) = worker.answer(watch)? {
            worker.cancel = cancel;
        }
        Ok(worker)
    }

    /// The tokens that may follow.
    pub fn mask(&mut self) -> Result<SimpleVob, Error> {
        match self.asked(Ask::Mask)? {
            Answer::Mask(mask) => Ok(mask),
            _ => Err(ended()),
        }
    }

    /// Goes on with a token; true where nothing can follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, Error> {
        Ok(matches!(self.asked(Ask::Accept(token))?, Answer::Bool(true)))
    }

    /// Whether the text may end here.
    pub fn is_complete(&mut self) -> bool {
        matches!(self.asked(Ask::Complete), Ok(Answer::Bool(true)))
    }

    fn asked(&mut self, ask: Ask) -> Result<Answer, Error> {
        self.ask.send(ask).map_err(|_| ended())?;
        self.answer(&mut || ControlFlow::Continue(()))
    }

    fn answer(&mut self, watch: &mut dyn FnMut() -> ControlFlow<()>) -> Result<Answer, Error> {
        let start = Instant::now();
        loop {
            match self.answers.recv_timeout(WATCH) {
                Ok(answer) => return answer.map_err(Error::Grammar),
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                Err(RecvTimeoutError::Timeout) if watch().is_break() => return Err(Error::Interrupted),
                Err(RecvTimeoutError::Timeout) if start.elapsed() > TIME => {
                    let seconds = TIME.as_secs();
                    return Err(Error::Grammar(format!(
                        "not worked out after {seconds} s: choose a simpler one"
                    )));
                }
                Err(RecvTimeoutError::Timeout) => (),
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }
}

fn ended() -> Error {
    Error::Grammar("it cannot be worked out".to_owned())
}

fn read(grammar: TopLevelGrammar, vocabulary: &TokEnv) -> Result<Matcher, String> {
    let parser = ParserFactory::new_simple(vocabulary).and_then(|mut factory| {
        let limits = factory.quiet().limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = MOST_STATES;
        factory.create_parser(grammar)
    });
    match parser {
        Ok(parser) => Ok(Matcher::new(Ok(parser)).into_cancellable()),
        Err(error) => Err(error.to_string()),
    }
}

fn step(matcher: &mut Matcher, ask: &Ask) -> Result<Answer, String> {
    let answer = match ask {
        Ask::Mask => matcher.compute_mask_or_eos().map(Answer::Mask),
        Ask::Accept(token) => matcher.consume_token(*token).map(|()| Answer::Bool(matcher.is_stopped())),
        Ask::Complete => {
            let sound = matcher.stop_reason().is_ok();
            matcher.is_accepting().map(|accepting| Answer::Bool(sound && accepting))
        }
    };
    answer.map_err(|error| error.to_string())
}
