//! Sequences that go through a model together: what each gives is what it gives alone, whoever its neighbours are, whatever was found
//! of it, and however often it was put back.

mod common {
    pub mod bits;
    pub mod converted;
    pub mod family;
    pub mod fixture;
    pub mod hash;
    pub mod long;
    pub mod random;
    pub mod tokens;
}

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use common::bits::bits;
use common::converted::converted;
use common::family::{FAMILIES, Family};
use common::long::{long_model, long_model_as};
use common::tokens::tokens;
use torchless::format::convert::Quant;
use torchless::kernels::{Isa, Kernels};
use torchless::kv::KvType;
use torchless::runtime::{
    Batch, BatchOptions, Event, Feed, GenerateOptions, Generated, Piece, Request, RequestId, Scheduler,
    SequenceId, Session, SessionOptions,
};
use torchless::sampling::{Grammar, Sampling};
use torchless::{Error, Model};

const CTX: usize = 700;

fn models() -> Vec<(&'static str, Arc<Model>)> {
    vec![
        ("llama-int8.bin in panels", long_model_as("llama-int8.bin", None, Quant::Int8)),
        ("llama-int4.bin", long_model("llama-int4.bin", None)),
        // With a sliding window.
        ("mistral-int8.bin", long_model("mistral-int8.bin", None)),
        ("ragged-int8.bin", long_model("ragged-int8.bin", Some(("4096", "100")))),
    ]
}

/// A sequence of numbers that looks like none.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A sequence, the bits of all its logits, and how far it has come.
struct Walk {
    tokens: Vec<u32>,
    expected: Vec<u32>,
    id: Option<SequenceId>,
}

/// Feeds pieces of any length of any of the sequences, ends some and begins them again, until all have come to their ends several times.
fn walk(model: &Arc<Model>, options: &BatchOptions, rounds: usize) -> usize {
    let vocab_size = model.config().vocab_size;
    let all = tokens(CTX, vocab_size);
    let mut walks: Vec<Walk> = [(0, 300), (0, 280), (1, 300), (7, 40), (0, 64), (0, 129)]
        .map(|(skipped, n)| {
            // Some have a beginning in common.
            let tokens = [&all[skipped..skipped + n / 2], &all[n..n + n / 2]].concat();
            let expected = bits(model, &SessionOptions { threads: 1, ..options.session.clone() }, &tokens);
            Walk { tokens, expected, id: None }
        })
        .into();
    let mut batch = Batch::new(model, options).unwrap();
    let (mut numbers, mut found, mut done) = (Numbers(7), 0, 0);
    while done < rounds {
        let mut planned = Vec::new();
        let mut left = batch.chunk();
        for (i, walk) in walks.iter_mut().enumerate() {
            if walk.id.is_none() && numbers.below(3) == 0 {
                walk.id = batch.add();
                found += walk.id.map_or(0, |id| batch.find(id, &walk.tokens));
            }
            let Some(id) = walk.id.filter(|_| left > 0 && numbers.below(4) > 0) else { continue };
            let at = batch.tokens(id).len();
            let n = match numbers.below(2) {
                0 => 1,
                _ => 1 + numbers.below(left.min(walk.tokens.len() - at)),
            };
            left -= n;
            planned.push((i, id, at, n, at + n == walk.tokens.len() || numbers.below(2) == 0));
        }
        if planned.is_empty() {
            continue;
        }
        let feed = |&(i, sequence, at, n, logits): &(usize, SequenceId, usize, usize, bool)| Feed {
            sequence,
            tokens: &walks[i].tokens[at..at + n],
            logits,
        };
        batch.feed(&planned.iter().map(feed).collect::<Vec<_>>()).unwrap();
        for (feed, &(i, id, at, n, logits)) in planned.iter().enumerate() {
            let walk = &mut walks[i];
            assert_eq!(batch.tokens(id), &walk.tokens[..at + n]);
            if logits {
                let found: Vec<u32> = batch.logits(feed).unwrap().iter().map(|l| l.to_bits()).collect();
                let last = at + n - 1;
                assert!(
                    found == walk.expected[last * vocab_size..(last + 1) * vocab_size],
                    "sequence {i}, position {last}, {n} tokens, beside {} others",
                    planned.len() - 1
                );
            } else {
                assert!(batch.logits(feed).is_err());
            }
            if at + n == walk.tokens.len() {
                batch.remove(id);
                walk.id = None;
                done += 1;
            }
        }
    }
    walks.iter().filter_map(|walk| walk.id).for_each(|id| batch.remove(id));
    let [_, used, _] = batch.pages();
    assert_eq!(used, 0, "all pages come back");
    found
}

