use approx::{abs_diff_eq, assert_abs_diff_eq};
use proptest::prelude::*;

use super::*;

fn sample(settings: Sampling, logits: &[f32], recent: &[u32], draws: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(settings, logits.len()).unwrap();
    (0..draws).map(|_| sampler.sample(logits, recent).unwrap()).collect()
}

/// No step that cuts candidates.
fn open() -> Sampling {
    Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Sampling::default() }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    assert_eq!(sample(Sampling::greedy(), &[1.0, 3.0, 3.0, 2.0], &[], 1), [1]);
}

#[test]
fn frequencies_follow_the_probabilities() {
    let logits = [0.0, (3.0f32).ln(), f32::NEG_INFINITY];
    let draws = sample(open(), &logits, &[], 20_000);
    let ones = draws.iter().filter(|&&id| id == 1).count() as f64;
    assert!(!draws.contains(&2));
    // Three in four; five standard deviations are 0.0153.
    assert_abs_diff_eq!(ones / 20_000.0, 0.75, epsilon = 0.0153);
}

#[test]
fn temperature_sharpens() {
    let draws = sample(Sampling { temperature: 0.5, ..open() }, &[0.0, (3.0f32).ln()], &[], 20_000);
    let ones = draws.iter().filter(|&&id| id == 1).count() as f64;
    // 9 in 10.
    assert_abs_diff_eq!(ones / 20_000.0, 0.9, epsilon = 0.0106);
}

fn kinds(settings: Sampling, logits: &[f32]) -> Vec<u32> {
    let mut kinds = sample(settings, logits, &[], 2000);
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[test]
fn each_cut_keeps_what_it_says() {
    // Probabilities 0.4, 0.3, 0.2, 0.1 in a shuffled order of ids.
    let logits = [0.2f32, 0.4, 0.1, 0.3].map(f32::ln);
    assert_eq!(kinds(open(), &logits), [0, 1, 2, 3]);
    assert_eq!(kinds(Sampling { top_k: 2, ..open() }, &logits), [1, 3]);
    assert_eq!(kinds(Sampling { top_p: 0.65, ..open() }, &logits), [1, 3]);
    assert_eq!(kinds(Sampling { top_p: 0.75, ..open() }, &logits), [0, 1, 3]);
    assert_eq!(kinds(Sampling { min_p: 0.45, ..open() }, &logits), [0, 1, 3]);
    assert_eq!(kinds(Sampling { min_p: 1.0, ..open() }, &logits), [1]);
}

#[test]
fn typical_prefers_the_expected_surprise_to_the_most_probable() {
    // To the entropy, 1.64 nats, −ln 0.12 = 2.12 is nearer than −ln 0.4 = 0.92.
    let logits = [0.4f32, 0.12, 0.12, 0.12, 0.12, 0.12].map(f32::ln);
    assert_eq!(kinds(open().typical_p(0.45), &logits), [1, 2, 3, 4]);
    assert_eq!(kinds(open().typical_p(0.95), &logits), [0, 1, 2, 3, 4, 5]);
    assert_eq!(kinds(open().typical_p(0.25), &logits), [1, 2, 3]);
}

#[test]
fn frequency_penalty_counts_and_presence_penalty_does_not() {
    let penalised = |frequency, presence, logits: &[f32]| {
        let settings = Sampling::greedy().penalties(1.0, frequency, presence);
        sample(settings, logits, &[0, 0, 0, 1], 1)[0]
    };
    assert_eq!(penalised(0.5, 0.0, &[2.1, 1.0, 0.0]), 0);
    assert_eq!(penalised(0.5, 0.0, &[1.9, 1.0, 0.0]), 1);
    assert_eq!(penalised(0.0, 1.0, &[1.1, 1.0, 0.0]), 0);
    assert_eq!(penalised(0.0, 1.0, &[0.9, 0.5, 0.0]), 2);
}

#[test]
fn bias_lifts_and_forbids() {
    let logits = [1.0, 2.0, 0.0];
    assert_eq!(sample(Sampling::greedy().logit_bias(0, 1.5), &logits, &[], 1), [0]);
    assert_eq!(sample(Sampling::greedy().logit_bias(1, f32::NEG_INFINITY), &logits, &[], 1), [0]);
    assert_eq!(kinds(open().logit_bias(1, f32::NEG_INFINITY), &logits), [0, 2]);
}

#[test]
fn mirostat_steers_the_surprise_to_its_aim() {
    // 256 tokens with probabilities that fall like 1/(i+1): an entropy of some 6 bits.
    let logits: Vec<f32> = (0..256).map(|i| -((i + 1) as f32).ln()).collect();
    let total: f64 = (0..256).map(|i| 1.0 / f64::from(i + 1)).sum();
    for tau in [2.0, 3.0, 4.0] {
        let settings = open().mirostat(Mirostat { tau, eta: 0.1 });
        let mut sampler = Sampler::new(settings, 256).unwrap();
        let mut surprises = Vec::new();
        for _ in 0..4000 {
            let limit = sampler.most_surprise;
            let id = sampler.sample(&logits, &[]).unwrap();
            // Of what the whole distribution says, to see that the cut is where the limit is.
            let surprise = (f64::from(id + 1) * total).log2() as f32;
            assert!(id == 0 || surprise <= limit + 1e-3, "{surprise} bits with a limit of {limit}");
            surprises.push((limit - sampler.most_surprise) / 0.1 + tau);
        }
        let mean = surprises[500..].iter().sum::<f32>() / 3500.0;
        assert_abs_diff_eq!(mean, tau, epsilon = 0.1);
    }
}

/// What is left to draw from.
fn kept(settings: Sampling, logits: &[f32]) -> Vec<(u32, f32)> {
    let mut sampler = Sampler::new(settings, logits.len()).unwrap();
    sampler.logits.copy_from_slice(logits);
    sampler.cut();
    sampler.candidates
}

fn ids(mut kept: Vec<(u32, f32)>) -> Vec<u32> {
    kept.sort_unstable_by_key(|c| c.0);
    kept.into_iter().map(|c| c.0).collect()
}

/// Probabilities in double precision.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

fn some_logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![8 => -12.0f32..12.0, 1 => Just(1.0f32), 1 => Just(f32::NEG_INFINITY)];
    prop::collection::vec(logit, 1..60).prop_filter("one is possible", |l| l.iter().any(|l| l.is_finite()))
}

