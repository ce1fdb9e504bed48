//! Walks through values before anything else walks through them, and refuses those on which that would take too long or
//! too much stack. `compile.rs` puts these filters where values are used.

use indexmap::IndexMap;
use minijinja::value::{ObjectRepr, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Refuses values that are too deep or too large, and makes lists of what only can be iterated. No template can write these
/// names.
pub(super) const WALKED: &str = "walked!";
/// As [`WALKED`], of what only can be iterated; lists and maps stay as they are.
pub(super) const FLAT: &str = "flat!";
/// As [`WALKED`], and refuses namespaces, which could come to hold themselves and would never be freed.
pub(super) const STORED: &str = "stored!";
/// Keeps a slice's step where it can be negated.
pub(super) const STEP: &str = "step!";
/// Refuses what is empty.
pub(super) const SOME: &str = "some!";

/// How deep lists and maps may be nested.
const MAX_DEPTH: usize = 64;

/// Values in a value, counted as often as they are in it.
const MAX_VALUES: usize = 1 << 18;

/// Bytes of text in lists and maps, counted as often as they are in it.
const MAX_TEXT: usize = 16 << 20;

/// Values and bytes that one unit of fuel pays for.
const VALUES_A_FUEL: usize = 8;
const TEXT_A_FUEL: usize = 1024;

pub(super) fn add_filters(environment: &mut Environment) {
    environment.add_filter(WALKED, |state: &State, value: Value| walked(state, value, false));
    environment.add_filter(STORED, |state: &State, value: Value| walked(state, value, true));
    environment.add_filter(FLAT, |state: &State, value: Value| {
        let lazy = value.as_object().is_some_and(|object| {
            object.repr() != ObjectRepr::Plain && !is_own(object.type_name()) && !exists(&value)
        });
        if lazy { walked(state, value, false) } else { Ok(value) }
    });
    environment.add_filter(SOME, |values: Value| match values.try_iter()?.next() {
        Some(_) => Ok(values),
        None => refuse("there is nothing to cycle through"),
    });
    environment.add_filter(STEP, |step: Value| match step.as_i64() {
        Some(i64::MIN) => Value::from(-i64::MAX),
        _ => step,
    });
}

fn refuse<T>(why: &str) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, why.to_owned()))
}

fn walked(state: &State, value: Value, stored: bool) -> Result<Value, Error> {
    if value.as_object().is_none() {
        return Ok(value);
    }
    let mut walk = Walk { stored, values: 0, text: 0 };
    let changed = walk.value(&value, 0);
    state.consume_fuel((walk.values / VALUES_A_FUEL + walk.text / TEXT_A_FUEL) as u64)?;
    Ok(changed?.unwrap_or(value))
}

/// Bytes that a value takes at most when it is printed, about.
pub(super) fn printed(value: &Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len());
    }
    let mut walk = Walk { stored: false, values: 0, text: 0 };
    walk.value(value, 0)?;
    Ok(walk.values.saturating_mul(32).saturating_add(walk.text))
}

/// Whether all of a list or map is in memory: others may be made of others, and those of others.
fn exists(value: &Value) -> bool {
    value.downcast_object_ref::<Vec<Value>>().is_some()
        || value.downcast_object_ref::<Tuple>().is_some()
        || value.downcast_object_ref::<IndexMap<Value, Value>>().is_some()
        // What serde makes of a struct, such as a message.
        || value.as_object().is_some_and(|object| object.type_name().ends_with("::StaticKeyMap"))
}

fn is_namespace(type_name: &str) -> bool {
    type_name.ends_with("::Namespace")
}

/// Minijinja's own objects that are maps to a template: a loop, a macro, and what a module is.
fn is_own(type_name: &str) -> bool {
    type_name.starts_with("minijinja::vm::") || is_namespace(type_name)
}

struct Walk {
    stored: bool,
    values: usize,
    text: usize,
}

impl Walk {
    /// What to use instead of `value`, if not `value`.
    fn value(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.values += 1;
        if let Some(text) = value.as_str() {
            self.text += text.len();
        }
        if self.values > MAX_VALUES || self.text > MAX_TEXT {
            return refuse("a value holds too many others, or too much text");
        }
        let Some(object) = value.as_object() else {
            return Ok(None);
        };
        if depth > MAX_DEPTH {
            return refuse("a value is nested too deeply, or holds itself");
        }
        let name = object.type_name();
        // What a macro or a loop holds cannot be seen from outside.
        if object.repr() == ObjectRepr::Plain || (is_own(name) && !is_namespace(name)) {
            return refuse("a macro, a function or a loop is no value");
        }
        if self.stored && is_namespace(name) {
            return refuse("a namespace cannot hold a namespace");
        }
        let mut changed = !exists(value) && !is_namespace(name);
        if value.kind() == ValueKind::Map {
            let mut pairs = Vec::new();
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                let new_key = self.value(&key, depth + 1)?;
                let new_item = self.value(&item, depth + 1)?;
                changed |= new_key.is_some() || new_item.is_some();
                pairs.push((new_key.unwrap_or(key), new_item.unwrap_or(item)));
            }
            changed &= !is_namespace(name);
            return Ok(
                changed.then(|| Value::from_object(pairs.into_iter().collect::<IndexMap<Value, Value>>()))
            );
        }
        let mut items = Vec::new();
        for item in value.try_iter()? {
            let new = self.value(&item, depth + 1)?;
            changed |= new.is_some();
            items.push(new.unwrap_or(item));
        }
        let tuple = value.downcast_object_ref::<Tuple>().is_some();
        Ok(changed.then(|| if tuple { Value::from(Tuple::from(items)) } else { Value::from(items) }))
    }
}
