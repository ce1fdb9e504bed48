//! What Jinja templates expect of Python, where the engine has something else: how values print, operators, filters and tests,
//! the methods of strings, lists and maps, `json.dumps`.
//!
//! `tests/fixtures/chat/python.py` compares all of it with Jinja2 as transformers sets it up.

mod args;
mod filters;
mod json;
pub(super) mod operators;
mod print;
mod text;

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, State};

use self::args::{Args, refuse};
use self::print::format;
use super::walk::printed;

/// Makes the environment's filters, tests and functions those of Jinja2.
pub(super) fn add(environment: &mut Environment) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(format);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("fromjson", json::from_json);
    environment.add_filter("from_json", json::from_json);
    environment.add_function("range", range);
    operators::add(environment);
    filters::add(environment);
}

/// The function `range`, of numbers between which the engine can take differences.
fn range(lower: i32, upper: Option<i32>, step: Option<i32>) -> Result<Value, Error> {
    let wide = |n: i32| n as isize;
    minijinja::functions::range(wide(lower), upper.map(wide), step.map(wide))
}

/// Methods of Python's types.
fn method(state: &mut State, value: &Value, name: &str, values: &[Value]) -> Result<Value, Error> {
    let others = minijinja_contrib::pycompat::unknown_method_callback;
    let Some(text) = value.as_str() else {
        return match (value.kind(), name) {
            (ValueKind::Seq, "count" | "index") => found(state, value, name, values),
            (ValueKind::Seq | ValueKind::Map, "copy") => Args::new(values)?.finish(0).map(|()| value.clone()),
            _ => others(state, value, name, values),
        };
    };
    if name == "format" {
        charge_format(state, text, values)?;
        return others(state, value, name, values);
    }
    let called = text::method(state, text, name, &Args::new(values)?);
    called.unwrap_or_else(|| others(state, value, name, values))
}

/// How often a list has an item, or where it has it first.
fn found(state: &State, list: &Value, name: &str, values: &[Value]) -> Result<Value, Error> {
    let args = Args::new(values)?;
    let item = args.get(0, "value")?.unwrap_or_default();
    args.finish(1)?;
    // Each comparison may walk through both.
    let items = printed(list)?.saturating_add(printed(&item)?.saturating_mul(list.len().unwrap_or(1)));
    state.consume_fuel((items / 64) as u64)?;
    let mut same = list.try_iter()?.map(|other| other == item);
    match name {
        "count" => Ok(Value::from(same.filter(|same| *same).count())),
        _ => same
            .position(|same| same)
            .map_or_else(|| refuse("the value is not in the list"), |at| Ok(at.into())),
    }
}

/// Pays for what `str.format` may write: each `{` as much as the widest field, or the largest argument.
fn charge_format(state: &State, text: &str, args: &[Value]) -> Result<(), Error> {
    let widths = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut most = widths.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0);
    for arg in args {
        most = most.max(printed(arg)?);
    }
    let fields = text.matches('{').count();
    state.consume_fuel((fields.saturating_mul(most) / 64) as u64)
}
