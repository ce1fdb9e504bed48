//! Operators that mean something else to Python than to the engine. `compile.rs` puts these filters in their place, the
//! operator's name first among the arguments where there are several.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Environment, Error, State};

use super::args::refuse;
use super::filters::escape;
use super::print::text;
use crate::chat::walk::printed;

/// `+`. No template can write these names.
pub(crate) const ADD: &str = "add!";
/// `<`, `<=`, `>` and `>=`.
pub(crate) const ORDER: &str = "order!";
/// `in`.
pub(crate) const IN: &str = "in!";
/// `%`.
pub(crate) const REM: &str = "rem!";
/// `~`.
pub(crate) const CONCAT: &str = "concat!";
/// Refuses `None` where something is iterated over.
pub(crate) const ITERATED: &str = "iterated!";

pub(super) fn add(environment: &mut Environment) {
    environment.add_filter(ADD, sum);
    environment.add_filter(ORDER, |left: &Value, op: &str, right: &Value| order(left, op, right));
    environment.add_filter(IN, contained);
    environment.add_filter(REM, remainder);
    environment.add_filter(CONCAT, |state: &State, left: &Value, right: &Value| {
        Ok::<_, Error>(text(state, left)? + &text(state, right)?)
    });
    environment.add_filter(ITERATED, |value: Value| match value.kind() {
        ValueKind::None => refuse("none is not iterable"),
        _ => Ok(value),
    });
    let tests = [
        ("<", &["lt", "lessthan", "<"][..]),
        ("<=", &["le", "<="]),
        (">", &["gt", "greaterthan", ">"]),
        (">=", &["ge", ">="]),
    ];
    for (op, names) in tests {
        for name in names {
            environment.add_test(*name, move |left: &Value, right: &Value| order(left, op, right));
        }
    }
    environment.add_test("in", contained);
}

/// The sum of numbers, or strings, lists or tuples joined. Beside a string that is marked as safe, another is escaped.
fn sum(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let unlike = || refuse(format!("+ joins no {} and {}", left.kind(), right.kind()));
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        if !left.is_safe() && !right.is_safe() {
            return Ok(Value::from(a.to_owned() + b));
        }
        let [a, b] = [escape(state, left, false)?, escape(state, right, false)?];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        return Ok(Value::from_safe_string(text(&a) + &text(&b)));
    }
    if left.kind() == ValueKind::Seq && right.kind() == ValueKind::Seq {
        let items = left.len().unwrap_or(0).saturating_add(right.len().unwrap_or(0));
        state.consume_fuel((items / 8) as u64)?;
        let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        return match (left.is_tuple(), right.is_tuple()) {
            (true, true) => Ok(Value::from(Tuple::from(items))),
            (false, false) => Ok(Value::from(items)),
            _ => unlike(),
        };
    }
    if !is_number(left) || !is_number(right) {
        return unlike();
    }
    if !is_whole(left) || !is_whole(right) {
        return Ok(Value::from(float_of(left)? + float_of(right)?));
    }
    let (a, b) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
    let Some(total) = a.checked_add(b) else { return refuse("+: the sum is too large") };
    Ok(i64::try_from(total).map_or_else(|_| Value::from(total), Value::from))
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

/// Whether a number is a whole one by its type.
pub(super) fn is_whole(value: &Value) -> bool {
    value.is_integer() || value.kind() == ValueKind::Bool
}

/// A number as a float; truth values are numbers.
pub(super) fn float_of(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()),
    }
}

/// Compares numbers, strings, lists or tuples; Python orders nothing else, and none of them by another.
fn order(left: &Value, op: &str, right: &Value) -> Result<bool, Error> {
    let lists = |value: &Value| value.kind() == ValueKind::Seq;
    if lists(left) && lists(right) && left.is_tuple() == right.is_tuple() {
        let mut pairs = left.try_iter()?.zip(right.try_iter()?);
        return match pairs.find(|(a, b)| a != b) {
            // How deep lists may be nested was checked before.
            Some((a, b)) => order(&a, op, &b),
            None => order(&Value::from(left.len()), op, &Value::from(right.len())),
        };
    }
    let alike = is_number(left) && is_number(right) || left.as_str().is_some() && right.as_str().is_some();
    if !alike {
        return refuse(format!("{op} compares no {} with {}", left.kind(), right.kind()));
    }
    Ok(match op {
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        _ => left >= right,
    })
}

