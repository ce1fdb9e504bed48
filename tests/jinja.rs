//! What templates mean, against Jinja2 as transformers sets it up: see fixtures/chat/python.py.

use std::path::Path;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Map, Value};
use torchless::chat::{ChatTemplate, Message, Role, Tool};
use torchless::tokenizer::{Spec, Tokenizer};

#[derive(Deserialize)]
struct Goldens {
    messages: Vec<Value>,
    /// A template, and what it becomes; nothing where it is refused.
    expressions: Vec<(String, Option<String>)>,
    conversations: Vec<Conversation>,
}

#[derive(Deserialize)]
struct Conversation {
    template: String,
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    args: Map<String, Value>,
    prompt: bool,
    text: Option<String>,
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/chat"))
}

fn goldens() -> Goldens {
    let file = std::fs::File::open(folder().join("python.json.gz")).unwrap();
    serde_json::from_reader(GzDecoder::new(file)).unwrap()
}

fn tokenizer() -> Tokenizer {
    let vocab = ["<unk>", "<s>", "</s>", "a"].iter().zip(0..).map(|(p, id)| ((*p).to_owned(), id)).collect();
    Tokenizer::new(Spec { vocab, ..Spec::default() }).unwrap()
}

#[test]
fn expressions_mean_what_they_mean_to_jinja2() {
    let (goldens, tokenizer) = (goldens(), tokenizer());
    assert!(goldens.expressions.len() > 10_000);
    let messages = Message::read_all(goldens.messages).unwrap();
    let differ = goldens.expressions.iter().filter_map(|(template, expected)| {
        let found = ChatTemplate::new(template, &tokenizer).and_then(|t| t.render(&messages, false)).ok();
        (found != *expected).then(|| format!("{template} is {expected:?} and not {found:?}"))
    });
    let differ: Vec<_> = differ.collect();
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn conversations_are_shown_as_transformers_shows_them() {
    let (goldens, tokenizer) = (goldens(), tokenizer());
    assert!(goldens.conversations.len() > 500);
    for Conversation { template, messages, tools, args, prompt, text } in goldens.conversations {
        let source = std::fs::read_to_string(folder().join(format!("newer/{template}.jinja"))).unwrap();
        let asked = ChatTemplate::new(&source, &tokenizer).unwrap().with_args(&args).unwrap();
        let read = Message::read_all(messages.clone()).unwrap();
        let tools = tools.unwrap_or_default().into_iter().map(|tool| Tool::try_from(tool).unwrap());
        let found = asked.render_with_tools(&read, &tools.collect::<Vec<_>>(), prompt);
        assert_eq!(found.ok(), text, "{template}: {messages:?} {args:?}");
    }
}

#[test]
fn json_in_a_text_is_taken_apart() {
    let source =
        "{% set v = messages[0].content | fromjson %}{{ v.a[1] }} {{ v.b is none }} {{ v | tojson }}";
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(source, &tokenizer).unwrap();
    let render = |text: &str| template.render(&[Message::new(Role::User, text)], false);
    assert_eq!(render(r#"{"b": null, "a": [1, 2.5]}"#).unwrap(), r#"2.5 True {"b": null, "a": [1, 2.5]}"#);
    assert!(render("{").unwrap_err().to_string().contains("fromjson"));
}
