//! `/v1/chat/completions`: a conversation, answered.

mod answer;
mod messages;
mod tools;

use serde_json::{Map, Value, json};

use self::answer::{Answer, chunk};
use self::tools::Tools;
use super::answer::Kind;
use super::fields::Fields;
use super::logprobs;
use super::problem::Problem;
use super::service::Loaded;
use super::settings::{MAX_TOP_LOGPROBS, Settings};
use crate::chat::{AnswerParser, Message, after_reasoning};
use crate::runtime::{Finished, Piece};
use crate::sampling::Grammar;
use crate::tokenizer::Kind as TokenizerKind;

/// Fields of OpenAI's, and of servers like this one, that ask for what torchless cannot do.
const UNSUPPORTED: [&str; 8] = [
    "audio",
    "function_call",
    "functions",
    "moderation",
    "prediction",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
];

/// A request, and the answers that come of it.
pub struct ChatCompletions {
    messages: Vec<Message>,
    tools: Tools,
    /// Variables of the template's own.
    template_args: Map<String, Value>,
    max_tokens: Option<usize>,
    ignore_eos: bool,
    prompt: Vec<u32>,
    answers: Vec<Answer>,
}

impl Kind for ChatCompletions {
    const ID: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";
    const PROMPT: &'static str = "messages";

    fn read(mut fields: Fields, loaded: &Loaded) -> Result<(Self, Settings), Problem> {
        let mut settings = Settings::take(&mut fields, loaded.model.file().generation())?;
        let messages = messages::read(fields.need("messages")?)?;
        let max_tokens = max_tokens(&mut fields)?;
        let tools = tools::read(&mut fields, loaded)?;
        let template_args = fields.take("chat_template_kwargs")?.unwrap_or_default();
        settings.generate.max_tokens = max_tokens.unwrap_or(usize::MAX);
        settings.generate.stop_tokens.extend(loaded.end_of_turn);
        settings.generate.logprobs = top_logprobs(&mut fields)?;
        settings.generate.grammar = response_format(&mut fields)?;
        if tools.form.is_some() && settings.generate.grammar.is_some() {
            let problem = "an answer is held to it or may call tools: leave one of them out";
            return Err(Problem::unsupported("response_format", problem));
        }
        fields.only("modalities", &[json!(["text"])], "torchless answers in text: give [\"text\"]")?;
        fields.finish(&UNSUPPORTED)?;
        let ignore_eos = settings.generate.ignore_eos;
        let (prompt, answers) = (Vec::new(), Vec::new());
        let kind = Self { messages, tools, template_args, max_tokens, ignore_eos, prompt, answers };
        Ok((kind, settings))
    }

    fn prompt_count(&self) -> usize {
        1
    }

    fn prompts(&mut self, loaded: &Loaded, settings: &mut Settings) -> Result<Vec<Vec<u32>>, Problem> {
        let (tokenizer, tools) = (loaded.model.tokenizer(), &self.tools.tools);
        let template = loaded.template()?.with_args(&self.template_args).map_err(|error| {
            let (name, problem) = ("chat_template_kwargs", error.to_string());
            Problem::value(name, problem)
        })?;
        self.prompt = template.encode_with_tools(tokenizer, &self.messages, tools, true)?;
        let grammar = &mut settings.generate.grammar;
        *grammar = grammar.take().or(self.tools.grammar(loaded)?);
        if let Some(form) = grammar.take_if(|_| self.parser(loaded).is_reasoning()) {
            *grammar = Some(after_reasoning(tokenizer, &form));
        }
        Ok(vec![self.prompt.clone()])
    }

    fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    fn begin(&mut self, answers: usize, loaded: &Loaded) {
        let drop_space = loaded.model.tokenizer().spec().kind == TokenizerKind::Metaspace;
        self.answers = (0..answers).map(|_| Answer::new(self.parser(loaded), drop_space)).collect();
    }

    fn opening(&self, index: usize) -> Option<Value> {
        Some(chunk(index, json!({"role": "assistant", "content": ""}), None, None))
    }

    fn piece(&mut self, index: usize, piece: &Piece, loaded: &Loaded) -> Vec<Value> {
        let Some(answer) = self.answers.get_mut(index) else { return Vec::new() };
        let logprobs = match self.ignore_eos || !loaded.ends_text(piece.token) {
            true => logprobs::of_chat(piece, loaded.model.tokenizer()),
            // It is no part of the answer.
            false => None,
        };
        answer.piece(index, piece, logprobs)
    }

    fn end(&mut self, index: usize, finished: &Finished) -> Vec<Value> {
        self.answers.get_mut(index).map_or_else(Vec::new, |answer| answer.end(index, finished))
    }

    fn whole(self) -> Vec<Value> {
        self.answers.into_iter().enumerate().map(|(index, answer)| answer.whole(index)).collect()
    }
}

impl ChatCompletions {
    /// What takes the answers to the prompt apart.
    fn parser(&self, loaded: &Loaded) -> AnswerParser {
        let Tools { tools, form, .. } = &self.tools;
        AnswerParser::new(loaded.model.tokenizer(), &self.prompt, *form, tools)
    }
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
