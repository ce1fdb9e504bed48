//! What holds of any logits, and of any way to cut a text into chunks.

mod common {
    pub mod fixture;
    pub mod model;
}

use proptest::prelude::*;
use std::sync::Arc;
use torchless::runtime::{Session, SessionOptions};
use torchless::sampling::{Sampler, Sampling};
use torchless::{Error, Model};

use common::model::model;

/// No step that cuts candidates.
fn open(seed: u64) -> Sampling {
    Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, seed, ..Sampling::default() }
}

fn draw(settings: &Sampling, logits: &[f32], n: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(settings.clone(), logits.len()).unwrap();
    (0..n).map(|_| sampler.sample(logits, &[]).unwrap() as usize).collect()
}

/// Logits that differ from one another by what an exponential still tells apart.
fn distinct_logits() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::hash_set(-200i16..200, 1..60)
        .prop_map(|set| set.into_iter().map(|step| f32::from(step) / 16.0).collect())
}

proptest! {
    /// Which id a token has is no part of the choice.
    #[test]
    fn the_order_of_the_vocabulary_does_not_matter(
        (logits, order) in distinct_logits().prop_flat_map(|l| {
            let order: Vec<usize> = (0..l.len()).collect();
            (Just(l), Just(order).prop_shuffle())
        }),
        top_k in 0usize..40,
        top_p in 0.1f32..=1.0,
        seed: u64,
    ) {
        let settings = Sampling { top_k, top_p, min_p: 0.02, temperature: 0.7, ..open(seed) };
        let shuffled: Vec<f32> = order.iter().map(|&i| logits[i]).collect();
        let back: Vec<usize> = draw(&settings, &shuffled, 20).into_iter().map(|id| order[id]).collect();
        prop_assert_eq!(draw(&settings, &logits, 20), back);
    }

    /// No temperature, and a single candidate however it comes about, are the most probable token.
    #[test]
    fn one_candidate_is_the_best(logits in distinct_logits(), seed: u64) {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for settings in [
            Sampling { temperature: 0.0, ..open(seed) },
            Sampling { top_k: 1, ..open(seed) },
            Sampling { top_p: 1e-6, ..open(seed) },
            Sampling { min_p: 1.0, ..open(seed) },
        ] {
            prop_assert!(draw(&settings, &logits, 5).iter().all(|&id| logits[id] == best), "{:?}", settings);
        }
    }

    /// Any bits at all: a token of the vocabulary, or the error that names what is wrong with them.
    #[test]
    fn any_logits_are_sampled_or_refused(bits in prop::collection::vec(any::<u32>(), 1..40), seed: u64) {
        let special = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0];
        let logits: Vec<f32> =
            bits.iter().map(|&b| if b % 3 == 0 { special[b as usize / 3 % 4] } else { f32::from_bits(b) }).collect();
        let settings = Sampling { repeat_penalty: 1.3, ..Sampling { seed, ..Sampling::default() } };
        let mut sampler = Sampler::new(settings, logits.len()).unwrap();
        match sampler.sample(&logits, &[0, 1, 2]) {
            Ok(id) => prop_assert!((id as usize) < logits.len()),
            Err(Error::NotANumber) => prop_assert!(logits.iter().any(|&l| l.is_nan() || l == f32::INFINITY)),
            // What is far below zero goes to −∞ by the penalty.
            Err(Error::NoTokenLeft) => prop_assert!(logits.iter().all(|&l| l <= f32::MIN / 1.3)),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}

/// All logits of `tokens`, fed in pieces of these lengths (the last again and again), as bits.
fn logits(model: &Arc<Model>, tokens: &[u32], pieces: &[usize], chunk: usize) -> Vec<Vec<u32>> {
    let options = SessionOptions { threads: 1, chunk, ..SessionOptions::new(model) };
    let mut session = Session::new(model, &options).unwrap();
    let mut found = Vec::new();
    let (mut rest, mut lengths) = (tokens, pieces.iter().copied());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(lengths.next().unwrap_or(1).clamp(1, rest.len()));
        let score = |_, logits: &[f32]| found.push(logits.iter().map(|l| l.to_bits()).collect());
        session.score(piece, score).unwrap();
        rest = after;
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The ring of a window of 16, overwritten several times, by pieces shorter and longer than itself.
    #[test]
    fn the_ring_is_the_same_however_it_is_filled(
        tokens in prop::collection::vec(3u32..60, 20..100),
        pieces in prop::collection::vec(1usize..50, 1..12),
        chunk in 1usize..40,
    ) {
        let model = model("mistral-int8.bin");
        assert_eq!(model.config().sliding_window, Some(16));
        let one_by_one = logits(&model, &tokens, &[], 1);
        prop_assert_eq!(logits(&model, &tokens, &pieces, chunk), one_by_one);
    }

    /// As long as the window has not moved, a model with one is a model without.
    #[test]
    fn inside_the_window_the_ring_is_a_full_cache(
        tokens in prop::collection::vec(3u32..60, 1..=16),
        pieces in prop::collection::vec(1usize..10, 1..5),
    ) {
        let with = model("mistral-int8.bin");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("full.bin");
        let mut bytes = std::fs::read(with.file().path()).unwrap();
        let (from, to) = (br#""sliding_window": "16""#, br#""sliding_window": """#);
        let at = bytes.windows(from.len()).position(|window| window == from).expect("the fixture has a window");
        bytes[at..at + from.len()].fill(b' ');
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&path, bytes).unwrap();
        let without = Arc::new(Model::open(&path).unwrap());
        assert_eq!(without.config().sliding_window, None);
        prop_assert_eq!(logits(&with, &tokens, &pieces, 8), logits(&without, &tokens, &[], 1));
    }
}
