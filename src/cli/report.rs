//! What a generation came to, for people and for machines.

use serde_json::{Value, json};
use torchless::runtime::{FinishReason, Generated, Piece, Timings};
use torchless::tokenizer::Tokenizer;

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
    let entry = |id, logprob| json!({"token": id, "piece": tokenizer.piece(id), "logprob": logprob});
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

/// One line.
pub fn timings(result: &Generated) -> String {
    let t = &result.timings;
    format!(
        "prompt: {} tokens, {:.1} tokens/s; answer: {} tokens, {:.1} tokens/s; first token after {:.0} ms",
        t.prompt_tokens,
        t.prompt_tokens_per_s(),
        result.tokens.len(),
        t.tokens_per_s(),
        t.first_token.as_secs_f64() * 1e3
    )
}
