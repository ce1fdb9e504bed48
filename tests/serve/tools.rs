//! Tools, and what a model says to itself.

use std::sync::Arc;

use serde_json::{Value, json};
use torchless::Model;
use torchless::chat::ChatTemplate;
use torchless::runtime::BatchOptions;
use torchless::serve::{Options, Served};

use crate::common::fixture::fixture;
use crate::common::http::Client;
use crate::common::server::Running;

const CHAT: &str = "/v1/chat/completions";

/// Calls as Hermes writes them, and of tools only their names: the fixtures' contexts are short.
const TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}\
    {% for m in messages %}{{ m.role }}{{ m.name or '' }}:{{ m.content }}\
    {% for call in m.tool_calls or [] %}<tool_call>\n\
    {\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %};\
    {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

fn running(template: &'static str) -> Running {
    Running::ready(Options::default(), || {
        let model = Arc::new(Model::open(fixture("llama-int8.bin"))?);
        let template = Some(ChatTemplate::new(template, model.tokenizer())?);
        Ok(Served { scheduler: BatchOptions::new(&model), template, model })
    })
}

fn tool(name: &str, argument: &str) -> Value {
    let parameters = json!({
        "type": "object", "properties": {argument: {"enum": [1, 22]}}, "required": [argument], "additionalProperties": false,
    });
    json!({"type": "function", "function": {"name": name, "description": "?", "parameters": parameters}})
}

fn request(more: Value) -> Value {
    let mut request = json!({
        "messages": [{"role": "user", "content": "hi"}], "tools": [tool("f", "a"), tool("g", "b")],
        "seed": 3, "max_tokens": 150,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn ask(client: &Client, more: Value) -> Value {
    client.post(CHAT, &request(more)).good()
}

#[test]
fn a_call_that_is_required_is_made_and_its_arguments_parse() {
    let running = running(TEMPLATE);
    let client = running.client();
    let named = json!({"type": "function", "function": {"name": "g"}});
    for (choice, seed) in [(json!("required"), 1), (json!("required"), 2), (named, 3)] {
        let only = if choice.is_string() { None } else { Some("g") };
        let answer = ask(&client, json!({"tool_choice": choice, "seed": seed}));
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null);
        let calls = message["tool_calls"].as_array().unwrap();
        let finished = answer["choices"][0]["finish_reason"] == "tool_calls";
        assert!(finished || calls.len() > 1, "{answer}");
        for (i, call) in calls.iter().enumerate().filter(|(i, _)| finished || *i + 1 < calls.len()) {
            let name = call["function"]["name"].as_str().unwrap();
            assert!(only.is_none_or(|only| only == name && i == 0));
            assert_eq!(call["type"], "function");
            assert!(!call["id"].as_str().unwrap().is_empty());
            let arguments: Value =
                serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            let argument = if name == "f" { "a" } else { "b" };
            assert!([1, 22].map(|n| json!({argument: n})).contains(&arguments), "{name}: {arguments}");
        }
    }
}

#[test]
fn a_stream_names_a_call_once_and_then_gives_its_arguments_in_pieces() {
    let running = running(TEMPLATE);
    let client = running.client();
    let whole = ask(&client, json!({"tool_choice": "required"}));
    let frames = client.stream(CHAT, &request(json!({"tool_choice": "required", "stream": true}))).all();
    let mut calls: Vec<Value> = Vec::new();
    for frame in &frames {
        for delta in frame["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = delta["index"].as_u64().unwrap() as usize;
            let more = delta["function"]["arguments"].as_str().unwrap();
            if let Some(call) = calls.get_mut(index) {
                assert!(delta.get("id").is_none() && delta["function"].get("name").is_none());
                let arguments = &mut call["function"]["arguments"];
                *arguments = (arguments.as_str().unwrap().to_owned() + more).into();
            } else {
                assert_eq!((index, more), (calls.len(), ""));
                let mut call = delta.clone();
                call.as_object_mut().unwrap().remove("index");
                calls.push(call);
            }
        }
    }
    assert_eq!(Value::from(calls), whole["choices"][0]["message"]["tool_calls"]);
    let last = frames.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
}

#[test]
fn calls_and_what_came_of_them_reach_the_template() {
    let running = running(TEMPLATE);
    let client = running.client();
    let function = json!({"name": "f", "arguments": "{\"a\": 1}"});
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call12345", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call12345", "content": [{"type": "text", "text": "one"}]},
    ]);
    // Whose answer it is can be told by its id.
    let text = "f g user:hi;assistant:<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>;toolf:one;assistant:";
    let answer = ask(&client, json!({"messages": messages, "max_tokens": 5, "ignore_eos": true}));
    let tokens = client.post("/tokenize", &json!({"content": text})).good()["tokens"].take();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens.as_array().unwrap().len());
    let settings = json!({"prompt": tokens, "seed": 3, "max_tokens": 5, "ignore_eos": true});
    let plain = client.post("/v1/completions", &settings).good();
    let plain = plain["choices"][0]["text"].as_str().unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], plain.strip_prefix(' ').unwrap_or(plain));
}

