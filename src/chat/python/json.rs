//! `json.dumps`, as transformers makes it the filter `tojson`, and `json.loads`.

use minijinja::value::{Rest, Serde, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, State};

use super::args::{Args, refuse};
use super::print::{float, is_private};

/// Bytes of JSON: indentation can be most of a text.
const MAX_JSON: usize = 64 << 20;

/// Characters of a level's indentation.
const MAX_INDENT: i64 = 16;

/// The filters `fromjson` and `from_json`: some templates take apart what a message has as text.
pub(super) fn from_json(state: &State, text: &str) -> Result<Value, Error> {
    state.consume_fuel((text.len() / 64) as u64)?;
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value) => Ok(Value::from(Serde(value))),
        Err(problem) => refuse(format!("fromjson: {problem}")),
    }
}

/// The filter `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::of(args)?;
    let indent = match args.some(1, "indent")? {
        Some(indent) if indent.as_str().is_some() => args.text(1, "indent")?,
        _ => args.int(1, "indent")?.map(|n| " ".repeat(n.clamp(0, MAX_INDENT) as usize)),
    };
    let between = if indent.is_some() { "," } else { ", " };
    let separators = match args.some(2, "separators")? {
        Some(pair) => {
            let of = |i| pair.get_item_by_index(i).ok().and_then(|text| text.as_str().map(str::to_owned));
            match (of(0), of(1)) {
                (Some(item), Some(key)) => [item, key],
                _ => return refuse("separators: two strings are needed"),
            }
        }
        None => [between.to_owned(), ": ".to_owned()],
    };
    let (ascii, sort) = (args.flag(0, "ensure_ascii")?, args.flag(3, "sort_keys")?);
    args.finish(4)?;
    let mut dumps = Dumps { out: String::new(), indent, separators, ascii, sort };
    dumps.value(value, 0)?;
    Ok(Value::from(dumps.out))
}

/// Python's layout: on one line; with an indent, each value on a line of its own.
struct Dumps {
    out: String,
    indent: Option<String>,
    /// Between items, and behind keys.
    separators: [String; 2],
    ascii: bool,
    sort: bool,
}

impl Dumps {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten();
                let mut pairs: Vec<_> = pairs.collect();
                if self.sort {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.items(['{', '}'], depth, pairs, |dumps, (key, item)| {
                    match key.as_str() {
                        Some(key) => dumps.string(key),
                        None => {
                            let key = scalar(&key)?;
                            dumps.out.extend(["\"", &key, "\""]);
                        }
                    }
                    let separator = dumps.separators[1].clone();
                    dumps.out.push_str(&separator);
                    dumps.value(&item, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<_> = value.try_iter()?.collect();
                self.items(['[', ']'], depth, items, |dumps, item| dumps.value(&item, depth + 1))?;
            }
            _ => self.out.push_str(&scalar(value)?),
        }
        Ok(())
    }

    fn items<T>(
        &mut self,
        brackets: [char; 2],
        depth: usize,
        items: Vec<T>,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [open, close] = brackets;
        self.out.push(open);
        let any = !items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                let separator = self.separators[0].clone();
                self.out.push_str(&separator);
            }
            self.new_line(depth + 1)?;
            write(self, item)?;
        }
        if any {
            self.new_line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if self.out.len() > MAX_JSON {
            return refuse("the JSON is too long");
        }
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\x1f' => self.out.push_str(&format!("\\u{:04x}", u32::from(c))),
                c if self.ascii && !matches!(c, ' '..='~') && !is_private(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// What is neither a string nor holds anything.
fn scalar(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if value.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone())? {
            number if number.is_nan() => "NaN".to_owned(),
            number if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            number => float(number),
        },
        kind => return refuse(format!("tojson: {kind} has no JSON")),
    })
}
