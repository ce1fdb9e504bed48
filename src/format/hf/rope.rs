//! The rotary embedding's parameters in `config.json`.

use serde_json::{Map, Value};

use super::json::{Json, excerpt};
use crate::Error;
use crate::arch::architectures::Architecture;
use crate::arch::rope_scaling::{Llama3, Yarn};
use crate::arch::{Config, LongRope, RopeConfig, Temperature};

/// Where they stand: since transformers 5 all together, `rope_theta` included. The first of the two wins there.
const OBJECTS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// Within them, where layers with a window have others (transformers 5).
const FULL: &str = "full_attention";
const WINDOWS: &str = "sliding_attention";

/// One rotary embedding, and what its frequencies are divided by where they are scaled.
#[derive(Debug, Clone, PartialEq)]
struct Rope {
    config: RopeConfig,
    factors: Option<Vec<f32>>,
    /// That of long sequences: from where on, and its factors.
    long: Option<(usize, Vec<f32>)>,
    /// Positions that it reaches to, where that does not show elsewhere.
    reach: usize,
    temperature: Option<Temperature>,
}

type Object<'a> = &'a Map<String, Value>;

/// Puts the rotary embeddings into `config`, and returns the factors of each of its [`Config::ropes`].
pub fn read(
    json: &Json,
    architecture: &Architecture,
    config: &mut Config,
) -> Result<[Option<Vec<f32>>; 3], Error> {
    config.partial_rotary_dim = rotary_dim(json, architecture, config)?;
    let theta = json.f64("rope_theta")?.unwrap_or(architecture.defaults.rope_theta);
    let of_layers = rope(json, architecture, config, FULL, theta)?;
    let of_windows = if config.sliding_window.is_none() {
        None
    } else if is_nested(json, WINDOWS) {
        let theta = json.f64("rope_local_base_freq")?.or(architecture.window_rope_theta).unwrap_or(theta);
        Some(rope(json, architecture, config, WINDOWS, theta)?)
    } else if let Some(default) = architecture.window_rope_theta {
        let theta = json.f64("rope_local_base_freq")?.unwrap_or(default);
        Some(Rope {
            config: RopeConfig::plain(theta),
            factors: None,
            long: None,
            reach: 0,
            temperature: None,
        })
    } else {
        None
    };
    let of_windows = of_windows.filter(|rope| *rope != of_layers);
    config.rope = of_layers.config;
    config.max_position_embeddings = config.max_position_embeddings.max(of_layers.reach);
    config.window_rope = of_windows.as_ref().map(|rope| rope.config);
    config.attention_temperature = of_layers.temperature.or(temperature(json)?);
    let (beyond, long_factors) = of_layers.long.unzip();
    config.long_rope = beyond.map(|beyond| LongRope { beyond, rope: of_layers.config });
    Ok([of_layers.factors, of_windows.and_then(|rope| rope.factors), long_factors])
}

/// Elements of a head that are rotated, where that is not all.
fn rotary_dim(json: &Json, architecture: &Architecture, config: &Config) -> Result<Option<usize>, Error> {
    let of = |object: Object| object.get("partial_rotary_factor").filter(|value| !value.is_null()).cloned();
    let mut inside = objects(json, FULL)?.into_iter().filter_map(|(_, object)| of(object));
    let beside = json.get("partial_rotary_factor").cloned();
    let Some(value) = inside.next().or(beside) else { return Ok(None) };
    match value.as_f64() {
        Some(1.0) => Ok(None),
        Some(factor) if architecture.long_rope && (0.0..1.0).contains(&factor) => {
            Ok(Some((config.head_dim as f64 * factor) as usize))
        }
        _ => Err(json.error(format!("partial_rotary_factor is {value}: not supported"))),
    }
}

/// Whether parameters for a kind of layers stand by themselves.
fn is_nested(json: &Json, layers: &str) -> bool {
    OBJECTS.iter().any(|key| json.get(key).and_then(|value| value.get(layers)).is_some_and(Value::is_object))
}

/// The objects that say something about some layers: an empty one counts as absent, as it does in Python.
fn objects<'a>(json: &'a Json, layers: &str) -> Result<Vec<(&'static str, Object<'a>)>, Error> {
    let mut objects = Vec::new();
    for key in OBJECTS {
        let Some(value) = json.get(key) else { continue };
        let object = value.as_object().ok_or_else(|| {
            json.error(format!("{key} is {}: rope scaling is described by an object", excerpt(value)))
        })?;
        let object = match [FULL, WINDOWS].iter().any(|layers| object.contains_key(*layers)) {
            true => object.get(layers).and_then(Value::as_object),
            false => Some(object),
        };
        if let Some(object) = object.filter(|object| !object.is_empty()) {
            objects.push((key, object));
        }
    }
    Ok(objects)
}

