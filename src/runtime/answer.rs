//! A text under way: how its next token is chosen, and what has been shown of it.

use std::ops::ControlFlow;
use std::time::Instant;

use torchless_kernels::Kernels;

use super::generate::{FinishReason, GenerateOptions, Generated, Piece, Timings};
use crate::Error;
use crate::model::Model;
use crate::sampling::{Constraint, Logprobs, Sampler, StopFilter};
use crate::tokenizer::{Decoder, Tokenizer};

/// A text under way. Whoever has one feeds the model what it [lacks](Answer::history), and shows it the
/// [logits](Answer::choose) after that.
pub(crate) struct Answer {
    sampler: Sampler,
    constraint: Option<Constraint>,
    decoder: Decoder,
    stop: StopFilter,
    stop_tokens: Vec<u32>,
    max_tokens: usize,
    logprobs: Option<usize>,
    ctx: usize,
    /// The prompt and what was chosen after it.
    history: Vec<u32>,
    /// Tokens of the history that are the prompt.
    prompt: usize,
    text: String,
    timings: Timings,
    start: Option<Instant>,
    finish_reason: Option<FinishReason>,
    cut_by_stop_string: bool,
}

impl Answer {
    /// A text that follows `prompt` in a context of `ctx` positions. While a grammar is read, `watch` is called from time to time, and
    /// may break it off.
    pub fn new(
        model: &Model,
        kernels: Kernels,
        ctx: usize,
        prompt: Vec<u32>,
        options: &GenerateOptions,
        watch: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self, Error> {
        let tokenizer = model.tokenizer();
        let mut stop_tokens = options.stop_tokens.clone();
        if !options.ignore_eos {
            stop_tokens.extend(tokenizer.eos_ids());
        }
        let vocab_size = model.config().vocab_size;
        let ends = [tokenizer.eos_ids(), &options.stop_tokens].concat();
        let constraint = match &options.grammar {
            Some(grammar) => Some(Constraint::new(grammar, tokenizer, vocab_size, &ends, watch)?),
            None => None,
        };
        // The answer's text begins where the prompt's ends: a space between them belongs to it.
        let mut decoder = tokenizer.decoder();
        for &id in &prompt {
            decoder.push(tokenizer, id);
        }
        Ok(Self {
            sampler: Sampler::new(options.sampling.clone(), vocab_size)?.with_kernels(kernels),
            constraint,
            decoder,
            stop: StopFilter::new(options.stop.iter().cloned()),
            stop_tokens,
            max_tokens: options.max_tokens,
            logprobs: options.logprobs,
            ctx,
            prompt: prompt.len(),
            timings: Timings { prompt_tokens: prompt.len(), ..Timings::default() },
            history: prompt,
            text: String::new(),
            start: None,
            finish_reason: None,
            cut_by_stop_string: false,
        })
    }

    /// The prompt and what was chosen after it. When the model has been fed all of it, the next token can be chosen.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// The tokens chosen so far.
    #[expect(clippy::indexing_slicing, reason = "the history begins with the prompt")]
    pub fn tokens(&self) -> &[u32] {
        &self.history[self.prompt..]
    }

    /// Why it ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// Starts the clock, where it is not running.
    pub fn begin(&mut self) -> Instant {
        *self.start.get_or_insert_with(Instant::now)
    }

    /// So many tokens of the prompt were there already, and cost nothing.
    pub fn set_cached(&mut self, cached: usize) {
        self.timings.prompt_tokens = self.prompt.saturating_sub(cached);
    }

    /// Ends it: nothing more comes.
    pub fn cancel(&mut self) {
        self.finish_reason = Some(FinishReason::Cancelled);
    }

    /// Chooses the next token by the logits after the [history](Answer::history); nothing where none is wanted.
    pub fn choose(&mut self, tokenizer: &Tokenizer, logits: &[f32]) -> Result<Option<Piece>, Error> {
        let start = self.begin();
        let chosen = self.tokens().len();
        if chosen == 0 {
            self.timings.prompt = start.elapsed();
        }
        if self.max_tokens == 0 {
            self.finish_reason = Some(FinishReason::Length);
            return Ok(None);
        }
        let allowed = match &mut self.constraint {
            Some(constraint) => constraint.mask(logits)?,
            None => logits,
        };
        let token = self.sampler.sample(allowed, &self.history)?;
        let complete = match &mut self.constraint {
            Some(constraint) => constraint.accept(token)?,
            None => false,
        };
        let logprobs = self.logprobs.map(|n| Logprobs::new(logits, token, n));
        self.history.push(token);
        if chosen == 0 {
            self.timings.first_token = start.elapsed();
        }
        self.timings.decoded_tokens = chosen;
        self.timings.decode = start.elapsed().saturating_sub(self.timings.first_token);
        let text = self.show(tokenizer, token, complete);
        self.text.push_str(&text);
        Ok(Some(Piece { token, text, logprobs }))
    }

    /// The text that is complete with `token`; notes where it is the last, as it is if `complete`.
    fn show(&mut self, tokenizer: &Tokenizer, token: u32, complete: bool) -> String {
        let mut reason = None;
        let mut text = String::new();
        if self.stop_tokens.contains(&token) {
            reason = Some(FinishReason::Stop);
        } else {
            let (shown, stopped) = self.stop.push(self.decoder.push(tokenizer, token));
            text = shown;
            if stopped {
                self.finish_reason = Some(FinishReason::Stop);
                self.cut_by_stop_string = true;
                return text;
            }
            if complete {
                reason = Some(FinishReason::Stop);
            } else if self.tokens().len() == self.max_tokens || self.history.len() > self.ctx {
                reason = Some(FinishReason::Length);
            }
        }
        if reason.is_some() {
            // Nothing can follow: what was held back is shown.
            let (rest, stopped) = self.stop.push(self.decoder.clone().finish());
            text.push_str(&rest);
            text.push_str(&self.stop.finish());
            self.cut_by_stop_string = stopped;
            self.finish_reason = if stopped { Some(FinishReason::Stop) } else { reason };
        }
        text
    }

    /// What came out. A text that had not come to its end counts as cancelled.
    pub fn finish(mut self) -> Generated {
        let cut_by_stop_string = self.cut_by_stop_string;
        let complete = self.constraint.as_mut().map(|form| !cut_by_stop_string && form.is_complete());
        Generated {
            tokens: self.tokens().to_vec(),
            text: self.text,
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Cancelled),
            complete,
            timings: self.timings,
        }
    }
}
