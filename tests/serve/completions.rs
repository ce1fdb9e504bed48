//! `/v1/completions`, field by field.

use serde_json::{Value, json};
use torchless::serve::Options;

use crate::common::http::Client;
use crate::common::server::Running;

fn running() -> Running {
    Running::new("llama-int8.bin", Options::default(), |_| {})
}

/// A request for twelve tokens, the most probable ones unless `more` says otherwise.
fn request(more: Value) -> Value {
    let mut request = json!({"prompt": "Once upon", "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn ask(client: &Client, more: Value) -> Value {
    client.post("/v1/completions", &request(more)).good()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn an_answer_has_the_shape_of_openais() {
    let running = running();
    let client = running.client();
    let answer = ask(&client, json!({"model": "llama-int8"}));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&"text_completion".into(), &"llama-int8".into()));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(answer["system_fingerprint"].as_str().unwrap().contains("llama-int8.bin"));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&0.into(), &"length".into()));
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &answer["usage"];
    let prompt = client.post("/tokenize", &json!({"content": "Once upon", "add_special": true})).good();
    let prompt = prompt["tokens"].as_array().unwrap().len();
    assert_eq!(usage["prompt_tokens"], prompt);
    assert_eq!((&usage["completion_tokens"], &usage["total_tokens"]), (&12.into(), &(prompt + 12).into()));
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
    assert_ne!(answer["id"], ask(&client, json!({}))["id"]);
}

