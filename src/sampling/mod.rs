//! From logits to the next token: sampler, grammar, log-probabilities, and the strings that end a text.

mod best;
mod grammar;
mod logprobs;
mod pcg;
mod sampler;
mod settings;
mod stop;

pub use grammar::Grammar;
pub(crate) use grammar::{Constraint, on_one_line};
pub use logprobs::{Logprobs, log_probability};
pub use sampler::Sampler;
pub use settings::{Mirostat, Sampling};
pub use stop::StopFilter;
