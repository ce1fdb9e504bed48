//! How tokens should be chosen, of `generation_config.json`.

use std::path::Path;

use serde_json::Value;

use super::json::{Json, excerpt};
use crate::Error;
use crate::arch::GenerationDefaults;

/// The file's name.
const FILE: &str = "generation_config.json";

/// Reads the defaults of a folder, if it has any. What cannot be is left out, and noted: the model is no worse for it.
///
/// # Errors
/// When the file is there and no JSON object.
pub fn read(folder: &Path, notes: &mut Vec<String>) -> Result<GenerationDefaults, Error> {
    let Some(json) = Json::read(&folder.join(FILE))? else { return Ok(GenerationDefaults::default()) };
    let mut left_out = Vec::new();
    let mut number = |key: &str| match json.get(key).map(|value| (value, value.as_f64())) {
        Some((value, None)) => {
            left_out.push(format!("{key} is {}: a number is needed", excerpt(value)));
            None
        }
        found => found.and_then(|(_, number)| number),
    };
    let (mut defaults, unsound) = GenerationDefaults::of(GenerationDefaults::NAMES.map(&mut number));
    left_out.extend(unsound);
    notes.extend(left_out.into_iter().map(|problem| format!("{FILE}: {problem}, and left out")));
    if json.get("do_sample") == Some(&Value::Bool(false)) {
        defaults.temperature = Some(0.0);
    }
    Ok(defaults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (GenerationDefaults, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let mut notes = Vec::new();
        (read(folder.path(), &mut notes).unwrap(), notes)
    }

    #[test]
    fn what_the_file_says_is_taken_over() {
        let none = GenerationDefaults::default();
        assert_eq!(of("{\"eos_token_id\": 2, \"top_k\": null}"), (none, Vec::new()));
        let all = r#"{"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0, "repetition_penalty": 1.05, "do_sample": true}"#;
        let expected = GenerationDefaults {
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            min_p: Some(0.0),
            repetition_penalty: Some(1.05),
        };
        assert_eq!(of(all), (expected, Vec::new()));
        let greedy = GenerationDefaults { temperature: Some(0.0), ..expected };
        assert_eq!(of(&all.replace("true", "false")), (greedy, Vec::new()));
        assert_eq!(of("{\"top_k\": -1}").0.top_k, Some(0));
    }

    #[test]
    fn what_cannot_be_is_left_out_and_noted() {
        let (found, notes) = of(r#"{"temperature": "hot", "top_p": 7, "top_k": 5}"#);
        assert_eq!(found, GenerationDefaults { top_k: Some(5), ..GenerationDefaults::default() });
        assert_eq!(
            notes,
            [
                "generation_config.json: temperature is \"hot\": a number is needed, and left out",
                "generation_config.json: top_p is 7: a number above 0 and up to 1 is needed, and left out",
            ]
        );
    }
}
