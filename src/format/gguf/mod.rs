//! GGUF files: the container here; what its keys and tensors mean to us beside it.
//!
//! Layout (little-endian, versions 2 and 3): magic, version u32, tensor count u64, key count u64; keys, each a name, a
//! value type u32 and a value; tensor descriptions, each a name, a dimension count u32, the dimensions u64 (the
//! fastest-varying first), a type u32 and an offset u64; then, at the next multiple of `general.alignment` (32 if
//! absent), the data that the offsets are relative to. Strings are a u64 length and UTF-8 bytes; arrays a type u32, a
//! u64 length and the elements.

mod config;
mod generation;
mod model;
pub(crate) mod parts;
mod pre_tokenizer;
mod rope;
mod tokenizer;

use std::collections::HashMap;
use std::ops::Range;

pub use model::open;

use crate::Malformed;
use crate::format::dequant::SourceType;
use crate::format::overlap;

/// The bytes a GGUF file begins with.
pub const MAGIC: &[u8] = b"GGUF";

/// Where tensor data is aligned when the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The longest name of a key or tensor, in bytes; real ones stay below 64.
const MAX_NAME: usize = 256;

/// A GGUF file's keys and tensor table. Everything it points at has been checked to lie inside the file.
pub struct Gguf<'a> {
    keys: HashMap<&'a str, Value<'a>>,
    /// The tensors in the file's order.
    pub tensors: Vec<GgufTensor<'a>>,
}

/// One entry of the tensor table.
#[derive(Debug)]
pub struct GgufTensor<'a> {
    /// GGUF's name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Slowest-varying dimension first, as everywhere but in GGUF: `[rows, cols]`.
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub encoding: SourceType,
    /// The bytes, in the file.
    pub range: Range<usize>,
}

/// A key's value. Integers of every width are one case, and so are floats.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
}

/// An array's elements, walked over once and known to be whole; decoded when asked for.
#[derive(Debug, Clone, Copy)]
struct Array<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

// Value types by their number in the file.
const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

