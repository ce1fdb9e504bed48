//! Options on how a conversation becomes text, and the files that a conversation is read from.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use torchless::chat::{ChatTemplate, Message, Role, Tool};
use torchless::tokenizer::Tokenizer;

use super::input::{read_file, read_text};
use super::output::note;
use super::values::{template_arg, template_or_file};

/// How a conversation becomes text.
#[derive(clap::Args)]
pub struct TemplateArgs {
    /// How messages become text: a file of Jinja, or chatml, llama2, llama3, mistral [default: the model's own]
    #[arg(long, value_name = "FILE|NAME", value_parser = template_or_file)]
    chat_template: Option<String>,
    /// Set a variable of the template's own, as enable_thinking=false: JSON, or else text; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_arg)]
    template_arg: Vec<(String, Value)>,
}

impl TemplateArgs {
    /// The name or the file of the template that is asked for.
    pub fn asked(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Whether anything is asked for at all.
    pub fn is_given(&self) -> bool {
        self.chat_template.is_some() || !self.template_arg.is_empty()
    }

    /// The template that is asked for: a file's, one that is built in, or the model's own.
    pub fn template(&self, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
        let template = match self.asked() {
            None => ChatTemplate::of(tokenizer)?,
            Some(name) if ChatTemplate::built_in().any(|known| known == name) => {
                ChatTemplate::named(name, tokenizer)?
            }
            Some(name) => {
                let source = read_file(Path::new(name))?;
                ChatTemplate::new(&source, tokenizer).with_context(|| name.to_owned())?
            }
        };
        let args = self.template_arg.iter().cloned().collect();
        template.with_args(&args).context("--template-arg")
    }

    /// The same for a model. Warns of a template that is another model's.
    pub fn of_model(&self, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
        let template = self.template(tokenizer)?;
        let missing = match self.asked() {
            Some(_) => missing_tokens(&template, tokenizer),
            None => Vec::new(),
        };
        if !missing.is_empty() {
            note(format_args!(
                "warning: the template {} writes {}, which this model reads as plain text: it was trained with another",
                self.asked().unwrap_or_default(),
                missing.join(", ")
            ));
        }
        Ok(template)
    }
}

/// What the template writes in the form of special tokens, `<|…|>`, and the model does not have.
fn missing_tokens(template: &ChatTemplate, tokenizer: &Tokenizer) -> Vec<String> {
    let text = template.render(&[Message::new(Role::User, "?")], true).unwrap_or_default();
    let mut missing = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, after)) = rest.split_once("<|") {
        let Some((name, next)) = after.split_once("|>") else { break };
        let token = format!("<|{name}|>");
        if tokenizer.id_of(&token).is_none() && !missing.contains(&token) {
            missing.push(token);
        }
        rest = next;
    }
    missing
}

/// A conversation as it stands in files.
pub struct Conversation {
    /// What is said.
    pub messages: Vec<Message>,
    /// The tools that may be called.
    pub tools: Vec<Tool>,
}

impl Conversation {
    /// Reads messages, which may have tools beside them, and a list of tools, which then takes their place; `-` is stdin.
    pub fn read(messages: &Path, tools: Option<&PathBuf>) -> anyhow::Result<Self> {
        let place = || messages.display().to_string();
        let (list, beside) = match json(messages)? {
            Value::Array(list) => (list, Value::Null),
            Value::Object(mut request) => match request.remove("messages") {
                Some(Value::Array(list)) => (list, request.remove("tools").unwrap_or_default()),
                _ => {
                    anyhow::bail!("{}: no list of messages: give [...], or {{\"messages\": [...]}}", place())
                }
            },
            _ => anyhow::bail!("{}: give a list of messages, or an object that has one", place()),
        };
        let messages = Message::read_all(list).with_context(place)?;
        let tools = match tools {
            Some(file) => read_tools(json(file)?).with_context(|| file.display().to_string())?,
            None => read_tools(beside).with_context(place)?,
        };
        Ok(Self { messages, tools })
    }
}

fn json(file: &Path) -> anyhow::Result<Value> {
    serde_json::from_str(&read_text(file)?).with_context(|| format!("{}: not JSON", file.display()))
}

fn read_tools(tools: Value) -> anyhow::Result<Vec<Tool>> {
    let tools = match tools {
        Value::Null => Vec::new(),
        Value::Array(tools) => tools,
        _ => anyhow::bail!("tools: give a list"),
    };
    let read = |(i, tool)| Tool::try_from(tool).map_err(|problem| anyhow::anyhow!("tools[{i}]: {problem}"));
    tools.into_iter().enumerate().map(read).collect()
}
