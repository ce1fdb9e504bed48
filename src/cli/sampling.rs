//! Options on how tokens are chosen.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use anyhow::Context;
use torchless::Model;
use torchless::sampling::{Grammar, Mirostat, Sampling};

use super::input::read_file;
use super::output::note;
use super::values::{Seed, count, json_or_file, logit_bias, seed, setting};

/// How to choose tokens. The steps are applied in the order listed here, temperature last.
#[derive(clap::Args)]
#[command(
    next_help_heading = "Sampling (steps and order are llama.cpp's, and so are defaults that the model has not)"
)]
pub struct SamplingArgs {
    /// Add BIAS to a token's logit, as 1234+1.5 or 1234-inf; may be given several times
    #[arg(short = 'l', long, value_name = "ID±BIAS", value_parser = logit_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Divide the logits of recent tokens; 1 changes nothing [default: the model's own, or 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true,
        value_parser = |text: &str| setting(text, |s, x| s.penalties(x, 0.0, 0.0)))]
    repeat_penalty: Option<f32>,
    /// Subtract X from a recent token's logit as often as it occurred
    #[arg(long, value_name = "X", default_value_t = Sampling::default().frequency_penalty, allow_negative_numbers = true,
        value_parser = |text: &str| setting(text, |s, x| s.penalties(1.0, x, 0.0)))]
    frequency_penalty: f32,
    /// Subtract X from each recent token's logit
    #[arg(long, value_name = "X", default_value_t = Sampling::default().presence_penalty, allow_negative_numbers = true,
        value_parser = |text: &str| setting(text, |s, x| s.penalties(1.0, 0.0, x)))]
    presence_penalty: f32,
    /// How many tokens are recent
    #[arg(long, value_name = "N", default_value_t = Sampling::default().repeat_last_n, allow_negative_numbers = true, value_parser = count)]
    repeat_last_n: usize,
    /// Keep the K most likely tokens; 0 keeps all [default: the model's own, or 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = count)]
    top_k: Option<usize>,
    /// Keep the tokens of most typical surprise that together have probability P; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = Sampling::default().typical_p, allow_negative_numbers = true,
        value_parser = |text: &str| setting(text, Sampling::typical_p))]
    typical: f32,
    /// Keep the most likely tokens that together have probability P; 1 keeps all [default: the model's own, or 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = |text: &str| setting(text, Sampling::top_p))]
    top_p: Option<f32>,
    /// Keep tokens at least P times as likely as the most likely; 0 keeps all [default: the model's own, or 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = |text: &str| setting(text, Sampling::min_p))]
    min_p: Option<f32>,
    /// Temperature; 0 always takes the most likely token [default: the model's own, or 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true,
        value_parser = |text: &str| setting(text, Sampling::temperature))]
    temp: Option<f32>,
    /// 2: Mirostat 2 in place of top-k, typical, top-p and min-p; 0: without
    #[arg(long, value_name = "0|2", default_value = "0", value_parser = ["0", "2"], hide_possible_values = true)]
    mirostat: String,
    /// Mirostat's aim: surprise in bits a token
    #[arg(long, value_name = "BITS", default_value_t = Mirostat::default().tau, allow_negative_numbers = true,
        value_parser = |text: &str| setting(text, |s, tau| s.mirostat(Mirostat { tau, ..Mirostat::default() })))]
    mirostat_ent: f32,
    /// How fast Mirostat learns
    #[arg(long, value_name = "X", default_value_t = Mirostat::default().eta, allow_negative_numbers = true,
        value_parser = |text: &str| setting(text, |s, eta| s.mirostat(Mirostat { eta, ..Mirostat::default() })))]
    mirostat_lr: f32,
    /// Have the text be JSON of this schema: JSON, or a file
    #[arg(short, long, value_name = "JSON|FILE", group = "form", value_parser = json_or_file)]
    json_schema: Option<String>,
    /// Have the text be of this grammar: a file in Lark's notation
    #[arg(long, value_name = "FILE", group = "form")]
    grammar_file: Option<PathBuf>,
    /// Seed of the random choices, or random (-1) for another one each time, which is said on stderr; in a chat each turn adds 1
    #[arg(long, value_name = "N|random", default_value = "0", allow_negative_numbers = true, value_parser = seed)]
    seed: Seed,
}

/// An error of a grammar names the file that it came from.
pub fn in_file(error: torchless::Error, file: Option<&Path>) -> anyhow::Error {
    match (&error, file) {
        (torchless::Error::Grammar(_), Some(file)) => {
            let name = file.display().to_string();
            anyhow::Error::from(error).context(name)
        }
        _ => error.into(),
    }
}

/// Whether a schema is written where a file could be named: an object, or one of the two schemas that are not.
fn is_json(schema: &str) -> bool {
    let schema = schema.trim();
    schema.starts_with('{') || schema == "true" || schema == "false"
}

impl SamplingArgs {
    /// The file that the form is read from.
    pub fn form_file(&self) -> Option<PathBuf> {
        let schema = self.json_schema.as_deref().filter(|schema| !is_json(schema)).map(PathBuf::from);
        self.grammar_file.clone().or(schema)
    }

    /// The form that is asked for.
    pub fn grammar(&self) -> anyhow::Result<Option<Grammar>> {
        if let Some(file) = &self.grammar_file {
            return Ok(Some(Grammar::Lark(read_file(file)?)));
        }
        let Some(schema) = &self.json_schema else { return Ok(None) };
        let (text, name) = match is_json(schema) {
            true => (schema.clone(), "--json-schema".to_owned()),
            false => (read_file(Path::new(schema))?, format!("--json-schema: {schema}")),
        };
        let schema = serde_json::from_str(&text).context(name)?;
        Ok(Some(Grammar::JsonSchema(schema)))
    }

    /// The settings that are asked for, checked; of the others, those that the model's publisher gives.
    pub fn settings(self, model: &Model) -> anyhow::Result<Sampling> {
        let seed = match self.seed {
            Seed::Fixed(seed) => seed,
            Seed::Random => random_seed(),
        };
        let mirostat = Mirostat { tau: self.mirostat_ent, eta: self.mirostat_lr };
        let default = Sampling::default().with_defaults_of(model.file().generation());
        let settings = Sampling {
            logit_bias: self.logit_bias,
            repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repeat_last_n: self.repeat_last_n,
            top_k: self.top_k.unwrap_or(default.top_k),
            typical_p: self.typical,
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            temperature: self.temp.unwrap_or(default.temperature),
            mirostat: (self.mirostat == "2").then_some(mirostat),
            seed,
        };
        settings.check()?;
        Ok(settings)
    }
}

/// A seed that was not there before, told so that the text can be had again.
fn random_seed() -> u64 {
    // The standard library's hash maps begin with random keys. 32 bits are easy to type, and exact in every reader of JSON.
    let seed = RandomState::new().hash_one(0) >> 32;
    note(format_args!("seed: {seed}"));
    seed
}
