//! A JSON file whose fields are read by name, with errors that name the file and the field.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;

/// Text files longer than this are refused. The largest `tokenizer.json` of today have 35 MB.
const MAX_BYTES: u64 = 100_000_000;

/// Reads a whole file; `None` when there is none.
///
/// # Errors
/// When it cannot be read, is not a regular file (which may have no end), or is larger than any real one.
pub fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    // Asked before opening, which would wait for a pipe's other end.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(Error::file(path, "not a regular file")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, format!("larger than {MAX_BYTES} bytes, which no such file is")));
    }
    Ok(Some(bytes))
}

/// A JSON file that holds an object. A field that is `null` counts as absent.
pub struct Json {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Json {
    /// Reads the file; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let Some(text) = read_file(path)? else { return Ok(None) };
        let fields = serde_json::from_slice(&text)
            .or_else(|error| serde_json::from_slice(&without_python_numbers(&text)).map_err(|_| error));
        match fields {
            Ok(fields) => Ok(Some(Self { path: path.to_owned(), fields })),
            Err(error) => Err(Error::file(path, format!("not a JSON object: {error}"))),
        }
    }

    /// A problem with this file.
    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::file(&self.path, problem)
    }

    /// A field that holds an object, with what this one says of all tokens and of the file where the other says nothing.
    pub fn object(&self, key: &str) -> Option<Self> {
        const OF_BOTH: [&str; 4] =
            ["bos_token_id", "eos_token_id", "tie_word_embeddings", "quantization_config"];
        let mut fields = self.get(key)?.as_object()?.clone();
        for key in OF_BOTH {
            if let (None, Some(value)) = (fields.get(key), self.get(key)) {
                fields.insert(key.to_owned(), value.clone());
            }
        }
        Some(Self { path: self.path.clone(), fields })
    }

    /// Sets a field that is not there.
    pub fn set(&mut self, key: &str, value: Value) {
        self.fields.insert(key.to_owned(), value);
    }

    /// The value of a field.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Whether a field is there and `null`, where that means something else than absence.
    pub fn is_null(&self, key: &str) -> bool {
        self.fields.get(key).is_some_and(Value::is_null)
    }

    /// The value of a field that is a count.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, Error> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|value| value.try_into().ok()))
    }

    /// The value of a field that is a number.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// The value of a field that is true or false.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// The value of a field that is a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.error(format!("{key} is {}, not {kind}", excerpt(value)))),
            },
        }
    }
}

/// Python writes numbers that JSON does not have: here they are null.
fn without_python_numbers(text: &[u8]) -> Vec<u8> {
    const NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'\\' if in_string => {
                out.push(byte);
                let escaped = after.first();
                out.extend(escaped);
                rest = after.get(usize::from(escaped.is_some())..).unwrap_or_default();
                continue;
            }
            b'"' => in_string = !in_string,
            _ if !in_string => {
                if let Some(after) = NUMBERS.iter().find_map(|number| rest.strip_prefix(*number)) {
                    out.extend(b"null");
                    rest = after;
                    continue;
                }
            }
            _ => {}
        }
        out.push(byte);
        rest = after;
    }
    out
}

/// A value for an error message: its JSON, on one line, cut to a readable length.
pub fn excerpt(value: &Value) -> String {
    const LONGEST: usize = 300;
    let json = value.to_string();
    match json.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &json[..end]),
        None => json,
    }
}
