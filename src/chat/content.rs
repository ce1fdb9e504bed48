//! What a message says: a text, or parts of one.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a message says. Serialises as a string, as `[{"type": "text", "text": "…"}, …]`, or as null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Content {
    /// Nothing: the model only calls tools.
    #[default]
    Nothing,
    /// A text.
    Text(String),
    /// Parts of a text, for templates that look at them; others get them joined.
    Parts(Vec<String>),
}

impl Content {
    /// The text; parts are joined, with nothing between them.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Nothing => Cow::Borrowed(""),
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => Cow::Owned(parts.concat()),
        }
    }

    /// Whether nothing is said, not even the empty text.
    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }

    /// The same with every text in it replaced.
    pub(super) fn replaced(&self, text: &dyn Fn(&str) -> String) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Text(content) => Self::Text(text(content)),
            Self::Parts(parts) => Self::Parts(parts.iter().map(|part| text(part)).collect()),
        }
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Content {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl TryFrom<Value> for Content {
    type Error = String;

    fn try_from(content: Value) -> Result<Self, String> {
        match content {
            Value::Null => Ok(Self::Nothing),
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(parts) => {
                let part = |(i, part)| text_of(part).map_err(|problem| format!("content[{i}]: {problem}"));
                parts.into_iter().enumerate().map(part).collect::<Result<_, _>>().map(Self::Parts)
            }
            _ => Err("content: give a string, or a list of parts of text".to_owned()),
        }
    }
}

/// The text of `{"type": "text", "text": "…"}`.
fn text_of(mut part: Value) -> Result<String, String> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind != "text" {
        return Err(format!("a part of type {kind:?}: only {{\"type\": \"text\", \"text\": …}} can be read"));
    }
    match part.get_mut("text").map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        _ => Err("text: missing, or no string".to_owned()),
    }
}

impl From<Content> for Value {
    fn from(content: Content) -> Self {
        match content {
            Content::Nothing => Self::Null,
            Content::Text(text) => Self::String(text),
            Content::Parts(parts) => {
                parts.into_iter().map(|text| json!({"type": "text", "text": text})).collect()
            }
        }
    }
}
