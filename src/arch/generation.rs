//! How a model's publisher says that its tokens should be chosen.

use crate::Malformed;

/// What a model's publisher says about choosing tokens: `generation_config.json`'s fields, or GGUF's keys `general.sampling.*`.
/// `None` where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Divides the logits; 0 is the most probable token always, as `do_sample: false` wants it.
    pub temperature: Option<f32>,
    /// Keeps so many of the most probable tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keeps the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Keeps tokens at least this fraction as probable as the most probable.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that occurred.
    pub repetition_penalty: Option<f32>,
}

/// A setting that is a number: its name, its value, whether a value will do, and what will.
type Number<'a> = (&'static str, &'a mut Option<f32>, fn(f32) -> bool, &'static str);

impl GenerationDefaults {
    /// The settings by the names of `generation_config.json`, as they are written in a model file.
    pub(crate) const NAMES: [&'static str; 5] =
        ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"];

    fn numbers(&mut self) -> [Number<'_>; 4] {
        [
            ("temperature", &mut self.temperature, |x| x >= 0.0, "0 or more"),
            ("top_p", &mut self.top_p, |p| p > 0.0 && p <= 1.0, "above 0 and up to 1"),
            ("min_p", &mut self.min_p, |p| (0.0..=1.0).contains(&p), "from 0 to 1"),
            ("repetition_penalty", &mut self.repetition_penalty, |x| x > 0.0, "above 0"),
        ]
    }

    /// The settings that these numbers are, in the order of [`Self::NAMES`]; with what is said of those that cannot be, which
    /// are left out.
    pub(crate) fn of(numbers: [Option<f64>; 5]) -> (Self, Vec<String>) {
        let [temperature, top_k, top_p, min_p, repetition_penalty] = numbers;
        let float = |value: Option<f64>| value.map(|value| value as f32);
        let mut defaults = Self {
            temperature: float(temperature),
            // Some write -1 where all are kept.
            top_k: top_k.map(|k| k.max(0.0) as usize),
            top_p: float(top_p),
            min_p: float(min_p),
            repetition_penalty: float(repetition_penalty),
        };
        let said = defaults.drop_unsound();
        (defaults, said)
    }

    /// # Errors
    /// Names the first setting that is out of range.
    pub(crate) fn check(mut self) -> Result<Self, Malformed> {
        match self.drop_unsound().first() {
            Some(problem) => Err(Malformed(problem.clone())),
            None => Ok(self),
        }
    }

    /// Leaves out what is out of range, and says so, one line each.
    fn drop_unsound(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for (name, value, will_do, range) in self.numbers() {
            if let Some(bad) = value.take_if(|value| !value.is_finite() || !will_do(*value)) {
                said.push(format!("{name} is {bad}: a number {range} is needed"));
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_left_out_and_said() {
        let sound = GenerationDefaults {
            temperature: Some(0.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            repetition_penalty: Some(1.1),
        };
        assert_eq!(sound.check().unwrap(), sound);
        for (bad, what) in [
            (GenerationDefaults { temperature: Some(-1.0), ..sound }, "temperature is -1"),
            (GenerationDefaults { temperature: Some(f32::INFINITY), ..sound }, "temperature is inf"),
            (GenerationDefaults { top_p: Some(0.0), ..sound }, "top_p is 0"),
            (GenerationDefaults { min_p: Some(1.5), ..sound }, "min_p is 1.5"),
            (GenerationDefaults { repetition_penalty: Some(f32::NAN), ..sound }, "repetition_penalty is NaN"),
        ] {
            assert!(bad.check().unwrap_err().0.starts_with(what), "{what}");
            let mut rest = bad;
            assert_eq!(rest.drop_unsound().len(), 1);
            assert!(rest.check().is_ok(), "{what}");
        }
    }
}
