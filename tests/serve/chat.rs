//! `/v1/chat/completions`, field by field.

use serde_json::{Value, json};
use torchless::serve::Options;

use crate::common::http::Client;
use crate::common::server::Running;

fn running() -> Running {
    Running::new("llama-int8.bin", Options::default(), |_| {})
}

/// A question, answered with twelve tokens.
fn request(more: Value) -> Value {
    let mut request = json!({
        "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 12, "temperature": 0, "ignore_eos": true,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn ask(client: &Client, more: Value) -> Value {
    client.post("/v1/chat/completions", &request(more)).good()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn an_answer_has_the_shape_of_openais() {
    let running = running();
    let client = running.client();
    let answer = ask(&client, json!({"model": "llama-int8"}));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["role"], &choice["message"]["refusal"]),
        (&"assistant".into(), &Value::Null)
    );
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&"length".into(), &Value::Null));
    assert!(!content(&answer).is_empty());
    assert_eq!(answer["usage"]["completion_tokens"], 12);
}

#[test]
fn a_conversation_is_the_text_its_template_makes_of_it() {
    let running = running();
    let client = running.client();
    let messages = json!([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"},
    ]);
    let text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n\
        <|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n";
    let chat = ask(&client, json!({"messages": messages}));
    let tokens = client.post("/tokenize", &json!({"content": text, "add_special": false})).good();
    let plain = json!({"prompt": tokens["tokens"], "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    let plain = client.post("/v1/completions", &plain).good();
    let plain_text = plain["choices"][0]["text"].as_str().unwrap();
    // A space before the first word belongs to no one.
    assert_eq!(content(&chat), plain_text.strip_prefix(' ').unwrap_or(plain_text));
    assert_eq!(chat["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
}

#[test]
fn content_may_come_in_parts_and_names_of_roles_may_be_new() {
    let running = running();
    let client = running.client();
    let plain = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why so?"}]);
    let parts = json!([
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": " so?"}]},
    ]);
    let [plain, parts] = [plain, parts].map(|messages| ask(&client, json!({"messages": messages})));
    assert_eq!(content(&plain), content(&parts));
    assert_eq!(plain["usage"]["total_tokens"], parts["usage"]["total_tokens"]);
}

#[test]
fn what_a_client_got_it_may_send_back() {
    let running = running();
    let client = running.client();
    let mut message = ask(&client, json!({}))["choices"][0]["message"].take();
    message["annotations"] = json!([]);
    message["audio"] = Value::Null;
    message["reasoning_content"] = "so".into();
    let messages = json!([{"role": "user", "content": "Why?"}, message, {"role": "user", "content": "And?"}]);
    ask(&client, json!({"messages": messages}));
}

#[test]
fn a_stream_is_the_same_message_in_pieces() {
    let running = running();
    let client = running.client();
    let settings = json!({"n": 2, "temperature": 1, "seed": 5, "logprobs": true, "top_logprobs": 2});
    let whole = ask(&client, settings.clone());
    let mut streamed = settings;
    (streamed["stream"], streamed["stream_options"]) = (true.into(), json!({"include_usage": true}));
    let frames = client.stream("/v1/chat/completions", &request(streamed)).all();
    let (last, frames) = frames.split_last().unwrap();
    assert_eq!(
        (&last["choices"], &last["usage"]["total_tokens"]),
        (&json!([]), &whole["usage"]["total_tokens"])
    );
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let mut of_choice = frames.iter().map(|frame| &frame["choices"][0]).filter(|c| c["index"] == index);
        assert_eq!(of_choice.next().unwrap()["delta"], json!({"role": "assistant", "content": ""}));
        let (mut content, mut logprobs, mut reasons) = (String::new(), Vec::new(), Vec::new());
        for part in of_choice {
            content += part["delta"]["content"].as_str().unwrap_or_default();
            logprobs.extend(part["logprobs"]["content"].as_array().into_iter().flatten().cloned());
            reasons.extend(part["finish_reason"].as_str());
        }
        assert_eq!(choice["message"]["content"], content);
        assert_eq!(choice["logprobs"]["content"], Value::from(logprobs));
        assert_eq!(reasons, [choice["finish_reason"].as_str().unwrap()]);
    }
    assert!(
        frames.iter().all(|frame| frame["object"] == "chat.completion.chunk" && frame["id"] == last["id"])
    );
}

#[test]
fn log_probabilities_come_with_bytes_and_alternatives() {
    let running = running();
    let client = running.client();
    let answer = ask(&client, json!({"logprobs": true, "top_logprobs": 4}));
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(entries.len(), 12);
    let mut bytes = Vec::new();
    for entry in entries {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 4);
        assert_eq!((&top[0]["bytes"], &top[0]["logprob"]), (&entry["bytes"], &entry["logprob"]));
        assert!(top.is_sorted_by_key(|t| -t["logprob"].as_f64().unwrap()));
        bytes.extend(entry["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8));
    }
    assert_eq!(String::from_utf8_lossy(&bytes).trim_start(), content(&answer).trim_start());
    let none = ask(&client, json!({"logprobs": true}));
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn an_answer_may_be_held_to_json() {
    let running = running();
    let client = running.client();
    let schema = json!({
        "type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"], "additionalProperties": false,
    });
    let format = json!({
        "type": "json_schema", "json_schema": {"name": "ab", "description": "two", "strict": true, "schema": schema},
    });
    let answer = ask(&client, json!({"response_format": format, "max_tokens": 100, "ignore_eos": false}));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let value: Value = serde_json::from_str(content(&answer)).unwrap();
    assert!(["x", "y"].contains(&value["a"].as_str().unwrap()) && value["b"].is_boolean());
    let any = json!({"response_format": {"type": "json_object"}, "max_tokens": 3});
    assert!(content(&ask(&client, any)).starts_with('{'));
    let text = ask(&client, json!({"response_format": {"type": "text"}}));
    assert_eq!(content(&text), content(&ask(&client, json!({}))));
}

#[test]
fn without_a_limit_an_answer_fills_the_context() {
    let running = Running::new("llama-int8.bin", Options::default(), |options| options.session.ctx = 96);
    let client = running.client();
    let mut request = request(json!({}));
    request.as_object_mut().unwrap().remove("max_tokens");
    let answer = client.post("/v1/chat/completions", &request).good();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert!(answer["usage"]["total_tokens"].as_u64().unwrap() >= 96);
    request["max_completion_tokens"] = 5.into();
    assert_eq!(client.post("/v1/chat/completions", &request).good()["usage"]["completion_tokens"], 5);
}
