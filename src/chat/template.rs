//! A model's chat template: from messages to the text, and the tokens, that the model was trained on.
//!
//! Templates are Jinja with the conventions of Hugging Face's `apply_chat_template`
//! (<https://huggingface.co/docs/transformers/chat_templating>), rendered here to the same bytes: blocks take the white
//! space around them along, `raise_exception`, `strftime_now` and Python's string methods exist, `tojson` escapes nothing
//! for HTML, and the variables are `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, `tools`, which is none where
//! there are none, `documents`, which is none, and the template's own, such as `enable_thinking`
//! ([`ChatTemplate::with_args`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, json};

use super::content::Content;
use super::mask::Mask;
use super::message::{Message, Role, check};
use super::tool::Tool;
use super::tool_form::{self, ToolForm};
use super::{compile, python, walk};
use crate::Error;
use crate::tokenizer::Tokenizer;

/// A chat template, checked and ready to render.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    bos: Option<String>,
    eos: Option<String>,
    /// Variables of its own.
    args: Map<String, serde_json::Value>,
    /// Whether it looks at parts of texts, once that was asked.
    takes_parts: OnceLock<bool>,
}

/// Variables that every template has.
const VARIABLES: [&str; 6] =
    ["messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"];

/// Instructions and 64-byte pieces of text a rendering may cost: far more than any honest template, and an end, before 128 MB
/// of text.
const FUEL: u64 = 2_000_000;
/// What a conversation's length adds to it.
const FUEL_A_MESSAGE: u64 = 1_000;

/// The stack of the thread in which templates are compiled, rendered and freed. What `compile.rs` and `walk.rs` let through
/// fits without optimisation, too (`tests/hostile_templates.rs`).
const STACK: usize = 64 << 20;

/// Characters of what a template says that are shown.
const MAX_SAID: usize = 500;

