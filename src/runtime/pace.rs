//! How much of a prompt is read between two tokens of those who are being written to.

use std::time::Duration;

/// How much longer a pass may take for the sake of prompts than without them.
const PATIENCE: f64 = 2.2;

/// Tokens of prompts in a pass before anything has been measured, and at the least.
const AT_FIRST: usize = 16;
const AT_LEAST: usize = 4;

/// How much of a new measurement goes into the mean.
const WEIGHT: f64 = 0.2;

/// What passes have taken so far, in seconds.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Of a pass without prompts.
    writing: Option<f64>,
    /// Of each token of a prompt.
    reading: Option<f64>,
}

impl Pace {
    /// Tokens of prompts in the next pass, in which `writing` texts go on; it has room for `chunk` tokens.
    pub fn prompt_tokens(&self, writing: usize, chunk: usize) -> usize {
        let room = chunk.saturating_sub(writing);
        let most = match (self.writing, self.reading) {
            _ if writing == 0 => room,
            (Some(writing), Some(reading)) if reading > 0.0 => {
                ((PATIENCE * writing / reading) as usize).max(AT_LEAST)
            }
            _ => AT_FIRST,
        };
        most.min(room)
    }

    /// Notes what a pass has taken.
    pub fn note(&mut self, writing: usize, prompt: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        let (mean, new) = match (writing, prompt) {
            (_, 0) => (&mut self.writing, seconds),
            (0, _) => (&mut self.reading, seconds / prompt as f64),
            _ => {
                let beside = seconds - self.writing.unwrap_or(0.0);
                (&mut self.reading, beside.max(0.0) / prompt as f64)
            }
        };
        *mean = Some(mean.map_or(new, |mean| mean + WEIGHT * (new - mean)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn who_waits_for_a_prompt_waits_a_few_times_as_long_as_usual() {
        let mut pace = Pace::default();
        assert_eq!((pace.prompt_tokens(0, 512), pace.prompt_tokens(4, 512)), (512, AT_FIRST));
        pace.note(4, 0, seconds(0.010));
        pace.note(0, 500, seconds(0.5));
        assert_eq!(pace.prompt_tokens(4, 512), 22);
        // Behind a long context each token of a prompt takes longer.
        (0..50).for_each(|_| pace.note(4, 30, seconds(0.010 + 30.0 * 0.0015)));
        assert_eq!(pace.prompt_tokens(4, 512), 14);
        // Nobody waits.
        assert_eq!(pace.prompt_tokens(0, 512), 512);
        // A pass has no more room.
        assert_eq!(pace.prompt_tokens(30, 32), 2);
    }
}
