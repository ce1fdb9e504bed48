//! Log-probabilities, as both kinds of completions say them.

use serde_json::{Map, Value, json};

use crate::runtime::Piece;
use crate::sampling::Logprobs;
use crate::tokenizer::Tokenizer;

/// What is said where a probability is 0: JSON has no −∞.
const IMPOSSIBLE: f64 = -9999.0;

fn finite(logprob: f64) -> f64 {
    logprob.max(IMPOSSIBLE)
}

/// A token of a chat completion, as one of `logprobs.content`.
pub fn of_chat(piece: &Piece, tokenizer: &Tokenizer) -> Option<Value> {
    let entry = |id: u32, logprob: f64| {
        let bytes = tokenizer.bytes_of(id).unwrap_or_default();
        let token = String::from_utf8_lossy(&bytes);
        json!({"token": token, "logprob": finite(logprob), "bytes": bytes})
    };
    let Logprobs { chosen, top } = piece.logprobs.as_ref()?;
    let mut entry_of_chosen = entry(piece.token, *chosen);
    let top = top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    if let Some(fields) = entry_of_chosen.as_object_mut() {
        fields.insert("top_logprobs".to_owned(), Value::Array(top));
    }
    Some(entry_of_chosen)
}

/// `logprobs` of a completion: four lists of the same length.
#[derive(Default)]
pub struct TextLogprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl TextLogprobs {
    /// Adds a token, whose text begins behind so many characters.
    pub fn push(&mut self, piece: &Piece, offset: usize, tokenizer: &Tokenizer) {
        let Some(Logprobs { chosen, top }) = &piece.logprobs else { return };
        self.tokens.push(spelled(piece.token, tokenizer).into());
        self.token_logprobs.push(finite(*chosen).into());
        let mut best = Map::new();
        for &(id, logprob) in top {
            // A byte and a letter may spell the same.
            let text = Some(spelled(id, tokenizer)).filter(|text| !best.contains_key(text));
            let text = text.unwrap_or_else(|| in_bytes(&tokenizer.bytes_of(id).unwrap_or_default()));
            best.insert(text, finite(logprob).into());
        }
        self.top_logprobs.push(best.into());
        self.text_offset.push(offset.into());
    }

    /// Goes on with `other`.
    pub fn extend(&mut self, other: Self) {
        self.tokens.extend(other.tokens);
        self.token_logprobs.extend(other.token_logprobs);
        self.top_logprobs.extend(other.top_logprobs);
        self.text_offset.extend(other.text_offset);
    }

    /// As JSON has it.
    pub fn json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// A token's text; one that is no whole characters as OpenAI spells it, `bytes:\xe2\x96`.
fn spelled(id: u32, tokenizer: &Tokenizer) -> String {
    let bytes = tokenizer.bytes_of(id).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_else(|error| in_bytes(error.as_bytes()))
}

fn in_bytes(bytes: &[u8]) -> String {
    let hex = |byte: &u8| format!("\\x{byte:02x}");
    format!("bytes:{}", bytes.iter().map(hex).collect::<String>())
}
