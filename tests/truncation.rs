//! Going back in a session: what is left of a sequence is what would be there had the rest never been fed.

mod common {
    pub mod converted;
    pub mod fixture;
    pub mod long;
    pub mod model;
    pub mod tokens;
}

use torchless::format::convert::Quant;
use torchless::kv::KvType;
use torchless::runtime::{Session, SessionOptions};

use common::long::{long_model, long_model_as};
use common::model::model;
use common::tokens::tokens;

#[test]
fn going_back_to_any_place_leaves_no_trace() {
    for name in ["llama-int8.bin", "mistral-int8.bin", "ragged-int8.bin"] {
        let model = model(name);
        let new = || Session::new(&model, &SessionOptions::new(&model)).unwrap();
        let tokens: Vec<u32> = (3..63).collect();
        // With a window of 16 only what is short goes back far; what does go back must be right.
        for (fed, back) in [(12, 5), (12, 0), (60, 59), (60, 58), (60, 50), (60, 0)] {
            let mut session = new();
            session.feed(&tokens[..fed]).unwrap();
            assert!(session.truncate(fed + 1).is_err());
            let went = session.truncate(fed - 1).and_then(|()| session.truncate(back));
            assert!(went.is_ok() || (fed == 60 && name.starts_with("mistral")), "{name}: {fed} to {back}");
            let left = if went.is_ok() { back } else { fed - 1 };
            assert_eq!(session.position(), left);
            let logits = session.feed(&[20, 21]).unwrap().to_vec();
            assert_eq!(logits, new().feed(&[&tokens[..left], &[20, 21]].concat()).unwrap(), "{name}: {left}");
        }
    }
}

#[test]
fn going_back_twice_leaves_no_trace() {
    for name in ["llama-int8.bin", "mistral-int8.bin"] {
        let model = model(name);
        let mut session = Session::new(&model, &SessionOptions::new(&model)).unwrap();
        session.feed(&[1, 2, 3]).unwrap();
        let expected = session.feed(&[4]).unwrap().to_vec();
        session.truncate(3).unwrap();
        session.feed(&[9, 8, 7, 6, 5]).unwrap();
        session.truncate(3).unwrap();
        assert_eq!(session.feed(&[4]).unwrap(), expected);
        assert_eq!(session.position(), 4);
    }
}

#[test]
fn what_a_window_has_lost_cannot_come_back() {
    let model = model("mistral-int8.bin");
    let options = SessionOptions { chunk: 4, ..SessionOptions::new(&model) };
    let mut session = Session::new(&model, &options).unwrap();
    session.feed(&[1; 200]).unwrap();
    for impossible in [10, 201] {
        assert!(session.truncate(impossible).is_err());
        assert_eq!(session.position(), 200);
    }
    session.truncate(190).unwrap();
    // Having gone back does not bring back what was overwritten on the way there.
    assert!(session.truncate(10).is_err());
}

/// In contexts of several of attention's spans.
#[test]
fn going_back_far_leaves_no_trace() {
    let window = Some(("4096", "300"));
    for (file, model) in [
        ("llama-int8.bin", long_model("llama-int8.bin", None)),
        ("llama-int8.bin in panels", long_model_as("llama-int8.bin", None, Quant::Int8)),
        ("llama-int4.bin", long_model("llama-int4.bin", None)),
        ("ragged-int8.bin", long_model("ragged-int8.bin", window)),
    ] {
        let tokens = tokens(620, model.config().vocab_size);
        for kv in [KvType::F32, KvType::F16, KvType::Int8] {
            let options = SessionOptions { ctx: 700, kv, chunk: 64, ..SessionOptions::new(&model) };
            let mut straight = Session::new(&model, &options).unwrap();
            let expected = straight.feed(&tokens).unwrap().to_vec();

            let mut session = Session::new(&model, &options).unwrap();
            session.feed(&tokens[..600]).unwrap();
            session.feed(&tokens[..40]).unwrap();
            session.truncate(590).unwrap();
            assert_eq!(session.position(), 590);
            assert_eq!(session.feed(&tokens[590..]).unwrap(), expected, "{file}, {kv:?}");
        }
    }
}

/// What is behind a window is forgotten page by page: going back further than that is refused, and leaves the session as it was.
#[test]
fn going_back_behind_what_is_kept_is_refused() {
    let model = long_model("mistral-int8.bin", None);
    let options = SessionOptions { ctx: 700, chunk: 16, ..SessionOptions::new(&model) };
    let mut session = Session::new(&model, &options).unwrap();
    let tokens = tokens(500, model.config().vocab_size);
    session.feed(&tokens).unwrap();
    assert!(session.truncate(501).is_err());
    assert!(session.truncate(300).is_err());
    assert_eq!(session.position(), 500);
    // Truncated step by step, it remembers what was given back.
    session.truncate(480).unwrap();
    assert!(session.truncate(390).is_err());
    session.truncate(400).unwrap();
    session.reset();
    assert_eq!(session.position(), 0);
    session.feed(&tokens[..10]).unwrap();
    session.truncate(3).unwrap();
}
