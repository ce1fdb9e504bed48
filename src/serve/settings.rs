//! What both kinds of completions can be asked for: how tokens are chosen, and where a text ends.

use std::hash::{BuildHasher, RandomState};

use serde_json::{Map, Value};

use super::fields::{Fields, Seed};
use super::problem::Problem;
use crate::arch::GenerationDefaults;
use crate::runtime::GenerateOptions;
use crate::sampling::{Mirostat, Sampling};

/// Strings that may end a text, and bytes of each: looking for them costs everyone's time.
const MAX_STOPS: usize = 32;
const MAX_STOP_BYTES: usize = 1000;

/// Answers to one prompt.
const MAX_N: usize = 128;

/// Alternatives to a token whose log-probabilities can be had.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Fields of OpenAI's that change no answer here: who asks, what is billed or kept, and hints for caches.
const WITHOUT_INFLUENCE: [&str; 7] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// What was asked for beside the prompt.
pub struct Settings {
    /// The model that was named.
    pub model: Option<String>,
    /// How to choose tokens, and where to end; `max_tokens` and what the endpoints differ in are theirs to set.
    pub generate: GenerateOptions,
    /// Answers to each prompt.
    pub n: usize,
    /// The answer comes piece by piece.
    pub stream: bool,
    /// A stream ends with what it took.
    pub include_usage: bool,
}

impl Settings {
    /// Takes the fields that both kinds of completions have.
    ///
    /// Where nothing is said the defaults of the model's publisher hold, and else OpenAI's: temperature 1, and no token is cut
    /// off.
    pub fn take(fields: &mut Fields, model: &GenerationDefaults) -> Result<Self, Problem> {
        WITHOUT_INFLUENCE.iter().for_each(|field| fields.ignore(field));
        let stream = fields.take("stream")?.unwrap_or(false);
        let n = fields.take("n")?.unwrap_or(1);
        if n == 0 || n > MAX_N {
            return Err(Problem::value("n", format_args!("{n}: give a whole number from 1 to {MAX_N}")));
        }
        Ok(Self {
            model: fields.take("model")?,
            generate: GenerateOptions {
                sampling: sampling(fields, model)?,
                stop: stop(fields)?,
                ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
                ..GenerateOptions::default()
            },
            n,
            stream,
            include_usage: include_usage(fields, stream)?,
        })
    }

    /// The same for the choice `i`: each begins its random choices elsewhere.
    pub fn of_choice(&self, i: usize) -> GenerateOptions {
        let mut options = self.generate.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(i as u64);
        options
    }
}

fn sampling(fields: &mut Fields, model: &GenerationDefaults) -> Result<Sampling, Problem> {
    let openai = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Sampling::default() };
    let default = openai.with_defaults_of(model);
    let sampling = Sampling {
        logit_bias: logit_bias(fields)?,
        repeat_penalty: fields.take("repeat_penalty")?.unwrap_or(default.repeat_penalty),
        frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(default.frequency_penalty),
        presence_penalty: fields.take("presence_penalty")?.unwrap_or(default.presence_penalty),
        repeat_last_n: fields.take("repeat_last_n")?.unwrap_or(default.repeat_last_n),
        top_k: fields.take("top_k")?.unwrap_or(default.top_k),
        typical_p: fields.take("typical_p")?.unwrap_or(default.typical_p),
        top_p: fields.take("top_p")?.unwrap_or(default.top_p),
        min_p: fields.take("min_p")?.unwrap_or(default.min_p),
        temperature: fields.take("temperature")?.unwrap_or(default.temperature),
        mirostat: mirostat(fields)?,
        seed: match fields.take("seed")? {
            Some(Seed(seed)) => seed,
            None => random_seed(),
        },
    };
    sampling.check()?;
    Ok(sampling)
}

/// A seed that was not there before; the answer says it. 32 bits are exact in every reader of JSON.
fn random_seed() -> u64 {
    // The standard library's hash maps begin with random keys.
    RandomState::new().hash_one(0) >> 32
}

