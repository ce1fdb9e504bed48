//! Filters and tests that the engine has not, or that mean something else to Jinja2 on Python.

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State};

use super::args::{Args, refuse};
use super::operators::{REM, float_of, is_hashable, is_whole};
use super::print::{repr, text};
use super::text::{self as strings, is_lower, is_space, is_upper};

pub(super) fn add(environment: &mut Environment) {
    environment.add_filter("trim", trim);
    environment.add_filter("string", string);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    environment.add_filter("replace", replace);
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("center", center);
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("truncate", truncate);
    environment.add_filter("pprint", |value: &Value| {
        let mut out = String::new();
        repr(&mut out, value)?;
        Ok::<_, Error>(out)
    });
    // What is in a map is no attribute of it.
    environment.add_filter("attr", |value: &Value, name: &str| match value.kind() {
        ValueKind::Map => Ok(Value::UNDEFINED),
        _ => value.get_attr(name),
    });
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, move |state: &State, value: &Value| {
            escape(state, value, name == "forceescape")
        });
    }
    for name in ["upper", "lower", "title", "capitalize"] {
        environment.add_filter(name, move |state: &State, value: &Value| {
            cased(name, &text(state, value)?).map(Value::from)
        });
    }
    add_tests(environment);
}

fn add_tests(environment: &mut Environment) {
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::String, ValueKind::Seq, ValueKind::Map, ValueKind::Undefined];
        kinds.contains(&value.kind()) || value.len().is_some()
    });
    environment.add_test("callable", |value: &Value| {
        matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
    });
    environment.add_test("lower", |state: &State, value: &Value| text(state, value).map(|t| is_lower(&t)));
    environment.add_test("upper", |state: &State, value: &Value| text(state, value).map(|t| is_upper(&t)));
    environment
        .add_test("filter", |state: &State, name: &Value| known(state, name, minijinja::tests::is_filter));
    environment.add_test("test", |state: &State, name: &Value| known(state, name, minijinja::tests::is_test));
    for (name, rest) in [("odd", 1), ("even", 0)] {
        environment.add_test(name, move |state: &mut State, value: &Value| {
            number(value)?;
            remainder(state, value, &Value::from(2)).map(|left| left == Value::from(rest))
        });
    }
    environment.add_test("divisibleby", |state: &mut State, value: &Value, by: &Value| {
        number(value)?;
        remainder(state, value, by).map(|left| left == Value::from(0))
    });
}

/// Whether a filter or a test has this name.
fn known(state: &State, name: &Value, is_known: fn(&State, &str) -> bool) -> Result<bool, Error> {
    if !is_hashable(name) {
        return refuse(format!("{} is no name", name.kind()));
    }
    Ok(name.as_str().is_some_and(|name| is_known(state, name)))
}

fn number(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Bool => Ok(()),
        kind => refuse(format!("a number is needed, not {kind}")),
    }
}

fn remainder(state: &mut State, value: &Value, by: &Value) -> Result<Value, Error> {
    state.apply_filter(REM, &[value.clone(), by.clone()])
}

fn trim(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let chars = args.text(0, "chars")?;
    args.finish(1)?;
    let text = text(state, value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)),
        None => text.trim_matches(is_space),
    }
    .into())
}

fn string(state: &State, value: Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value) } else { text(state, &value).map(Value::from) }
}

fn default(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let other = args.get(0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let boolean = args.flag(1, "boolean")?;
    args.finish(2)?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value })
}

/// A number from text, with what Python's literals allow around digits.
fn digits(text: &str) -> Option<String> {
    let text = text.trim_matches(is_space);
    let sound = |part: &str| !part.starts_with('_') && !part.ends_with('_') && !part.contains("__");
    sound(text).then(|| text.replace('_', ""))
}

