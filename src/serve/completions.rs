//! `/v1/completions`: a text, continued.

use serde_json::{Value, json};

use super::answer::Kind;
use super::fields::{Fields, Tokens};
use super::logprobs::TextLogprobs;
use super::problem::Problem;
use super::service::Loaded;
use super::settings::{MAX_TOP_LOGPROBS, Settings};
use crate::runtime::{FinishReason, Finished, Piece};

/// What OpenAI's API gives where nothing is said.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request, and the texts that come of it.
pub struct Completions {
    prompts: Vec<Prompt>,
    max_tokens: Option<usize>,
    ignore_eos: bool,
    texts: Vec<Text>,
}

enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// An answer so far.
#[derive(Default)]
struct Text {
    text: String,
    /// Characters of it.
    characters: usize,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

impl Kind for Completions {
    const ID: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";
    const PROMPT: &'static str = "prompt";

    fn read(mut fields: Fields, loaded: &Loaded) -> Result<(Self, Settings), Problem> {
        let mut settings = Settings::take(&mut fields, loaded.model.file().generation())?;
        let prompts = prompts(fields.need("prompt")?)?;
        let max_tokens = match fields.take("max_tokens")? {
            Some(0) => return Err(Problem::value("max_tokens", "0: give a whole number from 1 on")),
            max_tokens => max_tokens,
        };
        settings.generate.max_tokens = max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        settings.generate.logprobs = fields.take("logprobs")?;
        if let Some(n) = settings.generate.logprobs.filter(|&n| n > MAX_TOP_LOGPROBS) {
            return Err(Problem::value("logprobs", format_args!("{n}: {MAX_TOP_LOGPROBS} at most")));
        }
        fields.only("echo", &[false.into()], "torchless does not repeat the prompt: give false")?;
        fields.only("suffix", &["".into()], "torchless does not fill gaps: leave it out")?;
        let why = "torchless does not choose among answers: leave it out, or give what n is";
        fields.only("best_of", &[settings.n.into()], why)?;
        fields.finish(&[])?;
        let ignore_eos = settings.generate.ignore_eos;
        Ok((Self { prompts, max_tokens, ignore_eos, texts: Vec::new() }, settings))
    }

    fn prompt_count(&self) -> usize {
        self.prompts.len()
    }

    fn prompts(&mut self, loaded: &Loaded, _: &mut Settings) -> Result<Vec<Vec<u32>>, Problem> {
        let tokens = |prompt| match prompt {
            Prompt::Text(text) => loaded.model.tokenizer().encode(&text, Default::default()),
            Prompt::Tokens(tokens) => tokens,
        };
        Ok(std::mem::take(&mut self.prompts).into_iter().map(tokens).collect())
    }

    fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    fn begin(&mut self, answers: usize, _: &Loaded) {
        self.texts.resize_with(answers, Text::default);
    }

    fn piece(&mut self, index: usize, piece: &Piece, loaded: &Loaded) -> Vec<Value> {
        let Some(text) = self.texts.get_mut(index) else { return Vec::new() };
        let mut logprobs = None;
        // What ends a text is no part of it.
        if piece.logprobs.is_some() && (self.ignore_eos || !loaded.ends_text(piece.token)) {
            let mut of_piece = TextLogprobs::default();
            of_piece.push(piece, text.characters, loaded.model.tokenizer());
            logprobs = Some(of_piece.json());
            text.logprobs.get_or_insert_default().extend(of_piece);
        }
        text.text.push_str(&piece.text);
        text.characters += piece.text.chars().count();
        if piece.text.is_empty() && logprobs.is_none() {
            return Vec::new();
        }
        vec![choice(index, &piece.text, logprobs, None)]
    }

    fn end(&mut self, index: usize, finished: &Finished) -> Vec<Value> {
        let Some(text) = self.texts.get_mut(index) else { return Vec::new() };
        text.finish_reason = Some(reason(finished));
        vec![choice(index, "", None, text.finish_reason)]
    }

    fn whole(self) -> Vec<Value> {
        let choice = |(index, text): (usize, Text)| {
            choice(index, &text.text, text.logprobs.map(|all| all.json()), text.finish_reason)
        };
        self.texts.into_iter().enumerate().map(choice).collect()
    }
}

fn choice(index: usize, text: &str, logprobs: Option<Value>, reason: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
}

/// Why a text ended, in OpenAI's words.
fn reason(finished: &Finished) -> &'static str {
    match finished.generated.finish_reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

/// A text, a list of them, tokens, or a list of lists of those.
fn prompts(value: Value) -> Result<Vec<Prompt>, Problem> {
    let wrong = || {
        let what = "give a string, a list of strings, a list of token ids, or a list of such lists";
        Problem::value("prompt", what)
    };
    let tokens = |value: &Value| {
        let Tokens(tokens) = super::fields::Field::from_json(value.clone())?;
        Some(Prompt::Tokens(tokens))
    };
    let prompts = match value {
        Value::String(text) => Some(vec![Prompt::Text(text)]),
        Value::Array(items) => match items.first() {
            Some(Value::Number(_)) => tokens(&Value::Array(items)).map(|prompt| vec![prompt]),
            Some(Value::Array(_)) => items.iter().map(tokens).collect(),
            Some(_) => {
                let text = |item| match item {
                    Value::String(text) => Some(Prompt::Text(text)),
                    _ => None,
                };
                items.into_iter().map(text).collect()
            }
            None => None,
        },
        _ => None,
    };
    prompts.ok_or_else(wrong)
}
