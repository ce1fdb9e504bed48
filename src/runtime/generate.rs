//! A prompt in, text out.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Answer;
use super::session::Session;
use crate::Error;
use crate::sampling::{Grammar, Logprobs, Sampling};

/// What to generate.
///
/// ```
/// use torchless::runtime::GenerateOptions;
/// use torchless::sampling::Sampling;
///
/// let options = GenerateOptions {
///     max_tokens: 100,
///     sampling: Sampling::default().temperature(0.7).seed(7),
///     stop: vec!["\n\n".to_owned()],
///     ..GenerateOptions::default()
/// };
/// assert!(!options.ignore_eos);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate; the end of the context ends it sooner.
    pub max_tokens: usize,
    /// How to choose them.
    pub sampling: Sampling,
    /// Strings that end the text, and are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the text, beside those that the model ends its texts with.
    pub stop_tokens: Vec<u32>,
    /// Goes on past the tokens that end a text.
    pub ignore_eos: bool,
    /// What the text must look like.
    pub grammar: Option<Grammar>,
    /// Says of each token how probable it was, and as much of this many of the most probable ones.
    pub logprobs: Option<usize>,
}

impl Default for GenerateOptions {
    /// 256 tokens, chosen as [`Sampling::default`] says.
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            grammar: None,
            logprobs: None,
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the text, or a stop string came.
    Stop,
    /// The wanted number of tokens, or the end of the context, was reached.
    Length,
    /// The caller, or the session's observer, broke it off.
    Cancelled,
}

/// How long the two halves of a generation took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the start to the logits after the prompt.
    pub prompt: Duration,
    /// From the start to the first token.
    pub first_token: Duration,
    /// Tokens generated after the first.
    pub decoded_tokens: usize,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Timings {
    /// Prompt tokens a second; 0 for an empty measurement.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt)
    }

    /// Generated tokens a second after the first; 0 where there was only one.
    pub fn tokens_per_s(&self) -> f64 {
        rate(self.decoded_tokens, self.decode)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The chosen tokens, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// Their text, up to a stop string.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Whether the text is whole, as its [grammar](GenerateOptions::grammar) has it; `None` without one. A text that is cut off
    /// by [`FinishReason::Length`], a stop string or the caller is whole only by chance.
    pub complete: Option<bool>,
    /// How long it took.
    pub timings: Timings,
}

impl Generated {
    /// What comes of a generation that is broken off before it begins.
    pub(crate) fn cancelled() -> Self {
        let (tokens, text, timings) = (Vec::new(), String::new(), Timings::default());
        Self { tokens, text, finish_reason: FinishReason::Cancelled, complete: None, timings }
    }
}

/// One step of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The chosen token.
    pub token: u32,
    /// The text that is complete with it; often, but not always, the token's own. Neither half a character nor the
    /// beginning of a stop string is ever shown.
    pub text: String,
    /// How probable it was, where [`GenerateOptions::logprobs`] asks.
    pub logprobs: Option<Logprobs>,
}

/// Feeds `prompt` to the session and generates what follows, calling `on_text` with each piece of text as soon as it
/// is complete. Neither half a character nor the beginning of a stop string is ever shown.
///
/// # Errors
/// If the prompt is empty or does not fit in the context, a setting is out of range, or the model computes NaN.
pub fn generate(
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_text: impl FnMut(&str) -> ControlFlow<()> + Send,
) -> Result<Generated, Error> {
    session.install(|session| {
        let mut generation = session.generate(prompt, options)?;
        while let Some(piece) = generation.next().transpose()? {
            if !piece.text.is_empty() && on_text(&piece.text).is_break() {
                generation.cancel();
            }
        }
        Ok(generation.finish())
    })
}

impl Session {
    /// Feeds `prompt` and generates what follows, token by token, as an iterator.
    ///
    /// Nothing happens before the first token is asked for. Dropping the iterator ends the generation; the session then
    /// holds the prompt and all but the last of its tokens. Within [`Session::install`] a token costs a little less.
    ///
    /// ```
    /// # use torchless::Model;
    /// # use torchless::runtime::{FinishReason, GenerateOptions};
    /// # use torchless::runtime::{Session, SessionOptions};
    /// # let model = std::sync::Arc::new(Model::open("tests/fixtures/models/llama-int8.bin")?);
    /// # let mut session = Session::new(&model, &SessionOptions::new(&model))?;
    /// let options = GenerateOptions { max_tokens: 5, ignore_eos: true, ..GenerateOptions::default() };
    /// let mut generation = session.generate(&[1, 2, 3], &options)?;
    /// for piece in generation.by_ref() {
    ///     let piece = piece?;
    ///     println!("{}: {:?}", piece.token, piece.text);
    /// }
    /// let generated = generation.finish();
    /// assert_eq!((generated.tokens.len(), generated.finish_reason), (5, FinishReason::Length));
    /// # Ok::<(), torchless::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a setting is out of range, or the grammar is wrong. The iterator gives an error, and then nothing more, if the prompt
    /// is empty or does not fit in the context, or the model computes NaN.
    pub fn generate(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Generation<'_>, Error> {
        self.generate_after(prompt.to_vec(), 0, options)
    }

    /// As [`Session::generate`], where the session holds the first `fed` tokens of `context` already.
    pub(crate) fn generate_after(
        &mut self,
        context: Vec<u32>,
        fed: usize,
        options: &GenerateOptions,
    ) -> Result<Generation<'_>, Error> {
        let (model, kernels, ctx) = (Arc::clone(self.model()), self.kernels(), self.ctx());
        let mut watch = || self.go_on();
        let mut answer = Answer::new(&model, kernels, ctx, context, options, &mut watch)?;
        answer.set_cached(fed);
        Ok(Generation { session: self, answer, fed })
    }
}

/// A generation under way: an iterator of its tokens and their text.
pub struct Generation<'s> {
    session: &'s mut Session,
    answer: Answer,
    /// Tokens of the prompt and the answer that the session holds.
    fed: usize,
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.answer.finish_reason().is_some() {
            return None;
        }
        let piece = self.step();
        if piece.is_err() {
            self.cancel();
        }
        match piece {
            Err(Error::Interrupted) => None,
            piece => piece.transpose(),
        }
    }
}

#[expect(clippy::indexing_slicing, reason = "the history holds what was fed, and only grows")]
impl Generation<'_> {
    /// The tokens chosen so far.
    pub fn tokens(&self) -> &[u32] {
        self.answer.tokens()
    }

    /// Tokens of the prompt and the answer that the session holds.
    pub(crate) fn fed(&self) -> &[u32] {
        &self.answer.history()[..self.fed]
    }

    /// Ends it: nothing more comes.
    pub fn cancel(&mut self) {
        self.answer.cancel();
    }

    /// What came out. A generation that had not come to its end counts as cancelled.
    pub fn finish(self) -> Generated {
        self.answer.finish()
    }

    fn step(&mut self) -> Result<Option<Piece>, Error> {
        self.answer.begin();
        let model = Arc::clone(self.session.model());
        let logits = self.session.feed(&self.answer.history()[self.fed..])?;
        self.fed = self.answer.history().len();
        self.answer.choose(model.tokenizer(), logits)
    }
}
