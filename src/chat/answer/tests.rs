use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::tokenizer::Spec;

const MARKS: [&str; 7] =
    ["[ARGS]", "[TOOL_CALLS]", "<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>"];

/// The marks are special tokens, from 3 on, or unknown.
fn tokenizer(special: bool) -> Tokenizer {
    let vocab =
        ["<s>", "</s>", "▁", "a"].iter().zip(0..).map(|(piece, id)| ((*piece).to_owned(), id)).collect();
    let special_tokens = MARKS.iter().zip(4..).map(|(mark, id)| ((*mark).to_owned(), id)).collect();
    let special_tokens = if special { special_tokens } else { Vec::new() };
    Tokenizer::new(Spec { vocab, special_tokens, ..Spec::default() }).unwrap()
}

fn tool(name: &str) -> Tool {
    Tool::new(name, None, json!({"type": "object"}))
}

fn parser(tokenizer: &Tokenizer, form: Option<ToolForm>) -> AnswerParser {
    AnswerParser::new(tokenizer, &[0, 3], form, &[tool("f"), tool("get_\"it\"")])
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    reasoning: String,
    content: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    ids: Vec<String>,
}

impl Answer {
    fn add(&mut self, parts: Vec<AnswerPart>) {
        for part in parts {
            match part {
                AnswerPart::Reasoning(text) => {
                    assert!(!text.is_empty() && self.content.is_empty() && self.calls.is_empty());
                    self.reasoning += &text;
                }
                AnswerPart::Content(text) => {
                    assert!(!text.is_empty());
                    self.content += &text;
                }
                AnswerPart::ToolCall { index, id, name } => {
                    assert_eq!(index, self.calls.len());
                    self.ids.push(id);
                    self.calls.push((name, String::new()));
                }
                AnswerPart::Arguments { index, text } => {
                    assert!(!text.is_empty() && index + 1 == self.calls.len());
                    self.calls[index].1 += &text;
                }
            }
        }
    }
}

fn piece(token: u32, text: &str) -> Piece {
    Piece { token, text: text.to_owned(), logprobs: None }
}

fn parse(mut parser: AnswerParser, parts: &[&str]) -> Answer {
    let mut answer = Answer::default();
    for part in parts {
        answer.add(parser.push(&piece(3, part)));
    }
    answer.add(parser.finish());
    answer
}

/// What comes of a text, however it is cut: in up to three parts, or character by character.
fn all_splits(form: Option<ToolForm>, text: &str) -> Answer {
    let tokenizer = tokenizer(false);
    let run = |parts: &[&str]| parse(parser(&tokenizer, form), parts);
    let whole = run(&[text]);
    let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
    for (n, &i) in cuts.iter().enumerate() {
        for &j in &cuts[n..] {
            let parts = [&text[..i], &text[i..j], &text[j..]];
            assert_eq!(run(&parts), whole, "{parts:?}");
        }
    }
    let chars: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(run(&chars.iter().map(String::as_str).collect::<Vec<_>>()), whole);
    whole
}

fn check(form: ToolForm, text: &str, reasoning: &str, content: &str, calls: &[(&str, &str)]) {
    let answer = all_splits(Some(form), text);
    assert_eq!((&*answer.reasoning, &*answer.content), (reasoning, content), "{text:?}");
    let found: Vec<_> = answer.calls.iter().map(|(name, arguments)| (&**name, &**arguments)).collect();
    assert_eq!(found, calls, "{text:?}");
}

use ToolForm::{Hermes, Llama3, Mistral, MistralNamed};