#[test]
fn neighbours_and_what_is_found_change_no_bit() {
    for (name, model) in models() {
        for kv in [KvType::F32, KvType::F16, KvType::Int8] {
            let mut found = 0;
            for (threads, chunk) in [(1, 64), (3, 200)] {
                let session = SessionOptions { ctx: CTX, kv, threads, chunk, ..SessionOptions::new(&model) };
                found += walk(&model, &BatchOptions { session, parallel: 5, kv_memory: None }, 12);
            }
            assert!(found > 0, "{name}, {kv:?}: nothing was found");
        }
    }
}

#[test]
fn each_instruction_set_gives_the_same_bits_in_a_batch() {
    let model = long_model_as("llama-int8.bin", None, Quant::Int8);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let kernels = Kernels::new(isa).unwrap();
        let session = SessionOptions { ctx: CTX, threads: 2, kernels, ..SessionOptions::new(&model) };
        walk(&model, &BatchOptions { session, parallel: 6, kv_memory: None }, 8);
    }
}

#[test]
fn what_cannot_be_fed_is_refused_and_leaves_no_trace() {
    let model = long_model("llama-int8.bin", None);
    let session = SessionOptions { ctx: 100, chunk: 64, ..SessionOptions::new(&model) };
    let page = session.kv.bytes_a_position(model.config()) * 64;
    let options = BatchOptions { session, parallel: 2, kv_memory: Some(2 * page) };
    let mut batch = Batch::new(&model, &options).unwrap();
    let (one, two) = (batch.add().unwrap(), batch.add().unwrap());
    assert!(batch.add().is_none());
    let feed = |sequence, tokens| Feed { sequence, tokens, logits: true };
    let too_many = [1; 65];
    for (feeds, problem) in [
        (vec![], "0 tokens in one pass"),
        (vec![feed(one, &[][..])], "no tokens to feed"),
        (vec![feed(one, &[1]), feed(one, &[2])], "twice"),
        (vec![feed(one, &[1]), feed(two, &[100_000])], "token id 100000"),
        (vec![feed(one, &too_many)], "65 tokens in one pass"),
    ] {
        let error = batch.feed(&feeds).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
        assert_eq!((batch.tokens(one).len(), batch.tokens(two).len()), (0, 0));
    }
    batch.feed(&[feed(one, &[1; 64])]).unwrap();
    batch.feed(&[feed(one, &[1])]).unwrap();
    // Both pages are in use.
    assert!(matches!(batch.feed(&[feed(one, &[1]), feed(two, &[1])]), Err(Error::CacheFull)));
    assert_eq!((batch.tokens(one).len(), batch.tokens(two).len()), (65, 0));
    assert!(matches!(batch.feed(&[feed(one, &[1; 36])]), Err(Error::ContextFull { .. })));
    batch.remove(one);
    assert!(batch.feed(&[feed(one, &[1])]).is_err(), "it has ended");
    batch.feed(&[feed(two, &[1])]).unwrap();
    assert!(batch.logits(1).is_err());
}

/// What a request is to give: what a session gives alone.
fn alone(model: &Arc<Model>, prompt: &[u32], generate: &GenerateOptions) -> (Vec<Piece>, Generated) {
    let options = SessionOptions { ctx: CTX, threads: 1, ..SessionOptions::new(model) };
    let mut session = Session::new(model, &options).unwrap();
    let mut generation = session.generate(prompt, generate).unwrap();
    let pieces = generation.by_ref().map(Result::unwrap).collect();
    (pieces, generation.finish())
}

/// Requests of all kinds, several of which begin alike.
fn requests(model: &Arc<Model>) -> Vec<(Vec<u32>, GenerateOptions)> {
    let all = tokens(CTX, model.config().vocab_size);
    let request = |i: usize| {
        let prompt = [&all[..[150, 3, 70, 300][i % 4]], &all[i..i + 1 + i * 3]].concat();
        let generate = GenerateOptions {
            max_tokens: [30, 100, 1, 0, 75][i % 5],
            sampling: Sampling::default().temperature(1.0).penalties(1.1, 0.1, 0.1).seed(i as u64),
            ignore_eos: i.is_multiple_of(2),
            logprobs: i.is_multiple_of(3).then_some(2),
            grammar: (i % 7 == 3).then(|| Grammar::Regex("(a|b|c)+".to_owned())),
            ..GenerateOptions::default()
        };
        (prompt, generate)
    };
    (0..16).map(request).collect()
}

