//! How values print: Python's `str` and `repr`.

use minijinja::value::{ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// The environment's formatter: writes a value as `str` gives it.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&text(state, value)?),
    };
    written.map_err(|_| Error::from(ErrorKind::WriteFailure))
}

/// Python's `str(value)`. What is in lists and maps was walked through before, and is finite.
pub(super) fn text(state: &State, value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut out = String::new();
    repr(&mut out, value)?;
    state.consume_fuel((out.len() / 64) as u64)?;
    Ok(out)
}

/// Python's `repr(value)`.
pub(super) fn repr(out: &mut String, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::String => string(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push('{');
            let pairs = value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten();
            for (i, (key, item)) in pairs.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                repr(out, &key)?;
                out.push_str(": ");
                repr(out, &item)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut n = 0;
            for item in value.try_iter()? {
                out.push_str(if n == 0 { "" } else { ", " });
                repr(out, &item)?;
                n += 1;
            }
            out.push_str(match (tuple, n) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        _ if value.as_object().is_some_and(|object| object.repr() == ObjectRepr::Plain) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "a function has no text"));
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// The shortest digits that read back, with exponents that have a sign and two digits.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) =
                exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

fn string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if c == quote => out.extend(['\\', c]),
            _ if is_printable(c) || is_private(c) => out.push(c),
            _ => out.push_str(&match u32::from(c) {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x1_0000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// Whether a character may stand in for another (`mask.rs`), and is written as it is wherever it comes: Python would escape it.
pub(super) fn is_private(c: char) -> bool {
    c >= '\u{f0000}'
}

/// Whether `repr` shows a character as itself.
pub(super) fn is_printable(c: char) -> bool {
    let hidden = matches!(
        c.general_category(),
        GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
            | GeneralCategory::SpaceSeparator
    );
    c == ' ' || !(hidden || c.general_category_group() == GeneralCategoryGroup::Other)
}
