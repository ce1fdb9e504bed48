//! From logits to the next token.
//!
//! The steps and their order are llama.cpp's: repetition penalty, top-k, top-p, min-p, temperature, draw. Everything
//! is deterministic arithmetic: one seed gives one text on every machine.

use torchless_kernels::{Kernels, scalar};

use crate::Error;

/// How to choose the next token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 chooses the most probable token always, the lowest id among equals.
    pub temperature: f32,
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens that together reach this probability; 1 keeps all (Holtzman et al. 2019).
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable; 0 keeps all (Nguyen et al. 2024).
    pub min_p: f32,
    /// Divides positive logits (and multiplies negative ones) of recent tokens; 1 changes nothing (Keskar et al. 2019).
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty is for.
    pub repeat_last_n: usize,
    /// Seeds the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// # Errors
    /// Names the first setting that is out of range.
    pub fn check(&self) -> Result<(), Error> {
        let settings = [
            ("temp", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and up to 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("repeat-penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "above 0"),
        ];
        match settings.into_iter().find(|&(_, value, ok, _)| !(ok && value.is_finite())) {
            Some((name, value, _, range)) => {
                Err(Error::Request(format!("--{name} {value}: give a number {range}")))
            }
            None => Ok(()),
        }
    }
}

/// Chooses tokens; holds its random state and its buffers.
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    rng: Pcg32,
    /// `vocab_size` logits after the penalty.
    logits: Vec<f32>,
    /// Candidates, most probable first once sorted.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler for models of `vocab_size` tokens.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(settings: Sampling, vocab_size: usize) -> Result<Self, Error> {
        settings.check()?;
        let rng = Pcg32::new(settings.seed);
        Ok(Self { settings, rng, logits: vec![0.0; vocab_size], candidates: Vec::with_capacity(vocab_size) })
    }

    /// Chooses the token to follow `recent`, whose logits these are.
    ///
    /// # Errors
    /// If a logit is NaN: the weights are damaged, or overflowed.
    ///
    /// # Panics
    /// If `logits` is not `vocab_size` long.
    pub fn sample(&mut self, kernels: Kernels, logits: &[f32], recent: &[u32]) -> Result<u32, Error> {
        if logits.iter().any(|l| l.is_nan()) {
            return Err(Error::NotANumber);
        }
        self.logits.copy_from_slice(logits);
        self.penalise(recent);
        if self.settings.temperature == 0.0 || self.settings.top_k == 1 {
            return Ok(kernels.argmax(&self.logits) as u32);
        }
        self.candidates.clear();
        self.candidates.extend(self.logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit)));
        self.top_k();
        self.top_p_min_p();
        Ok(self.draw())
    }

    fn penalise(&mut self, recent: &[u32]) {
        let (penalty, n) = (self.settings.repeat_penalty, self.settings.repeat_last_n);
        if penalty == 1.0 {
            return;
        }
        let recent = &recent[recent.len().saturating_sub(n)..];
        for (i, &id) in recent.iter().enumerate() {
            let Some(logit) = self.logits.get_mut(id as usize).filter(|_| !recent[..i].contains(&id)) else {
                continue;
            };
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }

    /// Keeps the `top_k` best, sorted; lower ids first among equals.
    fn top_k(&mut self) {
        let better = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let k = self.settings.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, better);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(better);
    }

    /// Cuts the sorted candidates where `top_p` is reached, and then where they fall below `min_p` of the best.
    fn top_p_min_p(&mut self) {
        let weight = |best: f32, logit: f32| scalar::exp(logit - best);
        let best = self.candidates[0].1;
        if self.settings.top_p < 1.0 {
            let total: f32 = self.candidates.iter().map(|c| weight(best, c.1)).sum();
            let (mut reached, mut keep) = (0.0, 0);
            while keep < self.candidates.len() && (keep == 0 || reached < self.settings.top_p * total) {
                reached += weight(best, self.candidates[keep].1);
                keep += 1;
            }
            self.candidates.truncate(keep);
        }
        let keep = self.candidates.iter().take_while(|c| weight(best, c.1) >= self.settings.min_p).count();
        self.candidates.truncate(keep.max(1));
    }

    /// Draws one of the candidates by its probability at the temperature.
    fn draw(&mut self) -> u32 {
        let (best, temperature) = (self.candidates[0].1, self.settings.temperature);
        let weight = |logit: f32| scalar::exp((logit - best) / temperature);
        let total: f32 = self.candidates.iter().map(|c| weight(c.1)).sum();
        let mut left = self.rng.unit() * total;
        for &(id, logit) in &self.candidates {
            left -= weight(logit);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding can leave a crumb: it belongs to the best.
        self.candidates[0].0
    }
}

/// PCG-XSH-RR 64/32 (O'Neill 2014), stream 54: a generator that is the same everywhere for ever.
#[derive(Debug, Clone)]
struct Pcg32 {
    state: u64,
}

impl Pcg32 {
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
    const INCREMENT: u64 = (54 << 1) | 1;

    fn new(seed: u64) -> Self {
        let mut rng = Self { state: 0 };
        rng.next();
        rng.state = rng.state.wrapping_add(seed);
        rng.next();
        rng
    }

    fn next(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(Self::MULTIPLIER).wrapping_add(Self::INCREMENT);
        let shifted = (((old >> 18) ^ old) >> 27) as u32;
        shifted.rotate_right((old >> 59) as u32)
    }

    /// A multiple of 2⁻²⁴ in 0..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 8) as f32 / (1 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(settings: Sampling, logits: &[f32], recent: &[u32], draws: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings, logits.len()).unwrap();
        (0..draws).map(|_| sampler.sample(Kernels::detect(), logits, recent).unwrap()).collect()
    }

    /// No step that cuts candidates.
    fn open() -> Sampling {
        Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Sampling::default() }
    }

    #[test]
    fn generator_matches_its_published_demo() {
        let mut rng = Pcg32::new(42);
        let first: Vec<u32> = (0..6).map(|_| rng.next()).collect();
        assert_eq!(first, [0xa15c02b7, 0x7b47f409, 0xba1d3330, 0x83d2f293, 0xbfa4784b, 0xcbed606e]);
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
        assert!((ones / 20_000.0 - 0.75).abs() < 0.0153, "{ones}");
    }

    #[test]
    fn temperature_sharpens() {
        let draws = sample(Sampling { temperature: 0.5, ..open() }, &[0.0, (3.0f32).ln()], &[], 20_000);
        let ones = draws.iter().filter(|&&id| id == 1).count() as f64;
        // 9 in 10.
        assert!((ones / 20_000.0 - 0.9).abs() < 0.0106, "{ones}");
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

    #[test]
    fn impossible_settings_and_nan_are_refused() {
        for bad in [
            Sampling { temperature: -1.0, ..open() },
            Sampling { top_p: 0.0, ..open() },
            Sampling { min_p: 1.5, ..open() },
            Sampling { repeat_penalty: f32::NAN, ..open() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let mut sampler = Sampler::new(open(), 2).unwrap();
        assert!(sampler.sample(Kernels::detect(), &[0.0, f32::NAN], &[]).is_err());
    }
}