/// llama.cpp's fields: `mirostat` 0 or 2, and its two settings.
fn mirostat(fields: &mut Fields) -> Result<Option<Mirostat>, Problem> {
    let (tau, eta) = (fields.take("mirostat_tau")?, fields.take("mirostat_eta")?);
    match fields.take::<usize>("mirostat")? {
        Some(2) => {
            let default = Mirostat::default();
            Ok(Some(Mirostat { tau: tau.unwrap_or(default.tau), eta: eta.unwrap_or(default.eta) }))
        }
        None if tau.is_some() || eta.is_some() => {
            Err(Problem::value("mirostat", "missing: give 2, or neither mirostat_tau nor mirostat_eta"))
        }
        None | Some(0) => Ok(None),
        Some(other) => {
            Err(Problem::unsupported("mirostat", format_args!("{other}: give 2 for Mirostat 2, 0 for none")))
        }
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Problem> {
    let biases: Map<String, Value> = fields.take("logit_bias")?.unwrap_or_default();
    let bias = |(id, bias): (String, Value)| {
        let bias = bias.as_f64().map(|bias| bias as f32);
        id.parse().ok().zip(bias).ok_or_else(|| {
            Problem::value("logit_bias", format_args!("{id:?}: give token ids, each with a number"))
        })
    };
    biases.into_iter().map(bias).collect()
}

/// One string or several.
fn stop(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let strings = match fields.take::<Value>("stop")? {
        None => Vec::new(),
        Some(Value::Array(strings)) => strings,
        Some(string) => vec![string],
    };
    if strings.len() > MAX_STOPS {
        return Err(Problem::value("stop", format_args!("give {MAX_STOPS} strings at most")));
    }
    let string = |string: Value| match string {
        Value::String(text) if !text.is_empty() && text.len() <= MAX_STOP_BYTES => Ok(text),
        _ => Err(Problem::value(
            "stop",
            format_args!("give a string or a list of them, each of 1 to {MAX_STOP_BYTES} bytes"),
        )),
    };
    strings.into_iter().map(string).collect()
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, Problem> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(Problem::value("stream_options", "only a stream has them: set stream to true"));
    }
    let include_usage = options.take("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[false.into()], "torchless pads no frames: give false")?;
    options.finish(&[])?;
    Ok(include_usage)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(body: Value) -> Result<Settings, Problem> {
        let mut fields = Fields::new(body, "")?;
        let settings = Settings::take(&mut fields, &GenerationDefaults::default())?;
        fields.finish(&[])?;
        Ok(settings)
    }

    #[test]
    fn nothing_said_means_what_openai_says_it_means() {
        let settings = settings(json!({"user": "ada", "store": false})).unwrap();
        let sampling = settings.generate.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (1.0, 1.0, 0));
        assert_eq!((sampling.min_p, sampling.repeat_penalty, sampling.typical_p), (0.0, 1.0, 1.0));
        assert!(settings.n == 1 && !settings.stream && !settings.include_usage);
    }

    #[test]
    fn a_models_own_defaults_hold_where_nothing_is_said() {
        let model = GenerationDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.9),
            min_p: Some(0.02),
            repetition_penalty: Some(1.1),
        };
        let take =
            |body| Settings::take(&mut Fields::new(body, "").unwrap(), &model).unwrap().generate.sampling;
        let of_model = take(json!({}));
        assert_eq!((of_model.temperature, of_model.top_k, of_model.top_p), (0.6, 20, 0.9));
        assert_eq!((of_model.min_p, of_model.repeat_penalty), (0.02, 1.1));
        let asked = take(json!({"temperature": 1, "top_k": 0, "min_p": 0, "repeat_penalty": 1}));
        assert_eq!((asked.temperature, asked.top_k, asked.top_p), (1.0, 0, 0.9));
        assert_eq!((asked.min_p, asked.repeat_penalty), (0.0, 1.0));
    }

    #[test]
    fn every_setting_reaches_the_sampler() {
        let body = json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "typical_p": 0.8, "repeat_penalty": 1.2,
            "repeat_last_n": 5, "presence_penalty": -1, "frequency_penalty": 2, "seed": -1,
            "mirostat": 2, "mirostat_tau": 3, "mirostat_eta": 0.2, "logit_bias": {"5": -100, "6": 1.5},
            "stop": ["a", "b"], "ignore_eos": true,
        });
        let options = settings(body).unwrap().generate;
        let expected = Sampling {
            logit_bias: vec![(5, -100.0), (6, 1.5)],
            repeat_penalty: 1.2,
            frequency_penalty: 2.0,
            presence_penalty: -1.0,
            repeat_last_n: 5,
            top_k: 7,
            typical_p: 0.8,
            top_p: 0.9,
            min_p: 0.1,
            temperature: 0.5,
            mirostat: Some(Mirostat { tau: 3.0, eta: 0.2 }),
            seed: u64::MAX,
        };
        assert_eq!(options.sampling, expected);
        assert_eq!((options.stop, options.ignore_eos), (vec!["a".to_owned(), "b".to_owned()], true));
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        for (body, param) in [
            (json!({"temperature": -1}), "temperature"),
            (json!({"temperature": 1e40}), "temperature"),
            (json!({"top_p": 1.5}), "top_p"),
            (json!({"top_k": -1}), "top_k"),
            (json!({"min_p": 2}), "min_p"),
            (json!({"typical_p": 0}), "typical_p"),
            (json!({"repeat_penalty": 0}), "repeat_penalty"),
            (json!({"repeat_last_n": 1.5}), "repeat_last_n"),
            (json!({"presence_penalty": "x"}), "presence_penalty"),
            (json!({"frequency_penalty": []}), "frequency_penalty"),
            (json!({"seed": 0.5}), "seed"),
            (json!({"mirostat": 1}), "mirostat"),
            (json!({"mirostat": 2, "mirostat_tau": -1}), "mirostat_tau"),
            (json!({"mirostat_tau": 5}), "mirostat"),
            (json!({"logit_bias": {"a": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": "x"}}), "logit_bias"),
            (json!({"stop": 5}), "stop"),
            (json!({"stop": [""]}), "stop"),
            (json!({"stop": vec!["x"; 33]}), "stop"),
            (json!({"stop": "x".repeat(1001)}), "stop"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"stream": 1}), "stream"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"x": true}}), "stream_options.x"),
            (
                json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
                "stream_options.include_obfuscation",
            ),
            (json!({"ignore_eos": "no"}), "ignore_eos"),
            (json!({"model": 7}), "model"),
            (json!({"temprature": 1}), "temprature"),
        ] {
            let problem = settings(body.clone()).err().unwrap_or_else(|| panic!("{body}")).body();
            assert_eq!(problem["error"]["param"], param, "{body}");
        }
    }

    #[test]
    fn choices_differ_in_their_seed_alone() {
        let settings = settings(json!({"seed": 7, "n": 3})).unwrap();
        let seeds: Vec<u64> = (0..3).map(|i| settings.of_choice(i).sampling.seed).collect();
        assert_eq!(seeds, [7, 8, 9]);
        assert_ne!(random_seed(), random_seed());
    }
}