#[test]
fn a_prompt_is_text_or_tokens_or_several() {
    let running = running();
    let client = running.client();
    let one = ask(&client, json!({}));
    let tokens = client.post("/tokenize", &json!({"content": "Once upon", "add_special": true})).good();
    let tokens = &tokens["tokens"];
    for prompt in [tokens.clone(), json!([tokens]), json!(["Once upon"])] {
        assert_eq!(text(&ask(&client, json!({"prompt": prompt}))), text(&one), "{prompt}");
    }
    let both = ask(&client, json!({"prompt": ["Once upon", "The sun"], "n": 2}));
    let choices = both["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    let other = ask(&client, json!({"prompt": "The sun"}));
    for (choice, (index, expected)) in choices.iter().zip([(0, &one), (1, &one), (2, &other), (3, &other)]) {
        assert_eq!((&choice["index"], choice["text"].as_str().unwrap()), (&index.into(), text(expected)));
    }
    assert_ne!(text(&one), text(&other));
    // A prompt that is answered twice counts once.
    let prompts =
        one["usage"]["prompt_tokens"].as_u64().unwrap() + other["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(both["usage"]["prompt_tokens"], prompts);
    assert_eq!(both["usage"]["completion_tokens"], 48);
}

#[test]
fn settings_change_the_text_and_seeds_repeat_it() {
    let running = running();
    let client = running.client();
    let warm = json!({"temperature": 1, "seed": 3});
    let base = ask(&client, warm.clone());
    assert_eq!((text(&base), &base["seed"]), (text(&ask(&client, warm.clone())), &3.into()));
    for change in [
        json!({"temperature": 0.1}),
        json!({"seed": 4}),
        json!({"top_p": 0.05}),
        json!({"top_k": 1}),
        json!({"min_p": 0.9}),
        json!({"typical_p": 0.05}),
        json!({"mirostat": 2, "mirostat_tau": 0.1}),
        json!({"logit_bias": {"40": 100}}),
    ] {
        let mut request = warm.clone();
        request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_ne!(text(&ask(&client, request)), text(&base), "{change}");
    }
    // A favourite is repeated, unless that costs it something.
    let favourite = json!({"logit_bias": {"40": 30}});
    let repeated = ask(&client, favourite.clone());
    for change in
        [json!({"presence_penalty": 50}), json!({"frequency_penalty": 50}), json!({"repeat_penalty": 50})]
    {
        let mut request = favourite.clone();
        request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_ne!(text(&ask(&client, request.clone())), text(&repeated), "{change}");
        request["repeat_last_n"] = 0.into();
        assert_eq!(text(&ask(&client, request)), text(&repeated), "{change}");
    }
    // Without a seed it is another each time, and said.
    let [one, two] = [0; 2].map(|_| ask(&client, json!({"temperature": 1})));
    assert_ne!(one["seed"], two["seed"]);
    assert_eq!(text(&ask(&client, json!({"temperature": 1, "seed": one["seed"]}))), text(&one));
}

#[test]
fn choices_are_those_of_the_seeds_that_follow() {
    let running = running();
    let client = running.client();
    let three = ask(&client, json!({"temperature": 1, "seed": 7, "n": 3, "best_of": 3}));
    for i in 0..3 {
        let one = ask(&client, json!({"temperature": 1, "seed": 7 + i}));
        assert_eq!(three["choices"][i]["text"], text(&one));
    }
}

#[test]
fn a_text_ends_before_a_stop_string() {
    let running = running();
    let client = running.client();
    let whole = ask(&client, json!({}));
    let middle: String = text(&whole).chars().skip(3).take(2).collect();
    let (before, _) = text(&whole).split_once(&middle).unwrap();
    for stop in [json!(middle), json!(["no such text", middle])] {
        let cut = ask(&client, json!({"stop": stop}));
        assert_eq!((text(&cut), &cut["choices"][0]["finish_reason"]), (before, &"stop".into()));
        let frames = client.stream("/v1/completions", &request(json!({"stop": stop, "stream": true}))).all();
        let streamed: String = frames.iter().map(text).collect();
        assert_eq!(streamed, before);
    }
}

#[test]
fn the_end_of_a_text_ends_it_unless_it_is_ignored() {
    let running = running();
    let client = running.client();
    let ending = json!({"logit_bias": {"2": 100}, "ignore_eos": false, "logprobs": 0});
    let ended = ask(&client, ending.clone());
    assert_eq!((text(&ended), &ended["choices"][0]["finish_reason"]), ("", &"stop".into()));
    assert_eq!(ended["usage"]["completion_tokens"], 1);
    // It is no part of the text.
    assert_eq!(ended["choices"][0]["logprobs"], Value::Null);
    let mut ignored = ending;
    ignored["ignore_eos"] = true.into();
    let ignored = ask(&client, ignored);
    assert_eq!(ignored["choices"][0]["finish_reason"], "length");
    assert_eq!(ignored["choices"][0]["logprobs"]["tokens"], json!(vec!["</s>"; 12]));
}

#[test]
fn nothing_said_of_length_is_sixteen_tokens() {
    let running = running();
    let answer = running.client().post("/v1/completions", &json!({"prompt": "a", "ignore_eos": true})).good();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[test]
fn log_probabilities_are_four_lists() {
    let running = running();
    let client = running.client();
    let answer = ask(&client, json!({"logprobs": 3}));
    let logprobs = &answer["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    assert!(
        ["tokens", "token_logprobs", "top_logprobs", "text_offset"].iter().all(|name| list(name).len() == 12)
    );
    for ((token, logprob), top) in list("tokens").iter().zip(list("token_logprobs")).zip(list("top_logprobs"))
    {
        let top = top.as_object().unwrap();
        assert_eq!(top.len(), 3);
        // The most probable one was chosen.
        let best = top.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap())).unwrap();
        assert_eq!((best.0.as_str(), best.1), (token.as_str().unwrap(), &logprob));
    }
    let offsets: Vec<u64> = list("text_offset").iter().map(|offset| offset.as_u64().unwrap()).collect();
    assert!(offsets[0] == 0 && offsets.is_sorted());
    let streamed = client.stream("/v1/completions", &request(json!({"logprobs": 3, "stream": true}))).all();
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let parts = streamed.iter().filter_map(|frame| frame["choices"][0]["logprobs"][name].as_array());
        assert_eq!(parts.flatten().cloned().collect::<Vec<_>>(), list(name));
    }
}

#[test]
fn a_stream_is_the_same_text_in_pieces() {
    let running = running();
    let client = running.client();
    let whole = ask(&client, json!({"n": 2, "temperature": 1, "seed": 1}));
    let streamed = json!({"n": 2, "temperature": 1, "seed": 1, "stream": true});
    let frames = client.stream("/v1/completions", &request(streamed)).all();
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of_choice = frames.iter().map(|frame| &frame["choices"][0]).filter(|c| c["index"] == index);
        let text: String = of_choice.clone().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(choice["text"], text);
        let reasons: Vec<_> = of_choice.map(|c| &c["finish_reason"]).filter(|r| !r.is_null()).collect();
        assert_eq!(reasons, [&choice["finish_reason"]]);
    }
    for frame in &frames {
        assert_eq!((&frame["id"], &frame["object"]), (&frames[0]["id"], &"text_completion".into()));
        assert!(frame.get("usage").is_none());
    }
}

#[test]
fn a_stream_says_what_it_took_where_that_is_asked_for() {
    let running = running();
    let client = running.client();
    let whole = ask(&client, json!({}));
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let frames = client.stream("/v1/completions", &request(options)).all();
    let (last, before) = frames.split_last().unwrap();
    assert!(before.iter().all(|frame| frame["usage"].is_null() && frame.get("usage").is_some()));
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
}
