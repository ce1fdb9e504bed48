//! How tokens should be chosen: the keys `general.sampling.*`.

use super::{Gguf, Value};
use crate::arch::GenerationDefaults;

/// GGUF's names, in the order of [`GenerationDefaults::NAMES`].
const KEYS: [&str; 5] = ["temp", "top_k", "top_p", "min_p", "penalty_repeat"];

/// Reads the defaults. What cannot be is left out, and noted: the model is no worse for it.
pub fn read(gguf: &Gguf<'_>, notes: &mut Vec<String>) -> GenerationDefaults {
    let mut left_out = Vec::new();
    let mut number = |name: &str| {
        let key = format!("general.sampling.{name}");
        match gguf.keys.get(key.as_str()) {
            None => None,
            Some(Value::Float(value)) => Some(*value),
            Some(Value::Integer(value)) => Some(*value as f64),
            Some(_) => {
                left_out.push(format!("key {key} is not a number"));
                None
            }
        }
    };
    let (defaults, unsound) = GenerationDefaults::of(KEYS.map(&mut number));
    left_out.extend(unsound.into_iter().map(|problem| format!("general.sampling: {problem}")));
    notes.extend(left_out.into_iter().map(|problem| format!("{problem}, and left out")));
    defaults
}