/// Makes all of them at the same time.
fn together(
    scheduler: &mut Scheduler,
    options: &BatchOptions,
    requests: &[(Vec<u32>, GenerateOptions)],
) -> Vec<(Vec<Piece>, Generated, usize)> {
    let mut numbers = HashMap::<RequestId, usize>::new();
    let mut pieces = vec![Vec::new(); requests.len()];
    let mut ends: Vec<Option<(Generated, usize)>> = vec![None; requests.len()];
    let mut waiting = requests.iter().enumerate();
    loop {
        // Some come while others are under way.
        for (i, (prompt, generate)) in waiting.by_ref().take(3) {
            let model = Arc::clone(scheduler.model());
            let watch = &mut || ControlFlow::Continue(());
            let request = Request::new(&model, options, prompt.clone(), generate, watch).unwrap();
            numbers.insert(scheduler.submit(request), i);
        }
        let went_on = scheduler.step(&mut |id, event| match event {
            Event::Piece(piece) => pieces[numbers[&id]].push(piece),
            Event::Finished(finished) => {
                ends[numbers[&id]] = Some((finished.generated, finished.cached_tokens));
            }
            Event::Failed(error) => panic!("{error}"),
        });
        if !went_on {
            break;
        }
    }
    let ends = ends.into_iter().map(|end| end.expect("it ended"));
    pieces.into_iter().zip(ends).map(|(pieces, (generated, cached))| (pieces, generated, cached)).collect()
}

fn assert_as_alone(
    model: &Arc<Model>,
    requests: &[(Vec<u32>, GenerateOptions)],
    results: &[(Vec<Piece>, Generated, usize)],
) {
    for (i, ((prompt, generate), (pieces, generated, cached))) in requests.iter().zip(results).enumerate() {
        let (expected_pieces, expected) = alone(model, prompt, generate);
        assert_eq!(*pieces, expected_pieces, "request {i}");
        assert_eq!((&generated.text, &generated.tokens), (&expected.text, &expected.tokens), "request {i}");
        assert_eq!(
            (generated.finish_reason, generated.complete),
            (expected.finish_reason, expected.complete)
        );
        assert_eq!(generated.timings.prompt_tokens, prompt.len() - cached);
    }
}

#[test]
fn a_text_is_the_same_alone_and_among_others() {
    for (name, model) in models() {
        let requests = requests(&model);
        for (parallel, threads, chunk) in [(1, 2, 512), (3, 1, 40), (16, 2, 512)] {
            let session = SessionOptions { ctx: CTX, threads, chunk, ..SessionOptions::new(&model) };
            let options = BatchOptions { session, parallel, kv_memory: None };
            let mut scheduler = Scheduler::new(&model, &options).unwrap();
            let fresh = scheduler.stats();
            scheduler.warm_up().unwrap();
            assert_eq!(scheduler.stats(), fresh, "nothing is left of it");
            for round in 0..2 {
                let results = together(&mut scheduler, &options, &requests);
                assert_as_alone(&model, &requests, &results);
                let cached: usize = results.iter().map(|(_, _, cached)| cached).sum();
                assert!(round == 0 || cached > 0, "{name}: nothing was found");
                let stats = scheduler.stats();
                assert_eq!((stats.queued, stats.running, stats.pages_used), (0, 0, 0));
            }
        }
    }
}

#[test]
fn a_text_that_was_put_back_is_the_same() {
    for (name, model) in models() {
        let mut requests = requests(&model);
        // They begin short, and grow.
        for (prompt, generate) in &mut requests {
            prompt.truncate(90);
            (generate.max_tokens, generate.ignore_eos, generate.grammar) = (300, true, None);
        }
        let session = SessionOptions { ctx: CTX, threads: 2, chunk: 100, ..SessionOptions::new(&model) };
        // Just what one of them may need.
        let pages =
            model.config().sliding_window.map_or(11, |window| (window + 100).div_ceil(64) + 1).min(11);
        let page = session.kv.bytes_a_position(model.config()) * 64;
        let options = BatchOptions { session, parallel: 8, kv_memory: Some(pages * page) };
        let mut scheduler = Scheduler::new(&model, &options).unwrap();
        let results = together(&mut scheduler, &options, &requests);
        assert_as_alone(&model, &requests, &results);
        assert!(scheduler.stats().preemptions > 0, "{name}: nobody was put back");
        assert_eq!(scheduler.stats().pages_used, 0);
    }
}

