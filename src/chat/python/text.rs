//! The methods of Python's strings.

use minijinja::value::{Tuple, Value};
use minijinja::{Error, State};
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use super::args::{Args, refuse};
use super::print::is_printable;

/// Columns that a string may be filled up to.
const MAX_WIDTH: i64 = 1 << 20;

/// White space as `str.strip` has it: Unicode's, and the separators U+001C to U+001F.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Calls a method, if there is one of this name.
pub(super) fn method(state: &State, text: &str, name: &str, args: &Args) -> Option<Result<Value, Error>> {
    let all = |is: fn(char) -> bool| plain(args, !text.is_empty() && text.chars().all(is));
    Some(match name {
        "upper" => plain(args, text.to_uppercase()),
        "lower" => plain(args, text.to_lowercase()),
        // No full case folding, but for the letter that everyone knows of.
        "casefold" => plain(args, text.to_lowercase().replace('ß', "ss").replace('ς', "σ")),
        "swapcase" => plain(args, text.chars().map(swapped).collect::<String>()),
        "capitalize" => plain(args, capitalized(text)),
        "title" => plain(args, titled(text)),
        "isalpha" => all(is_letter),
        "isalnum" => all(|c| is_letter(c) || c.is_numeric()),
        "isascii" => plain(args, text.is_ascii()),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isnumeric" => all(char::is_numeric),
        "isprintable" => plain(args, text.chars().all(is_printable)),
        "isspace" => all(is_space),
        "islower" => plain(args, is_lower(text)),
        "isupper" => plain(args, is_upper(text)),
        "strip" | "lstrip" | "rstrip" => strip(text, name, args),
        "split" | "rsplit" => pieces(state, text).and_then(|()| split(text, name == "rsplit", args)),
        "splitlines" => pieces(state, text).and_then(|()| lines(text, args)),
        "partition" | "rpartition" => partition(text, name == "rpartition", args),
        "find" | "rfind" | "index" | "rindex" => find(text, name, args),
        "count" => count(text, args),
        "startswith" | "endswith" => affix(text, name == "startswith", args),
        "removeprefix" => args.need(0, "prefix").map(|p| text.strip_prefix(&*p).unwrap_or(text).into()),
        "removesuffix" => args.need(0, "suffix").map(|s| text.strip_suffix(&*s).unwrap_or(text).into()),
        "replace" => replace(state, text, args).map(Value::from),
        "center" | "ljust" | "rjust" | "zfill" => filled(state, text, name, args),
        "expandtabs" => expanded(state, text, args),
        "join" => join(state, text, args),
        _ => return None,
    })
}

/// What a method without arguments gives.
fn plain(args: &Args, value: impl Into<Value>) -> Result<Value, Error> {
    args.finish(0)?;
    Ok(value.into())
}

fn is_letter(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Letter
}

fn is_decimal(c: char) -> bool {
    c.general_category() == GeneralCategory::DecimalNumber
}

/// A decimal, or one raised, lowered or circled.
fn is_digit(c: char) -> bool {
    is_decimal(c)
        || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐')
}

/// A letter that is a capital and a small one at once.
fn is_title(c: char) -> bool {
    c.general_category() == GeneralCategory::TitlecaseLetter
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c))
}

pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c))
}

fn swapped(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// A letter as a word begins with it.
fn as_title(c: char) -> String {
    match c {
        'Ǆ'..='ǆ' => "ǅ".to_owned(),
        'Ǉ'..='ǉ' => "ǈ".to_owned(),
        'Ǌ'..='ǌ' => "ǋ".to_owned(),
        'Ǳ'..='ǳ' => "ǲ".to_owned(),
        _ => {
            let mut upper = c.to_uppercase();
            let first: String = upper.by_ref().take(1).collect();
            first + &upper.flat_map(char::to_lowercase).collect::<String>()
        }
    }
}

pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| as_title(first) + &chars.as_str().to_lowercase())
}

fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out += &as_title(c),
        }
        inside = is_cased(c);
    }
    out
}