fn int(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let default = args.get(0, "default")?.unwrap_or_else(|| Value::from(0));
    let base = args.int(1, "base")?.unwrap_or(10);
    args.finish(2)?;
    let of_float = |number: f64| number.is_finite().then(|| Value::from(number.trunc() as i128));
    let number = match value.kind() {
        ValueKind::Undefined => return refuse("int: the value is undefined"),
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => of_float(f64::try_from(value.clone())?),
        ValueKind::String => value.as_str().and_then(digits).and_then(|text| {
            let whole = whole(&text, base).map(Value::from);
            whole.or_else(|| text.parse().ok().and_then(of_float))
        }),
        _ => None,
    };
    Ok(number.map_or(default, |number| i64::try_from(number.clone()).map_or(number, Value::from)))
}

/// A whole number in a base, with the prefix of that base if it has one.
fn whole(text: &str, base: i64) -> Option<i128> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => ["0b", "0B"],
        8 => ["0o", "0O"],
        16 => ["0x", "0X"],
        _ => ["", ""],
    };
    let text = prefix.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    if text.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from_str_radix(text, base).ok()?;
    Some(if negative { number.saturating_neg() } else { number })
}

fn float(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let default = args.get(0, "default")?.unwrap_or_else(|| Value::from(0.0));
    args.finish(1)?;
    let number = match value.kind() {
        ValueKind::Undefined => return refuse("float: the value is undefined"),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => Some(f64::try_from(value.clone())?),
        ValueKind::String => value.as_str().and_then(digits).and_then(|text| text.parse().ok()),
        _ => None,
    };
    Ok(number.map_or(default, Value::from))
}

fn round(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let precision = args.int(0, "precision")?.unwrap_or(0);
    let method = args.text(1, "method")?.unwrap_or_else(|| "common".to_owned());
    args.finish(2)?;
    number(value)?;
    let whole = is_whole(value);
    if method == "common" && whole && precision >= 0 {
        return int(value, Rest(Vec::new()));
    }
    let number = float_of(value)?;
    let places = usize::try_from(precision.clamp(0, 340)).unwrap_or(0);
    let scale = 10f64.powi(precision.clamp(-340, 340) as i32);
    let rounded = match method.as_str() {
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        // Digits are rounded half to even, which scaling would not do.
        "common" if precision >= 0 => format!("{number:.places$}").parse().unwrap_or(number),
        "common" => (number * scale).round_ties_even() / scale,
        _ => return refuse("method must be common, ceil or floor"),
    };
    match whole && method == "common" {
        true => int(&Value::from(rounded), Rest(Vec::new())),
        false => {
            state.consume_fuel(1)?;
            Ok(Value::from(rounded))
        }
    }
}

fn replace(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut args = args.into_values();
    for arg in args.iter_mut().take(2).filter(|arg| !arg.is_kwargs() && arg.as_str().is_none()) {
        *arg = Value::from(text(state, arg)?);
    }
    strings::replace(state, &text(state, value)?, &Args::new(&args)?).map(Value::from)
}

fn join(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let between = args.get(0, "d")?.unwrap_or_else(|| Value::from(""));
    let (between, attribute) = (text(state, &between)?, args.some(1, "attribute")?);
    args.finish(2)?;
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(attribute) => path(&item, attribute)?,
            None => item,
        };
        if i > 0 {
            state.consume_fuel((between.len() / 64) as u64)?;
            out.push_str(&between);
        }
        out.push_str(&text(state, &item)?);
    }
    Ok(Value::from(out))
}

/// What `a.b` names in a value.
fn path(item: &Value, attribute: &Value) -> Result<Value, Error> {
    let Some(names) = attribute.as_str() else { return item.get_item(attribute) };
    names.split('.').try_fold(item.clone(), |item, name| match name.parse::<usize>() {
        Ok(index) => item.get_item_by_index(index),
        Err(_) => item.get_attr(name),
    })
}

