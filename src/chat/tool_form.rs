//! How a model writes that it calls a tool: found out from its template, and as a grammar that holds an answer to calls.

use serde_json::{Value, json};

use super::message::{Message, Role};
use super::tool::{Tool, ToolCall, ToolChoice};
use crate::Error;
use crate::sampling::{Grammar, on_one_line};
use crate::tokenizer::Tokenizer;

/// How a model writes that it calls a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolForm {
    /// `[TOOL_CALLS] [{"name": "…", "arguments": {…}}]`: all calls in one list.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}`: each call behind a mark of its own, as Mistral's models of 2025 have it.
    MistralNamed,
    /// `<tool_call>{"name": "…", "arguments": {…}}</tool_call>`: each call in tags of its own, as Hermes and Qwen have it.
    Hermes,
    /// `{"name": "…", "parameters": {…}}`, alone or after `<|python_tag|>`: one call an answer.
    Llama3,
}

/// What stands between the name and the arguments of a call in [`ToolForm::MistralNamed`].
pub(super) const ARGS: &str = "[ARGS]";

/// A tool and a call of it that no honest template could come to write by itself.
const NAME: &str = "probe_tool";
const ARGUMENT: &str = "probe argument";

/// The tool that a template is shown to find out how it writes calls.
pub(super) fn tool() -> Tool {
    let properties = json!({"value": {"type": "string"}});
    let parameters = json!({"type": "object", "properties": properties, "required": ["value"]});
    Tool::new(NAME, Some("A tool."), parameters)
}

/// A question, a call, and its answer.
pub(super) fn conversation() -> [Message; 3] {
    // Mistral's templates want an id of nine letters.
    let id = "torchless";
    let arguments = json!({"value": ARGUMENT}).to_string();
    let call = ToolCall { id: id.to_owned(), name: NAME.to_owned(), arguments };
    [
        Message::new(Role::User, "?"),
        Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") },
        Message {
            tool_call_id: Some(id.to_owned()),
            name: Some(NAME.to_owned()),
            ..Message::new(Role::Tool, "!")
        },
    ]
}

impl ToolForm {
    /// The form in which the conversation above is written.
    pub(super) fn found_in(text: &str) -> Option<Self> {
        let (before, _) = text.rsplit_once(ARGUMENT)?;
        let (before, head) = before.rsplit_once(NAME)?;
        let marked = |form: &Self| form.opening().is_some_and(|mark| before.contains(mark));
        if before.ends_with("[TOOL_CALLS]") && head.contains(ARGS) {
            return Some(Self::MistralNamed);
        }
        let is_json = before.trim_end_matches('"').trim_end().ends_with("\"name\":");
        match [Self::Mistral, Self::Hermes].into_iter().find(marked) {
            Some(form) if is_json => Some(form),
            None if is_json && head.contains("\"parameters\"") => Some(Self::Llama3),
            _ => None,
        }
    }

    /// What a call begins with.
    pub(super) fn opening(self) -> Option<&'static str> {
        match self {
            Self::Mistral | Self::MistralNamed => Some("[TOOL_CALLS]"),
            Self::Hermes => Some("<tool_call>"),
            Self::Llama3 => Some("<|python_tag|>"),
        }
    }

    /// What it ends with.
    pub(super) fn closing(self) -> Option<&'static str> {
        (self == Self::Hermes).then_some("</tool_call>")
    }

    /// What holds an answer to calls of these tools, with arguments that their schemas accept. [`ToolChoice::Required`] allows
    /// several calls where the form does, [`ToolChoice::Named`] one; the others hold an answer to nothing.
    ///
    /// # Errors
    /// If there is no tool to call, or none of the name.
    pub fn grammar(
        self,
        tokenizer: &Tokenizer,
        tools: &[Tool],
        choice: &ToolChoice,
    ) -> Result<Option<Grammar>, Error> {
        let (allowed, several): (Vec<&Tool>, _) = match choice {
            ToolChoice::Auto | ToolChoice::None => return Ok(None),
            ToolChoice::Required => (tools.iter().collect(), self != Self::Llama3),
            ToolChoice::Named(name) => {
                (tools.iter().filter(|tool| tool.name == *name).take(1).collect(), false)
            }
        };
        if allowed.is_empty() {
            return Err(Error::Request(match choice {
                ToolChoice::Named(name) => format!("there is no tool {name:?} to call"),
                _ => "a call is required, and there is no tool".to_owned(),
            }));
        }
        let mark = |mark: Option<&str>| mark.map_or(String::new(), |mark| token(tokenizer, mark));
        let (open, close) = (mark(self.opening()), mark(self.closing()));
        let start = match self {
            Self::Mistral if several => format!(r#"{open} " "? "[" call (", " call)* "]""#),
            Self::Mistral => format!(r#"{open} " "? "[" call "]""#),
            Self::MistralNamed if several => "tagged+".to_owned(),
            Self::MistralNamed => "tagged".to_owned(),
            Self::Hermes if several => r#"tagged ("\n" tagged)*"#.to_owned(),
            Self::Hermes => "tagged".to_owned(),
            Self::Llama3 => "call".to_owned(),
        };
        let mut text = format!("start: {start}\n");
        if self == Self::Hermes {
            text += &format!("tagged: {open} \"\\n\" call \"\\n\" {close}\n");
        }
        if self == Self::MistralNamed {
            text += &format!("tagged: {open} call\n");
        }
        let names: Vec<_> = (0..allowed.len()).map(|i| format!("call{i}")).collect();
        text += &format!("call: {}\n", names.join(" | "));
        let member = if self == Self::Llama3 { "parameters" } else { "arguments" };
        for (i, tool) in allowed.into_iter().enumerate() {
            text += &match self {
                Self::MistralNamed => {
                    let (name, args) = (literal(&tool.name), token(tokenizer, ARGS));
                    format!("call{i}: {name} {args} arguments{i}\n")
                }
                _ => {
                    let name = Value::from(tool.name.as_str());
                    let head = literal(&format!(r#"{{"name": {name}, "{member}": "#));
                    format!("call{i}: {head} arguments{i} \"}}\"\n")
                }
            };
            text += &format!("arguments{i}: %json {}\n", object(&tool.parameters));
        }
        Ok(Some(Grammar::Lark(text)))
    }
}

/// A mark in Lark's notation: a token where the tokenizer has a special one for it.
pub(super) fn token(tokenizer: &Tokenizer, mark: &str) -> String {
    match tokenizer.id_of(mark).filter(|&id| tokenizer.is_special(id)) {
        Some(id) => format!("<[{id}]>"),
        None => literal(mark),
    }
}

/// A text in Lark's notation, which is JSON's but for one character.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// The schema of the objects that this one accepts, on one line.
fn object(schema: &Value) -> Value {
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    schema.insert("type".to_owned(), json!("object"));
    on_one_line(&Value::Object(schema))
}

#[cfg(test)]
mod tests;
