//! The rotary embedding's parameters in `config.json`.

use serde_json::{Map, Value};

use super::json::{Json, excerpt};
use crate::Error;
use crate::arch::Config;
use crate::arch::rope::frequencies;

/// Where they stand: since transformers 5 all together, `rope_theta` included. The first of the two wins there.
const OBJECTS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// The base of the frequencies: within the object it counts more than beside it.
pub fn theta(json: &Json) -> Result<f64, Error> {
    let beside = json.f64("rope_theta")?.unwrap_or(10000.0);
    match objects(json)?.first() {
        Some(object) => theta_in(json, object, beside),
        None => Ok(beside),
    }
}

type Object<'a> = (&'static str, &'a Map<String, Value>);

/// The objects that say something: an empty one counts as absent, as it does in Python.
fn objects(json: &Json) -> Result<Vec<Object<'_>>, Error> {
    let mut objects = Vec::new();
    for key in OBJECTS {
        let Some(value) = json.get(key) else { continue };
        let object = value.as_object().ok_or_else(|| {
            json.error(format!("{key} is {}: rope scaling is described by an object", excerpt(value)))
        })?;
        if !object.is_empty() {
            objects.push((key, object));
        }
    }
    Ok(objects)
}

fn theta_in(json: &Json, &(key, object): &Object<'_>, beside: f64) -> Result<f64, Error> {
    match object.get("rope_theta").filter(|theta| !theta.is_null()) {
        None => Ok(beside),
        Some(theta) => theta
            .as_f64()
            .ok_or_else(|| json.error(format!("{key}: rope_theta is {}, not a number", excerpt(theta)))),
    }
}

/// What the frequencies are divided by, for each of the `head_dim/2`; `None` where nothing is scaled.
pub fn factors(json: &Json, config: &Config) -> Result<Option<Vec<f32>>, Error> {
    // Older files have this length beside the object, where transformers looks first.
    let beside = json.get("original_max_position_embeddings");
    let mut found = None;
    for object in objects(json)? {
        let (key, parameters) = object;
        let original = beside.or_else(|| parameters.get("original_max_position_embeddings"));
        let factors = Scaling { parameters, original }.factors(config).map_err(|why| {
            json.error(format!("{key} is {}: {why}", excerpt(&Value::Object(parameters.clone()))))
        })?;
        let rope = (theta_in(json, &object, config.rope_theta)?, factors);
        if found.as_ref().is_some_and(|found| *found != rope) {
            let [one, other] = OBJECTS;
            return Err(json.error(format!("{one} and {other} contradict each other: keep one of them")));
        }
        found = Some(rope);
    }
    Ok(found.and_then(|(_, factors)| factors))
}

struct Scaling<'a> {
    parameters: &'a Map<String, Value>,
    original: Option<&'a Value>,
}

impl Scaling<'_> {
    fn factors(&self, config: &Config) -> Result<Option<Vec<f32>>, String> {
        let mut kinds = ["rope_type", "type"].into_iter().filter_map(|key| self.parameters.get(key));
        let kind = kinds.next().unwrap_or(&Value::Null);
        if kinds.any(|other| other != kind) {
            return Err("rope scaling with a rope_type that is not its type".to_owned());
        }
        let kind = match kind {
            Value::Null => "default",
            kind => kind.as_str().unwrap_or_default(),
        };
        let parameters: &[&str] = match kind {
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
        if let Some((key, _)) = self.parameters.iter().find(|&entry| !known(entry)) {
            return Err(format!("rope scaling with {key} is not supported"));
        }
        match kind {
            "linear" => Ok(Some(vec![self.number("factor")? as f32; config.head_dim / 2])),
            "llama3" => self.llama3(config).map(Some),
            _ => Ok(None),
        }
    }

    /// Llama 3.1's: wavelengths up to `original / high_freq_factor` positions stay, those from
    /// `original / low_freq_factor` on are stretched by `factor`, and in between the frequencies are interpolated.
    fn llama3(&self, config: &Config) -> Result<Vec<f32>, String> {
        let factor = self.number("factor")?;
        let (low, high) = (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        let original = match self.original.filter(|original| !original.is_null()) {
            Some(original) => positive("original_max_position_embeddings", Some(original))?,
            None => config.max_position_embeddings as f64,
        };
        if low >= high {
            return Err("rope scaling needs a low_freq_factor below its high_freq_factor".to_owned());
        }
        let scaled = |frequency: &f64| {
            let turns = original * frequency / std::f64::consts::TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        Ok(frequencies(config.rope_theta, config.head_dim).iter().map(scaled).collect())
    }

    fn number(&self, key: &str) -> Result<f64, String> {
        positive(key, self.parameters.get(key))
    }
}

fn positive(key: &str, value: Option<&Value>) -> Result<f64, String> {
    // A factor is stored as f32.
    let number = value.and_then(Value::as_f64).filter(|number| *number > 0.0 && (*number as f32).is_normal());
    number.ok_or_else(|| format!("rope scaling needs a positive {key}"))
}
