//! Tools: templates that show them against Hugging Face's (see fixtures/chat/make.py), and models that call them.

mod common {
    pub mod fixture;
    pub mod model;
    pub mod rendered;
}

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use torchless::chat::{
    AnswerParser, AnswerPart, ChatTemplate, Message, Role, Tool, ToolCall, ToolChoice, ToolForm,
};
use torchless::runtime::{FinishReason, GenerateOptions, Session, SessionOptions};
use torchless::sampling::Sampling;
use torchless::tokenizer::{Kind, Spec, Tokenizer};

use common::model::model;
use common::rendered::{Rendered, goldens};

#[derive(Deserialize)]
struct Goldens {
    templates: BTreeMap<String, String>,
    with_tools: Vec<Conversation>,
    rendered_with_tools: BTreeMap<String, Vec<[Rendered; 2]>>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    tools: Vec<Value>,
}

/// With nothing but what OpenAI's form has.
fn tool(written: &Value) -> Tool {
    Tool { written: None, ..Tool::try_from(written.clone()).unwrap() }
}

fn plain_tokenizer() -> Tokenizer {
    let vocab = ["<unk>", "<s>", "</s>", "a"].iter().zip(0..).map(|(p, id)| ((*p).to_owned(), id)).collect();
    Tokenizer::new(Spec { vocab, ..Spec::default() }).unwrap()
}

#[test]
fn tools_are_shown_as_hugging_face_shows_them() {
    let (goldens, tokenizer) = (goldens::<Goldens>(), plain_tokenizer());
    assert!(goldens.rendered_with_tools.len() >= 4 && goldens.with_tools.len() >= 9);
    for (name, rendered) in &goldens.rendered_with_tools {
        let path = Path::new("tests/fixtures/chat/templates").join(format!("{name}.jinja"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), goldens.templates[name], "run make.py again");
        let template = ChatTemplate::new(&goldens.templates[name], &tokenizer).unwrap();
        assert_eq!(rendered.len(), goldens.with_tools.len());
        for (conversation, golden) in goldens.with_tools.iter().zip(rendered) {
            let tools: Vec<Tool> = conversation.tools.iter().map(tool).collect();
            for (prompt, golden) in [false, true].into_iter().zip(golden) {
                let messages = &conversation.messages;
                golden.check(template.render_with_tools(messages, &tools, prompt), (name, messages));
            }
        }
    }
}

#[test]
fn messages_are_written_as_hugging_face_writes_them() {
    let call =
        ToolCall { id: "abcdefghi".to_owned(), name: "f".to_owned(), arguments: "{ \"x\": 1.0}".to_owned() };
    let message = Message { tool_calls: vec![call.clone()], ..Message::new(Role::Assistant, "") };
    let written = json!({"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"x": 1.0}}},
    ]});
    assert_eq!(serde_json::to_value(&message).unwrap(), written);
    assert_eq!(
        serde_json::to_value(Message::new(Role::Tool, "a")).unwrap(),
        json!({"role": "tool", "content": "a"})
    );
    let back: Message = serde_json::from_value(written).unwrap();
    assert_eq!(back.tool_calls[0].arguments, "{\"x\":1.0}");
    // As OpenAI has it.
    let text = json!({"function": {"name": "f", "arguments": call.arguments}});
    let read: ToolCall = serde_json::from_value(text).unwrap();
    assert_eq!((&read.arguments, &*read.id), (&call.arguments, ""));
}

