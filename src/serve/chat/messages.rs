//! The messages of a request.

use serde_json::Value;

use super::super::fields::Fields;
use super::super::problem::Problem;
use super::tools;
use crate::chat::{Message, Role};

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
    let role = match role.as_str() {
        // The newer name of the same.
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => {
            let problem = format_args!("{other:?}: give system, user, assistant or tool");
            return Err(Problem::unsupported(fields.name("role"), problem));
        }
    };
    let (mut tool_calls, mut tool_call_id) = (Vec::new(), None);
    match role {
        Role::Assistant => {
            tool_calls = tools::calls(&mut fields)?;
            // Clients send back what they got. Templates leave out what a model thought in earlier turns.
            fields.take::<String>("reasoning_content")?;
            fields.only("annotations", &[Value::Array(Vec::new())], "torchless makes none")?;
        }
        Role::Tool => tool_call_id = Some(fields.need("tool_call_id")?),
        Role::System | Role::User => {}
    }
    let place = fields.name("content");
    let content = match fields.take::<Value>("content")? {
        Some(content) => text(content, &place)?,
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(Problem::value(place, "missing: give a string, or a list of parts of text")),
    };
    let name = fields.take("name")?;
    fields.finish(&["refusal", "audio", "function_call"])?;
    Ok(Message { tool_calls, tool_call_id, name, ..Message::new(role, content) })
}

/// A text, or parts of one.
fn text(content: Value, name: &str) -> Result<String, Problem> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let part = |(i, part)| part_of_text(Fields::new(part, &format!("{name}[{i}]"))?);
            parts.into_iter().enumerate().map(part).collect()
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
