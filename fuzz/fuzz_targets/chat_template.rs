//! Any chat template and any messages: nothing panics, nothing runs without end, and what a message says never becomes a
//! special token.
#![no_main]

use arbitrary::Arbitrary;
use torchless::chat::{ChatTemplate, Message, Role};
use torchless::tokenizer::{Kind, Spec, Tokenizer};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    template: &'a str,
    messages: Vec<(u8, &'a str)>,
    add_generation_prompt: bool,
    /// What is inserted into the template so many times: chains that are too long to parse do not come about byte by byte.
    part: &'a str,
    repeated: u16,
    /// Statements from [`STEPS`], run so many times, before the template: values that are too deep, or too many.
    steps: Vec<u8>,
    rounds: u32,
}

/// Makes values of values, and uses them.
const STEPS: [&str; 16] = [
    "{% set ns.s = [ns.s, ns.s] %}",
    "{% set ns.s = {'a': ns.s} %}",
    "{% set ns.s = (ns.s, ns.d) %}",
    "{% set ns.d = ns %}",
    "{% set ns.s = ns.s * 2 %}",
    "{% set ns.s = ns.s[0:] %}",
    "{% set ns.s = ns.s | reverse %}",
    "{% set ns.s = ns.s | batch(2) %}",
    "{% set ns.d = dict(a=ns.s) %}",
    "{% set ns.s = ns.d.items() %}",
    "{% set ns.s = ns.s ~ ns.s %}",
    "{{ ns.s }}",
    "{{ ns.s == ns.d }}",
    "{{ '{:>99999999999}'.format(ns.s) }}",
    "{{ ns | tojson }}",
    "{% set ns.s = ns.s[::ns.d] %}",
];

const START: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

/// All bytes, the space, and ChatML's special tokens.
fn tokenizer() -> Tokenizer {
    let mut vocab: Vec<_> = (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte)).collect();
    vocab.push(("▁".to_owned(), 256));
    let special_tokens = vec![(START.to_owned(), 257), (END.to_owned(), 258)];
    let spec = Spec {
        kind: Kind::Metaspace,
        vocab,
        special_tokens,
        bos_token_id: Some(257),
        eos_token_ids: vec![258],
        ..Spec::default()
    };
    Tokenizer::new(spec).expect("a sound vocabulary")
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let tokenizer = tokenizer();
    let role = |role: u8| [Role::System, Role::User, Role::Assistant][usize::from(role) % 3].clone();
    let messages: Vec<_> =
        input.messages.iter().map(|&(r, content)| Message::new(role(r), content)).collect();
    let steps: String =
        input.steps.iter().take(8).map(|&step| STEPS[usize::from(step) % STEPS.len()]).collect();
    let middle =
        input.template.char_indices().map(|(at, _)| at).nth(input.template.chars().count() / 2).unwrap_or(0);
    let (before, after) = input.template.split_at(middle);
    let source = format!(
        "{{% set ns = namespace(s=['x'], d={{'a': 1}}) %}}{{% for i in range({}) %}}{steps}{{% endfor %}}{before}{}{after}",
        input.rounds % 100_000,
        input.part.repeat(usize::from(input.repeated).min(300_000 / input.part.len().max(1))),
    );
    if let Ok(template) = ChatTemplate::new(&source, &tokenizer) {
        let _ = template.render(&messages, input.add_generation_prompt);
        let _ = template.encode(&tokenizer, &messages, input.add_generation_prompt);
    }
    let chatml = ChatTemplate::named("chatml", &tokenizer).expect("a template of our own");
    let ids =
        chatml.encode(&tokenizer, &messages, input.add_generation_prompt).expect("any message can be said");
    let count = |id: u32| ids.iter().filter(|&&i| i == id).count();
    assert_eq!(count(257), messages.len() + usize::from(input.add_generation_prompt), "{ids:?}");
    assert_eq!(count(258), messages.len(), "{ids:?}");
});