fn strip(text: &str, name: &str, args: &Args) -> Result<Value, Error> {
    let chars = args.text(0, "chars")?;
    args.finish(1)?;
    let is_in = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    let start = if name == "rstrip" { text } else { text.trim_start_matches(is_in) };
    Ok(if name == "lstrip" { start } else { start.trim_end_matches(is_in) }.into())
}

/// Pays for the pieces that a text may fall into: each takes more than its letters.
fn pieces(state: &State, text: &str) -> Result<(), Error> {
    state.consume_fuel((text.len() / 32) as u64)
}

fn list(parts: Vec<&str>) -> Value {
    parts.into_iter().map(Value::from).collect()
}

fn split(text: &str, from_end: bool, args: &Args) -> Result<Value, Error> {
    let (separator, most) = (args.text(0, "sep")?, args.int(1, "maxsplit")?);
    args.finish(2)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let pieces = most.saturating_add(1);
    let mut parts: Vec<&str> = match separator.as_deref() {
        Some("") => return refuse("empty separator"),
        Some(separator) if from_end => text.rsplitn(pieces, separator).collect(),
        Some(separator) => text.splitn(pieces, separator).collect(),
        None => words(text, most, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(list(parts))
}

/// Words between white space, and after `most` of them the rest; from the end, the last word first.
fn words(text: &str, most: usize, from_end: bool) -> Vec<&str> {
    let trim = |text| match from_end {
        true => str::trim_end_matches(text, is_space),
        false => str::trim_start_matches(text, is_space),
    };
    let mut parts = Vec::new();
    let mut rest = trim(text);
    while !rest.is_empty() {
        let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        let space = rest.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
        let (before, after) = rest.split_at(at);
        let after = after.get(space..).unwrap_or_default();
        let (word, others) = if from_end { (after, before) } else { (before, after) };
        parts.push(word);
        rest = trim(others);
    }
    parts
}

fn lines(text: &str, args: &Args) -> Result<Value, Error> {
    let keep = args.flag(0, "keepends")?;
    args.finish(1)?;
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
        let end = match after.strip_prefix("\r\n") {
            Some(_) => 2,
            None => after.chars().next().map_or(0, char::len_utf8),
        };
        let (whole, next) = rest.split_at(line.len().saturating_add(end));
        parts.push(if keep { whole } else { line });
        rest = next;
    }
    Ok(list(parts))
}

fn partition(text: &str, from_end: bool, args: &Args) -> Result<Value, Error> {
    let separator = args.need(0, "sep")?;
    args.finish(1)?;
    if separator.is_empty() {
        return refuse("empty separator");
    }
    let cut = if from_end { text.rsplit_once(&*separator) } else { text.split_once(&*separator) };
    let parts = match cut {
        Some((before, after)) => [before, &*separator, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())))
}

/// The part of a text between two places in characters, and how many characters stand before it; `None` where it begins behind
/// the end.
fn window<'t>(text: &'t str, args: &Args, place: usize) -> Result<Option<(usize, &'t str)>, Error> {
    let (start, end) = (args.int(place, "start")?, args.int(place.saturating_add(1), "end")?);
    if start.is_none() && end.is_none() {
        return Ok(Some((0, text)));
    }
    let len = text.chars().count();
    let clamp = |at: i64| match usize::try_from(at) {
        Ok(at) => at,
        Err(_) => len.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, clamp), end.map_or(len, clamp).min(len));
    if start > len {
        return Ok(None);
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Ok(Some((start, text.get(byte(start)..byte(end)).unwrap_or_default())).filter(|_| start <= end))
}

