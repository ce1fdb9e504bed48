//! Tools that may be called in a conversation, and calls of them.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::message::replaced;

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
    pub(super) fn check(&self) -> Result<(), String> {
        match serde_json::from_str::<Map<String, Value>>(&self.arguments) {
            Ok(_) => Ok(()),
            Err(e) => {
                Err(format!("the arguments for {:?} are not the text of a JSON object: {e}", self.name))
            }
        }
    }

    /// The same with every text in it replaced.
    pub(super) fn replaced(&self, text: &dyn Fn(&str) -> String) -> Self {
        Self {
            id: text(&self.id),
            name: text(&self.name),
            arguments: match serde_json::from_str(&self.arguments) {
                Ok(arguments) => replaced(&arguments, text).to_string(),
                Err(_) => text(&self.arguments),
            },
        }
    }
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

/// A tool that the model may call. Serialises as it was written, or else as `{"type": "function", "function": {"name": "…",
/// "description": "…", "parameters": {…}}}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// What it is called by.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of the object that it is given.
    pub parameters: Value,
    /// All of the above as somebody wrote it: what templates see, where it is there.
    pub written: Option<Value>,
}

impl Tool {
    /// A tool that nobody has written down yet.
    pub fn new(name: impl Into<String>, description: Option<&str>, parameters: Value) -> Self {
        Self { name: name.into(), description: description.map(str::to_owned), parameters, written: None }
    }

    /// The tool with every text in it replaced.
    pub(super) fn replaced(&self, text: &dyn Fn(&str) -> String) -> Self {
        Self {
            name: text(&self.name),
            description: self.description.as_deref().map(text),
            parameters: replaced(&self.parameters, text),
            written: self.written.as_ref().map(|written| replaced(written, text)),
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
        if let Some(written) = &self.written {
            return written.serialize(serializer);
        }
        let description = self.description.as_deref();
        let function = Described { name: &self.name, description, parameters: &self.parameters };
        Written { kind: Function::Function, function }.serialize(serializer)
    }
}

impl TryFrom<Value> for Tool {
    type Error = String;

    /// Reads OpenAI's form of a tool, `{"type": "function", "function": {…}}`, or the function alone.
    fn try_from(written: Value) -> Result<Self, String> {
        let function = written.get("function").unwrap_or(&written);
        let text = |key: &str| function.get(key).and_then(Value::as_str);
        let name = text("name").ok_or("give an object with a function, and its name")?.to_owned();
        let description = text("description").map(str::to_owned);
        let parameters = function.get("parameters").cloned().unwrap_or_default();
        Ok(Self { name, description, parameters, written: Some(written) })
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