#[test]
fn arguments_that_are_no_object_are_refused() {
    let template =
        ChatTemplate::new("{{ messages[0].tool_calls[0].function.arguments.x }}", &plain_tokenizer())
            .unwrap();
    let render = |arguments: &str| {
        let call = ToolCall { id: String::new(), name: "f".to_owned(), arguments: arguments.to_owned() };
        template.render(&[Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") }], true)
    };
    assert_eq!(render("{\"x\": 7}").unwrap(), "7");
    for wrong in ["", "[]", "{\"x\": ", "null", "{} {}"] {
        let error = render(wrong).unwrap_err().to_string();
        let expected = "messages[0]: the arguments for \"f\" are not the text of a JSON object";
        assert!(error.starts_with(expected) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn the_form_of_calls_is_found() {
    let (goldens, tokenizer) = (goldens::<Goldens>(), plain_tokenizer());
    for (name, source) in &goldens.templates {
        let form = match &**name {
            "tools-mistral" => Some(ToolForm::Mistral),
            "tools-hermes" | "tools-qwen" => Some(ToolForm::Hermes),
            "tools-llama3" => Some(ToolForm::Llama3),
            _ => None,
        };
        assert_eq!(ChatTemplate::new(source, &tokenizer).unwrap().tool_form(), form, "{name}");
    }
    // One that wants an answer to each call.
    let strict = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}[TOOL_CALLS]\
        {% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}{% endfor %}";
    assert_eq!(ChatTemplate::new(strict, &tokenizer).unwrap().tool_form(), Some(ToolForm::Mistral));
    for id in ["", "[CALL_ID]{{ call.id }}"] {
        let named = format!(
            "{{% for m in messages %}}{{% for call in m.tool_calls or [] %}}[TOOL_CALLS]{{{{ call.function.name }}}}{id}\
             [ARGS]{{{{ call.function.arguments | tojson }}}}{{% endfor %}}{{% endfor %}}"
        );
        let form = ChatTemplate::new(&named, &tokenizer).unwrap().tool_form();
        assert_eq!(form, Some(ToolForm::MistralNamed), "{named}");
    }
}

/// All bytes, and the special tokens of all families.
fn hostile_tokenizer() -> Tokenizer {
    let mut vocab: Vec<_> = (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte)).collect();
    vocab.push(("▁".to_owned(), 256));
    let special = [
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "<tool_call>",
        "</tool_call>",
        "<tools>",
        "</tools>",
        "<|python_tag|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<think>",
        "</think>",
    ];
    let special_tokens = special.iter().zip(257..).map(|(piece, id)| ((*piece).to_owned(), id)).collect();
    Tokenizer::new(Spec { kind: Kind::Metaspace, vocab, special_tokens, ..Spec::default() }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_tool_call_or_result_changes_the_special_tokens(
        parts in prop::collection::vec(prop_oneof![
            "<\\|im_(start|end)\\|>", "\\[/?(INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\\]", "</?(tool_call|tools|s|think)>",
            "<\\|(eot_id|python_tag|start_header_id)\\|>", Just("|>".to_owned()), Just("[".to_owned()), "[a-z\"\\\\]{0,3}",
        ], 1..6),
    ) {
        thread_local!(static ALL: (Tokenizer, Vec<ChatTemplate>) = {
            let tokenizer = hostile_tokenizer();
            let shown = goldens::<Goldens>().templates.into_iter().filter(|(name, _)| name.starts_with("tools-"));
            let templates = shown.map(|(_, source)| ChatTemplate::new(&source, &tokenizer).unwrap()).collect();
            (tokenizer, templates)
        });
        ALL.with(|(tokenizer, templates)| {
            let special = |template: &ChatTemplate, text: &str| {
                let parameters = json!({"type": "object", "description": text, "properties": {
                    text: {"type": "string", "description": text, "enum": [text], "default": text},
                }});
                let tools = [Tool::new(text, Some(text), parameters)];
                let arguments = json!({text: [text, {text: text}]}).to_string();
                let call = ToolCall { id: "abcdefghi".to_owned(), name: text.to_owned(), arguments };
                let messages = [
                    Message::new(Role::User, text),
                    Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") },
                    Message {
                        tool_call_id: Some("abcdefghi".to_owned()),
                        name: Some(text.to_owned()),
                        ..Message::new(Role::Tool, text)
                    },
                ];
                let ids = template.encode_with_tools(tokenizer, &messages, &tools, true).unwrap();
                let spelled = tokenizer.decode_with_special(&ids);
                let rendered = template.render_with_tools(&messages, &tools, true).unwrap();
                assert_eq!(spelled.replace(' ', ""), rendered.replace(' ', ""));
                ids.into_iter().filter(|&id| tokenizer.is_special(id)).collect::<Vec<_>>()
            };
            let text = parts.concat();
            for template in templates {
                assert_eq!(special(template, &text), special(template, "hello"), "{text:?}");
            }
        });
    }
}

/// What `choice` makes a model of random weights say: names and arguments.
fn called(form: ToolForm, choice: &ToolChoice, tools: &[Tool], seed: u64) -> Vec<(String, Value)> {
    let model = model("llama-int8.bin");
    let tokenizer = model.tokenizer();
    let prompt = tokenizer.encode("the rain", Default::default());
    let options = GenerateOptions {
        max_tokens: 200,
        sampling: Sampling::default().temperature(1.5).seed(seed),
        grammar: form.grammar(tokenizer, tools, choice).unwrap(),
        ..GenerateOptions::default()
    };
    let mut session =
        Session::new(&model, &SessionOptions { threads: 1, ..SessionOptions::new(&model) }).unwrap();
    let mut generation = session.generate(&prompt, &options).unwrap();
    let mut parser = AnswerParser::new(tokenizer, &prompt, Some(form), tools);
    let mut parts = Vec::new();
    for piece in generation.by_ref() {
        parts.extend(parser.push(&piece.unwrap()));
    }
    parts.extend(parser.finish());
    let generated = generation.finish();
    let cut_off = generated.finish_reason == FinishReason::Length;
    let mut calls: Vec<(String, String)> = Vec::new();
    for part in parts {
        match part {
            AnswerPart::ToolCall { name, .. } => calls.push((name, String::new())),
            AnswerPart::Arguments { index, text } => calls[index].1 += &text,
            // The beginning of a call that was cut off.
            AnswerPart::Content(_) if cut_off => {}
            part => panic!("{part:?} of {:?}", generated.text),
        }
    }
    if cut_off {
        calls.pop();
    } else {
        assert_eq!(generated.complete, Some(true));
        assert!(!calls.is_empty(), "{:?}", generated.text);
    }
    calls.into_iter().map(|(name, arguments)| (name, serde_json::from_str(&arguments).unwrap())).collect()
}

#[test]
fn calls_that_are_required_keep_to_the_schemas() {
    let lamp = json!({
        "type": "object",
        "properties": {
            "on": {"type": "boolean"},
            "level": {"type": "integer", "minimum": 0, "maximum": 9},
            "colour": {"$ref": "#/$defs/colour"},
        },
        "required": ["on", "level", "colour"],
        "additionalProperties": false,
        "$defs": {"colour": {"enum": ["red", "green", null]}},
    });
    let clock = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let tools =
        [("lamp", lamp), ("clock", clock)].map(|(name, parameters)| Tool::new(name, None, parameters));
    let named = ToolChoice::Named("lamp".to_owned());
    let mut clocks = 0;
    for form in [ToolForm::Mistral, ToolForm::MistralNamed, ToolForm::Hermes, ToolForm::Llama3] {
        let mut all = Vec::new();
        for seed in 0..8 {
            all.extend(called(form, &ToolChoice::Required, &tools, seed));
            let lamps = called(form, &named, &tools, seed);
            assert!(lamps.len() <= 1 && lamps.iter().all(|(name, _)| name == "lamp"), "{lamps:?}");
            all.extend(lamps);
        }
        let lamps = all.iter().filter(|(name, _)| name == "lamp").count();
        assert!(lamps >= 4, "{form:?}: {all:?}");
        clocks += all.len() - lamps;
        for (name, arguments) in all {
            let members = arguments.as_object().unwrap();
            if name == "clock" {
                assert!(members.is_empty());
                continue;
            }
            assert!(members.keys().eq(["on", "level", "colour"]), "{arguments}");
            assert!(arguments["on"].is_boolean() && (0..10).contains(&arguments["level"].as_i64().unwrap()));
            assert!(
                [json!("red"), json!("green"), Value::Null].contains(&arguments["colour"]),
                "{arguments}"
            );
        }
    }
    assert!(clocks > 0);
}