proptest! {
    #[test]
    fn cuts_keep_what_they_promise(logits in some_logits(), k in 0usize..70, p in 0.01f32..1.0, seed: u64) {
        let n = logits.len();
        let probabilities = softmax(&logits);
        let mass = |ids: &[u32]| ids.iter().map(|&id| probabilities[id as usize]).sum::<f64>();
        let p64 = f64::from(p);

        let best = ids(kept(open().top_k(k), &logits));
        prop_assert_eq!(best.len(), if k == 0 { n } else { k.min(n) });
        let worst = best.iter().map(|&id| logits[id as usize]).fold(f32::INFINITY, f32::min);
        prop_assert!((0..n as u32).all(|id| best.contains(&id) || logits[id as usize] <= worst));

        // A nucleus reaches its mass, and not without its least probable token.
        for (settings, sorted) in [(open().top_p(p), true), (open().typical_p(p), false)] {
            let nucleus = kept(settings, &logits);
            let nucleus_ids: Vec<u32> = nucleus.iter().map(|c| c.0).collect();
            prop_assert!(mass(&nucleus_ids) > p64 - 1e-5);
            if sorted {
                prop_assert!(mass(&nucleus_ids[..nucleus.len() - 1]) < p64 + 1e-5);
            }
            prop_assert!(nucleus.is_sorted_by(|a, b| better(a, b).is_lt()));
        }

        let likely = ids(kept(open().min_p(p), &logits));
        let limit = p64 * probabilities.iter().fold(0.0, |max: f64, &q| max.max(q));
        for id in 0..n as u32 {
            let q = probabilities[id as usize];
            prop_assert!(abs_diff_eq!(q, limit, epsilon = 1e-5 * limit) || likely.contains(&id) == (q > limit));
        }

        // And nothing else is drawn.
        for settings in [open().top_k(k), open().top_p(p), open().typical_p(p), open().min_p(p)] {
            let left = ids(kept(settings.clone(), &logits));
            let settings = Sampling { seed, ..settings };
            prop_assert!(sample(settings, &logits, &[], 20).iter().all(|id| left.contains(id)));
        }
    }

    #[test]
    fn what_is_drawn_is_possible_and_of_the_vocabulary(
        logits in some_logits(), recent in prop::collection::vec(0u32..80, 0..100), seed: u64,
        (typical, top_p, min_p) in (0.01f32..=1.0, 0.01f32..=1.0, 0.0f32..=1.0),
        temperature in 0.0f32..3.0, (repeat, frequency) in (0.5f32..2.0, -1.0f32..1.0), mirostat: bool,
    ) {
        let mut settings = Sampling { min_p, seed, ..open() }
            .typical_p(typical).top_p(top_p).temperature(temperature).penalties(repeat, frequency, 0.1);
        settings.mirostat = mirostat.then(Mirostat::default);
        let drawn = sample(settings.clone(), &logits, &recent, 5);
        prop_assert!(drawn.iter().all(|&id| logits[id as usize].is_finite()));
        prop_assert_eq!(drawn, sample(settings, &logits, &recent, 5));
    }

    #[test]
    fn settings_that_change_nothing_change_nothing(logits in some_logits(), recent in prop::collection::vec(0u32..60, 0..9)) {
        let idle = open().penalties(1.0, 0.0, 0.0).logit_bias(0, 0.0).typical_p(1.0);
        prop_assert_eq!(sample(idle, &logits, &recent, 9), sample(open(), &logits, &[], 9));
    }
}

