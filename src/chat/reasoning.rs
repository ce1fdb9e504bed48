//! What a model says to itself before it answers.

use super::tool_form::token;
use crate::sampling::{Grammar, on_one_line};
use crate::tokenizer::Tokenizer;

/// What reasoning stands between.
pub(super) const THINK: [&str; 2] = ["<think>", "</think>"];

/// The form of a text that begins within reasoning, where [`AnswerParser::is_reasoning`](super::AnswerParser::is_reasoning):
/// anything up to `</think>`, and then what `grammar` says.
pub fn after_reasoning(tokenizer: &Tokenizer, grammar: &Grammar) -> Grammar {
    let end = token(tokenizer, THINK[1]);
    let reasoning = match end.starts_with('<') {
        true => format!("reasoning: /(.|\\n)*/ {end}"),
        false => "reasoning[lazy]: /(.|\\n)*<\\/think>/".to_owned(),
    };
    let answer = match grammar {
        Grammar::JsonSchema(schema) => format!("%json {}", on_one_line(schema)),
        Grammar::Lark(text) => format!("%lark {{\n{text}\n}}"),
        Grammar::Regex(text) => format!("/({})/", with_escaped_slashes(text)),
    };
    Grammar::Lark(format!("start: reasoning /\\n{{0,2}}/ answer\n{reasoning}\nanswer: {answer}\n"))
}

/// A regular expression as it stands between slashes.
fn with_escaped_slashes(regex: &str) -> String {
    let mut escaped = false;
    let mut out = String::new();
    for c in regex.chars() {
        if c == '/' && !escaped {
            out.push('\\');
        }
        out.push(c);
        escaped = c == '\\' && !escaped;
    }
    out
}