#[test]
fn tools_that_may_not_be_called_are_not_shown() {
    let running = running(TEMPLATE);
    let client = running.client();
    let shown = ask(&client, json!({"max_tokens": 1}));
    let hidden = ask(&client, json!({"max_tokens": 1, "tool_choice": "none"}));
    let without = ask(&client, json!({"max_tokens": 1, "tools": []}));
    assert_eq!(hidden["usage"]["prompt_tokens"], without["usage"]["prompt_tokens"]);
    let [shown, hidden] = [shown, hidden].map(|answer| answer["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(shown > hidden);
}

#[test]
fn what_is_wrong_with_tools_is_named() {
    let with = running(TEMPLATE);
    let without = Running::new("llama-int8.bin", Options::default(), |_| {});
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let named = |name: &str| json!({"tool_choice": {"type": "function", "function": {"name": name}}});
    let messages = |message: Value| json!({"messages": [message]});
    for (running, more, param) in [
        (&without, json!({}), "tools"),
        (&with, json!({"tools": "f"}), "tools"),
        (&with, json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (&with, json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (&with, function(json!({})), "tools[0].function.name"),
        (&with, function(json!({"name": "a b"})), "tools[0].function.name"),
        (&with, function(json!({"name": "f", "parameters": []})), "tools[0].function.parameters"),
        (&with, function(json!({"name": "f", "returns": {}})), "tools[0].function.returns"),
        (&with, json!({"tools": [tool("f", "a"), tool("f", "a")]}), "tools[1].function.name"),
        (&with, named("h"), "tool_choice"),
        (&with, json!({"tool_choice": "always"}), "tool_choice"),
        (&with, json!({"tool_choice": "required", "tools": []}), "tool_choice"),
        (&with, json!({"parallel_tool_calls": false}), "parallel_tool_calls"),
        (&with, json!({"response_format": {"type": "json_object"}}), "response_format"),
        (&with, json!({"functions": []}), "functions"),
        (&with, messages(json!({"role": "tool", "content": "1"})), "messages[0].tool_call_id"),
        (
            &with,
            messages(json!({"role": "user", "content": "1", "tool_calls": []})),
            "messages[0].tool_calls",
        ),
        (
            &with,
            messages(json!({"role": "assistant", "tool_calls": [{"id": "1"}]})),
            "messages[0].tool_calls[0].type",
        ),
    ] {
        let error = running.client().post(CHAT, &request(more.clone())).error(400);
        assert_eq!(error["param"], param, "{more}: {error}");
    }
    let function = json!({"name": "f", "arguments": "[]"});
    let call = json!({"id": "1", "type": "function", "function": function});
    let error = with
        .client()
        .post(CHAT, &request(messages(json!({"role": "assistant", "tool_calls": [call]}))))
        .error(400);
    assert!(error["message"].as_str().unwrap().contains("JSON object"), "{error}");
    // Without tools it says nothing, and one call is one anyway.
    ask(&with.client(), json!({"tools": [], "parallel_tool_calls": false, "max_tokens": 1}));
    let mut one = named("f");
    one["parallel_tool_calls"] = false.into();
    ask(&with.client(), one);
}

#[test]
fn what_a_model_says_to_itself_is_no_content() {
    let running = running("{% for m in messages %}{{ m.content }}{% endfor %}<think>");
    let client = running.client();
    let question = json!({
        "messages": [{"role": "user", "content": "hi"}], "seed": 3, "max_tokens": 20, "ignore_eos": true,
    });
    for format in ["text", "json_object"] {
        let mut request = question.clone();
        request["response_format"] = json!({"type": format});
        let message = client.post(CHAT, &request).good()["choices"][0]["message"].take();
        assert_eq!(message["content"], "");
        let reasoning = message["reasoning_content"].as_str().unwrap();
        assert!(!reasoning.is_empty());
        request["stream"] = true.into();
        let frames = client.stream(CHAT, &request).all();
        let deltas =
            frames.iter().filter_map(|frame| frame["choices"][0]["delta"]["reasoning_content"].as_str());
        assert_eq!(deltas.collect::<String>(), reasoning);
    }
}

#[test]
fn roles_thoughts_and_variables_reach_the_template() {
    // It says what it got, in the error.
    const TEMPLATE: &str = "{% if messages | length > 2 %}{{ raise_exception(messages | map(attribute='role') | join(' ') \
        ~ '|' ~ messages[1].reasoning_content ~ '|' ~ mood ~ '|') }}{% endif %}";
    let running = Running::ready(Options::default(), || {
        let model = Arc::new(Model::open(fixture("llama-int8.bin"))?);
        let template = ChatTemplate::new(TEMPLATE, model.tokenizer())?;
        let template = template.with_args(json!({"mood": "good"}).as_object().unwrap())?;
        Ok(Served { scheduler: BatchOptions::new(&model), template: Some(template), model })
    });
    let client = running.client();
    let said = |more: Value| {
        let messages = json!([
            {"role": "developer", "content": "?"},
            {"role": "assistant", "content": "?", "reasoning": "so"},
            {"role": "ipython", "content": "?"},
        ]);
        let mut request = json!({"messages": messages});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.post(CHAT, &request).error(400)["message"].as_str().unwrap().to_owned()
    };
    let plain = said(json!({}));
    assert!(plain.contains("system assistant ipython|so|good|"), "{plain}");
    let asked = said(json!({"chat_template_kwargs": {"mood": [1, true]}}));
    assert!(asked.contains("|[1, True]|"), "{asked}");
}
