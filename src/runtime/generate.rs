//! A prompt in, text out.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::sampler::{Sampler, Sampling};
use super::session::Session;
use super::stop::StopFilter;
use crate::Error;

/// What to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens to generate; the end of the context ends it sooner.
    pub max_tokens: usize,
    /// How to choose them.
    pub sampling: Sampling,
    /// Strings that end the text, and are not part of it.
    pub stop: Vec<String>,
    /// Goes on past the tokens that end a text.
    pub ignore_eos: bool,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the text, or a stop string came.
    Stop,
    /// The wanted number of tokens, or the end of the context, was reached.
    Length,
    /// The caller broke it off.
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
    /// How long it took.
    pub timings: Timings,
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
    on_text: impl FnMut(&str) -> ControlFlow<()> + Send,
) -> Result<Generated, Error> {
    let sampler = Sampler::new(options.sampling.clone(), session.model().config().vocab_size)?;
    session.install(|session| {
        let mut run = Run::new(session.model().tokenizer().decoder(), prompt, options, on_text);
        run.timings.prompt_tokens = prompt.len();
        let finish_reason = run.generate(session, sampler, prompt)?;
        let Run { text, history, timings, .. } = run;
        Ok(Generated { tokens: history[prompt.len()..].to_vec(), text, finish_reason, timings })
    })
}

/// A generation under way.
struct Run<'a, F> {
    options: &'a GenerateOptions,
    decoder: crate::tokenizer::Decoder<'a>,
    stop: StopFilter,
    on_text: F,
    text: String,
    /// The prompt and what was chosen after it.
    history: Vec<u32>,
    timings: Timings,
}

impl<'a, F: FnMut(&str) -> ControlFlow<()>> Run<'a, F> {
    fn new(
        mut decoder: crate::tokenizer::Decoder<'a>,
        prompt: &[u32],
        options: &'a GenerateOptions,
        on_text: F,
    ) -> Self {
        // The answer's text begins where the prompt's ends: a space between them belongs to it.
        for &id in prompt {
            decoder.push(id);
        }
        let mut history = Vec::with_capacity(prompt.len() + options.max_tokens.min(1 << 16));
        history.extend_from_slice(prompt);
        let stop = StopFilter::new(options.stop.iter().cloned());
        Self { options, decoder, stop, on_text, text: String::new(), history, timings: Timings::default() }
    }

    fn generate(
        &mut self,
        session: &mut Session,
        mut sampler: Sampler,
        prompt: &[u32],
    ) -> Result<FinishReason, Error> {
        let (kernels, tokenizer) = (session.kernels(), session.model().tokenizer());
        let start = Instant::now();
        let mut logits = session.feed(prompt)?;
        self.timings.prompt = start.elapsed();
        for n in 0..self.options.max_tokens {
            let id = sampler.sample(kernels, logits, &self.history)?;
            self.history.push(id);
            if n == 0 {
                self.timings.first_token = start.elapsed();
            }
            self.timings.decoded_tokens = n;
            self.timings.decode = start.elapsed() - self.timings.first_token;
            if !self.options.ignore_eos && tokenizer.eos_ids().contains(&id) {
                return Ok(self.finish(FinishReason::Stop));
            }
            let (shown, stopped) = self.stop.push(self.decoder.push(id));
            let cancelled = self.show(&shown).is_break();
            if stopped || cancelled {
                return Ok(if cancelled { FinishReason::Cancelled } else { FinishReason::Stop });
            }
            if n + 1 == self.options.max_tokens || session.position() == session.ctx() {
                break;
            }
            logits = session.feed(&[id])?;
        }
        Ok(self.finish(FinishReason::Length))
    }

    /// Shows what was held back.
    fn finish(&mut self, reason: FinishReason) -> FinishReason {
        let (mut rest, stopped) = self.stop.push(self.decoder.clone().finish());
        rest.push_str(&self.stop.finish());
        let cancelled = self.show(&rest).is_break();
        match reason {
            _ if cancelled => FinishReason::Cancelled,
            _ if stopped => FinishReason::Stop,
            reason => reason,
        }
    }

    fn show(&mut self, text: &str) -> ControlFlow<()> {
        self.text.push_str(text);
        if text.is_empty() { ControlFlow::Continue(()) } else { (self.on_text)(text) }
    }
}
