//! Texts of a given form: tokens that a grammar cannot go on with are not chosen.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::Error;
use crate::tokenizer::Tokenizer;

/// What a text must look like. See the documentation of
/// [llguidance](https://docs.rs/llguidance) for what is understood.
///
/// ```
/// # use torchless::Model;
/// # use torchless::runtime::GenerateOptions;
/// # use torchless::sampling::Grammar;
/// # use torchless::runtime::{Session, SessionOptions};
/// # let model = std::sync::Arc::new(Model::open("tests/fixtures/models/llama-int8.bin")?);
/// # let mut session = Session::new(&model, &SessionOptions::new(&model))?;
/// let grammar = Grammar::Regex("the (rain|sun|wind)".to_owned());
/// let options = GenerateOptions { grammar: Some(grammar), ..GenerateOptions::default() };
/// let mut generation = session.generate(&[1, 2, 3], &options)?;
/// generation.by_ref().collect::<Result<Vec<_>, _>>()?;
/// assert!(["the rain", "the sun", "the wind"].contains(&generation.finish().text.as_str()));
/// # Ok::<(), torchless::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON schema: the text is JSON that it accepts, on one line unless the schema's `x-guidance` says otherwise.
    JsonSchema(Value),
    /// A grammar in Lark's notation, whose rule `start` is the whole text.
    Lark(String),
    /// A regular expression that matches the whole text.
    Regex(String),
}

/// A text of a grammar under way.
pub(crate) struct Constraint {
    matcher: Matcher,
    logits: Vec<f32>,
}

impl Constraint {
    /// The beginning of a text. Any of the tokens `ends` may end it.
    pub fn new(
        grammar: &Grammar,
        tokenizer: &Tokenizer,
        vocab_size: usize,
        ends: &[u32],
    ) -> Result<Self, Error> {
        let vocabulary = vocabulary(tokenizer, vocab_size, ends)?;
        let matcher = ParserFactory::new_simple(&vocabulary).and_then(|mut factory| {
            factory.quiet().limits_mut().verbose_errors = false;
            factory.create_parser(match grammar {
                Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(on_one_line(schema)),
                Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
                Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
            })
        });
        Ok(Self { matcher: Matcher::new(Ok(matcher.map_err(problem)?)), logits: vec![0.0; vocab_size] })
    }

    /// The logits, −∞ for tokens that cannot follow.
    pub fn mask(&mut self, logits: &[f32]) -> Result<&[f32], Error> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(problem)?;
        for (id, (masked, &logit)) in (0..).zip(self.logits.iter_mut().zip(logits)) {
            *masked = if allowed.is_allowed(id) { logit } else { f32::NEG_INFINITY };
        }
        Ok(&self.logits)
    }

    /// Goes on with `token`; true where the text is complete and nothing can follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, Error> {
        self.matcher.consume_token(token).map_err(problem)?;
        Ok(self.matcher.is_stopped())
    }

    /// Whether the text may end here.
    pub fn is_complete(&mut self) -> bool {
        self.matcher.stop_reason().is_ok() && self.matcher.is_accepting().unwrap_or(false)
    }
}

/// White space as Python's `json.dumps` has it: small models that are free to choose write it without end.
fn on_one_line(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut() {
        let separators = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        object.entry("x-guidance").or_insert(separators);
    }
    schema
}

/// The tokens as bytes.
fn vocabulary(tokenizer: &Tokenizer, vocab_size: usize, ends: &[u32]) -> Result<TokEnv, Error> {
    let ends: Vec<u32> = ends.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
    if ends.is_empty() {
        return Err(Error::Request(
            "a grammar needs a token that ends a text, and this model has none".to_owned(),
        ));
    }
    let trie = tokenizer.trie(vocab_size).with_eos_tokens(&ends);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

fn problem(error: impl std::fmt::Display) -> Error {
    let message = error.to_string();
    Error::Request(format!("the grammar: {}", message.split_whitespace().collect::<Vec<_>>().join(" ")))
}
