//! What is wrong with a request is said, by the field's name.

use serde_json::{Value, json};
use torchless::serve::Options;

use crate::common::server::Running;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[test]
fn what_is_wrong_is_named() {
    let running = Running::new("llama-int8.bin", Options::default(), |options| options.session.ctx = 64);
    let client = running.client();
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let image = json!([{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "data:"}}]);
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": schema});
    for (path, more, param, code) in [
        (TEXT, json!({"prompt": null}), "prompt", "invalid_value"),
        (TEXT, json!({"prompt": []}), "prompt", "invalid_value"),
        (TEXT, json!({"prompt": [1, "a"]}), "prompt", "invalid_value"),
        (TEXT, json!({"prompt": [[1], "a"]}), "prompt", "invalid_value"),
        (TEXT, json!({"prompt": [-1]}), "prompt", "invalid_value"),
        (TEXT, json!({"max_tokens": 0}), "max_tokens", "invalid_value"),
        (TEXT, json!({"max_tokens": 64}), "prompt", "context_length_exceeded"),
        (TEXT, json!({"prompt": "x".repeat(200), "max_tokens": 1}), "prompt", "context_length_exceeded"),
        (TEXT, json!({"prompt": "x".repeat(200), "max_tokens": null}), "prompt", "context_length_exceeded"),
        (TEXT, json!({"logprobs": 21}), "logprobs", "invalid_value"),
        (TEXT, json!({"logprobs": true}), "logprobs", "invalid_value"),
        (TEXT, json!({"echo": true}), "echo", "unsupported_parameter"),
        (TEXT, json!({"suffix": "end"}), "suffix", "unsupported_parameter"),
        (TEXT, json!({"best_of": 2}), "best_of", "unsupported_parameter"),
        (TEXT, json!({"messages": []}), "messages", "unknown_parameter"),
        (TEXT, json!({"logit_bias": {"300": 1}}), "logit_bias", "invalid_value"),
        (TEXT, json!({"model": "gpt-4"}), "model", "model_not_found"),
        (CHAT, json!({"messages": null}), "messages", "invalid_value"),
        (CHAT, json!({"messages": []}), "messages", "invalid_value"),
        (CHAT, json!({"messages": ["hi"]}), "messages[0]", "invalid_value"),
        (CHAT, json!({"messages": [{"role": "user"}]}), "messages[0].content", "invalid_value"),
        (CHAT, json!({"messages": user(json!(7))}), "messages[0].content", "invalid_value"),
        (CHAT, json!({"messages": user(image)}), "messages[0].content[1].type", "unsupported_parameter"),
        (
            CHAT,
            json!({"messages": [{"role": "not a word", "content": ""}]}),
            "messages[0].role",
            "invalid_value",
        ),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "", "mood": 1}]}),
            "messages[0].mood",
            "unknown_parameter",
        ),
        (CHAT, json!({"messages": user("x".repeat(200).into())}), "messages", "context_length_exceeded"),
        (
            CHAT,
            json!({"messages": user("x".repeat(200).into()), "max_tokens": null}),
            "messages",
            "context_length_exceeded",
        ),
        (CHAT, json!({"max_tokens": 60}), "messages", "context_length_exceeded"),
        (CHAT, json!({"max_tokens": 3, "max_completion_tokens": 4}), "max_tokens", "invalid_value"),
        (CHAT, json!({"top_logprobs": 2}), "top_logprobs", "invalid_value"),
        (CHAT, json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "invalid_value"),
        (CHAT, json!({"logprobs": 2}), "logprobs", "invalid_value"),
        (CHAT, json!({"response_format": "json"}), "response_format", "invalid_value"),
        (CHAT, json!({"response_format": {"type": "xml"}}), "response_format.type", "unsupported_parameter"),
        (
            CHAT,
            json!({"response_format": {"type": "text", "x": 1}}),
            "response_format.x",
            "unknown_parameter",
        ),
        (
            CHAT,
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            "invalid_value",
        ),
        (
            CHAT,
            json!({"response_format": schema(json!({}))}),
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        (CHAT, json!({"audio": {}}), "audio", "unsupported_parameter"),
        (CHAT, json!({"modalities": ["text", "audio"]}), "modalities", "unsupported_parameter"),
        (CHAT, json!({"chat_template_kwargs": 7}), "chat_template_kwargs", "invalid_value"),
        (CHAT, json!({"chat_template_kwargs": {"tools": []}}), "chat_template_kwargs", "invalid_value"),
        (CHAT, json!({"reasoning_effort": "high"}), "reasoning_effort", "unsupported_parameter"),
        (CHAT, json!({"temprature": 1}), "temprature", "unknown_parameter"),
        (CHAT, json!({"parallel_tool_calls": "yes"}), "parallel_tool_calls", "invalid_value"),
    ] {
        let mut request = match path {
            CHAT => json!({"messages": user("hi".into()), "max_tokens": 1}),
            _ => json!({"prompt": "hi", "max_tokens": 1}),
        };
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        for stream in [false, true] {
            request["stream"] = stream.into();
            let status = if code == "model_not_found" { 404 } else { 400 };
            let error = client.post(path, &request).error(status);
            assert_eq!((&error["param"], &error["code"]), (&param.into(), &code.into()), "{more}: {error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    // None of that has hurt it.
    client.post(TEXT, &json!({"prompt": "hi", "max_tokens": 1})).good();
}

#[test]
fn a_schema_that_cannot_be_read_is_said_to_be() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such"}}});
    let request = json!({"messages": [{"role": "user", "content": "hi"}], "response_format": format});
    let error = running.client().post(CHAT, &request).error(400);
    assert_eq!(error["param"], "response_format");
    assert!(error["message"].as_str().unwrap().contains("JSON schema"));
}

#[test]
fn a_prompt_that_is_no_prompt_is_refused() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let client = running.client();
    let error = client.post(TEXT, &json!({"prompt": [[]]})).error(400);
    assert!(error["message"].as_str().unwrap().contains("empty"));
    let error = client.post(TEXT, &json!({"prompt": [100_000]})).error(400);
    assert!(error["message"].as_str().unwrap().contains("100000"));
}

