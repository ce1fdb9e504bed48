use std::ops::ControlFlow;

use super::*;
use crate::chat::after_reasoning;
use crate::sampling::Constraint;
use crate::tokenizer::Spec;

const MARKS: [&str; 7] =
    ["[ARGS]", "[TOOL_CALLS]", "<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>"];
const END: u32 = 256;

/// Every byte, an end, and perhaps the marks.
fn tokenizer(special: bool) -> Tokenizer {
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let vocab = bytes.chain(["</s>".to_owned()]).zip(0..).collect();
    let special_tokens = MARKS.iter().zip(END + 1..).map(|(mark, id)| ((*mark).to_owned(), id)).collect();
    let special_tokens = if special { special_tokens } else { Vec::new() };
    Tokenizer::new(Spec { vocab, special_tokens, eos_token_ids: vec![END], ..Spec::default() }).unwrap()
}

/// A text as bytes, and marks as the tokens that they are.
fn ids(tokenizer: &Tokenizer, mut text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    while let Some(c) = text.chars().next() {
        let mark = MARKS.iter().find(|mark| text.starts_with(*mark) && tokenizer.id_of(mark).is_some());
        match mark {
            Some(mark) => {
                ids.extend(tokenizer.id_of(mark));
                text = &text[mark.len()..];
            }
            None => {
                ids.extend(text.bytes().take(c.len_utf8()).map(u32::from));
                text = &text[c.len_utf8()..];
            }
        }
    }
    ids
}

fn takes(grammar: &Grammar, tokenizer: &Tokenizer, text: &str) -> bool {
    let n = tokenizer.vocab_len();
    let go_on = &mut || ControlFlow::Continue(());
    let mut constraint = Constraint::new(grammar, tokenizer, n, &[END], go_on).unwrap();
    for id in ids(tokenizer, text) {
        if constraint.mask(&vec![0.0; n]).unwrap()[id as usize] != 0.0 {
            return false;
        }
        constraint.accept(id).unwrap();
    }
    constraint.is_complete()
}

fn tools() -> Vec<Tool> {
    let number = json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/small"}}, "required": ["x"],
        "additionalProperties": false, "$defs": {"small": {"enum": [1, 2]}}});
    vec![Tool::new("f", None, number), Tool::new("get \"it\"\u{7f}é", None, Value::Null)]
}

fn call(name: &str, member: &str, arguments: &str) -> String {
    format!("{{\"name\": {}, \"{member}\": {arguments}}}", Value::from(name))
}

#[test]
fn a_grammar_takes_calls_and_nothing_else() {
    let tools = tools();
    let f = |x: &str| call("f", "arguments", &format!("{{\"x\": {x}}}"));
    let it = call(&tools[1].name, "arguments", "{\"any\": [null]}");
    let (good, bad) = (f("1"), f("3"));
    let tagged = |call: &str| format!("<tool_call>\n{call}\n</tool_call>");
    let parameters = call("f", "parameters", "{\"x\": 2}");
    let named = ToolChoice::Named("f".to_owned());
    for special in [false, true] {
        let tokenizer = tokenizer(special);
        let takes = |form: ToolForm, choice: &ToolChoice, text: &str| {
            let grammar = form.grammar(&tokenizer, &tools, choice).unwrap().unwrap();
            let after = after_reasoning(&tokenizer, &grammar);
            assert_eq!(
                takes(&after, &tokenizer, &format!("a <b> {{\n</think>\n\n{text}")),
                takes(&grammar, &tokenizer, text)
            );
            takes(&grammar, &tokenizer, text)
        };
        for (form, required, named_only, text) in [
            (ToolForm::Mistral, true, true, format!("[TOOL_CALLS] [{good}]")),
            (ToolForm::Mistral, true, true, format!("[TOOL_CALLS][{good}]")),
            (ToolForm::Mistral, true, false, format!("[TOOL_CALLS] [{it}]")),
            (ToolForm::Mistral, true, false, format!("[TOOL_CALLS] [{good}, {it}, {good}]")),
            (ToolForm::Mistral, false, false, format!("[TOOL_CALLS] [{bad}]")),
            (ToolForm::Mistral, false, false, "[TOOL_CALLS] []".to_owned()),
            (ToolForm::MistralNamed, true, true, "[TOOL_CALLS]f[ARGS]{\"x\": 1}".to_owned()),
            (
                ToolForm::MistralNamed,
                true,
                false,
                format!("[TOOL_CALLS]f[ARGS]{{\"x\": 2}}[TOOL_CALLS]{}[ARGS]{{}}", tools[1].name),
            ),
            (ToolForm::MistralNamed, false, false, "[TOOL_CALLS]f[ARGS]{\"x\": 3}".to_owned()),
            (ToolForm::MistralNamed, false, false, format!("[TOOL_CALLS] [{good}]")),
            (ToolForm::Hermes, true, true, tagged(&good)),
            (ToolForm::Hermes, true, false, format!("{}\n{}", tagged(&it), tagged(&good))),
            (ToolForm::Hermes, false, false, tagged(&bad)),
            (ToolForm::Hermes, false, false, format!("Well. {}", tagged(&good))),
            (ToolForm::Llama3, true, true, parameters.clone()),
            (ToolForm::Llama3, true, false, call(&tools[1].name, "parameters", "{}")),
            (ToolForm::Llama3, false, false, format!("{parameters}; {parameters}")),
            (ToolForm::Llama3, false, false, call(&tools[1].name, "parameters", "1")),
        ] {
            assert_eq!(takes(form, &ToolChoice::Required, &text), required, "{text:?}");
            assert_eq!(takes(form, &named, &text), named_only, "{text:?}");
        }
    }
}

#[test]
fn a_choice_that_cannot_be_met_is_an_error() {
    let tokenizer = tokenizer(false);
    let grammar = |tools: &[Tool], choice| ToolForm::Hermes.grammar(&tokenizer, tools, &choice);
    assert_eq!(grammar(&tools(), ToolChoice::Auto).unwrap(), None);
    assert_eq!(grammar(&tools(), ToolChoice::None).unwrap(), None);
    assert!(grammar(&[], ToolChoice::Required).is_err());
    let error = grammar(&tools(), ToolChoice::Named("g".to_owned())).unwrap_err().to_string();
    assert_eq!(error, "there is no tool \"g\" to call");
}

#[test]
fn any_form_of_answer_may_follow_reasoning() {
    for special in [false, true] {
        let tokenizer = tokenizer(special);
        for (grammar, text, other) in [
            (Grammar::JsonSchema(json!({"enum": ["a/b"]})), "\"a/b\"", "\"a\""),
            (Grammar::Regex("a/b\\/c|d".to_owned()), "a/b/c", "a/b"),
            (Grammar::Lark("start: a | \"}\"\na: \"{\" /x{2}/ # }\n".to_owned()), "{xx", "{x"),
        ] {
            let grammar = after_reasoning(&tokenizer, &grammar);
            let takes = |text: &str| takes(&grammar, &tokenizer, text);
            for reasoning in ["", "a\n\n<tool> é </thin", "\n{"] {
                assert!(takes(&format!("{reasoning}</think>\n\n{text}")), "{reasoning:?}{text:?}");
                assert!(takes(&format!("{reasoning}</think>{text}")), "{reasoning:?}{text:?}");
                assert!(!takes(&format!("{reasoning}</think>\n{other}")), "{reasoning:?}{other:?}");
                assert!(!takes(&format!("{reasoning}{text}")), "{reasoning:?}{text:?}");
            }
        }
    }
}
