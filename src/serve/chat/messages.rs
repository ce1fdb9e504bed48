//! The messages of a request.

use serde_json::{Map, Value};

use super::super::fields::Fields;
use super::super::problem::Problem;
use super::tools;
use crate::chat::{Content, Message, Role};

/// What a model's thoughts are called: by OpenAI's clients, and by some templates.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Reads the list of messages.
pub fn read(messages: Vec<Value>) -> Result<Vec<Message>, Problem> {
    if messages.is_empty() {
        return Err(Problem::value("messages", "empty: give one at least"));
    }
    let mut read: Vec<Message> = Vec::with_capacity(messages.len());
    for (i, value) in messages.into_iter().enumerate() {
        let mut message = message(Fields::new(value, &format!("messages[{i}]"))?)?;
        if message.name.is_none() {
            message.name = called(&read, message.tool_call_id.as_deref());
        }
        read.push(message);
    }
    Ok(read)
}

/// The name of the tool that was called by this id: OpenAI's messages leave it out, and some templates want it.
fn called(messages: &[Message], id: Option<&str>) -> Option<String> {
    let mut calls = messages.iter().rev().flat_map(|message| &message.tool_calls);
    calls.find(|call| Some(call.id.as_str()) == id).map(|call| call.name.clone())
}

fn message(mut fields: Fields) -> Result<Message, Problem> {
    let role: String = fields.need("role")?;
    if role.is_empty()
        || role.len() > 64
        || !role.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    {
        let problem =
            format_args!("{role:?}: give system, user, assistant, tool, or another that the template knows");
        return Err(Problem::value(fields.name("role"), problem));
    }
    let role = Role::from(role);
    let (mut tool_calls, mut tool_call_id, mut other) = (Vec::new(), None, Map::new());
    match role {
        Role::Assistant => {
            tool_calls = tools::calls(&mut fields)?;
            // Clients send back what they got. Most templates leave out what a model thought in earlier turns.
            for field in REASONING {
                let thought = fields.take::<String>(field)?;
                other.extend(thought.map(|thought| (field.to_owned(), Value::String(thought))));
            }
            fields.only("annotations", &[Value::Array(Vec::new())], "torchless makes none")?;
        }
        Role::Tool => tool_call_id = Some(fields.need("tool_call_id")?),
        Role::System | Role::User | Role::Other(_) => {}
    }
    let place = fields.name("content");
    let content = match fields.take::<Value>("content")? {
        Some(content) => said(content, &place)?,
        None if !tool_calls.is_empty() => Content::from(""),
        None => return Err(Problem::value(place, "missing: give a string, or a list of parts of text")),
    };
    let name = fields.take("name")?;
    fields.finish(&["refusal", "audio", "function_call"])?;
    Ok(Message { tool_calls, tool_call_id, name, other, ..Message::new(role, content) })
}

/// A text, or parts of one.
fn said(content: Value, name: &str) -> Result<Content, Problem> {
    match content {
        Value::String(text) => Ok(Content::Text(text)),
        Value::Array(parts) => {
            let part = |(i, part)| part_of_text(Fields::new(part, &format!("{name}[{i}]"))?);
            parts.into_iter().enumerate().map(part).collect::<Result<_, _>>().map(Content::Parts)
        }
        _ => Err(Problem::value(name, "give a string, or a list of parts of text")),
    }
}

fn part_of_text(mut part: Fields) -> Result<String, Problem> {
    let kind: String = part.need("type")?;
    if kind != "text" {
        let problem = format_args!("{kind:?}: this model reads text only");
        return Err(Problem::unsupported(part.name("type"), problem));
    }
    let text = part.need("text")?;
    part.finish(&[])?;
    Ok(text)
}
