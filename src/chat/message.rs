//! What is said in a conversation, by whom, and the tools that may be called in it.
//!
//! All of it serialises as Hugging Face's templates expect it.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::Error;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever sets the model up.
    System,
    /// Who talks to the model.
    User,
    /// The model.
    Assistant,
    /// A tool that the model has called: what came of it.
    Tool,
}

/// One message of a conversation. Serialises as `{"role": "user", "content": "…"}`, with the other fields where there is
/// something in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// The tools that the model calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of whoever says it, or of the tool that was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message of `role` that calls no tool and answers none.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None, name: None }
    }

    /// The message with every text in it replaced.
    pub(super) fn replaced(&self, text: &dyn Fn(&str) -> String) -> Self {
        let call = |call: &ToolCall| ToolCall {
            id: text(&call.id),
            name: text(&call.name),
            arguments: match serde_json::from_str(&call.arguments) {
                Ok(arguments) => replaced(&arguments, text).to_string(),
                Err(_) => text(&call.arguments),
            },
        };
        Self {
            role: self.role,
            content: text(&self.content),
            tool_calls: self.tool_calls.iter().map(call).collect(),
            tool_call_id: self.tool_call_id.as_deref().map(text),
            name: self.name.as_deref().map(text),
        }
    }
}

/// A call of a tool. Serialises as `{"type": "function", "id": "…", "function": {"name": "…", "arguments": {…}}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenCall", into = "WrittenCall")]
pub struct ToolCall {
    /// What its answer refers to it by; it may be empty.
    pub id: String,
    /// Which tool is called.
    pub name: String,
    /// What it is given: the text of a JSON object.
    pub arguments: String,
}

impl ToolCall {
    /// # Errors
    /// If the arguments are no JSON object.
    fn check(&self) -> Result<(), String> {
        match serde_json::from_str::<Map<String, Value>>(&self.arguments) {
            Ok(_) => Ok(()),
            Err(e) => {
                Err(format!("the arguments for {:?} are not the text of a JSON object: {e}", self.name))
            }
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

#[derive(Serialize, Deserialize)]
struct WrittenCall {
    #[serde(rename = "type", default)]
    kind: Function,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    id: String,
    function: WrittenFunction,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Function {
    #[default]
    Function,
}

#[derive(Serialize, Deserialize)]
struct WrittenFunction {
    name: String,
    /// An object, or its text.
    arguments: Value,
}

impl From<WrittenCall> for ToolCall {
    fn from(call: WrittenCall) -> Self {
        let arguments = match call.function.arguments {
            Value::String(text) => text,
            arguments => arguments.to_string(),
        };
        Self { id: call.id, name: call.function.name, arguments }
    }
}

impl From<ToolCall> for WrittenCall {
    fn from(call: ToolCall) -> Self {
        let arguments = serde_json::from_str(&call.arguments).unwrap_or(Value::String(call.arguments));
        let function = WrittenFunction { name: call.name, arguments };
        Self { kind: Function::Function, id: call.id, function }
    }
}

/// A tool that the model may call. Serialises as `{"type": "function", "function": {"name": "…", "description": "…",
/// "parameters": {…}}}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// What it is called by.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of the object that it is given.
    pub parameters: Value,
}

impl Tool {
    /// The tool with every text in it replaced.
    pub(super) fn replaced(&self, text: &dyn Fn(&str) -> String) -> Self {
        Self {
            name: text(&self.name),
            description: self.description.as_deref().map(text),
            parameters: replaced(&self.parameters, text),
        }
    }
}

impl Serialize for Tool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'t> {
            #[serde(rename = "type")]
            kind: Function,
            function: Described<'t>,
        }
        #[derive(Serialize)]
        struct Described<'t> {
            name: &'t str,
            #[serde(skip_serializing_if = "Option::is_none")]
            description: Option<&'t str>,
            parameters: &'t Value,
        }
        let description = self.description.as_deref();
        let function = Described { name: &self.name, description, parameters: &self.parameters };
        Written { kind: Function::Function, function }.serialize(serializer)
    }
}

/// Which tools an answer must call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Those that the model wants to.
    #[default]
    Auto,
    /// None.
    None,
    /// At least one.
    Required,
    /// The one of this name.
    Named(String),
}

/// `value` with all keys and texts replaced.
fn replaced(value: &Value, text: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(string) => Value::String(text(string)),
        Value::Array(items) => items.iter().map(|item| replaced(item, text)).collect(),
        Value::Object(members) => {
            members.iter().map(|(key, member)| (text(key), replaced(member, text))).collect()
        }
        value => value.clone(),
    }
}
