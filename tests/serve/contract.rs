//! An answer depends on nothing but its request: it is `Session::generate`'s, alone and among others.

use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};
use torchless::Model;
use torchless::kernels::{Isa, Kernels};
use torchless::runtime::{GenerateOptions, Session, SessionOptions};
use torchless::sampling::{Grammar, Sampling};
use torchless::serve::Options;

use crate::common::fixture::fixture;
use crate::common::http::Client;
use crate::common::server::Running;

/// A request's answer: its text, and each token's log-probabilities as the server says them.
#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    logprobs: Vec<f64>,
    top: Vec<Vec<f64>>,
}

/// Requests that differ in all that matters.
fn requests() -> Vec<Value> {
    let prompts =
        ["Once upon a time", "Once upon a hill", "The", "é∂", "Once upon a time there was a sun and rain"];
    let settings = [
        json!({"temperature": 0}),
        json!({"temperature": 0.8, "seed": 11}),
        json!({"temperature": 1.3, "seed": 5, "top_p": 0.9, "top_k": 50, "min_p": 0.01}),
        json!({"temperature": 1, "seed": 2, "frequency_penalty": 0.5, "presence_penalty": 0.3, "repeat_penalty": 1.1}),
        json!({"temperature": 1, "seed": 9, "mirostat": 2, "logit_bias": {"40": 2}}),
    ];
    let mut requests = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        for (j, settings) in settings.iter().enumerate() {
            let mut request =
                json!({"prompt": prompt, "max_tokens": 10 + 7 * i + j, "logprobs": 3, "ignore_eos": true});
            request.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
            requests.push(request);
        }
    }
    requests
}

/// What the library makes of a request.
fn expected(model: &Arc<Model>, request: &Value) -> Answer {
    let number = |field: &str, default: f64| request[field].as_f64().unwrap_or(default) as f32;
    let mut sampling = Sampling {
        temperature: number("temperature", 1.0),
        top_p: number("top_p", 1.0),
        top_k: number("top_k", 0.0) as usize,
        min_p: number("min_p", 0.0),
        ..Sampling::default()
    };
    sampling = sampling.seed(request["seed"].as_u64().unwrap_or(0)).penalties(
        number("repeat_penalty", 1.0),
        number("frequency_penalty", 0.0),
        number("presence_penalty", 0.0),
    );
    sampling.mirostat = request["mirostat"].is_u64().then(Default::default);
    for (id, bias) in request["logit_bias"].as_object().into_iter().flatten() {
        sampling = sampling.logit_bias(id.parse().unwrap(), bias.as_f64().unwrap() as f32);
    }
    let options = GenerateOptions {
        max_tokens: request["max_tokens"].as_u64().unwrap() as usize,
        sampling,
        ignore_eos: true,
        logprobs: Some(3),
        ..GenerateOptions::default()
    };
    let mut session = Session::new(model, &SessionOptions::new(model)).unwrap();
    let prompt = model.tokenizer().encode(request["prompt"].as_str().unwrap(), Default::default());
    let mut answer = Answer { text: String::new(), logprobs: Vec::new(), top: Vec::new() };
    for piece in session.generate(&prompt, &options).unwrap() {
        let piece = piece.unwrap();
        let logprobs = piece.logprobs.unwrap();
        answer.text += &piece.text;
        answer.logprobs.push(in_json(logprobs.chosen));
        answer.top.push(logprobs.top.iter().map(|(_, logprob)| in_json(*logprob)).collect());
    }
    answer
}

/// A number as it is after it was written and read: the reader is not exact.
fn in_json(number: f64) -> f64 {
    serde_json::from_str(&number.to_string()).unwrap()
}

/// What the server makes of it, streamed or not.
fn asked(client: &Client, request: &Value, stream: bool) -> Answer {
    let mut request = request.clone();
    request["stream"] = stream.into();
    let parts = match stream {
        true => client.stream("/v1/completions", &request).all(),
        false => vec![client.post("/v1/completions", &request).good()],
    };
    let mut answer = Answer { text: String::new(), logprobs: Vec::new(), top: Vec::new() };
    for part in parts {
        let choice = &part["choices"][0];
        answer.text += choice["text"].as_str().unwrap();
        let list = |name: &str| choice["logprobs"][name].as_array().cloned().unwrap_or_default();
        answer.logprobs.extend(list("token_logprobs").iter().map(|logprob| logprob.as_f64().unwrap()));
        answer.top.extend(list("top_logprobs").iter().map(|top| {
            let mut top: Vec<f64> =
                top.as_object().unwrap().values().map(|logprob| logprob.as_f64().unwrap()).collect();
            top.sort_by(|a, b| b.total_cmp(a));
            top
        }));
    }
    answer
}

#[test]
fn answers_are_the_librarys_alone_and_among_many() {
    for (file, parallel, threads, isa, kv_memory) in [
        ("llama-int8.bin", 1, 2, None, None),
        ("llama-int8.bin", 32, 1, None, None),
        // Seven pages, so that some are put back.
        ("llama-int8.bin", 8, 1, None, Some(7 * 64 * 512)),
        ("llama-int8.bin", 3, 1, Some(Isa::Scalar), None),
        ("mistral-int8.bin", 5, 2, None, None),
        ("llama-int4.bin", 8, 1, Some(Isa::Portable), None),
    ] {
        let model = Arc::new(Model::open(fixture(file)).unwrap());
        let requests = requests();
        let expected: Vec<Answer> = requests.iter().map(|request| expected(&model, request)).collect();
        let running = Running::new(file, Options::default(), move |options| {
            (options.parallel, options.session.threads, options.kv_memory) = (parallel, threads, kv_memory);
            options.session.kernels = isa.map_or(options.session.kernels, |isa| Kernels::new(isa).unwrap());
        });
        let client = running.client();
        for (request, expected) in requests.iter().zip(&expected).take(6) {
            assert_eq!(&asked(&client, request, false), expected, "{file} alone: {request}");
        }
        // 32 at once, some the same: prefixes are shared, and found again.
        thread::scope(|scope| {
            for i in 0..32 {
                let (client, at) = (running.client(), i % requests.len());
                let (request, expected) = (&requests[at], &expected[at]);
                scope.spawn(move || {
                    let answer = asked(&client, request, i % 2 == 0);
                    assert_eq!(&answer, expected, "{file} among others: {request}");
                });
            }
        });
    }
}

#[test]
fn a_grammar_gives_the_librarys_text_as_well() {
    let model = Arc::new(Model::open(fixture("llama-int8.bin")).unwrap());
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let neutral = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
    let options = GenerateOptions {
        max_tokens: 40,
        sampling: neutral.temperature(1.0).seed(4),
        grammar: Some(Grammar::JsonSchema(schema.clone())),
        ..GenerateOptions::default()
    };
    let running = Running::new("llama-int8.bin", Options::default(), |_| {});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    let messages = json!([{"role": "user", "content": "a?"}]);
    let request = json!({"messages": messages, "seed": 4, "max_tokens": 40, "response_format": format});
    let answer = running.client().post("/v1/chat/completions", &request).good();
    let text = "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n";
    let tokens = running.client().post("/tokenize", &json!({"content": text})).good();
    let prompt: Vec<u32> = serde_json::from_value(tokens["tokens"].clone()).unwrap();
    let mut session = Session::new(&model, &SessionOptions::new(&model)).unwrap();
    let pieces = session.generate(&prompt, &options).unwrap();
    let expected: String = pieces.map(|piece| piece.unwrap().text).collect();
    assert_eq!(answer["choices"][0]["message"]["content"], expected.trim_start());
}