#[test]
fn calls_in_all_forms() {
    let f = [("f", r#"{"x": 1}"#)];
    check(Mistral, r#"[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]"#, "", "", &f);
    check(Mistral, r#"[TOOL_CALLS][{"name":"f","arguments":{"x": 1},"id":"abcdefghi"}]"#, "", "", &f);
    check(Mistral, r#"[TOOL_CALLS] {"name": "f", "arguments": {"x": 1}}"#, "", "", &f);
    check(MistralNamed, r#"[TOOL_CALLS]f[ARGS]{"x": 1}"#, "", "", &f);
    check(MistralNamed, r#"So. [TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS] {"x": 1}"#, "", "So.", &f);
    check(
        MistralNamed,
        r#"[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]get_"it"[ARGS]{"a": {"}": []}} and"#,
        "",
        "and",
        &[f[0], ("get_\"it\"", r#"{"a": {"}": []}}"#)],
    );
    for text in
        ["[TOOL_CALLS]f[ARGS]x", "[TOOL_CALLS][ARGS]{}", "[TOOL_CALLS]f", "[TOOL_CALLS] [{\"name\": \"f\"}]"]
    {
        check(MistralNamed, text, "", text, &[]);
    }
    check(Hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>", "", "", &f);
    check(Hermes, "<tool_call>{\"arguments\": {\"x\": 1}, \"name\": \"f\"}</tool_call>\n", "", "", &f);
    check(Llama3, r#"{"name": "f", "parameters": {"x": 1}}"#, "", "", &f);
    check(Llama3, "\n{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"x\": 1}}", "", "", &f);
    check(Llama3, r#"<|python_tag|>{"name": "f", "arguments": {"x": 1}}"#, "", "", &f);
    check(
        Hermes,
        r#"<tool_call>{"n": [{"a": "}\""}, 1.5e3, null], "name": "f", "m": true, "arguments": {"x": 1}, "i": -1}</tool_call>"#,
        "",
        "",
        &f,
    );
    let tricky = r#"{"a": "}]{[\\\" </tool_call> <think> é世", "b": {"c": [{}, []]}}"#;
    let call = format!(r#"<tool_call>{{"name": "get_\"it\"", "arguments": {tricky}}}</tool_call>"#);
    check(Hermes, &call, "", "", &[("get_\"it\"", tricky)]);
}

#[test]
fn several_calls() {
    let both = [("f", r#"{"x": 1}"#), ("g", "{}")];
    let (f, g) = (r#"{"name": "f", "arguments": {"x": 1}}"#, r#"{"name": "g", "arguments": {}}"#);
    check(Mistral, &format!("[TOOL_CALLS] [{f}, {g}]"), "", "", &both);
    check(Mistral, &format!("[TOOL_CALLS] [{f}]\n[TOOL_CALLS] [{g}]"), "", "", &both);
    check(Hermes, &format!("<tool_call>\n{f}\n</tool_call>\n<tool_call>\n{g}\n</tool_call>"), "", "", &both);
    check(Hermes, &format!("<tool_call>[{f}, {g}]</tool_call>"), "", "", &both);
    check(Hermes, &format!("<tool_call>{f}<tool_call>{g}"), "", "", &both);
    let again = [("f", r#"{"x": 1}"#), ("f", r#"{"x": 1}"#)];
    for between in ["; ", "\n", ";"] {
        check(Llama3, &format!("{f}{between}{f}"), "", "", &again);
    }
    let ids = all_splits(Some(Llama3), &format!("{f};{f}")).ids;
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.starts_with("call_")), "{ids:?}");
    let ids = all_splits(Some(Mistral), &format!("[TOOL_CALLS] [{f}, {f}]")).ids;
    assert!(ids.iter().all(|id| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric())), "{ids:?}");
}

#[test]
fn text_and_reasoning_around_calls() {
    let f = [("f", "{}")];
    let call = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    check(Hermes, &format!("Let me look.\n\n{call}\n"), "", "Let me look.", &f);
    check(Hermes, &format!("<think>\nHm.\n\nSo.\n</think>\n\n{call}"), "Hm.\n\nSo.", "", &f);
    check(Hermes, &format!("<think>Hm.</think> Well: {call} Done."), "Hm.", "Well:Done.", &f);
    check(Hermes, &format!("<think>{call}</think>So"), call, "So", &[]);
    check(Llama3, "<think>a</think>\n{\"name\": \"f\", \"parameters\": {}}", "a", "", &f);
    check(Mistral, "ok [TOOL_CALLS]{\"name\": \"f\"}", "", "ok", &f);
}

#[test]
fn what_is_no_call_is_text() {
    for text in [
        "",
        " plain text \n",
        "1 < 2 <tool_ <tool_cal",
        "<tool_call>",
        "a\n<tool_call>\n none </tool_call> b",
        "<tool_call>{\"name\": \"f\"",
        "<tool_call>{\"name\": 1}</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>[]",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"no JSON\"}</tool_call>",
        "<tool_call><tool_cal",
        "</tool_call>",
        "a <think>b</think>",
        "{\"name\": \"f\", \"arguments\": {}}",
        "[TOOL_CALLS] []",
    ] {
        check(Hermes, text, "", text, &[]);
    }
    for text in [
        "{\"name\": \"Alice\", \"parameters\": {}}",
        "{\"name\": \"f\"}",
        "{\"city\": \"Paris\", \"name\": \"f\", \"parameters\": {}}",
        "{name}",
        "{\"name\": \"f\", \"parameters",
        "<|python_tag|>f.call(x=\"1\")",
        "Call {\"name\": \"f\", \"parameters\": {}}",
    ] {
        check(Llama3, text, "", text, &[]);
    }
    check(Hermes, "<tool_call>x<tool_call>{\"name\": \"f\"}", "", "<tool_call>x", &[("f", "{}")]);
    check(Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a", "", "", &[("f", "{\"a")]);
    check(Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}} or", "", "or", &[("f", "{}")]);
    // Nobody has asked for calls.
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    assert_eq!(all_splits(None, call).content, call);
    let unfinished = all_splits(None, "<think>\nand so \n");
    assert_eq!((&*unfinished.reasoning, &*unfinished.content), ("and so \n", ""));
}

#[test]
fn arguments_may_be_a_string_of_json() {
    let text = r#"<tool_call>{"name": "f", "arguments": "{\"x\": \"\\u00e9\"}"}</tool_call>"#;
    check(Hermes, text, "", "", &[("f", r#"{"x": "\u00e9"}"#)]);
}

#[test]
fn arguments_come_as_soon_as_they_are_written() {
    let tokenizer = tokenizer(false);
    let mut parser = parser(&tokenizer, Some(Hermes));
    assert_eq!(parser.push(&piece(3, "<tool_call>{\"name\": \"f\",")), []);
    let parts = parser.push(&piece(3, " \"arguments\": {"));
    assert!(matches!(&parts[0], AnswerPart::ToolCall { index: 0, name, .. } if name == "f"), "{parts:?}");
    assert_eq!(parts[1..], [AnswerPart::Arguments { index: 0, text: "{".to_owned() }]);
    let more = |text: &str| [AnswerPart::Arguments { index: 0, text: text.to_owned() }];
    assert_eq!(parser.push(&piece(3, "\"x\": \"a")), more("\"x\": \"a"));
    assert_eq!(parser.push(&piece(3, "b\"}}\n</tool_call>")), more("b\"}"));
    assert_eq!(parser.finish(), []);
}

#[test]
fn marks_may_be_special_tokens() {
    let tokenizer = tokenizer(true);
    // A mark that is a token of its own gives no text.
    let run = |form: ToolForm, prompt: &str, text: &[&str]| {
        let prompt = tokenizer.encode(prompt, crate::tokenizer::EncodeOptions { bos: false, special: true });
        let mut parser = AnswerParser::new(&tokenizer, &prompt, Some(form), &[]);
        let mut answer = Answer::default();
        for part in text {
            let token = if MARKS.contains(part) { tokenizer.id_of(part).unwrap() } else { 3 };
            answer.add(parser.push(&piece(token, if token == 3 { part } else { "" })));
        }
        answer.add(parser.finish());
        (answer.reasoning, answer.content, answer.calls)
    };
    let f = || vec![("f".to_owned(), "{}".to_owned())];
    let none = String::new;
    let object = "{\"name\": \"f\", \"arguments\": {}}";
    let listed = format!(" [{object}]");
    assert_eq!(run(Mistral, "a", &["[TOOL_CALLS]", &listed]), (none(), none(), f()));
    assert_eq!(run(MistralNamed, "a", &["[TOOL_CALLS]", "f", "[ARGS]", "{}"]), (none(), none(), f()));
    let hermes = ["so ", "<tool_call>", "\n", object, "\n", "</tool_call>"];
    assert_eq!(run(Hermes, "a", &hermes), (none(), "so".to_owned(), f()));
    assert_eq!(run(Llama3, "a", &["<|python_tag|>", object]), (none(), none(), f()));
    let code = run(Llama3, "a", &["<|python_tag|>", "print(1)"]);
    assert_eq!(code, (none(), "print(1)".to_owned(), Vec::new()));
    let thought = ["<think>", "\nhm </th", "\n", "</think>", "\n\n", "yes"];
    assert_eq!(run(Hermes, "a", &thought), ("hm </th".to_owned(), "yes".to_owned(), Vec::new()));
    // The prompt has begun the reasoning, or ended it.
    assert_eq!(
        run(Hermes, "a<think>\n", &["hm", "</think>", "yes"]),
        ("hm".to_owned(), "yes".to_owned(), Vec::new())
    );
    assert_eq!(run(Hermes, "<think></think>a", &["hm"]), (none(), "hm".to_owned(), Vec::new()));
    let broken = ["<tool_call>", "{\"name\": \"", "<tool_call>", object, "</tool_call>"];
    assert_eq!(run(Hermes, "a", &broken), (none(), "{\"name\": \"".to_owned(), f()));
}

#[test]
fn ids_depend_on_prompt_and_call_only() {
    let tokenizer = tokenizer(false);
    let call = r#"[TOOL_CALLS] [{"name": "f", "arguments": {}}]"#;
    let id = |prompt: &[u32]| parse(AnswerParser::new(&tokenizer, prompt, Some(Mistral), &[]), &[call]).ids;
    assert_eq!(id(&[1, 2]), id(&[1, 2]));
    assert_ne!(id(&[1, 2]), id(&[2, 1]));
}

/// A text without marks.
const WORDS: &str = "[a-zé ,.;:!?\n\"{}]{0,12}";

prop_compose! {
    fn object()(members in prop::collection::btree_map(".{0,4}", any::<Option<i32>>(), 0..3), text in ".{0,8}") -> String {
        json!({"m": members, "text": text}).to_string()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn what_is_written_is_found(
        form in prop_oneof![Just(Mistral), Just(MistralNamed), Just(Hermes), Just(Llama3)],
        reasoning in prop::option::of("[a-z<]{1,9}[a-z]"),
        content in prop::option::of("[a-z<\\[]{1,9}[a-z]"),
        calls in prop::collection::vec(("f|get_\"it\"", object()), 0..4),
        cuts in prop::collection::vec(1usize..9, 1..9),
        special in any::<bool>(),
    ) {
        let objects: Vec<_> =
            calls.iter().map(|(name, arguments)| format!("{{\"name\": {}, \"arguments\": {arguments}}}", json!(name))).collect();
        let think = reasoning.iter().flat_map(|text| ["<think>", "\n", text, "\n", "</think>", "\n\n"].map(str::to_owned));
        let mut units: Vec<String> = think.collect();
        // Llama's calls stand at the beginning.
        let content = content.filter(|_| form != Llama3 || calls.is_empty());
        units.extend(content.clone());
        match form {
            Mistral | MistralNamed if calls.is_empty() => {}
            MistralNamed => for (name, arguments) in &calls {
                units.extend(["[TOOL_CALLS]", name, "[ARGS]", arguments].map(str::to_owned));
            },
            Mistral => units.extend(["[TOOL_CALLS]".to_owned(), format!(" [{}]", objects.join(", "))]),
            Hermes => for object in &objects {
                units.extend(["\n", "<tool_call>", "\n", object, "\n", "</tool_call>"].map(str::to_owned));
            },
            Llama3 => units.push(objects.join("; ")),
        }
        let tokenizer = tokenizer(special);
        let mut parser = parser(&tokenizer, Some(form));
        let mut answer = Answer::default();
        let mut cuts = cuts.into_iter().cycle();
        for unit in &units {
            if special && MARKS.contains(&&**unit) {
                answer.add(parser.push(&piece(tokenizer.id_of(unit).unwrap(), "")));
                continue;
            }
            let mut chars = unit.chars().peekable();
            while chars.peek().is_some() {
                let part: String = chars.by_ref().take(cuts.next().unwrap()).collect();
                answer.add(parser.push(&piece(3, &part)));
            }
        }
        answer.add(parser.finish());
        prop_assert_eq!(answer.reasoning, reasoning.unwrap_or_default());
        prop_assert_eq!(answer.content, content.unwrap_or_default());
        prop_assert_eq!(answer.calls, calls);
    }

    #[test]
    fn nothing_depends_on_where_a_text_is_cut_and_none_of_it_is_lost(
        form in prop_oneof![Just(None), Just(Some(Mistral)), Just(Some(MistralNamed)), Just(Some(Hermes)), Just(Some(Llama3))],
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(MARKS.to_vec()).prop_map(str::to_owned),
            prop::sample::select(vec!["{\"name\": \"f\"", ", \"arguments\": {", "}", "[{", "]", ";", "<"]).prop_map(str::to_owned),
            WORDS,
        ], 0..9),
    ) {
        let tokenizer = tokenizer(false);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let text = parts.concat();
        let whole = parse(parser(&tokenizer, form), &[&text]);
        prop_assert_eq!(&parse(parser(&tokenizer, form), &parts), &whole);
        if whole.calls.is_empty() && whole.reasoning.is_empty() && !text.trim_start().starts_with("<think>") {
            prop_assert_eq!(&whole.content, &text);
        }
        let letters = |text: &str| text.matches('é').count();
        let found = letters(&whole.reasoning) + letters(&whole.content)
            + whole.calls.iter().map(|(_, arguments)| letters(arguments)).sum::<usize>();
        // What is dropped is white space, marks, and the frame of calls.
        if whole.calls.is_empty() {
            prop_assert_eq!(found, letters(&text));
        }
    }
}