impl<'a> Gguf<'a> {
    /// Reads the keys and the tensor table of a whole file.
    ///
    /// # Errors
    /// When the file is not GGUF version 2 or 3, is cut off, or contradicts itself; when a tensor's type is not
    /// supported.
    pub fn parse(file: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { file, at: 0 };
        if reader.take(4)? != MAGIC {
            return Err(malformed("not a GGUF file"));
        }
        match reader.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(malformed("a big-endian GGUF file: only little-endian ones are supported"));
            }
            version => {
                let text = format!("GGUF version {version}: only 2 and 3 are supported");
                return Err(Malformed(text));
            }
        }
        let tensor_count = reader.u64()?;
        let key_count = reader.u64()?;
        let mut keys = HashMap::new();
        for _ in 0..key_count {
            let key = reader.name("key")?;
            let value = reader.value().map_err(|problem| about(format_args!("key {key}"), problem))?;
            if keys.insert(key, value).is_some() {
                return Err(Malformed(format!("key {key} occurs twice")));
            }
        }
        let mut gguf = Self { keys, tensors: Vec::new() };
        gguf.read_tensors(&mut reader, tensor_count)?;
        Ok(gguf)
    }

    fn read_tensors(&mut self, reader: &mut Reader<'a>, count: u64) -> Result<(), Malformed> {
        let alignment = match self.keys.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Integer(value)) => match u32::try_from(*value) {
                Ok(alignment) if alignment.is_power_of_two() => u64::from(alignment),
                _ => return Err(Malformed(format!("general.alignment is {value}, not a power of two"))),
            },
            Some(_) => return Err(malformed("general.alignment is not an integer")),
        };
        let mut names = std::collections::HashSet::new();
        let mut offsets = Vec::new();
        for _ in 0..count {
            let name = reader.name("tensor")?;
            if !names.insert(name) {
                return Err(Malformed(format!("tensor {name} occurs twice")));
            }
            let (tensor, offset) =
                reader.tensor(name).map_err(|problem| about(format_args!("tensor {name}"), problem))?;
            self.tensors.push(tensor);
            offsets.push(offset);
        }
        let base = (reader.at as u64).next_multiple_of(alignment);
        for (tensor, offset) in self.tensors.iter_mut().zip(offsets) {
            tensor.range = data_range(reader.file, base, alignment, offset, tensor.range.len())
                .map_err(|problem| about(format_args!("tensor {}", tensor.name), problem))?;
        }
        overlap::check(self.tensors.iter().map(|tensor| (tensor.range.clone(), tensor.name)))
    }

    /// The names of all keys, in no particular order.
    fn key_names(&self) -> impl Iterator<Item = &'a str> {
        self.keys.keys().copied()
    }

    /// Whether there is a key of this name.
    fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The non-negative integer under `key`; `None` when there is no such key.
    fn integer(&self, key: &str) -> Result<Option<u64>, Malformed> {
        self.get(key, "a non-negative integer", |value| match value {
            Value::Integer(value) => u64::try_from(value).ok(),
            _ => None,
        })
    }

    /// The float under `key`.
    fn float(&self, key: &str) -> Result<Option<f64>, Malformed> {
        self.get(key, "a float", |value| match value {
            Value::Float(value) => Some(value),
            _ => None,
        })
    }

    /// The truth value under `key`.
    fn bool(&self, key: &str) -> Result<Option<bool>, Malformed> {
        self.get(key, "a bool", |value| match value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// The string under `key`.
    fn str(&self, key: &str) -> Result<Option<&'a str>, Malformed> {
        self.get(key, "a string", |value| match value {
            Value::Str(value) => Some(value),
            _ => None,
        })
    }

    /// The strings of the array under `key`.
    fn strings(&self, key: &str) -> Result<Option<Vec<String>>, Malformed> {
        self.array(key, "an array of strings", |value| match value {
            Value::Str(value) => Some(value.to_owned()),
            _ => None,
        })
    }

    /// The integers of the array under `key`.
    fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, Malformed> {
        self.array(key, "an array of integers", |value| match value {
            Value::Integer(value) => i64::try_from(value).ok(),
            _ => None,
        })
    }

    /// The truth values of the array under `key`; `None` also where it is no array.
    fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, Malformed> {
        match self.keys.get(key) {
            Some(Value::Array(_)) => self.array(key, "an array of bools", |value| match value {
                Value::Bool(value) => Some(value),
                _ => None,
            }),
            _ => Ok(None),
        }
    }

    /// The floats of the array under `key`.
    fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Malformed> {
        self.array(key, "an array of floats", |value| match value {
            Value::Float(value) => Some(value as f32),
            _ => None,
        })
    }

    fn get<T>(
        &self,
        key: &str,
        kind: &str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Malformed> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(&value) => match convert(value) {
                Some(value) => Ok(Some(value)),
                None => Err(Malformed(format!("key {key} is not {kind}"))),
            },
        }
    }

    fn array<T>(
        &self,
        key: &str,
        kind: &str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Malformed> {
        self.get(key, kind, |value| match value {
            Value::Array(array) => array.elements().map(|value| value.ok().and_then(&convert)).collect(),
            _ => None,
        })
    }
}

impl<'a> Array<'a> {
    fn elements(self) -> impl Iterator<Item = Result<Value<'a>, Malformed>> {
        let mut reader = Reader { file: self.bytes, at: 0 };
        (0..self.len).map(move |_| reader.value_of(self.kind))
    }
}

/// The bytes of a tensor's data in the file.
fn data_range(
    file: &[u8],
    base: u64,
    alignment: u64,
    offset: u64,
    len: usize,
) -> Result<Range<usize>, Malformed> {
    if !offset.is_multiple_of(alignment) {
        let text = format!("offset {offset} is not a multiple of the alignment, {alignment}");
        return Err(Malformed(text));
    }
    base.checked_add(offset)
        .and_then(|start| usize::try_from(start).ok())
        .and_then(|start| Some(start..start.checked_add(len)?))
        .filter(|range| range.end <= file.len())
        .ok_or_else(|| {
            let file = file.len();
            Malformed(format!(
                "{len} bytes at offset {offset} of the data, which begins at {base}, end past the file's {file}"
            ))
        })
}