#[test]
fn what_is_cancelled_gives_its_pages_back_and_disturbs_nobody() {
    let model = long_model("llama-int8.bin", None);
    let session = SessionOptions { ctx: CTX, threads: 2, ..SessionOptions::new(&model) };
    let options = BatchOptions { session, parallel: 2, kv_memory: None };
    let mut scheduler = Scheduler::new(&model, &options).unwrap();
    let generate = GenerateOptions { max_tokens: 50, ignore_eos: true, ..GenerateOptions::default() };
    let request = |n| {
        let prompt = tokens(n, model.config().vocab_size);
        Request::new(&model, &options, prompt, &generate, &mut || ControlFlow::Continue(())).unwrap()
    };
    let [first, kept, waits] = [100, 200, 30].map(|n| scheduler.submit(request(n)));
    let mut text = String::new();
    for step in 0.. {
        match step {
            3 => scheduler.cancel(waits),
            5 => {
                let used = scheduler.stats().pages_used;
                scheduler.cancel(first);
                assert!(scheduler.stats().pages_used < used);
            }
            _ => {}
        }
        let went_on = scheduler.step(&mut |id, event| match event {
            Event::Piece(piece) if id == kept => text.push_str(&piece.text),
            Event::Piece(_) => assert!(id == first && step < 5),
            Event::Finished(_) => assert_eq!(id, kept),
            Event::Failed(error) => panic!("{error}"),
        });
        if !went_on {
            break;
        }
    }
    let (_, expected) = alone(&model, &tokens(200, model.config().vocab_size), &generate);
    assert_eq!(text, expected.text);
    assert_eq!((scheduler.stats().pages_used, scheduler.queued(), scheduler.running()), (0, 0, 0));
}

#[test]
fn a_context_that_the_memory_does_not_hold_is_refused() {
    let model = long_model("llama-int8.bin", None);
    let session = SessionOptions { ctx: CTX, ..SessionOptions::new(&model) };
    let page = session.kv.bytes_a_position(model.config()) * 64;
    let options = BatchOptions { session, parallel: 2, kv_memory: Some(4 * page) };
    let error = Scheduler::new(&model, &options).err().expect("too little memory").to_string();
    assert!(error.contains("256 positions"), "{error}");
}

/// Each architecture, in pieces of any length; of the one that has another rotary embedding in sequences of more than 32 tokens, what is
/// expected behind a piece is what a session gives that is fed so far in one go.
#[test]
fn every_architecture_gives_the_same_bits_in_a_batch() {
    let mut numbers = Numbers(3);
    for name in FAMILIES {
        let family = Family::named(name);
        let (_folder, model) = converted(family.folder().path(), Quant::Int8);
        let session = SessionOptions { ctx: 64, ..SessionOptions::new(&model) };
        let alone = |tokens: &[u32]| {
            let mut session = Session::new(&model, &session).unwrap();
            session.feed(tokens).unwrap().iter().map(|logit| logit.to_bits()).collect::<Vec<_>>()
        };
        let options = BatchOptions { session: session.clone(), parallel: 2, ..BatchOptions::new(&model) };
        let mut batch = Batch::new(&model, &options).unwrap();
        let ids = [batch.add().unwrap(), batch.add().unwrap()];
        let all = [family.tokens.clone(), family.tokens.iter().rev().copied().collect::<Vec<_>>()];
        let mut fed = [0, 0];
        while fed.iter().any(|&n| n < all[0].len()) {
            let pieces: Vec<(usize, usize)> = (0..2)
                .map(|i| (i, (1 + numbers.below(9)).min(all[i].len() - fed[i])))
                .filter(|(_, n)| *n > 0)
                .collect();
            let feed = |&(i, n): &(usize, usize)| Feed {
                sequence: ids[i],
                tokens: &all[i][fed[i]..fed[i] + n],
                logits: true,
            };
            batch.feed(&pieces.iter().map(feed).collect::<Vec<_>>()).unwrap();
            for (row, &(i, n)) in pieces.iter().enumerate() {
                fed[i] += n;
                let found: Vec<u32> =
                    batch.logits(row).unwrap().iter().map(|logit| logit.to_bits()).collect();
                assert!(found == alone(&all[i][..fed[i]]), "{name}: {} tokens of sequence {i}", fed[i]);
            }
        }
        assert_eq!(batch.tokens(ids[1]), all[1]);
    }
}
