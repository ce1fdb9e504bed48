//! The fields of a JSON object, taken one by one: what is left over in the end nobody understood, and is refused by name.

use serde_json::{Map, Value};

use super::problem::Problem;

/// The fields of an object that have not been taken yet.
pub struct Fields {
    fields: Map<String, Value>,
    /// Where in the request the object stands: empty, or ending in a full stop.
    place: String,
}

/// What a field's value can be.
pub trait Field: Sized {
    /// What it is called in errors.
    const WHAT: &'static str;

    /// The value, if it is of this kind.
    fn from_json(value: Value) -> Option<Self>;
}

impl Fields {
    /// The object at `place`, such as `messages[0]`; the whole body where that is empty.
    pub fn new(value: Value, place: &str) -> Result<Self, Problem> {
        match (value, place) {
            (Value::Object(fields), "") => Ok(Self { fields, place: String::new() }),
            (Value::Object(fields), _) => Ok(Self { fields, place: format!("{place}.") }),
            (_, "") => Err(Problem::request("the body has to be a JSON object")),
            (_, place) => Err(Problem::value(place, "give an object")),
        }
    }

    /// A field's full name.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.place)
    }

    /// Takes a field. One that is null is as good as none.
    pub fn take<T: Field>(&mut self, field: &str) -> Result<Option<T>, Problem> {
        match self.fields.shift_remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::from_json(value) {
                Some(value) => Ok(Some(value)),
                None => Err(Problem::value(self.name(field), format_args!("give {}", T::WHAT))),
            },
        }
    }

    /// Takes a field that there must be.
    pub fn need<T: Field>(&mut self, field: &str) -> Result<T, Problem> {
        match self.take(field)? {
            Some(value) => Ok(value),
            None => Err(Problem::value(self.name(field), format_args!("missing: give {}", T::WHAT))),
        }
    }

    /// Takes a field that is an object.
    pub fn object(&mut self, field: &str) -> Result<Option<Self>, Problem> {
        let place = self.name(field);
        self.take::<Value>(field)?.map(|value| Self::new(value, &place)).transpose()
    }

    /// Takes a field that changes no answer, whatever it is.
    pub fn ignore(&mut self, field: &str) {
        self.fields.shift_remove(field);
    }

    /// Takes a field that may only say what is so anyway.
    pub fn only(&mut self, field: &str, allowed: &[Value], why: &str) -> Result<(), Problem> {
        match self.take::<Value>(field)? {
            Some(value) if !allowed.contains(&value) => Err(Problem::unsupported(self.name(field), why)),
            _ => Ok(()),
        }
    }

    /// Refuses what was not taken; `unsupported` are the fields that others know.
    pub fn finish(self, unsupported: &[&str]) -> Result<(), Problem> {
        match self.fields.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((field, _)) if unsupported.contains(&field.as_str()) => {
                Err(Problem::unsupported(self.name(field), "torchless does not support this field"))
            }
            Some((field, _)) => Err(Problem::unknown(self.name(field))),
        }
    }
}

impl Field for Value {
    const WHAT: &'static str = "a value";

    fn from_json(value: Value) -> Option<Self> {
        Some(value)
    }
}

impl Field for bool {
    const WHAT: &'static str = "true or false";

    fn from_json(value: Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Field for String {
    const WHAT: &'static str = "a string";

    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

impl Field for Vec<Value> {
    const WHAT: &'static str = "a list";

    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }
}

impl Field for Map<String, Value> {
    const WHAT: &'static str = "an object";

    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::Object(fields) => Some(fields),
            _ => None,
        }
    }
}

impl Field for f32 {
    const WHAT: &'static str = "a number";

    fn from_json(value: Value) -> Option<Self> {
        // What is too large for an f32 becomes infinite, which no setting allows.
        value.as_f64().map(|number| number as f32)
    }
}

impl Field for usize {
    const WHAT: &'static str = "a whole number from 0 on";

    fn from_json(value: Value) -> Option<Self> {
        value.as_u64().and_then(|number| number.try_into().ok())
    }
}

/// Where random choices begin.
pub struct Seed(pub u64);

impl Field for Seed {
    const WHAT: &'static str = "a whole number";

    fn from_json(value: Value) -> Option<Self> {
        // OpenAI's is signed, torchless' is not: the same 64 bits.
        value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)).map(Self)
    }
}

/// Token ids.
pub struct Tokens(pub Vec<u32>);

impl Field for Tokens {
    const WHAT: &'static str = "a list of token ids";

    fn from_json(value: Value) -> Option<Self> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        value.as_array()?.iter().map(id).collect::<Option<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_took_is_refused_by_its_name() {
        let mut fields = Fields::new(json!({"a": 1, "b": null, "c": {"d": 2}}), "").unwrap();
        assert_eq!(fields.take::<usize>("a").unwrap(), Some(1));
        assert_eq!(fields.take::<usize>("b").unwrap(), None);
        let inner = fields.object("c").unwrap().unwrap();
        let said = |problem: Problem| problem.body()["error"]["message"].as_str().unwrap().to_owned();
        assert!(said(inner.finish(&[]).unwrap_err()).starts_with("c.d: "));
        assert!(fields.finish(&[]).is_ok());
        let known = Fields::new(json!({"audio": {}, "x": null}), "").unwrap();
        let problem = known.finish(&["audio"]).unwrap_err().body();
        assert_eq!(problem["error"]["code"], "unsupported_parameter");
    }

    #[test]
    fn a_value_of_another_kind_is_told_what_it_should_be() {
        let mut fields = Fields::new(json!({"n": -1, "t": "warm", "s": [1, "a"]}), "m[0]").unwrap();
        let said = |problem: Problem| problem.body()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(said(fields.take::<usize>("n").err().unwrap()), "m[0].n: give a whole number from 0 on");
        assert_eq!(said(fields.take::<f32>("t").err().unwrap()), "m[0].t: give a number");
        assert_eq!(said(fields.take::<Tokens>("s").err().unwrap()), "m[0].s: give a list of token ids");
        assert_eq!(said(fields.need::<bool>("x").err().unwrap()), "m[0].x: missing: give true or false");
    }
}