#[test]
fn what_is_no_json_is_refused() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let client = running.client();
    for body in ["", "{", "[]", "7", "{\"prompt\": \"a\"} x", "\u{0}", &"[".repeat(100_000)] {
        for path in [CHAT, TEXT, "/tokenize", "/detokenize"] {
            client.post_text(path, "application/json", body).error(400);
        }
    }
    client.post_text(TEXT, "application/x-www-form-urlencoded", "{\"prompt\": \"a\"}").error(415);
    client.post_text(TEXT, "application/json; charset=utf-8", "{\"prompt\": \"a\"}").good();
}

#[test]
fn addresses_and_methods_that_are_none_are_refused() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let client = running.client();
    assert_eq!(client.get("/v1/embeddings").error(404)["code"], "unknown_url");
    assert_eq!(client.get(TEXT).error(405)["code"], "method_not_supported");
    assert_eq!(client.get("/v1/models/gpt-4").error(404)["code"], "model_not_found");
}

#[test]
fn a_model_without_a_template_does_not_chat_and_says_so() {
    use std::sync::Arc;
    use torchless::Model;
    use torchless::runtime::BatchOptions;
    use torchless::serve::Served;

    let running = Running::ready(Options::default(), || {
        let model = Arc::new(Model::open(crate::common::fixture::fixture("llama-int8.bin"))?);
        Ok(Served { scheduler: BatchOptions::new(&model), template: None, model })
    });
    let client = running.client();
    let error = client.post(CHAT, &json!({"messages": [{"role": "user", "content": "hi"}]})).error(400);
    assert!(error["message"].as_str().unwrap().contains("no chat template"));
}