/// The embedding of some layers.
fn rope(
    json: &Json,
    architecture: &Architecture,
    config: &Config,
    layers: &str,
    theta: f64,
) -> Result<Rope, Error> {
    let mut found = None;
    for (key, parameters) in objects(json, layers)? {
        let theta = theta_in(json, key, parameters, theta)?;
        // Older files have this length beside the object, where transformers looks first.
        let beside = json.get("original_max_position_embeddings");
        let original = beside.or_else(|| parameters.get("original_max_position_embeddings"));
        let rope = Scaling { architecture, parameters, original, config, theta }.rope().map_err(|why| {
            json.error(format!("{key} is {}: {why}", excerpt(&Value::Object(parameters.clone()))))
        })?;
        if found.as_ref().is_some_and(|found| *found != rope) {
            let [one, other] = OBJECTS;
            return Err(json.error(format!("{one} and {other} contradict each other: keep one of them")));
        }
        found = Some(rope);
    }
    let plain =
        Rope { config: RopeConfig::plain(theta), factors: None, long: None, reach: 0, temperature: None };
    Ok(found.unwrap_or(plain))
}

/// The base of the frequencies: within the object it counts more than beside it.
fn theta_in(json: &Json, key: &str, object: Object, beside: f64) -> Result<f64, Error> {
    match object.get("rope_theta").filter(|theta| !theta.is_null()) {
        None => Ok(beside),
        Some(theta) => theta
            .as_f64()
            .ok_or_else(|| json.error(format!("{key}: rope_theta is {}, not a number", excerpt(theta)))),
    }
}

/// Queries that grow, where that stands by itself.
fn temperature(json: &Json) -> Result<Option<Temperature>, Error> {
    let Some(object) = json.get("llama_4_scaling") else { return Ok(None) };
    let number = |key: &str| positive(key, object.get(key));
    let read = || -> Result<Temperature, String> {
        Ok(Temperature {
            beta: number("beta")? as f32,
            original: number("original_max_position_embeddings")? as usize,
        })
    };
    read().map(Some).map_err(|why| json.error(format!("llama_4_scaling is {}: {why}", excerpt(object))))
}

struct Scaling<'a> {
    architecture: &'a Architecture,
    parameters: Object<'a>,
    original: Option<&'a Value>,
    config: &'a Config,
    theta: f64,
}