/// Reads little-endian values one after the other, never past the end.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let rest = self.file.get(self.at..).unwrap_or_default();
        match rest.get(..len) {
            Some(bytes) => {
                self.at = self.at.saturating_add(len);
                Ok(bytes)
            }
            None => Err(Malformed(format!(
                "the file is cut off: {len} bytes needed at {}, {} left",
                self.at,
                rest.len()
            ))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A u64 that counts things in memory.
    fn len(&mut self) -> Result<usize, Malformed> {
        let len = self.u64()?;
        usize::try_from(len).map_err(|_| Malformed(format!("length {len} cannot be")))
    }

    fn string(&mut self, what: &str) -> Result<&'a str, Malformed> {
        let len = self.len()?;
        let start = self.at;
        std::str::from_utf8(self.take(len)?).map_err(|_| Malformed(format!("{what} at {start} is not UTF-8")))
    }

    /// The name of a key or tensor, fit to be quoted in a one-line message.
    fn name(&mut self, what: &str) -> Result<&'a str, Malformed> {
        let start = self.at;
        let name = self.string("a name")?;
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            return Err(Malformed(format!("the {what} name at {start} is empty, too long or not printable")));
        }
        Ok(name)
    }

    fn value(&mut self) -> Result<Value<'a>, Malformed> {
        let kind = self.u32()?;
        match kind {
            ARRAY => self.array_value(),
            _ => self.value_of(kind),
        }
    }

    /// A value of a type that is not an array.
    fn value_of(&mut self, kind: u32) -> Result<Value<'a>, Malformed> {
        Ok(match kind {
            U8 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            I8 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            U16 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            I16 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            U32 => Value::Integer(self.u32()?.into()),
            I32 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            U64 => Value::Integer(self.u64()?.into()),
            I64 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            F32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            BOOL => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [byte] => return Err(Malformed(format!("a bool is {byte}"))),
            },
            STRING => Value::Str(self.string("a string")?),
            ARRAY => return Err(malformed("an array of arrays is not supported")),
            _ => return Err(Malformed(format!("value type {kind} is not known"))),
        })
    }

    fn array_value(&mut self) -> Result<Value<'a>, Malformed> {
        let kind = self.u32()?;
        let len = self.len()?;
        let start = self.at;
        let width = match kind {
            U8 | I8 | BOOL => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            U64 | I64 | F64 => 8,
            STRING => 0,
            // An array or a type that is not known: refused as an element would be, also where there is none.
            _ => return self.value_of(kind),
        };
        if width > 0 {
            self.take(len.checked_mul(width).ok_or_else(|| malformed("an array that long cannot be"))?)?;
        } else {
            for _ in 0..len {
                self.value_of(kind)?;
            }
        }
        let bytes = self.file.get(start..self.at).unwrap_or_default();
        Ok(Value::Array(Array { kind, len, bytes }))
    }

    fn dimension(&mut self) -> Result<usize, Malformed> {
        match self.len()? {
            0 => Err(malformed("has a dimension of 0")),
            size => Ok(size),
        }
    }

    /// A tensor's description, and its offset. The length of its range is right, its place is not known yet.
    fn tensor(&mut self, name: &'a str) -> Result<(GgufTensor<'a>, u64), Malformed> {
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(Malformed(format!("has {dimensions} dimensions, not 1 to 4")));
        }
        let cols = self.dimension()?;
        let (mut shape, mut rows) = (vec![cols], 1usize);
        for _ in 1..dimensions {
            let size = self.dimension()?;
            shape.push(size);
            rows = rows.checked_mul(size).ok_or_else(|| malformed("has more values than can be counted"))?;
        }
        if rows.checked_mul(cols).is_none() {
            return Err(malformed("has more values than can be counted"));
        }
        shape.reverse();
        let encoding = SourceType::from_ggml(self.u32()?)?;
        let offset = self.u64()?;
        let bytes = encoding.bytes(cols).and_then(|row| row.checked_mul(rows));
        let Some(bytes) = bytes else {
            let block = encoding.block_len();
            return Err(Malformed(format!("has rows of {cols} values, not whole blocks of {block}")));
        };
        let tensor = GgufTensor { name, shape, encoding, range: 0..bytes };
        Ok((tensor, offset))
    }
}

fn malformed(problem: &str) -> Malformed {
    Malformed(problem.to_owned())
}

/// The same problem, with what it is about in front.
fn about(what: std::fmt::Arguments<'_>, problem: Malformed) -> Malformed {
    Malformed(format!("{what}: {}", problem.0))
}