/// Whether `item` is in `of`.
fn contained(state: &State, item: &Value, of: &Value) -> Result<bool, Error> {
    match (item.as_str(), of.kind()) {
        (_, ValueKind::Undefined) => Ok(false),
        (Some(item), ValueKind::String) => {
            let of = of.as_str().unwrap_or_default();
            state.consume_fuel((of.len() / 1024) as u64)?;
            Ok(of.contains(item))
        }
        (None, ValueKind::String) => {
            refuse(format!("in: only a string can be in a string, not {}", item.kind()))
        }
        (_, ValueKind::Map) if !is_hashable(item) => refuse(format!("in: {} cannot be a key", item.kind())),
        (_, ValueKind::Map) => Ok(!of.get_item(item)?.is_undefined() || has_key(of, item)?),
        (_, ValueKind::Seq | ValueKind::Iterable) => {
            // Each comparison may walk through both.
            let cost = printed(of)?.saturating_add(printed(item)?.saturating_mul(of.len().unwrap_or(1)));
            state.consume_fuel((cost / 1024) as u64)?;
            Ok(of.try_iter()?.any(|other| other == *item))
        }
        (_, kind) => refuse(format!("in: nothing can be in {kind}")),
    }
}

/// Whether a value can be a key.
pub(super) fn is_hashable(value: &Value) -> bool {
    value.is_tuple() || !matches!(value.kind(), ValueKind::Seq | ValueKind::Map)
}

/// Whether a map has the key, whatever its value.
fn has_key(map: &Value, key: &Value) -> Result<bool, Error> {
    Ok(map.try_iter()?.any(|other| other == *key))
}

/// The remainder of a division, or a string with values put in.
fn remainder(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(pattern) = left.as_str() {
        let values: Vec<Value> = match right.is_tuple() {
            true => right.try_iter()?.collect(),
            false => vec![right.clone()],
        };
        let put_in = pattern.replace("%%", "").matches('%').count();
        let may_be_left = [ValueKind::Map, ValueKind::Seq, ValueKind::Undefined].contains(&right.kind());
        if values.len() > put_in && (right.is_tuple() || !may_be_left) {
            return refuse("not all arguments converted during string formatting");
        }
        return formatted(state, pattern, &values).map(Value::from);
    }
    let unlike = || refuse(format!("% divides no {} by {}", left.kind(), right.kind()));
    if !is_number(left) || !is_number(right) {
        return unlike();
    }
    if is_whole(left) && is_whole(right) {
        let (Ok(a), Ok(b)) = (i128::try_from(left.clone()), i128::try_from(right.clone())) else {
            return unlike();
        };
        let Some(rest) = a.checked_rem(b) else { return refuse("% by zero") };
        let rest = if rest != 0 && (rest < 0) != (b < 0) { rest.saturating_add(b) } else { rest };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    let (a, b) = (float_of(left)?, float_of(right)?);
    if b == 0.0 {
        return refuse("% by zero");
    }
    let rest = a % b;
    Ok(Value::from(match rest != 0.0 && (rest < 0.0) != (b < 0.0) {
        true => rest + b,
        false if rest == 0.0 => 0.0f64.copysign(b),
        false => rest,
    }))
}

/// `pattern % values`, paid for before.
fn formatted(state: &State, pattern: &str, values: &[Value]) -> Result<String, Error> {
    let widths = pattern.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut most = widths.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0);
    for value in values {
        most = most.max(printed(value)?);
        if pattern.contains('*') {
            most = most.max(value.as_usize().unwrap_or(0));
        }
    }
    let fields = pattern.matches('%').count();
    state.consume_fuel((fields.saturating_mul(most) / 64) as u64)?;
    let mut values = values.to_vec();
    for value in &mut values {
        // Strings and numbers are the engine's to format, all else is written as Python has it.
        if !matches!(value.kind(), ValueKind::String | ValueKind::Number | ValueKind::Map) {
            *value = Value::from(text(state, value)?);
        }
    }
    format(FormatStyle::Printf, pattern, &values)
}
