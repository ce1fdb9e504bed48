//! Texts of a given form: tokens that a grammar cannot go on with are not chosen.

mod worker;

use std::ops::ControlFlow;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv};
use serde_json::{Value, json};

use self::worker::Worker;
use crate::Error;
use crate::tokenizer::Tokenizer;

/// What a text must look like. What takes more than ten seconds to read, or a MiB of text, is refused. See the documentation of
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
    worker: Worker,
    kind: Kind,
    logits: Vec<f32>,
}

impl Constraint {
    /// The beginning of a text. Any of the tokens `ends` may end it. While the grammar is read, `watch` is called from time to
    /// time, and may break it off.
    pub fn new(
        grammar: &Grammar,
        tokenizer: &Tokenizer,
        vocab_size: usize,
        ends: &[u32],
        watch: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self, Error> {
        let vocabulary = vocabulary(tokenizer, vocab_size, ends)?;
        let (kind, worker) = match grammar {
            Grammar::JsonSchema(schema) => {
                let schema = on_one_line(schema);
                let bytes = schema.to_string().len();
                let read = || TopLevelGrammar::from_json_schema(schema);
                (Kind::JsonSchema, Worker::new(read, bytes, vocabulary, watch))
            }
            Grammar::Lark(text) => {
                let (text, bytes) = (text.clone(), text.len());
                (Kind::Lark { looks_like_gbnf: text.contains("::=") }, {
                    Worker::new(|| TopLevelGrammar::from_lark(text), bytes, vocabulary, watch)
                })
            }
            Grammar::Regex(text) => {
                let (text, bytes) = (text.clone(), text.len());
                let read = move || TopLevelGrammar::from_regex(&text);
                (Kind::Regex, Worker::new(read, bytes, vocabulary, watch))
            }
        };
        let worker = worker.map_err(|error| kind.problem(error))?;
        Ok(Self { worker, kind, logits: vec![0.0; vocab_size] })
    }

    /// The logits, −∞ for tokens that cannot follow.
    pub fn mask(&mut self, logits: &[f32]) -> Result<&[f32], Error> {
        let allowed = self.worker.mask().map_err(|error| self.kind.problem(error))?;
        for (id, (masked, &logit)) in (0..).zip(self.logits.iter_mut().zip(logits)) {
            *masked = if allowed.is_allowed(id) { logit } else { f32::NEG_INFINITY };
        }
        Ok(&self.logits)
    }

    /// Goes on with `token`; true where the text is complete and nothing can follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, Error> {
        self.worker.accept(token).map_err(|error| self.kind.problem(error))
    }

    /// Whether the text may end here.
    pub fn is_complete(&mut self) -> bool {
        self.worker.is_complete()
    }
}

/// How a grammar is written: what its errors begin with.
#[derive(Clone, Copy)]
enum Kind {
    JsonSchema,
    Lark { looks_like_gbnf: bool },
    Regex,
}

impl Kind {
    /// The error on one line.
    fn problem(self, error: Error) -> Error {
        let Error::Grammar(problem) = error else { return error };
        let problem = on_a_line(&problem);
        Error::Grammar(match self {
            Self::JsonSchema => format!("the JSON schema: {problem}"),
            Self::Regex => format!("the regular expression: {problem}"),
            Self::Lark { looks_like_gbnf: false } => format!("the grammar: {problem}"),
            Self::Lark { looks_like_gbnf: true } => format!(
                "the grammar: {problem}; `::=` looks like GBNF, and Lark is expected: `start: \"yes\" | \"no\"`"
            ),
        })
    }
}

/// A message of llguidance's without the picture below it, whose caret means nothing on one line: `2(8)`, with which it begins,
/// says as much.
fn on_a_line(message: &str) -> String {
    // A panic that was caught comes with its trace.
    let message = message.split("<backtrace>").next().unwrap_or_default();
    let picture = |line: &str| {
        let rest = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        rest.starts_with("| ") || rest == "|" || line.trim() == "^"
    };
    let words = message.lines().filter(|line| !picture(line)).flat_map(str::split_whitespace);
    let text = words.filter(|word| *word != "<non-verbose/>").collect::<Vec<_>>().join(" ");
    let text = match (&*text, text.strip_prefix("panic: ")) {
        ("NoExtension" | "NoExtensionBias", _) => {
            "nothing can follow: this model's tokens spell no text of this form".to_owned()
        }
        (_, Some(assertion)) => format!("llguidance cannot read it: {assertion}"),
        _ => with_place(&text).unwrap_or(text),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Characters of a message that are shown: some hold all of a grammar.
const LONGEST: usize = 300;

/// `at 2(8): problem` as `line 2, column 8: problem`.
fn with_place(text: &str) -> Option<String> {
    let (place, problem) = text.strip_prefix("at ").unwrap_or(text).split_once("): ")?;
    let (line, column) = place.split_once('(')?;
    let (line, column): (usize, usize) = (line.parse().ok()?, column.parse().ok()?);
    Some(format!("line {line}, column {column}: {problem}"))
}

/// White space as Python's `json.dumps` has it: small models that are free to choose write it without end.
pub(crate) fn on_one_line(schema: &Value) -> Value {
    // Anything goes, which an object without members says too.
    let mut schema = if *schema == Value::Bool(true) { json!({}) } else { schema.clone() };
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

#[cfg(test)]
mod tests;
