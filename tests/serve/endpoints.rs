//! What is not a completion: models, tokens, health, figures, the page.

use std::sync::{Arc, mpsc};

use serde_json::{Value, json};
use torchless::runtime::BatchOptions;
use torchless::serve::{Options, Served};
use torchless::tokenizer::EncodeOptions;
use torchless::{Error, Model};

use crate::common::fixture::fixture;
use crate::common::server::Running;

#[test]
fn the_model_is_listed_under_its_name() {
    for (alias, name) in [(None, "llama-int8"), (Some("my/model"), "my/model")] {
        let options = Options { alias: alias.map(str::to_owned), ..Options::default() };
        let running = Running::new("llama-int8.bin", options, |options| options.session.ctx = 99);
        let client = running.client();
        let list = client.get("/v1/models").good();
        assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&"list".into(), 1));
        let model = &list["data"][0];
        assert_eq!(
            (&model["id"], &model["object"], &model["context_length"]),
            (&name.into(), &"model".into(), &99.into())
        );
        assert_eq!(&client.get(&format!("/v1/models/{}", name.replace('/', "%2F"))).good(), model);
        let request = json!({"model": name, "prompt": "a", "max_tokens": 1});
        assert_eq!(client.post("/v1/completions", &request).good()["model"], name);
    }
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let client = running.client();
    let model = Model::open(fixture("llama-int8.bin")).unwrap();
    let content = "Once <s> upon é";
    for (bos, special) in [(false, false), (false, true), (true, false), (true, true)] {
        let request = json!({"content": content, "add_special": bos, "parse_special": special});
        let expected = model.tokenizer().encode(content, EncodeOptions { bos, special });
        assert_eq!(client.post("/tokenize", &request).good(), json!({"tokens": expected}));
    }
    // llama-server's defaults.
    let tokens = client.post("/tokenize", &json!({"content": content})).good()["tokens"].take();
    let expected = model.tokenizer().encode(content, EncodeOptions { bos: false, special: true });
    assert_eq!(tokens, json!(expected));
    let back = client.post("/detokenize", &json!({"tokens": tokens})).good();
    assert_eq!(back["content"], model.tokenizer().decode_with_special(&expected));
    let pieces = client.post("/tokenize", &json!({"content": "é", "with_pieces": true})).good();
    let bytes: Vec<u8> = pieces["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|token| match &token["piece"] {
            Value::String(text) => text.as_bytes().to_vec(),
            bytes => serde_json::from_value(bytes.clone()).unwrap(),
        })
        .collect();
    assert!(String::from_utf8(bytes).unwrap().ends_with('é'));
    assert_eq!(client.post("/tokenize", &json!({})).error(400)["param"], "content");
    assert_eq!(client.post("/tokenize", &json!({"content": "a", "x": 1})).error(400)["param"], "x");
    assert_eq!(client.post("/detokenize", &json!({"tokens": [100_000]})).error(400)["param"], "tokens");
    assert_eq!(client.post("/detokenize", &json!({"tokens": "a"})).error(400)["param"], "tokens");
}

