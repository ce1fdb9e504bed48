//! What is said in a conversation, and by whom.
//!
//! All of it serialises as Hugging Face's templates expect it, and is read as OpenAI's clients write it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::content::Content;
use super::tool::ToolCall;
use crate::Error;

/// What a model's thoughts are called in messages: as most templates have it, and what else clients and templates write.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Who says something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Role {
    /// Whoever sets the model up.
    System,
    /// Who talks to the model.
    User,
    /// The model.
    Assistant,
    /// A tool that the model has called: what came of it.
    Tool,
    /// Another that the template may know, such as `ipython`. OpenAI's `developer` becomes the system to a template that does
    /// not speak of it.
    Other(String),
}

impl Role {
    /// The role's name.
    pub fn name(&self) -> &str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Other(name) => name,
        }
    }

    /// The role under which OpenAI's newer clients say what the system said before.
    pub(super) fn is_developer(&self) -> bool {
        self.name() == "developer"
    }
}

impl From<String> for Role {
    fn from(name: String) -> Self {
        let known = [Self::System, Self::User, Self::Assistant, Self::Tool];
        known.into_iter().find(|role| role.name() == name).unwrap_or(Self::Other(name))
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.name().to_owned()
    }
}

/// One message of a conversation. Serialises as `{"role": "user", "content": "…"}`, with the other fields where there is
/// something in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    #[serde(default, skip_serializing_if = "Content::is_nothing")]
    pub content: Content,
    /// The tools that the model calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of whoever says it, or of the tool that was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whatever else it has, which templates can look at. What the model thought before it answered, `reasoning_content`, may also be
    /// called `thinking` or `reasoning`: templates see the first two.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Message {
    /// A message of `role` that calls no tool and answers none.
    pub fn new(role: Role, content: impl Into<Content>) -> Self {
        Self {
            role,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            other: Map::new(),
        }
    }

    /// The messages of a conversation as OpenAI's clients write it: a list of objects.
    ///
    /// # Errors
    /// Names the first message that is none, and what is wrong with it.
    pub fn read_all(messages: Vec<Value>) -> Result<Vec<Self>, Error> {
        let read = |(i, mut message): (usize, Value)| {
            // Many templates take what is null for something, and none what is not there.
            if let Some(fields) = message.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            serde_json::from_value(message).map_err(|e| Error::Request(format!("messages[{i}]: {e}")))
        };
        messages.into_iter().enumerate().map(read).collect()
    }

    /// What the model thought before it said this: templates know it by several names.
    pub(super) fn reasoning(&self) -> Option<&Value> {
        REASONING.iter().find_map(|name| self.other.get(*name)).filter(|reasoning| !reasoning.is_null())
    }

    /// The message with every text in it replaced.
    pub(super) fn replaced(&self, text: &dyn Fn(&str) -> String) -> Self {
        let role = match &self.role {
            Role::Other(name) => Role::Other(text(name)),
            known => known.clone(),
        };
        let other = self.other.iter().map(|(key, value)| (text(key), replaced(value, text)));
        Self {
            role,
            content: self.content.replaced(text),
            tool_calls: self.tool_calls.iter().map(|call| call.replaced(text)).collect(),
            tool_call_id: self.tool_call_id.as_deref().map(text),
            name: self.name.as_deref().map(text),
            other: other.collect(),
        }
    }
}

/// Checks what the types leave open.
pub(super) fn check(messages: &[Message]) -> Result<(), Error> {
    for (i, message) in messages.iter().enumerate() {
        for call in &message.tool_calls {
            call.check().map_err(|problem| Error::Request(format!("messages[{i}]: {problem}")))?;
        }
    }
    Ok(())
}

/// `value` with all keys and texts replaced.
pub(super) fn replaced(value: &Value, text: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(string) => Value::String(text(string)),
        Value::Array(items) => items.iter().map(|item| replaced(item, text)).collect(),
        Value::Object(members) => {
            members.iter().map(|(key, member)| (text(key), replaced(member, text))).collect()
        }
        value => value.clone(),
    }
}