/// Lines as Jinja's `indent` takes them: all of Python's ends of lines, and `\n` between them afterwards.
fn indent(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let width = args.some(0, "width")?.unwrap_or_else(|| Value::from(4));
    let (first, blank) = (args.flag(1, "first")?, args.flag(2, "blank")?);
    args.finish(3)?;
    let Some(text) = value.as_str() else {
        return refuse(format!("indent: a string is needed, not {}", value.kind()));
    };
    let by = match (width.as_str(), width.as_usize()) {
        (Some(by), _) => by.to_owned(),
        (None, Some(n)) => {
            state.consume_fuel((n / 64) as u64)?;
            " ".repeat(n)
        }
        (None, None) => String::new(),
    };
    let text = format!("{text}\n");
    let no_args = Args::new(&[])?;
    let lines =
        strings::method(state, &text, "splitlines", &no_args).unwrap_or_else(|| refuse("no lines"))?;
    let mut out = if first { by.clone() } else { String::new() };
    for (i, line) in lines.try_iter()?.enumerate() {
        let line = line.as_str().unwrap_or_default();
        if i > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                state.consume_fuel((by.len() / 64) as u64)?;
                out.push_str(&by);
            }
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn dictsort(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let case_sensitive = args.flag(0, "case_sensitive")?;
    let by = args.text(1, "by")?.unwrap_or_else(|| "key".to_owned());
    let reverse = args.flag(2, "reverse")?;
    args.finish(3)?;
    let Some(at) = ["key", "value"].iter().position(|known| *known == by) else {
        return refuse("you can only sort by either \"key\" or \"value\"");
    };
    if value.kind() != ValueKind::Map {
        return refuse(format!("dictsort: a map is needed, not {}", value.kind()));
    }
    let pairs = state.apply_filter("items", std::slice::from_ref(value))?;
    let options = [("attribute", Value::from(at.to_string())), ("reverse", Value::from(reverse))];
    let options = options.into_iter().chain([("case_sensitive", Value::from(case_sensitive))]);
    let sorted: minijinja::value::Kwargs = options.collect();
    let pairs: Vec<Value> = pairs.try_iter()?.collect();
    state.apply_filter("sort", &[Value::from(pairs), Value::from(sorted)])
}

fn center(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let width = args.get(0, "width")?.unwrap_or_else(|| Value::from(80));
    args.finish(1)?;
    strings::filled(state, &text(state, value)?, "center", &Args::new(&[width])?)
}

fn wordcount(state: &State, value: &Value) -> Result<usize, Error> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    Ok(text(state, value)?.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count())
}

fn truncate(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let length = args.int(0, "length")?.unwrap_or(255);
    let killwords = args.flag(1, "killwords")?;
    let end = args.text(2, "end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = args.int(3, "leeway")?.unwrap_or(5);
    args.finish(4)?;
    let text = text(state, value)?;
    let count = |text: &str| i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let room = length.saturating_sub(count(&end));
    if room < 0 || leeway < 0 {
        return refuse("truncate: the end is longer than the length");
    }
    if count(&text) <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let cut: String = text.chars().take(usize::try_from(room).unwrap_or(0)).collect();
    let kept = match killwords {
        true => &cut,
        false => cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before),
    };
    Ok(Value::from(format!("{kept}{end}")))
}

/// A text with what HTML reads as marks written in another way; one that is marked as safe only where it is forced.
pub(super) fn escape(state: &State, value: &Value, force: bool) -> Result<Value, Error> {
    if value.is_safe() && !force {
        return Ok(value.clone());
    }
    let text = text(state, value)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// Another case. Jinja's `title` has words begin after white space, hyphens and opening brackets only.
fn cased(name: &str, text: &str) -> Result<String, Error> {
    let begins = |c: char| is_space(c) || "-({[<".contains(c);
    Ok(match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "capitalize" => strings::capitalized(text),
        _ => text
            .split_inclusive(begins)
            .map(|part| {
                let mut chars = part.chars();
                let first = chars.next().into_iter().flat_map(char::to_uppercase);
                first.collect::<String>() + &chars.as_str().to_lowercase()
            })
            .collect(),
    })
}
