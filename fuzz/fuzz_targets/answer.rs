//! Any answer, cut anywhere: nothing panics, where it is cut changes nothing, and a text without marks stays as it is.
#![no_main]

use arbitrary::Arbitrary;
use torchless::chat::{AnswerParser, AnswerPart, Tool, ToolForm};
use torchless::runtime::Piece;
use torchless::tokenizer::{Spec, Tokenizer};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    form: u8,
    parts: Vec<(u8, &'a str)>,
    in_reasoning: bool,
}

/// What an answer may hold, beside any text.
const PARTS: [&str; 12] = [
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "{\"name\": \"f\", ",
    "\"arguments\": {",
    "\"parameters\": \"{}\"",
    "}",
    "[",
    ";",
];

/// Special tokens, and the letter `a`.
fn tokenizer() -> Tokenizer {
    let vocab = ["▁", "a"].iter().zip(0..).map(|(piece, id)| ((*piece).to_owned(), id)).collect();
    let special_tokens = PARTS.iter().take(6).zip(2..).map(|(mark, id)| ((*mark).to_owned(), id)).collect();
    Tokenizer::new(Spec { vocab, special_tokens, ..Spec::default() }).expect("a sound vocabulary")
}

/// The parts together: reasoning, text, and calls.
fn joined(parts: Vec<AnswerPart>) -> (String, String, Vec<[String; 2]>) {
    let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::new());
    for part in parts {
        match part {
            AnswerPart::Reasoning(text) => reasoning += &text,
            AnswerPart::Content(text) => content += &text,
            AnswerPart::ToolCall { index, id: _, name } => {
                assert_eq!(index, calls.len());
                calls.push([name, String::new()]);
            }
            AnswerPart::Arguments { index, text } => calls[index][1] += &text,
        }
    }
    (reasoning, content, calls)
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let tokenizer = tokenizer();
    let forms = [None, Some(ToolForm::Mistral), Some(ToolForm::MistralNamed), Some(ToolForm::Hermes), Some(ToolForm::Llama3)];
    let form = forms[usize::from(input.form) % forms.len()];
    let tools = [Tool::new("f", None, serde_json::Value::Null)];
    let prompt = if input.in_reasoning { [1, 2] } else { [1, 1] };
    // Once as they come, and once character by character, with marks as special tokens or spelled.
    let run = |special: bool, by_character: bool| {
        let mut parser = AnswerParser::new(&tokenizer, &prompt, form, &tools);
        let mut parts = Vec::new();
        for &(known, text) in &input.parts {
            let known = usize::from(known) % (2 * PARTS.len());
            if known < 6 && special {
                parts.extend(parser.push(&Piece { token: known as u32 + 2, text: String::new(), logprobs: None }));
                continue;
            }
            let text = PARTS.get(known).copied().unwrap_or(text);
            let cut = if by_character { 1 } else { text.len().max(1) };
            for piece in text.chars().collect::<Vec<_>>().chunks(cut) {
                parts.extend(parser.push(&Piece { token: 1, text: piece.iter().collect(), logprobs: None }));
            }
        }
        parts.extend(parser.finish());
        joined(parts)
    };
    for special in [false, true] {
        assert_eq!(run(special, false), run(special, true));
    }
    let text: String = input.parts.iter().map(|&(_, text)| text).collect();
    let mut parser = AnswerParser::new(&tokenizer, &[1], form, &tools);
    let mut parts = parser.push(&Piece { token: 1, text: text.clone(), logprobs: None });
    parts.extend(parser.finish());
    if !text.contains(['<', '[', '{']) {
        assert_eq!(joined(parts), (String::new(), text, Vec::new()));
    }
});
