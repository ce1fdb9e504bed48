//! What those who embed the library build on: sessions that own their model, threads that sessions share, and errors that say
//! what kind they are.

mod common {
    pub mod bits;
    pub mod converted;
    pub mod fixture;
    pub mod long;
    pub mod model;
    pub mod tokens;
}

use std::sync::Arc;
use std::thread;

use common::bits::bits;
use common::long::{long_model, long_model_as};
use common::model::model;
use common::tokens::tokens;
use rayon::prelude::*;
use torchless::chat::{Chat, ChatTemplate};
use torchless::format::convert::Quant;
use torchless::runtime::{GenerateOptions, Session, SessionOptions, Threads};
use torchless::sampling::{Grammar, Sampling};
use torchless::{Error, Model};

/// The bits of all logits of a sequence, on threads that others use as well.
fn bits_on(threads: &Arc<Threads>, model: &Arc<Model>, tokens: &[u32]) -> Vec<u32> {
    let options = SessionOptions { ctx: tokens.len(), chunk: 16, ..SessionOptions::new(model) };
    let mut session = Session::on_threads(model, &options, threads).unwrap();
    let mut bits = Vec::new();
    session.score(tokens, |_, logits| bits.extend(logits.iter().map(|l| l.to_bits()))).unwrap();
    bits
}

/// Some sequences of four models, and what they give by themselves.
fn sequences() -> Vec<(Arc<Model>, Vec<u32>, Vec<u32>)> {
    let files = ["llama-int8.bin", "ragged-int8.bin", "llama-int4.bin"].map(|file| long_model(file, None));
    let models = [&files[..], &[long_model_as("llama-int8.bin", None, Quant::Int8)]].concat();
    let sequence = |i: usize| {
        let model = Arc::clone(&models[i % 4]);
        let tokens = tokens(60 + 17 * i, model.config().vocab_size);
        let options = SessionOptions { ctx: tokens.len(), threads: 1, ..SessionOptions::new(&model) };
        let expected = bits(&model, &options, &tokens);
        (model, tokens, expected)
    };
    (0..8).map(sequence).collect()
}

#[test]
fn sessions_on_shared_threads_do_not_touch_each_other() {
    for count in [1, 2, 3] {
        let threads = Arc::new(Threads::new(count).unwrap());
        assert_eq!(threads.count(), count);
        thread::scope(|scope| {
            for (model, tokens, expected) in sequences() {
                let threads = &threads;
                scope.spawn(move || {
                    for _ in 0..3 {
                        assert!(bits_on(threads, &model, &tokens) == expected, "{count} threads");
                    }
                });
            }
        });
    }
}

/// A thread of a pool that waits takes up other work of its pool: perhaps another session on the same threads.
#[test]
fn threads_can_be_shared_from_within_another_pool() {
    let threads = Arc::new(Threads::new(2).unwrap());
    sequences().into_par_iter().for_each(|(model, tokens, expected)| {
        assert!(bits_on(&threads, &model, &tokens) == expected);
    });
}

#[test]
fn a_session_within_anothers_turn_goes_on() {
    let model = model("llama-int8.bin");
    let threads = Arc::new(Threads::new(2).unwrap());
    let options = SessionOptions::new(&model);
    let mut outer = Session::on_threads(&model, &options, &threads).unwrap();
    let mut inner = Session::on_threads(&model, &options, &threads).unwrap();
    let expected = inner.feed(&[1, 2]).unwrap().to_vec();
    inner.reset();
    let (first, second) = outer.install(|outer| {
        let first = outer.feed(&[1, 2]).unwrap().to_vec();
        (first, inner.feed(&[1, 2]).unwrap().to_vec())
    });
    assert_eq!((&first, &second), (&expected, &expected));
}

#[test]
fn sessions_and_chats_outlive_the_name_of_their_model() {
    struct Kept {
        session: Session,
        chat: Chat,
    }
    let kept = || {
        let model = model("llama-int8.bin");
        let options = SessionOptions::new(&model);
        let session = || Session::new(&model, &options).unwrap();
        let template = ChatTemplate::named("chatml", model.tokenizer()).unwrap();
        Kept { session: session(), chat: Chat::new(session(), template) }
    };
    let mut kept = thread::spawn(kept).join().unwrap();
    assert_eq!(kept.session.feed(&[1]).unwrap().len(), kept.session.model().config().vocab_size);
    assert_eq!(Arc::strong_count(kept.session.model()), 2, "the session's and the chat's");
    let options = GenerateOptions { max_tokens: 3, ..GenerateOptions::default() };
    kept.chat.send("she", &options, |_| std::ops::ControlFlow::Continue(())).unwrap();
}

#[test]
fn errors_say_their_kind() {
    let model = model("llama-int8.bin");
    let max = model.config().max_position_embeddings;
    let open = |ctx| Session::new(&model, &SessionOptions { ctx, ..SessionOptions::new(&model) });
    assert!(matches!(open(0).err(), Some(Error::ContextLength { ctx: 0, .. })));
    assert!(matches!(open(max + 1).err(), Some(Error::ContextLength { max: found, .. }) if found == max));

    let mut session = open(4).unwrap();
    assert!(matches!(session.feed(&[]), Err(Error::EmptyPrompt)));
    assert!(matches!(session.feed(&[1, 300]), Err(Error::UnknownToken { id: 300, vocab_size: 300 })));
    session.feed(&[1, 2, 3]).unwrap();
    let full = session.feed(&[4, 5]).unwrap_err();
    assert!(matches!(full, Error::ContextFull { tokens: 5, ctx: 4, max: found } if found == max), "{full}");
    assert!(full.to_string().contains(&format!("up to {max}")), "{full}");
    assert_eq!(session.position(), 3);

    let options = GenerateOptions { sampling: Sampling::default().top_p(2.0), ..GenerateOptions::default() };
    let wrong = session.generate(&[1], &options).err().unwrap();
    assert!(matches!(wrong, Error::Setting { name: "top_p", .. }), "{wrong}");
}

/// The trie of pieces is built once a model: with other tokens that end a text, a grammar still ends.
#[test]
fn grammars_of_several_generations_share_a_model() {
    let model = model("llama-int8.bin");
    let mut session = Session::new(&model, &SessionOptions::new(&model)).unwrap();
    for (pattern, stop_tokens) in [("the (rain|sun)", vec![]), ("a+b", vec![7]), ("the (rain|sun)", vec![8])]
    {
        let grammar = Some(Grammar::Regex(pattern.to_owned()));
        let options = GenerateOptions { grammar, stop_tokens, max_tokens: 100, ..GenerateOptions::default() };
        session.reset();
        let mut generation = session.generate(&[1, 2, 3], &options).unwrap();
        generation.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
        let text = generation.finish().text;
        let fits = match pattern {
            "a+b" => text.trim_end_matches('b').chars().all(|c| c == 'a'),
            _ => ["the rain", "the sun"].contains(&text.as_str()),
        };
        assert!(fits, "{pattern}: {text:?}");
    }
}
