//! The answer to a conversation: what the model thinks, says, and calls.

use serde_json::{Value, json};
use torchless::chat::{AnswerParser, AnswerPart, ChatTemplate, ToolCall};
use torchless::runtime::Piece;
use torchless::tokenizer::{Kind, Tokenizer};

use super::super::template::Conversation;

/// An answer, as far as it has come.
pub struct Reply {
    parser: AnswerParser,
    /// `SentencePiece` writes a space before the first word, which belongs to no one.
    drop_space: bool,
    reasoning: String,
    content: String,
    calls: Vec<ToolCall>,
}

impl Reply {
    /// The answer to a conversation that became `prompt`.
    pub fn new(
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        conversation: &Conversation,
        prompt: &[u32],
    ) -> Self {
        let tools = &conversation.tools;
        let form = if tools.is_empty() { None } else { template.tool_form() };
        Self {
            parser: AnswerParser::new(tokenizer, prompt, form, tools),
            drop_space: tokenizer.spec().kind == Kind::Metaspace,
            reasoning: String::new(),
            content: String::new(),
            calls: Vec::new(),
        }
    }

    /// Takes a token in; gives what it adds to what the model says.
    pub fn push(&mut self, piece: &Piece) -> String {
        let mut piece = piece.clone();
        if !piece.text.is_empty() && std::mem::take(&mut self.drop_space) {
            piece.text = piece.text.strip_prefix(' ').unwrap_or(&piece.text).to_owned();
        }
        let parts = self.parser.push(&piece);
        self.add(parts)
    }

    /// The answer is over: gives what was held back, and the calls, one line of JSON each.
    pub fn finish(&mut self) -> String {
        let parts = self.parser.finish();
        let mut said = self.add(parts);
        for ToolCall { name, arguments, .. } in &self.calls {
            if !self.content.is_empty() && !self.content.ends_with('\n') || said.ends_with('}') {
                said.push('\n');
            }
            said += &format!("{{\"name\": {}, \"arguments\": {arguments}}}", Value::from(name.as_str()));
        }
        said
    }

    fn add(&mut self, parts: Vec<AnswerPart>) -> String {
        let mut said = String::new();
        for part in parts {
            match part {
                AnswerPart::Reasoning(text) => self.reasoning += &text,
                AnswerPart::Content(text) => said += &text,
                AnswerPart::ToolCall { id, name, .. } => {
                    self.calls.push(ToolCall { id, name, arguments: String::new() });
                }
                AnswerPart::Arguments { index, text } => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.arguments += &text;
                    }
                }
            }
        }
        self.content += &said;
        said
    }

    /// The answer as a message that can be put behind the others.
    pub fn message(&self) -> Value {
        let mut message = serde_json::Map::from_iter([("role".to_owned(), json!("assistant"))]);
        if !self.content.is_empty() || self.calls.is_empty() {
            message.insert("content".to_owned(), json!(self.content));
        }
        if !self.reasoning.is_empty() {
            message.insert("reasoning_content".to_owned(), json!(self.reasoning));
        }
        if !self.calls.is_empty() {
            let call = |call: &ToolCall| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            };
            message.insert("tool_calls".to_owned(), self.calls.iter().map(call).collect());
        }
        Value::Object(message)
    }
}
