//! How to choose the next token.

use crate::Error;
use crate::arch::GenerationDefaults;

/// How to choose the next token. The steps are applied in the order of the fields, temperature last.
///
/// The methods of the same names set one thing each:
///
/// ```
/// use torchless::sampling::Sampling;
///
/// let settings = Sampling::default().temperature(0.7).top_p(0.9).penalties(1.1, 0.0, 0.2).seed(7);
/// settings.check()?;
/// assert!(Sampling::default().top_p(1.5).check().is_err());
/// # Ok::<(), torchless::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Added to the logits of these tokens; −∞ forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive logits (and multiplies negative ones) of recent tokens; 1 changes nothing (Keskar et al. 2019).
    pub repeat_penalty: f32,
    /// Subtracted from the logit of a recent token as often as it occurred; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of each recent token once; 0 changes nothing.
    pub presence_penalty: f32,
    /// How many recent tokens the penalties are for.
    pub repeat_last_n: usize,
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the tokens whose surprise is nearest to the expected one, until they reach this probability together; 1
    /// keeps all (Meister et al. 2022).
    pub typical_p: f32,
    /// Keeps the most probable tokens that together reach this probability; 1 keeps all (Holtzman et al. 2019).
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable; 0 keeps all (Nguyen et al. 2024).
    pub min_p: f32,
    /// Divides the logits; 0 chooses the most probable token always, the lowest id among equals.
    pub temperature: f32,
    /// Steers how surprising the text is, in place of top-k, typical, top-p and min-p.
    pub mirostat: Option<Mirostat>,
    /// Seeds the random numbers.
    pub seed: u64,
}

/// Mirostat 2 (Basu et al. 2021): after the temperature, tokens more surprising than a limit are cut, and the limit
/// follows the surprise of what is chosen, so that the text's stays near `tau`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mirostat {
    /// Wanted surprise, in bits a token.
    pub tau: f32,
    /// How fast the limit follows.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: 5.0, eta: 0.1 }
    }
}

impl Default for Sampling {
    /// llama.cpp's defaults: top-k 40, top-p 0.95, min-p 0.05, temperature 0.8, nothing else.
    fn default() -> Self {
        Self {
            logit_bias: Vec::new(),
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_last_n: 64,
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            temperature: 0.8,
            mirostat: None,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self::default().temperature(0.0)
    }

    /// These settings, but for those that a model's publisher gives.
    pub fn with_defaults_of(self, model: &GenerationDefaults) -> Self {
        Self {
            temperature: model.temperature.unwrap_or(self.temperature),
            top_k: model.top_k.unwrap_or(self.top_k),
            top_p: model.top_p.unwrap_or(self.top_p),
            min_p: model.min_p.unwrap_or(self.min_p),
            repeat_penalty: model.repetition_penalty.unwrap_or(self.repeat_penalty),
            ..self
        }
    }

    /// Sets [`Sampling::temperature`].
    pub fn temperature(self, temperature: f32) -> Self {
        Self { temperature, ..self }
    }

    /// Sets [`Sampling::top_k`].
    pub fn top_k(self, top_k: usize) -> Self {
        Self { top_k, ..self }
    }

    /// Sets [`Sampling::typical_p`].
    pub fn typical_p(self, typical_p: f32) -> Self {
        Self { typical_p, ..self }
    }

    /// Sets [`Sampling::top_p`].
    pub fn top_p(self, top_p: f32) -> Self {
        Self { top_p, ..self }
    }

    /// Sets [`Sampling::min_p`].
    pub fn min_p(self, min_p: f32) -> Self {
        Self { min_p, ..self }
    }

    /// Sets [`Sampling::repeat_penalty`], [`Sampling::frequency_penalty`] and [`Sampling::presence_penalty`].
    pub fn penalties(self, repeat_penalty: f32, frequency_penalty: f32, presence_penalty: f32) -> Self {
        Self { repeat_penalty, frequency_penalty, presence_penalty, ..self }
    }

    /// Sets [`Sampling::mirostat`].
    pub fn mirostat(self, mirostat: Mirostat) -> Self {
        Self { mirostat: Some(mirostat), ..self }
    }

    /// Adds to [`Sampling::logit_bias`].
    pub fn logit_bias(mut self, token: u32, bias: f32) -> Self {
        self.logit_bias.push((token, bias));
        self
    }

    /// Sets [`Sampling::seed`].
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// # Errors
    /// Names the first setting that is out of range.
    pub fn check(&self) -> Result<(), Error> {
        let above_0_up_to_1 = |p: f32| p > 0.0 && p <= 1.0;
        let Mirostat { tau, eta } = self.mirostat.unwrap_or_default();
        let settings = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("typical_p", self.typical_p, above_0_up_to_1(self.typical_p), "above 0 and up to 1"),
            ("top_p", self.top_p, above_0_up_to_1(self.top_p), "above 0 and up to 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "above 0"),
            ("frequency_penalty", self.frequency_penalty, true, "that is finite"),
            ("presence_penalty", self.presence_penalty, true, "that is finite"),
            ("mirostat.tau", tau, tau >= 0.0, "0 or more"),
            ("mirostat.eta", eta, eta >= 0.0, "0 or more"),
        ];
        if let Some((name, value, _, range)) =
            settings.into_iter().find(|&(_, value, ok, _)| !(ok && value.is_finite()))
        {
            return Err(Error::Setting { name, problem: format!("{value}: give a number {range}") });
        }
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            Some((token, bias)) => {
                let problem = format!("{token}+{bias}: give a number, or -inf");
                Err(Error::Setting { name: "logit_bias", problem })
            }
            None => Ok(()),
        }
    }
}