/// Templates of model families, for models whose file brings none: name and source.
const BUILT_IN: [(&str, &str); 4] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("llama2", include_str!("templates/llama2.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
];

impl ChatTemplate {
    /// The template that the model file brings.
    ///
    /// # Errors
    /// If it brings none, or one that cannot be parsed.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, Error> {
        match &tokenizer.spec().chat_template {
            Some(source) => Self::new(source, tokenizer),
            None => Err(Error::NoChatTemplate { built_in: Self::built_in().collect() }),
        }
    }

    /// The template called `name` among those built in.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn named(name: &str, tokenizer: &Tokenizer) -> Result<Self, Error> {
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, source)) => Self::new(source, tokenizer),
            None => Err(Error::Request(format!(
                "no chat template is called {name:?}: give a file of Jinja, or one of {}",
                Self::built_in().collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// The names of the templates built in.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|&(name, _)| name)
    }

    /// Parses a template in Jinja, for the special tokens of this tokenizer.
    ///
    /// # Errors
    /// If it cannot be parsed.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let piece = |id: u32| tokenizer.piece(id).map(str::to_owned);
        let template = Self {
            source: without_generation_blocks(source).into(),
            bos: tokenizer.bos().and_then(piece),
            eos: tokenizer.eos_ids().first().copied().and_then(piece),
            args: Map::new(),
            takes_parts: OnceLock::new(),
        };
        bounded(|| compile::check(&template.source))?;
        Ok(template)
    }

    /// The same template with variables of its own set, such as `enable_thinking`, beside those that are set already.
    ///
    /// # Errors
    /// If one is called as a variable that every template has.
    pub fn with_args(&self, args: &Map<String, serde_json::Value>) -> Result<Self, Error> {
        if let Some(name) = args.keys().find(|name| VARIABLES.contains(&name.as_str())) {
            return Err(Error::Request(format!("{name}: a template has that from the conversation")));
        }
        let mut template = self.clone();
        template.args.extend(args.clone());
        Ok(template)
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    /// If the template refuses the conversation (many want the roles to alternate), or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        self.render_with_tools(messages, &[], add_generation_prompt)
    }

    /// As [`ChatTemplate::render`], with tools that the model may call. Not every template shows them:
    /// [`ChatTemplate::tool_form`].
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and if the arguments of a call are no JSON object.
    pub fn render_with_tools(
        &self,
        messages: &[Message],
        tools: &[Tool],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        check(messages)?;
        let suited: Vec<_> = messages.iter().map(|message| self.suited(message)).collect();
        let own = self.args.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
        let mut variables: BTreeMap<_, _> = own.collect();
        variables.extend([
            ("messages", Value::from(Serde(suited))),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) }),
            ("documents", Value::from(())),
        ]);
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if let Some(token) = token {
                variables.insert(name, Value::from(token.as_str()));
            }
        }
        let fuel = FUEL + FUEL_A_MESSAGE * messages.len() as u64;
        bounded(|| compile::render(&environment(fuel), &self.source, Value::from(variables)))
    }

    /// The tokens of a conversation: of the rendered text, in which special tokens are recognised where the template
    /// wrote them and nowhere else. What a message spells like one stays plain text, and cannot end its turn.
    ///
    /// To tell the two apart, characters of the messages that could begin or end a special token are rendered as
    /// characters of a private area, and put back when the text between the special tokens is encoded. A template that
    /// looks at such characters could then write something else; where it does, only the special tokens that stand
    /// whole in the messages are disguised.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Error> {
        self.encode_with_tools(tokenizer, messages, &[], add_generation_prompt)
    }

    /// As [`ChatTemplate::encode`], with tools that the model may call. Nothing in them, in calls or in what tools answer
    /// can become a special token either.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_with_tools`].
    pub fn encode_with_tools(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: &[Tool],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Error> {
        let faithful = self.render_with_tools(messages, tools, add_generation_prompt)?;
        // JSON escapes no character of a private area.
        let said = json!([messages, tools, self.args]).to_string();
        let mask = Mask::new(tokenizer, [&*said, &*self.source].into_iter())?;
        let render = |disguise: &dyn Fn(&str) -> String| {
            let messages: Vec<_> = messages.iter().map(|m| m.replaced(disguise)).collect();
            let tools: Vec<_> = tools.iter().map(|tool| tool.replaced(disguise)).collect();
            self.render_with_tools(&messages, &tools, add_generation_prompt)
        };
        let text = match render(&|text| mask.edges(text)) {
            Ok(text) if mask.restore(&text) == faithful => text,
            _ => render(&|text| mask.special_tokens(tokenizer, text))?,
        };
        Ok(tokenizer.encode_disguised(&text, |plain| mask.restore(plain)))
    }

    /// A message as this template has it: parts are joined unless it looks at them, OpenAI's `developer` is the system unless it
    /// speaks of one, and thoughts have the names by which templates know them.
    fn suited(&self, message: &Message) -> Message {
        let mut message = message.clone();
        if matches!(message.content, Content::Parts(_)) && !self.looks_at_parts() {
            message.content = Content::Text(message.content.text().into_owned());
        }
        if message.role.is_developer() && !self.source.contains("developer") {
            message.role = Role::System;
        }
        if let Some(reasoning) = message.reasoning().cloned() {
            message.other.entry("thinking").or_insert_with(|| reasoning.clone());
            message.other.insert("reasoning_content".to_owned(), reasoning);
        }
        message
    }

    /// Whether the texts of parts come out, and not a list of them. A message is rendered to find out, once.
    fn looks_at_parts(&self) -> bool {
        *self.takes_parts.get_or_init(|| self.shows_parts())
    }

    fn shows_parts(&self) -> bool {
        const PARTS: [&str; 2] = ["\u{10fffc}", "\u{10fffd}"];
        // Set at once: what is rendered to find out has parts, too.
        let with_parts = Self { takes_parts: OnceLock::from(true), ..self.clone() };
        let parts = Content::Parts(PARTS.map(str::to_owned).to_vec());
        let text = with_parts.render(&[Message::new(Role::User, parts)], true).unwrap_or_default();
        let is_list = ["'text'", "\"text\""].iter().any(|key| text.contains(key));
        PARTS.iter().all(|part| text.contains(part)) && !is_list
    }

    /// How the model calls tools; `None` where the template knows nothing of tools, or has another way. A conversation is
    /// rendered to find out.
    pub fn tool_form(&self) -> Option<ToolForm> {
        let probe = |messages: &[Message]| self.render_with_tools(messages, &[tool_form::tool()], false);
        let talk = tool_form::conversation();
        // Some want an answer to each call.
        let call = talk.get(..2).unwrap_or_default();
        ToolForm::found_in(&probe(call).or_else(|_| probe(&talk)).ok()?)
    }

    /// The token that the template writes after an answer, if it does.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        const ANSWER: &str = "\u{10fffd}";
        let turn = [Message::new(Role::User, "?"), Message::new(Role::Assistant, ANSWER)];
        let text = self.render(&turn, false).ok()?;
        let (_, after) = text.rsplit_once(ANSWER)?;
        tokenizer.token_at_start(after.trim_start())
    }
}

/// Jinja as Hugging Face sets it up.
fn environment(fuel: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(fuel));
    python::add(&mut environment);
    walk::add_filters(&mut environment);
    // It prints all that a template knows.
    environment.remove_global("debug");
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

fn raise_exception(message: &str) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// The local date and time, formatted as C's `strftime` does.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Hugging Face's `{% generation %}` blocks mark what the model says, for training; here they are blocks like any other.
fn without_generation_blocks(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_matches(|c: char| "{%}-+".contains(c) || c.is_whitespace());
        match name {
            "generation" => out.push_str(&tag.replace(name, "if true")),
            "endgeneration" => out.push_str(&tag.replace(name, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Does `work` on a stack of its own; should the engine panic, that is an error too.
fn bounded<T: Send>(work: impl FnOnce() -> Result<T, minijinja::Error> + Send) -> Result<T, Error> {
    // What fails is dropped there as well.
    let work = || work().map_err(|e| problem(&e));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, work) {
            Ok(thread) => thread.join().unwrap_or_else(|_| {
                Err(Error::Request("the chat template: the engine that renders it has failed".to_owned()))
            }),
            Err(e) => Err(Error::Request(format!("the chat template: no thread to render it: {e}"))),
        }
    })
}

fn problem(error: &minijinja::Error) -> Error {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let what: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SAID).collect();
    let line = error.line().map_or(String::new(), |line| format!(" (line {line} of it)"));
    Error::Request(format!("the chat template says: {what}{line}"))
}
