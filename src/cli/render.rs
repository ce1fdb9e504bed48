//! `torchless render`: what a model gets to see of a conversation.

use std::path::PathBuf;

use clap::error::ErrorKind;
use serde_json::json;
use torchless::tokenizer::{Spec, Tokenizer};

use super::input::is_piped;
use super::model::ModelArgs;
use super::output::{emit, emit_json};
use super::template::{Conversation, TemplateArgs};
use super::wrong_usage;

/// Show the text that a conversation becomes: what the model really gets to see
///
/// Messages are as OpenAI's clients write them: a list, or an object that has messages and perhaps tools.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless render talk.json\n  \
    echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | torchless render - -m qwen3.bin --template-arg enable_thinking=false\n  \
    torchless render talk.json --tools tools.json --chat-template template.jinja\n  \
    torchless render talk.json --json | jq .ids\n\n\
    The text ends as it is, without a newline of its own. --json gives {text, ids}: the tokens that the model is fed.\n\
    Where a template is named (--chat-template) and no model is, none is needed: then there are no ids, and no bos_token or \
    eos_token for the template to write.")]
pub struct Args {
    /// The messages: a file of JSON; - reads it from stdin, and so does none where stdin is a pipe
    #[arg(value_name = "MESSAGES")]
    messages: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    /// Tools that may be called: a file with a list of them as JSON; - reads it from stdin
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// End after the last message, not where the model's answer begins
    #[arg(long)]
    no_generation_prompt: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let messages = match args.messages {
        Some(file) => file,
        None if is_piped() => PathBuf::from("-"),
        None => {
            let missing = "no messages: give a file of JSON, or a pipe on stdin";
            return Err(wrong_usage("render", ErrorKind::MissingRequiredArgument, missing));
        }
    };
    let Conversation { messages, tools } = Conversation::read(&messages, args.tools.as_ref())?;
    let prompt = !args.no_generation_prompt;
    if args.template.asked().is_some() && !args.model.is_named() {
        let none = Tokenizer::new(Spec::default()).map_err(|e| anyhow::anyhow!(e.0))?;
        let text = args.template.template(&none)?.render_with_tools(&messages, &tools, prompt)?;
        match args.json {
            true => emit_json(&json!({"text": text, "ids": null}))?,
            false => emit(&text)?,
        }
        return Ok(());
    }
    let model = args.model.open(false)?;
    let template = args.template.of_model(model.tokenizer())?;
    let text = template.render_with_tools(&messages, &tools, prompt)?;
    if !args.json {
        return Ok(emit(&text)?);
    }
    let ids = template.encode_with_tools(model.tokenizer(), &messages, &tools, prompt)?;
    Ok(emit_json(&json!({"text": text, "ids": ids}))?)
}