#[test]
fn a_server_that_loads_says_so() {
    let (go, gone) = mpsc::channel::<()>();
    let running = Running::loading(Options::default(), move || {
        gone.recv().unwrap();
        let model = Arc::new(Model::open(fixture("llama-int8.bin"))?);
        Ok(Served { scheduler: BatchOptions::new(&model), template: None, model })
    });
    let client = running.client();
    let loading = client.get("/health");
    assert_eq!((loading.status, loading.json()), (503, json!({"status": "loading"})));
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        let refused = client.post(path, &json!({}));
        assert_eq!(refused.error(503)["code"], "model_loading");
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(client.get("/v1/models").error(503)["code"], "model_loading");
    assert!(client.get("/metrics").status == 200 && client.get("/").status == 200);
    go.send(()).unwrap();
    while client.get("/health").status != 200 {
        std::thread::yield_now();
    }
    assert_eq!(client.get("/health").good(), json!({"status": "ready"}));
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let running = Running::loading(Options::default(), || {
        Model::open("no-such.bin").map(|_| unreachable!("there is none"))
    });
    let error = running.join().unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn figures_count_what_was_done() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let client = running.client();
    let answer = client
        .post("/v1/completions", &json!({"prompt": "Once", "max_tokens": 3, "ignore_eos": true}))
        .good();
    client.post("/v1/completions", &json!({})).error(400);
    client.get("/nowhere").error(404);
    let reply = client.get("/metrics");
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let prompt = &answer["usage"]["prompt_tokens"];
    for line in [
        "torchless_requests_total{endpoint=\"/v1/completions\",status=\"200\"} 1",
        "torchless_requests_total{endpoint=\"/v1/completions\",status=\"400\"} 1",
        "torchless_requests_total{endpoint=\"none\",status=\"404\"} 1",
        "torchless_generated_tokens_total 3",
        &format!("torchless_prompt_tokens_total {prompt}"),
        "torchless_queued 0",
        "torchless_running 0",
        "torchless_pages_used 0",
        "torchless_time_to_first_token_seconds_count 1",
        "torchless_engine_restarts_total 0",
        "# TYPE torchless_cached_tokens_total counter",
    ] {
        // A request is counted when its answer has been sent, which the client may see first.
        let mut tries = (0..1000).map(|_| client.get("/metrics").body);
        assert!(
            tries.any(|body| body.lines().any(|known| known == line)),
            "no {line} in:\n{}",
            client.get("/metrics").body
        );
    }
}

#[test]
fn the_page_may_reach_nothing_but_this_server() {
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let reply = running.client().get("/");
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert_eq!(reply.body, include_str!("../../src/serve/page.html"));
}

#[test]
fn whoever_has_not_the_key_gets_nothing() {
    let options = Options { api_key: Some("a secret".to_owned()), ..Options::default() };
    let running = Running::new("llama-int8.bin", options, |_| {});
    let mut client = running.client();
    let request = json!({"prompt": "a", "max_tokens": 1});
    for wrong in [None, Some("Bearer a secreT"), Some("Bearer "), Some("a secret"), Some("Basic a secret")] {
        client.headers = wrong.map(|key| ("authorization", key.to_owned())).into_iter().collect();
        for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
            let refused = client.post(path, &request);
            assert_eq!(refused.error(401)["code"], "invalid_api_key", "{wrong:?}");
            assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        }
        client.get("/v1/models").error(401);
        assert!(["/", "/health", "/metrics"].iter().all(|path| client.get(path).status == 200));
    }
    client.headers = vec![("authorization", "bearer a secret".to_owned())];
    client.post("/v1/completions", &request).good();
    client.get("/v1/models").good();
}

#[test]
fn pages_of_other_origins_may_ask_only_where_that_was_said() {
    let request = json!({"prompt": "a", "max_tokens": 1});
    for (cors, origin, allowed) in [
        (None, "https://a.example", None),
        (Some("https://a.example"), "https://a.example", Some("https://a.example")),
        (Some("https://a.example"), "https://b.example", Some("https://a.example")),
        (Some("*"), "https://b.example", Some("*")),
    ] {
        let options = Options { cors: cors.map(|cors| cors.parse().unwrap()), ..Options::default() };
        let running = Running::new("llama-int8.bin", options, |_| {});
        let mut client = running.client();
        client.headers = vec![("origin", origin.to_owned())];
        let reply = client.post("/v1/completions", &request);
        assert_eq!(reply.header("access-control-allow-origin"), allowed);
        client.headers.push(("access-control-request-method", "POST".to_owned()));
        client.headers.push(("access-control-request-headers", "authorization,x-stainless-os".to_owned()));
        let reply = client.options("/v1/completions");
        assert_eq!(reply.header("access-control-allow-origin"), allowed);
        let headers = reply.header("access-control-allow-headers");
        assert_eq!(headers, cors.map(|_| "authorization,x-stainless-os"));
    }
}
