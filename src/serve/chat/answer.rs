//! An answer as it comes: reasoning, text and calls of tools, in deltas and as a whole.

use serde_json::{Value, json};

use crate::chat::{AnswerParser, AnswerPart, ToolCall};
use crate::runtime::{FinishReason, Finished, Piece};

/// An answer so far.
pub struct Answer {
    parser: AnswerParser,
    /// SentencePiece writes a space before the first word, which belongs to no one.
    drop_space: bool,
    content: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<Value>,
    finish_reason: Option<&'static str>,
}

impl Answer {
    /// One that has not begun.
    pub fn new(parser: AnswerParser, drop_space: bool) -> Self {
        Self {
            parser,
            drop_space,
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            finish_reason: None,
        }
    }

    /// What a token adds: choices of a stream.
    pub fn piece(&mut self, index: usize, piece: &Piece, logprobs: Option<Value>) -> Vec<Value> {
        let stripped;
        let mut piece = piece;
        if !piece.text.is_empty()
            && std::mem::take(&mut self.drop_space)
            && let Some(text) = piece.text.strip_prefix(' ')
        {
            stripped = Piece { text: text.to_owned(), logprobs: None, ..*piece };
            piece = &stripped;
        }
        let parts = self.parser.push(piece);
        let mut deltas: Vec<Value> = parts.into_iter().map(|part| self.add(part)).collect();
        if deltas.is_empty() && logprobs.is_some() {
            deltas.push(json!({"content": ""}));
        }
        self.logprobs.extend(logprobs.clone());
        let mut logprobs = logprobs.map(|entry| vec![entry]);
        deltas.into_iter().map(|delta| chunk(index, delta, logprobs.take(), None)).collect()
    }

    /// What comes after the last token.
    pub fn end(&mut self, index: usize, finished: &Finished) -> Vec<Value> {
        let parts = self.parser.finish();
        let deltas: Vec<Value> = parts.into_iter().map(|part| self.add(part)).collect();
        let reason = match finished.generated.finish_reason {
            FinishReason::Length => "length",
            _ if !self.calls.is_empty() => "tool_calls",
            FinishReason::Stop | FinishReason::Cancelled => "stop",
        };
        self.finish_reason = Some(reason);
        let mut chunks: Vec<_> = deltas.into_iter().map(|delta| chunk(index, delta, None, None)).collect();
        chunks.push(chunk(index, json!({}), None, Some(reason)));
        chunks
    }

    /// Adds a part; gives it as a delta.
    fn add(&mut self, part: AnswerPart) -> Value {
        match part {
            AnswerPart::Reasoning(text) => {
                self.reasoning.push_str(&text);
                json!({"reasoning_content": text})
            }
            AnswerPart::Content(text) => {
                self.content.push_str(&text);
                json!({"content": text})
            }
            AnswerPart::ToolCall { index, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                let call = json!({"index": index, "id": id, "type": "function", "function": function});
                self.calls.push(ToolCall { id, name, arguments: String::new() });
                json!({"tool_calls": [call]})
            }
            AnswerPart::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&text);
                }
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        }
    }

    /// The whole of it, as a choice.
    pub fn whole(self, index: usize) -> Value {
        let called = !self.calls.is_empty();
        let content = if called && self.content.is_empty() { None } else { Some(self.content) };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if let Some(fields) = message.as_object_mut() {
            if !self.reasoning.is_empty() {
                fields.insert("reasoning_content".to_owned(), self.reasoning.into());
            }
            if called {
                let call = |ToolCall { id, name, arguments }: &ToolCall| {
                    let function = json!({"name": name, "arguments": arguments});
                    json!({"id": id, "type": "function", "function": function})
                };
                fields.insert("tool_calls".to_owned(), self.calls.iter().map(call).collect());
            }
        }
        let logprobs = (!self.logprobs.is_empty()).then_some(self.logprobs);
        json!({
            "index": index,
            "message": message,
            "logprobs": content_logprobs(logprobs),
            "finish_reason": self.finish_reason,
        })
    }
}

/// A choice of a stream.
pub fn chunk(index: usize, delta: Value, logprobs: Option<Vec<Value>>, reason: Option<&str>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": content_logprobs(logprobs), "finish_reason": reason})
}

fn content_logprobs(logprobs: Option<Vec<Value>>) -> Value {
    logprobs.map_or(Value::Null, |entries| json!({"content": entries, "refusal": null}))
}
