//! Options on how tokens are chosen, and on where a text ends.

use torchless::runtime::sampler::Sampling;

/// How to choose tokens. The steps are applied in the order listed here, temperature last.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Make recent tokens less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = Sampling::default().repeat_penalty)]
    repeat_penalty: f32,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = Sampling::default().top_k)]
    top_k: usize,
    /// Keep the most likely tokens that together have probability P; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the most likely; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = Sampling::default().min_p)]
    min_p: f32,
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = Sampling::default().temperature)]
    temp: f32,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = Sampling::default().seed)]
    seed: u64,
}

impl SamplingArgs {
    /// The settings that are asked for, checked.
    pub fn settings(&self) -> anyhow::Result<Sampling> {
        let settings = Sampling {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
            ..Sampling::default()
        };
        settings.check()?;
        Ok(settings)
    }
}
