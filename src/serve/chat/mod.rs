//! `/v1/chat/completions`: a conversation, answered.

mod messages;

use serde_json::{Value, json};

use super::answer::Kind;
use super::completions::reason;
use super::fields::Fields;
use super::logprobs;
use super::problem::Problem;
use super::service::Loaded;
use super::settings::{MAX_TOP_LOGPROBS, Settings};
use crate::chat::Message;
use crate::runtime::{Finished, Piece};
use crate::sampling::Grammar;
use crate::tokenizer::Kind as TokenizerKind;

/// Fields of OpenAI's, and of servers like this one, that ask for what torchless cannot do.
const UNSUPPORTED: [&str; 11] = [
    "audio",
    "function_call",
    "functions",
    "moderation",
    "prediction",
    "reasoning_effort",
    "tools",
    "tool_choice",
    "verbosity",
    "web_search_options",
    "chat_template_kwargs",
];

/// A request, and the answers that come of it.
pub struct ChatCompletions {
    messages: Vec<Message>,
    max_tokens: Option<usize>,
    ignore_eos: bool,
    answers: Vec<Answer>,
}

/// An answer so far.
struct Answer {
    content: String,
    /// SentencePiece writes a space before the first word, which belongs to no one.
    drop_space: bool,
    logprobs: Vec<Value>,
    finish_reason: Option<&'static str>,
}

impl Kind for ChatCompletions {
    const ID: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";
    const PROMPT: &'static str = "messages";

    fn read(mut fields: Fields, loaded: &Loaded) -> Result<(Self, Settings), Problem> {
        let mut settings = Settings::take(&mut fields)?;
        let messages = messages::read(fields.need("messages")?)?;
        let max_tokens = max_tokens(&mut fields)?;
        settings.generate.max_tokens = max_tokens.unwrap_or(usize::MAX);
        settings.generate.stop_tokens.extend(loaded.end_of_turn);
        settings.generate.logprobs = top_logprobs(&mut fields)?;
        settings.generate.grammar = response_format(&mut fields)?;
        fields.only("modalities", &[json!(["text"])], "torchless answers in text: give [\"text\"]")?;
        // Without tools neither says anything.
        fields.take::<bool>("parallel_tool_calls")?;
        fields.finish(&UNSUPPORTED)?;
        let ignore_eos = settings.generate.ignore_eos;
        Ok((Self { messages, max_tokens, ignore_eos, answers: Vec::new() }, settings))
    }

    fn prompt_count(&self) -> usize {
        1
    }

    fn prompts(&mut self, loaded: &Loaded) -> Result<Vec<Vec<u32>>, Problem> {
        let prompt = loaded.template()?.encode(loaded.model.tokenizer(), &self.messages, true)?;
        Ok(vec![prompt])
    }

    fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    fn begin(&mut self, answers: usize, loaded: &Loaded) {
        let drop_space = loaded.model.tokenizer().spec().kind == TokenizerKind::Metaspace;
        self.answers.resize_with(answers, || Answer {
            content: String::new(),
            drop_space,
            logprobs: Vec::new(),
            finish_reason: None,
        });
    }

    fn opening(&self, index: usize) -> Option<Value> {
        Some(chunk(index, json!({"role": "assistant", "content": ""}), None, None))
    }

    fn piece(&mut self, index: usize, piece: &Piece, loaded: &Loaded) -> Vec<Value> {
        let Some(answer) = self.answers.get_mut(index) else { return Vec::new() };
        let mut text = piece.text.as_str();
        if !text.is_empty() && std::mem::take(&mut answer.drop_space) {
            text = text.strip_prefix(' ').unwrap_or(text);
        }
        answer.content.push_str(text);
        let logprobs = match self.ignore_eos || !loaded.ends_text(piece.token) {
            true => logprobs::of_chat(piece, loaded.model.tokenizer()),
            // It is no part of the answer.
            false => None,
        };
        answer.logprobs.extend(logprobs.clone());
        if text.is_empty() && logprobs.is_none() {
            return Vec::new();
        }
        let logprobs = logprobs.map(|entry| vec![entry]);
        vec![chunk(index, json!({"content": text}), logprobs, None)]
    }

    fn end(&mut self, index: usize, finished: &Finished) -> Vec<Value> {
        let Some(answer) = self.answers.get_mut(index) else { return Vec::new() };
        answer.finish_reason = Some(reason(finished));
        vec![chunk(index, json!({}), None, answer.finish_reason)]
    }

    fn whole(self) -> Vec<Value> {
        let choice = |(index, answer): (usize, Answer)| {
            let message = json!({"role": "assistant", "content": answer.content, "refusal": null});
            json!({
                "index": index,
                "message": message,
                "logprobs": content((!answer.logprobs.is_empty()).then_some(answer.logprobs)),
                "finish_reason": answer.finish_reason,
            })
        };
        self.answers.into_iter().enumerate().map(choice).collect()
    }
}

fn chunk(index: usize, delta: Value, logprobs: Option<Vec<Value>>, reason: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": content(logprobs), "finish_reason": reason})
}

fn content(logprobs: Option<Vec<Value>>) -> Value {
    logprobs.map_or(Value::Null, |entries| json!({"content": entries, "refusal": null}))
}

/// By its new name, or by its old one.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    let (new, old) = (fields.take("max_completion_tokens")?, fields.take("max_tokens")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(Problem::value("max_tokens", format_args!("{old}: max_completion_tokens says {new}")));
    }
    match new.or(old) {
        Some(0) => Err(Problem::value("max_tokens", "0: give a whole number from 1 on")),
        most => Ok(most),
    }
}

/// How many tokens' log-probabilities are wanted beside the chosen one's.
fn top_logprobs(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    match fields.take("top_logprobs")? {
        Some(n) if n > MAX_TOP_LOGPROBS => {
            Err(Problem::value("top_logprobs", format_args!("{n}: {MAX_TOP_LOGPROBS} at most")))
        }
        Some(n) if n > 0 && !wanted => Err(Problem::value("top_logprobs", "set logprobs to true as well")),
        n => Ok(wanted.then_some(n.unwrap_or(0))),
    }
}

/// What the answer has to look like.
fn response_format(fields: &mut Fields) -> Result<Option<Grammar>, Problem> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let kind: String = format.need("type")?;
    let grammar = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Grammar::JsonSchema(json!({"type": "object"}))),
        "json_schema" => {
            let missing = "missing: give the schema's object";
            let name = format.name("json_schema");
            let mut schema = format.object("json_schema")?.ok_or_else(|| Problem::value(name, missing))?;
            // For those who read the request. Answers are always held to the schema, as `strict` has it.
            ["name", "description"].iter().try_for_each(|field| schema.take::<String>(field).map(drop))?;
            schema.take::<bool>("strict")?;
            let grammar = Grammar::JsonSchema(schema.need("schema")?);
            schema.finish(&[])?;
            Some(grammar)
        }
        other => {
            let problem = format_args!("{other:?}: give text, json_object or json_schema");
            return Err(Problem::unsupported("response_format.type", problem));
        }
    };
    format.finish(&[])?;
    Ok(grammar)
}