#[test]
fn penalty_divides_positive_and_multiplies_negative_logits_once() {
    let settings = Sampling { repeat_penalty: 2.0, repeat_last_n: 3, ..Sampling::greedy() };
    assert_eq!(sample(settings.clone(), &[4.0, 3.0], &[0, 0], 1), [1]);
    assert_eq!(sample(settings.clone(), &[7.0, 3.0], &[0, 0], 1), [0]);
    assert_eq!(sample(settings.clone(), &[-1.0, -1.5], &[0], 1), [1]);
    assert_eq!(sample(settings, &[4.0, 3.0], &[0, 1, 1, 1], 1), [0]);
}

#[test]
fn seeds_repeat_and_differ() {
    let logits = [0.0; 50];
    let text = |seed| sample(Sampling { seed, ..open() }, &logits, &[], 20);
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

/// Logits of 40 tokens, every one another.
fn bumpy() -> Vec<f32> {
    (0..40).map(|i| ((i * 17 + 5) % 40) as f32 * 0.2 - 3.0).collect()
}

/// Detects changes and nothing else: these ids are the sampler's own word. That they are right rests on the tests
/// above: the cuts against probabilities in double precision, the frequencies of what is drawn, and the generator
/// against its authors' numbers in `pcg.rs`.
#[test]
fn a_seed_gives_the_ids_it_gave_when_they_were_written_down() {
    let recent = [3, 9, 9, 27, 31];
    let text = |settings| sample(settings, &bumpy(), &recent, 12);
    let penalised =
        Sampling { repeat_penalty: 1.3, top_k: 9, temperature: 1.5, seed: 1 << 40, ..Sampling::default() };
    for (settings, expected) in [
        (Sampling::default().seed(7), [23, 16, 2, 30, 30, 16, 4, 37, 23, 30, 2, 2]),
        (open().seed(7), [37, 16, 2, 4, 4, 23, 18, 11, 23, 37, 2, 2]),
        (penalised, [16, 11, 16, 4, 37, 23, 23, 30, 30, 30, 2, 2]),
    ] {
        assert_eq!(text(settings.clone()), expected, "{settings:?}");
    }
}

#[test]
fn impossible_settings_and_nan_are_refused() {
    for bad in [
        Sampling { temperature: -1.0, ..open() },
        Sampling { top_p: 0.0, ..open() },
        Sampling { min_p: 1.5, ..open() },
        Sampling { repeat_penalty: f32::NAN, ..open() },
        open().typical_p(0.0),
        open().penalties(1.0, f32::INFINITY, 0.0),
        open().mirostat(Mirostat { tau: -1.0, eta: 0.1 }),
        open().logit_bias(0, f32::NAN),
        open().logit_bias(0, f32::INFINITY),
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
    assert!(Sampler::new(open().logit_bias(2, 1.0), 2).is_err());
    let forbidding = open().logit_bias(0, f32::NEG_INFINITY).logit_bias(1, f32::NEG_INFINITY);
    let mut sampler = Sampler::new(forbidding, 2).unwrap();
    assert!(matches!(sampler.sample(&[0.0, 1.0], &[]), Err(Error::NoTokenLeft)));
    let mut sampler = Sampler::new(open(), 2).unwrap();
    for logit in [f32::NAN, f32::INFINITY] {
        assert!(matches!(sampler.sample(&[0.0, logit], &[]), Err(Error::NotANumber)));
    }
}

#[test]
fn where_nothing_is_left_or_a_logit_overflows_that_is_said() {
    let (least, most) = (f32::MIN, f32::MAX);
    let none =
        |s: Sampling| s.logit_bias(0, least).logit_bias(0, least).logit_bias(1, least).logit_bias(1, least);
    for settings in [Sampling::greedy(), open(), open().mirostat(Mirostat::default())] {
        let error = |settings, logits: &[f32], recent: &[u32]| {
            Sampler::new(settings, 2).unwrap().sample(logits, recent).unwrap_err()
        };
        let no_token = error(none(settings.clone()), &[-1.0, -1.0], &[]);
        assert!(matches!(no_token, Error::NoTokenLeft), "{no_token}");
        let grammar = error(settings.clone(), &[f32::NEG_INFINITY; 2], &[]);
        assert!(matches!(grammar, Error::NoTokenLeft), "{grammar}");
        let penalised = error(settings.clone().penalties(1.0, most, most), &[1.0, 1.0], &[0, 0, 1, 1]);
        assert!(matches!(penalised, Error::NoTokenLeft), "{penalised}");
        for (settings, logits) in [
            (settings.clone().logit_bias(0, most).logit_bias(0, most), [0.0, 0.0]),
            (settings.clone().penalties(1e-40, 0.0, 0.0), [1.0, 1.0]),
            (settings.clone().penalties(1.0, least, 0.0), [1.0, 1.0]),
            (settings.clone().penalties(1.0, least, 0.0), [f32::NEG_INFINITY, 1.0]),
        ] {
            let overflow = error(settings, &logits, &[0, 0]);
            assert!(matches!(overflow, Error::LogitOverflow), "{overflow}");
        }
    }
}

#[test]
fn extreme_temperatures_and_mirostat_choose_what_can_be_chosen() {
    for temperature in [f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX] {
        for logits in [[0.0, f32::NEG_INFINITY, f32::MIN], [f32::MAX, f32::NEG_INFINITY, f32::MIN]] {
            for tau in [0.0, 5.0, f32::MAX] {
                for eta in [0.0, 0.1, f32::MAX] {
                    let mirostat = Mirostat { tau, eta };
                    let settings =
                        [open(), open().typical_p(0.5), open().top_p(0.5), open().mirostat(mirostat)];
                    for settings in settings {
                        let ids = sample(settings.temperature(temperature), &logits, &[], 20);
                        assert!(!ids.contains(&1), "{ids:?} at {temperature}, {mirostat:?}");
                    }
                }
            }
        }
    }
}

/// What a sampler draws that sorts everything, in f64.
fn draw_of_sorted(rng: &mut Pcg32, settings: &Sampling, logits: &[f32]) -> u32 {
    let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    sorted.sort_by(better);
    let best = f64::from(sorted[0].1);
    let weight = |c: &(u32, f32), temperature: f32| ((f64::from(c.1) - best) / f64::from(temperature)).exp();
    let mass = f64::from(settings.top_p) * sorted.iter().map(|c| weight(c, 1.0)).sum::<f64>();
    let mut reached = 0.0;
    let needed = sorted.iter().take_while(|c| {
        let needed = reached < mass && weight(c, 1.0) >= f64::from(settings.min_p);
        reached += weight(c, 1.0);
        needed
    });
    let kept: Vec<_> = needed.copied().collect();
    let total: f64 = kept.iter().map(|c| weight(c, settings.temperature)).sum();
    let mut left = f64::from(rng.unit()) * total;
    let drawn = kept.iter().find(|c| {
        left -= weight(c, settings.temperature);
        left < 0.0
    });
    drawn.unwrap_or(&kept[0]).0
}

#[test]
fn what_is_drawn_of_all_is_what_sorting_everything_would_give() {
    let logits: Vec<f32> =
        (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 * 0.003).collect();
    for (top_p, min_p, temperature) in
        [(1.0, 0.0, 1.0), (1.0, 0.0, 3.0), (0.9, 0.0, 1.0), (0.95, 0.01, 0.7), (1.0, 0.05, 1.0)]
    {
        let settings = Sampling { top_p, min_p, temperature, seed: 5, ..open() };
        let mut rng = Pcg32::new(settings.seed);
        let drawn = sample(settings.clone(), &logits, &[], 500);
        let expected = drawn.iter().map(|_| draw_of_sorted(&mut rng, &settings, &logits));
        // In f32 a number near a border may fall to the next one.
        let differ = expected.zip(&drawn).filter(|(a, b)| a != *b).count();
        assert!(differ <= 2, "top_p {top_p}, min_p {min_p}, temperature {temperature}: {differ} of 500");
    }
}
