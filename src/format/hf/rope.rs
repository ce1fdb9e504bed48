//! The rotary embedding's parameters in `config.json`.

use serde_json::{Map, Value};

use super::json::{Json, excerpt};
use crate::Error;
use crate::arch::Config;
use crate::arch::rope::frequencies;

/// Where they stand: since transformers 5 all together, `rope_theta` included.
const OBJECTS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// The base of the frequencies.
pub fn theta(json: &Json) -> Result<f64, Error> {
    if let Some(theta) = json.f64("rope_theta")? {
        return Ok(theta);
    }
    let theta = json.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    match theta.map(|value| value.as_f64().ok_or_else(|| json.error("rope_theta is not a number"))) {
        Some(theta) => theta,
        None => Ok(10000.0),
    }
}

/// What the frequencies are divided by, for each of the `head_dim/2`; `None` where nothing is scaled.
pub fn factors(json: &Json, config: &Config) -> Result<Option<Vec<f32>>, Error> {
    for key in OBJECTS {
        let Some(value) = json.get(key) else { continue };
        let problem = |why: &str| json.error(format!("{key} is {}: {why}", excerpt(value)));
        let scaling = value.as_object().ok_or_else(|| problem("rope scaling is described by an object"))?;
        if let Some(factors) = Scaling(scaling).factors(config).map_err(|why| problem(&why))? {
            return Ok(Some(factors));
        }
    }
    Ok(None)
}

struct Scaling<'a>(&'a Map<String, Value>);

impl Scaling<'_> {
    fn factors(&self, config: &Config) -> Result<Option<Vec<f32>>, String> {
        let kind = ["rope_type", "type"].into_iter().find_map(|key| self.0.get(key)?.as_str());
        let parameters: &[&str] = match kind.unwrap_or("default") {
            "default" => &[],
            "linear" => &["factor", "original_max_position_embeddings"],
            "llama3" => {
                &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
            }
            _ => return Err("of the rope scalings only linear and llama3 are supported".to_owned()),
        };
        let known = |(key, value): (&String, &Value)| match key.as_str() {
            "rope_type" | "type" | "rope_theta" => true,
            "partial_rotary_factor" => value.as_f64() == Some(1.0),
            key => value.is_null() || parameters.contains(&key),
        };
        if let Some((key, _)) = self.0.iter().find(|&entry| !known(entry)) {
            return Err(format!("rope scaling with {key} is not supported"));
        }
        match kind {
            Some("linear") => Ok(Some(vec![self.number("factor")? as f32; config.head_dim / 2])),
            Some("llama3") => self.llama3(&frequencies(config.rope_theta, config.head_dim)).map(Some),
            _ => Ok(None),
        }
    }

    /// Llama 3.1's: wavelengths up to `original / high_freq_factor` positions stay, those from
    /// `original / low_freq_factor` on are stretched by `factor`, and in between the frequencies are interpolated.
    fn llama3(&self, frequencies: &[f64]) -> Result<Vec<f32>, String> {
        let factor = self.number("factor")?;
        let (low, high) = (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        let original = self.number("original_max_position_embeddings")?;
        if low >= high {
            return Err("rope scaling needs a low_freq_factor below its high_freq_factor".to_owned());
        }
        let scaled = |frequency: &f64| {
            let turns = original * frequency / std::f64::consts::TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        Ok(frequencies.iter().map(scaled).collect())
    }

    fn number(&self, key: &str) -> Result<f64, String> {
        let number = self.0.get(key).and_then(Value::as_f64).filter(|number| *number > 0.0);
        // A factor is stored as f32.
        number
            .filter(|number| (*number as f32).is_normal())
            .ok_or_else(|| format!("rope scaling needs a positive {key}"))
    }
}