fn find(text: &str, name: &str, args: &Args) -> Result<Value, Error> {
    let what = args.need(0, "sub")?;
    let part = window(text, args, 1)?;
    args.finish(3)?;
    let found = part.and_then(|(before, part)| {
        let at = if name.starts_with('r') { part.rfind(&*what) } else { part.find(&*what) }?;
        Some(part.get(..at)?.chars().count().saturating_add(before))
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("index") => refuse("substring not found"),
        None => Ok(Value::from(-1)),
    }
}

fn count(text: &str, args: &Args) -> Result<Value, Error> {
    let what = args.need(0, "sub")?;
    let part = window(text, args, 1)?;
    args.finish(3)?;
    Ok(Value::from(part.map_or(0, |(_, part)| part.matches(&*what).count())))
}

fn affix(text: &str, at_start: bool, args: &Args) -> Result<Value, Error> {
    let part = window(text, args, 1)?;
    let what = args.get(0, "affix")?.unwrap_or_default();
    args.finish(3)?;
    let all: Vec<Value> = match what.is_tuple() {
        true => what.try_iter()?.collect(),
        false => vec![what],
    };
    let mut found = false;
    for what in &all {
        let Some(what) = what.as_str() else {
            return refuse(format!("a string or a tuple of strings is needed, not {}", what.kind()));
        };
        found |= part
            .is_some_and(|(_, part)| if at_start { part.starts_with(what) } else { part.ends_with(what) });
    }
    Ok(Value::from(found))
}

/// Replaces some or all of what is found; what that makes is paid for before.
pub(super) fn replace(state: &State, text: &str, args: &Args) -> Result<String, Error> {
    let (old, new, most) = (args.need(0, "old")?, args.need(1, "new")?, args.int(2, "count")?);
    args.finish(3)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let found = text.len() / old.len().max(1);
    let more = found.saturating_add(1).min(most).saturating_mul(new.len());
    state.consume_fuel((more / 64) as u64)?;
    Ok(text.replacen(&*old, &new, most))
}

/// So many of a character, paid for before.
fn run_of(state: &State, c: char, n: usize) -> Result<String, Error> {
    state.consume_fuel((n / 16) as u64)?;
    Ok(std::iter::repeat_n(c, n).collect())
}

pub(super) fn filled(state: &State, text: &str, name: &str, args: &Args) -> Result<Value, Error> {
    let Some(width) = args.int(0, "width")?.filter(|width| *width <= MAX_WIDTH) else {
        return refuse("width: a number that is not too large is needed");
    };
    let with =
        args.text(1, "fillchar")?.unwrap_or_else(|| if name == "zfill" { "0" } else { " " }.to_owned());
    args.finish(2)?;
    let mut chars = with.chars();
    let (Some(fill), None) = (chars.next(), chars.next()) else {
        return refuse("the fill character must be exactly one character long");
    };
    let (len, width) = (text.chars().count(), usize::try_from(width).unwrap_or(0));
    let missing = width.saturating_sub(len);
    let (left, right) = match name {
        "ljust" => (0, missing),
        // As Python has it: the odd one stands before, if the width is odd.
        "center" => {
            let left = (missing / 2).saturating_add(missing & width & 1);
            (left, missing.saturating_sub(left))
        }
        _ => (missing, 0),
    };
    let sign = if name == "zfill" && text.starts_with(['+', '-']) { 1 } else { 0 };
    let (sign, text) = text.split_at(sign);
    Ok(Value::from([sign, &run_of(state, fill, left)?, text, &run_of(state, fill, right)?].concat()))
}

fn expanded(state: &State, text: &str, args: &Args) -> Result<Value, Error> {
    let Some(size) = Some(args.int(0, "tabsize")?.unwrap_or(8)).filter(|size| *size <= MAX_WIDTH) else {
        return refuse("tabsize: a number that is not too large is needed");
    };
    args.finish(1)?;
    let size = usize::try_from(size).unwrap_or(0);
    let (mut out, mut column) = (String::new(), 0usize);
    for c in text.chars() {
        match c {
            '\t' => {
                let n = size.saturating_sub(column.checked_rem(size).unwrap_or(0));
                out += &run_of(state, ' ', n)?;
                column = column.saturating_add(n);
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            _ => {
                out.push(c);
                column = column.saturating_add(1);
            }
        }
    }
    Ok(Value::from(out))
}

fn join(state: &State, text: &str, args: &Args) -> Result<Value, Error> {
    let items = args.get(0, "iterable")?.unwrap_or_default();
    args.finish(1)?;
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        let Some(item) = item.as_str() else {
            return refuse(format!("join: a string is needed, not {}", item.kind()));
        };
        if i > 0 {
            state.consume_fuel((text.len() / 64) as u64)?;
            out.push_str(text);
        }
        out.push_str(item);
    }
    Ok(Value::from(out))
}
