//! Values of options: which will do, and what is said of the rest.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use torchless::Error;
use torchless::chat::ChatTemplate;
use torchless::kernels::{Isa, Kernels};
use torchless::sampling::Sampling;

/// A number of things, which may be none.
pub fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "give a whole number from 0 on".to_owned())
}

/// A number of things, one at the least.
pub fn positive(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|&n| n > 0);
    n.ok_or_else(|| "give a whole number from 1 on".to_owned())
}

/// A number of bytes: `4000000000`, `4G` or `4GB` for as many, and `4GiB` for 4 · 2³⁰.
pub fn bytes(text: &str) -> Result<usize, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let unit = unit.to_ascii_lowercase();
    let base: f64 = if unit.ends_with("ib") { 1024.0 } else { 1000.0 };
    let power = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => Some(0),
        "k" => Some(1),
        "m" => Some(2),
        "g" => Some(3),
        "t" => Some(4),
        _ => None,
    };
    let bytes = power.zip(number.trim().parse().ok()).map(|(power, n): (i32, f64)| n * base.powi(power));
    let bytes = bytes.filter(|bytes| *bytes >= 1.0 && *bytes < usize::MAX as f64);
    bytes.map(|bytes| bytes as usize).ok_or_else(|| "give a number of bytes, such as 4G or 512MiB".to_owned())
}

/// A length of time.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "give a number of seconds, 0 or more".to_owned())
}

/// A number for one of the sampling's settings.
pub fn setting(text: &str, set: impl FnOnce(Sampling, f32) -> Sampling) -> Result<f32, String> {
    // What is no number is one that no setting allows.
    let value = text.parse().unwrap_or(f32::NAN);
    check(&set(Sampling::default(), value))?;
    Ok(value)
}

/// `ID+BIAS` or `ID-BIAS`, as llama.cpp has it.
pub fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parse = || {
        let (id, bias) = text.split_at(text.find(['+', '-'])?);
        Some((id.parse().ok()?, bias.parse().ok()?))
    };
    let (id, bias) =
        parse().ok_or_else(|| "write a token's id and what to add: 1234+1.5, or 1234-inf".to_owned())?;
    check(&Sampling::default().logit_bias(id, bias))?;
    Ok((id, bias))
}

/// What is wrong with a setting, without its name and value, which clap says.
fn check(settings: &Sampling) -> Result<(), String> {
    settings.check().map_err(|error| match error {
        Error::Setting { problem, .. } => {
            problem.split_once(": ").map_or(problem.clone(), |(_, what)| what.to_owned())
        }
        other => other.to_string(),
    })
}

/// Where the random choices begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seed {
    Fixed(u64),
    /// Another one each time.
    Random,
}

/// A seed.
pub fn seed(text: &str) -> Result<Seed, String> {
    match text {
        "random" | "-1" => Ok(Seed::Random),
        _ => text.parse().map(Seed::Fixed).map_err(|_| {
            "give a whole number from 0 on, or random (the same as -1) for another one each time".to_owned()
        }),
    }
}

/// The name of an instruction set that this CPU has, or `auto`.
pub fn isa(text: &str) -> Result<String, String> {
    if text != "auto" {
        kernels(text)?;
    }
    Ok(text.to_owned())
}

/// The kernels of an instruction set that this CPU has.
pub fn kernels(text: &str) -> Result<Kernels, String> {
    text.parse::<Isa>().and_then(Kernels::new).map_err(|e| e.to_string())
}

/// JSON, which must be whole, or a file, which is not looked at yet.
pub fn json_or_file(text: &str) -> Result<String, String> {
    if text.trim_start().starts_with('{') {
        serde_json::from_str::<Value>(text).map_err(|e| format!("not JSON: {e}"))?;
    } else if !matches!(text.trim(), "true" | "false") && !may_be_file(text) {
        return Err("give a schema, {…}, or a file that holds one".to_owned());
    }
    Ok(text.to_owned())
}

/// The name of a chat template that is built in, or a file, which is not looked at yet.
pub fn template_or_file(text: &str) -> Result<String, String> {
    if ChatTemplate::built_in().any(|known| known == text) || may_be_file(text) {
        return Ok(text.to_owned());
    }
    let known = ChatTemplate::built_in().collect::<Vec<_>>().join(", ");
    Err(format!("give a file of Jinja, or one of {known}"))
}

/// A variable of a template's own, and its value: JSON, or else text.
pub fn template_arg(text: &str) -> Result<(String, Value), String> {
    let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err("give a name and a value: enable_thinking=false".to_owned());
    };
    // A text that is not empty counts as true.
    if matches!(value, "True" | "False" | "None") {
        let json = if value == "None" { "null".to_owned() } else { value.to_lowercase() };
        return Err(format!("write {name}={json}, or {name}='\"{value}\"' for a text"));
    }
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// Whether a word names a file: one that is there, or that only a file's name could be.
fn may_be_file(text: &str) -> bool {
    text.contains(['/', '.', std::path::MAIN_SEPARATOR]) || Path::new(text).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_do_is_said() {
        assert_eq!((count("0"), positive("7"), seed("-1")), (Ok(0), Ok(7), Ok(Seed::Random)));
        assert_eq!(setting("1.5", Sampling::temperature), Ok(1.5));
        assert_eq!(setting("1.5", Sampling::top_p).unwrap_err(), "give a number above 0 and up to 1");
        assert_eq!(setting("warm", Sampling::temperature).unwrap_err(), "give a number 0 or more");
        assert_eq!(logit_bias("7-inf"), Ok((7, f32::NEG_INFINITY)));
        assert_eq!(logit_bias("7+inf").unwrap_err(), "give a number, or -inf");
        assert!(seconds("-0.1").is_err() && seconds("0.1").is_ok());
        let (half, two) = (Ok(500_000_000), Ok(2 << 30));
        assert_eq!(
            (bytes("0.5G"), bytes("500 MB"), bytes("2GiB"), bytes("7")),
            (half.clone(), half, two, Ok(7))
        );
        assert!(["", "G", "-1", "0", "4X", "1e99"].iter().all(|text| bytes(text).is_err()));
    }
}
