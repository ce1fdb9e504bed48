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
}

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
    let role = |role: u8| [Role::System, Role::User, Role::Assistant][usize::from(role) % 3];
    let messages: Vec<_> = input.messages.iter().map(|&(r, content)| Message::new(role(r), content)).collect();
    if let Ok(template) = ChatTemplate::new(input.template, &tokenizer) {
        let _ = template.render(&messages, input.add_generation_prompt);
        let _ = template.encode(&tokenizer, &messages, input.add_generation_prompt);
    }
    let chatml = ChatTemplate::named("chatml", &tokenizer).expect("a template of our own");
    let ids = chatml.encode(&tokenizer, &messages, input.add_generation_prompt).expect("any message can be said");
    let count = |id: u32| ids.iter().filter(|&&i| i == id).count();
    assert_eq!(count(257), messages.len() + usize::from(input.add_generation_prompt), "{ids:?}");
    assert_eq!(count(258), messages.len(), "{ids:?}");
});
