//! What a generation came to, for people and for machines.

use std::str::Utf8Chunk;

use serde_json::{Value, json};
use torchless::runtime::{FinishReason, Generated, Piece, Timings};
use torchless::tokenizer::Tokenizer;

use super::output::count;

/// The object `generate --json` prints.
pub fn generated(prompt: &[u32], result: &Generated) -> Value {
    let object = json!({
        "prompt_tokens": prompt,
        "tokens": result.tokens,
        "text": result.text,
        "finish_reason": finish_reason(result.finish_reason),
        "timings": timings_json(&result.timings),
    });
    with_complete(object, result)
}

/// Says whether a text that has a form is whole.
#[expect(clippy::indexing_slicing, reason = "indexing is how a JSON object gets a member")]
fn with_complete(mut object: Value, result: &Generated) -> Value {
    if let Some(complete) = result.complete {
        object["complete"] = complete.into();
    }
    object
}

/// What to say of a text that ends before its schema or grammar does.
pub fn incomplete(result: &Generated) -> Option<&'static str> {
    match (result.complete?, result.finish_reason) {
        (true, _) => None,
        (false, FinishReason::Length) => Some(
            "the text is cut off inside its schema or grammar: allow it more tokens (--max-tokens, --ctx)",
        ),
        (false, FinishReason::Stop) => {
            Some("the text is cut off inside its schema or grammar by a stop string (--stop)")
        }
        (false, FinishReason::Cancelled) => Some("the text is cut off inside its schema or grammar"),
    }
}

/// The line `generate --json-lines` prints for a token.
#[expect(clippy::indexing_slicing, reason = "indexing is how a JSON object gets a member")]
pub fn piece(piece: &Piece, tokenizer: &Tokenizer) -> Value {
    let mut object = json!({"token": piece.token, "text": piece.text});
    if let Some(logprobs) = logprobs(piece, tokenizer) {
        object["logprobs"] = logprobs;
    }
    object
}

/// How probable a token was, where that was asked for.
#[expect(clippy::indexing_slicing, reason = "indexing is how a JSON object gets a member")]
pub fn logprobs(piece: &Piece, tokenizer: &Tokenizer) -> Option<Value> {
    let entry = |id, logprob| {
        let bytes = tokenizer.bytes_of(id).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        json!({"token": id, "piece": tokenizer.piece(id), "text": text, "bytes": bytes, "logprob": logprob})
    };
    let logprobs = piece.logprobs.as_ref()?;
    let mut object = entry(piece.token, logprobs.chosen);
    object["top"] = logprobs.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    Some(object)
}

/// The last line of `generate --json-lines`.
pub fn end(result: &Generated) -> Value {
    let object = json!({"finish_reason": finish_reason(result.finish_reason), "timings": timings_json(&result.timings)});
    with_complete(object, result)
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

fn timings_json(timings: &Timings) -> Value {
    json!({
        "prompt_tokens_per_s": timings.prompt_tokens_per_s(),
        "tokens_per_s": timings.tokens_per_s(),
        "ttft_ms": timings.first_token.as_secs_f64() * 1e3,
    })
}

/// The text of a token on one line: what cannot be seen is escaped, and bytes that are no text are `\xE2`.
pub fn shown(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.bytes_of(id).unwrap_or_default();
    let part = |chunk: Utf8Chunk| {
        let bytes: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")).collect();
        chunk.valid().escape_debug().to_string() + &bytes
    };
    bytes.utf8_chunks().map(part).collect()
}

/// One line, of 80 characters at most but for very long texts.
pub fn timings(result: &Generated) -> String {
    let t = &result.timings;
    // Of nothing there is no rate: the first token of an answer comes with the prompt.
    let part = |n: usize, rate: f64| match n {
        0 => "no tokens".to_owned(),
        _ if rate == 0.0 => count(n, "token"),
        _ => format!("{}, {rate:.1}/s", count(n, "token")),
    };
    let first = match result.tokens.len() {
        0 => String::new(),
        _ => format!("; first after {:.0} ms", t.first_token.as_secs_f64() * 1e3),
    };
    format!(
        "prompt: {}; answer: {}{first}",
        part(t.prompt_tokens, t.prompt_tokens_per_s()),
        part(result.tokens.len(), t.tokens_per_s())
    )
}