impl Scaling<'_> {
    fn rope(&self) -> Result<Rope, String> {
        let kind = self.kind()?;
        self.check_parameters(kind)?;
        let rotary_dim = self.config.rotary_dim();
        let (mut magnitude, mut long, mut reach) = (1.0, None, 0);
        let factors = match kind {
            "linear" => Some(vec![self.number("factor")? as f32; rotary_dim / 2]),
            "llama3" => Some(self.llama3()?.factors(self.theta, rotary_dim)),
            "yarn" => {
                let yarn = self.yarn()?;
                magnitude = self.yarn_magnitude(&yarn)?;
                // Who switches it on, as Qwen's cards say, leaves the context as it is without.
                reach = (yarn.factor * yarn.original) as usize;
                Some(yarn.factors(self.theta, rotary_dim))
            }
            "longrope" => {
                magnitude = self.long_magnitude()?;
                long = Some((self.original_length()? as usize, self.list("long_factor")?));
                Some(self.list("short_factor")?)
            }
            // What "dynamic" does begins behind the context that the model has.
            _ => None,
        };
        let config = RopeConfig { theta: self.theta, scaled: factors.is_some(), magnitude };
        let temperature = match self.present("llama_4_scaling_beta") {
            Some(_) => Some(Temperature {
                beta: self.number("llama_4_scaling_beta")? as f32,
                original: self.original_length()? as usize,
            }),
            None => None,
        };
        Ok(Rope { config, factors, long, reach, temperature })
    }

    fn kind(&self) -> Result<&str, String> {
        let mut kinds = ["rope_type", "type"].into_iter().filter_map(|key| self.present(key));
        let Some(kind) = kinds.next() else { return Ok("default") };
        if kinds.any(|other| other != kind) {
            return Err("rope scaling with a rope_type that is not its type".to_owned());
        }
        match kind.as_str().unwrap_or_default() {
            "su" => Ok("longrope"),
            // An early name, for this architecture alone.
            "yarn" if self.architecture.long_rope => Ok("longrope"),
            "longrope" if !self.architecture.long_rope => Err(format!(
                "rope scaling of this kind is not part of a {} model",
                self.architecture.model_type
            )),
            kind @ ("default" | "linear" | "llama3" | "yarn" | "longrope" | "dynamic") => Ok(kind),
            _ => {
                Err("of the rope scalings linear, dynamic, llama3, yarn and longrope are supported"
                    .to_owned())
            }
        }
    }

    /// Refuses what would change the result and is not read.
    fn check_parameters(&self, kind: &str) -> Result<(), String> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let parameters: &[&str] = match kind {
            "linear" | "dynamic" => &["factor", ORIGINAL],
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL],
            "yarn" => &[
                "factor",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
                "finetuned",
                "max_position_embeddings",
                ORIGINAL,
            ],
            "longrope" => &["factor", "attention_factor", "short_factor", "long_factor", ORIGINAL],
            _ => &[ORIGINAL],
        };
        let known = |(key, value): (&String, &Value)| match key.as_str() {
            "rope_type" | "type" | "rope_theta" | "partial_rotary_factor" => true,
            "llama_4_scaling_beta" if self.architecture.temperature => true,
            key => value.is_null() || parameters.contains(&key),
        };
        match self.parameters.iter().find(|&entry| !known(entry)) {
            Some((key, _)) => Err(format!("rope scaling with {key} is not supported")),
            None => Ok(()),
        }
    }

    fn llama3(&self) -> Result<Llama3, String> {
        let (low, high) = (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        if low >= high {
            return Err("rope scaling needs a low_freq_factor below its high_freq_factor".to_owned());
        }
        Ok(Llama3 { factor: self.number("factor")?, low, high, original: self.original_length()? })
    }

    fn yarn(&self) -> Result<Yarn, String> {
        let yarn = Yarn::new(self.stretch()?, self.original_length()?);
        let truncate = match self.present("truncate") {
            None => yarn.truncate,
            Some(value) => value.as_bool().ok_or("rope scaling needs a truncate that is true or false")?,
        };
        let beta_fast = self.number_or("beta_fast", yarn.beta_fast)?;
        let beta_slow = self.number_or("beta_slow", yarn.beta_slow)?;
        Ok(Yarn { beta_fast, beta_slow, truncate, ..yarn })
    }

    fn yarn_magnitude(&self, yarn: &Yarn) -> Result<f32, String> {
        let scales = [self.present("mscale"), self.present("mscale_all_dim")];
        match (self.present("attention_factor"), scales.map(|scale| scale.and_then(Value::as_f64))) {
            (Some(_), _) => Ok(self.number("attention_factor")? as f32),
            // Zero counts as absent.
            (None, [Some(mscale), Some(all_dim)]) if mscale != 0.0 && all_dim != 0.0 => {
                Ok(yarn.magnitude(mscale, all_dim))
            }
            _ => Ok(yarn.magnitude(1.0, 0.0)),
        }
    }

    /// LongRoPE's.
    fn long_magnitude(&self) -> Result<f32, String> {
        if self.present("attention_factor").is_some() {
            return Ok(self.number("attention_factor")? as f32);
        }
        let (factor, original) = (self.stretch()?, self.original_length()?);
        match factor <= 1.0 {
            true => Ok(1.0),
            false => Ok((1.0 + libm::log(factor) / libm::log(original)).sqrt() as f32),
        }
    }

    /// How much longer than the original length contexts may be.
    fn stretch(&self) -> Result<f64, String> {
        match self.present("factor") {
            Some(_) => self.number("factor"),
            None => Ok(self.config.max_position_embeddings as f64 / self.original_length()?),
        }
    }

    /// Positions the model was first trained for.
    fn original_length(&self) -> Result<f64, String> {
        match self.original.filter(|original| !original.is_null()) {
            Some(original) => positive("original_max_position_embeddings", Some(original)),
            None => Ok(self.config.max_position_embeddings as f64),
        }
    }

    /// A factor for each frequency.
    fn list(&self, key: &str) -> Result<Vec<f32>, String> {
        let n = self.config.rotary_dim() / 2;
        let numbers: Option<Vec<f32>> = self.present(key).and_then(Value::as_array).and_then(|values| {
            values.iter().map(|value| positive(key, Some(value)).ok().map(|number| number as f32)).collect()
        });
        let numbers = numbers.filter(|numbers| numbers.len() == n);
        numbers.ok_or_else(|| format!("rope scaling needs a {key} of {n} positive numbers"))
    }

    fn present(&self, key: &str) -> Option<&Value> {
        self.parameters.get(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> Result<f64, String> {
        positive(key, self.parameters.get(key))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, String> {
        // Zero counts as absent.
        match self.present(key).filter(|value| value.as_f64() != Some(0.0)) {
            Some(_) => self.number(key),
            None => Ok(default),
        }
    }
}

fn positive(key: &str, value: Option<&Value>) -> Result<f64, String> {
    // A factor is stored as f32.
    let number = value.and_then(Value::as_f64).filter(|number| *number > 0.0 && (*number as f32).is_normal());
    number.ok_or_else(|| format!("rope scaling needs a positive {key}"))
}
