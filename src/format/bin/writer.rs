//! Writing the `.bin` model file.
//!
//! `header_size` (u64, little-endian), a JSON header padded with spaces so that the payload starts at a multiple of 64,
//! then the tensors in the order of the header, each starting at a multiple of 64: a tensor's data, and after it, for
//! int8, its scales. Offsets are relative to the start of the payload; `scale_size` is the number of scales. The layout
//! follows from names and shapes alone, so the header is written first and the weights stream past.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::{MAX_HEADER, tokenizer};
use crate::arch::{Config, GenerationDefaults, RopeConfig};
use crate::format::encoding::{Dtype, Encoded, Sizes};
use crate::format::fs::{AtomicFile, Pieces};
use crate::tokenizer::Spec;
use crate::{Error, Malformed};

/// Tensors and scales start at multiples of this many bytes from the start of the payload.
const ALIGNMENT: u64 = 64;
/// Values buffered before they are written: 1 MiB of f32.
const CHUNK: usize = 1 << 18;

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Hugging Face's name.
    pub name: String,
    /// `[rows, cols]`, or `[n]`.
    pub shape: Vec<usize>,
    /// How to store it.
    pub dtype: Dtype,
}

/// Where a tensor lies, relative to the start of the payload.
struct Place {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    sizes: Sizes,
    offset: u64,
    /// Where its scales lie, in a format that has them.
    scale_offset: Option<u64>,
}

/// The header of a `.bin` file and where its tensors go.
pub struct Layout {
    header: Vec<u8>,
    places: Vec<Place>,
}

impl Layout {
    /// Lays out `tensors`.
    ///
    /// # Errors
    /// When a size cannot be counted, two pieces of the vocabulary are the same, or the header would be longer than is read.
    pub fn new(
        config: &Config,
        tokenizer: &Spec,
        generation: &GenerationDefaults,
        tensors: &[TensorInfo],
    ) -> Result<Self, Malformed> {
        let places = lay_out(tensors)?;
        let header = header(metadata(config, tokenizer, generation, &places), tokenizer, tensors, &places)?;
        if header.len() > MAX_HEADER {
            let size = header.len();
            return Err(Malformed(format!(
                "the tokenizer and the tensors' names take {size} bytes: up to {MAX_HEADER} are supported"
            )));
        }
        Ok(Self { header, places })
    }

    /// Where the payload starts in the file.
    fn base(&self) -> u64 {
        8 + self.header.len() as u64
    }

    /// Bytes of the complete file.
    pub fn file_bytes(&self) -> u64 {
        self.base() + self.places.last().map_or(0, Place::end)
    }

    /// Bytes of all tensors and scales, without header and padding.
    pub fn tensor_bytes(&self) -> u64 {
        self.places.iter().map(|place| place.sizes.data as u64 + place.scale_bytes()).sum()
    }
}

/// A `.bin` file being written: the header on creation, then the tensors in the order of the layout.
pub struct BinWriter {
    file: Pieces,
    base: u64,
    places: std::vec::IntoIter<Place>,
}

impl BinWriter {
    /// Writes the header to `file`.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(file: AtomicFile, layout: Layout) -> Result<Self, Error> {
        let base = layout.base();
        let mut file = Pieces::new(file);
        file.append(&(layout.header.len() as u64).to_le_bytes())?;
        file.append(&layout.header)?;
        Ok(Self { file, base, places: layout.places.into_iter() })
    }

    /// Writes the next tensor; `encode(rows, out)` appends the encoded form of rows that follow each other, and `written(bytes)` is
    /// told of every chunk.
    ///
    /// # Errors
    /// What `encode` or `written` returns, or when writing fails.
    ///
    /// # Panics
    /// After the last tensor of the layout.
    pub fn write_tensor(
        &mut self,
        mut encode: impl FnMut(Range<usize>, &mut Encoded) -> Result<(), Error>,
        mut written: impl FnMut(u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        #[expect(clippy::expect_used, reason = "documented")]
        let place = self.places.next().expect("a tensor of the layout");
        self.file.pad_to(self.base + place.offset)?;
        let granule = place.dtype.encoding().row_granule(place.cols);
        let chunk_rows = (CHUNK / place.cols.max(1)).max(1).next_multiple_of(granule);
        let scales = Vec::with_capacity(place.scale_bytes() as usize);
        let mut encoded = Encoded { data: Vec::new(), front: Vec::new(), scales };
        for first in (0..place.rows).step_by(chunk_rows) {
            let rows = first..(first + chunk_rows).min(place.rows);
            let last = rows.end == place.rows;
            encode(rows, &mut encoded)?;
            self.file.append(&encoded.data)?;
            let mut bytes = encoded.data.len();
            encoded.data.clear();
            if let Some(offset) = place.scale_offset.filter(|_| last) {
                self.file.pad_to(self.base + offset)?;
                self.file.append(&encoded.front)?;
                self.file.append(&encoded.scales)?;
                bytes += encoded.front.len() + encoded.scales.len();
            }
            written(bytes as u64)?;
        }
        Ok(())
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(self) -> Result<(), Error> {
        self.file.commit()
    }
}

impl Place {
    fn scale_bytes(&self) -> u64 {
        self.sizes.scale_bytes().unwrap_or(0) as u64
    }

    fn end(&self) -> u64 {
        match self.scale_offset {
            None => self.offset + self.sizes.data as u64,
            Some(offset) => offset + self.scale_bytes(),
        }
    }
}

/// Gives every tensor its place.
fn lay_out(tensors: &[TensorInfo]) -> Result<Vec<Place>, Malformed> {
    let mut places: Vec<Place> = Vec::new();
    for tensor in tensors {
        let (rows, cols) = match tensor.shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return Err(Malformed(format!("tensor {}: shape {:?}", tensor.name, tensor.shape))),
        };
        // Below 2^58 bytes a tensor, a single row in a panel of 16 included, nothing that follows can overflow.
        if rows.checked_mul(cols).is_none_or(|len| len >= 1 << 54) {
            return Err(Malformed(format!("tensor {}: too large to store", tensor.name)));
        }
        let sizes = tensor.dtype.encoding().sizes(rows, cols);
        let sizes = sizes.map_err(|problem| {
            Malformed(format!("tensor {}: shape {:?} {problem}", tensor.name, tensor.shape))
        })?;
        let offset = places.last().map_or(0, Place::end).next_multiple_of(ALIGNMENT);
        let scale_offset = sizes.scales.map(|_| (offset + sizes.data as u64).next_multiple_of(ALIGNMENT));
        let place = Place { dtype: tensor.dtype, rows, cols, sizes, offset, scale_offset };
        places.push(place);
    }
    Ok(places)
}

/// The JSON header, padded.
fn header(
    metadata: Value,
    spec: &Spec,
    tensors: &[TensorInfo],
    places: &[Place],
) -> Result<Vec<u8>, Malformed> {
    let entries = tensors.iter().zip(places).map(|(tensor, place)| {
        let dtype = place.dtype.name();
        let mut entry = json!({"dtype": dtype, "shape": tensor.shape, "offset": place.offset});
        if let Some(offset) = place.scale_offset {
            entry["scale_offset"] = json!(offset);
            entry["scale_size"] = json!(place.sizes.scales);
        }
        (tensor.name.clone(), entry)
    });
    let header = json!({
        "metadata": metadata,
        "tokenizer": tokenizer::to_json(spec)?,
        "tensors": entries.collect::<Map<_, _>>(),
    });
    let mut header = header.to_string().into_bytes();
    let padded = (8 + header.len() as u64).next_multiple_of(ALIGNMENT) - 8;
    header.resize(padded as usize, b' ');
    Ok(header)
}

/// The header's `metadata`: strings throughout, floats and "None" as Python spells them.
fn metadata(c: &Config, tokenizer: &Spec, generation: &GenerationDefaults, places: &[Place]) -> Value {
    // A hint only: each tensor's own type decides.
    let quant = places.iter().map(|place| place.dtype).find(|&dtype| dtype != Dtype::F32);
    let mut metadata = json!({
        "format_version": "1.1",
        "architecture": c.architecture,
        "hidden_size": c.hidden_size.to_string(),
        "intermediate_size": c.intermediate_size.to_string(),
        "n_layers": c.n_layers.to_string(),
        "n_heads": c.n_heads.to_string(),
        "n_kv_heads": c.n_kv_heads.to_string(),
        "head_dim": c.head_dim.to_string(),
        "vocab_size": c.vocab_size.to_string(),
        "max_position_embeddings": c.max_position_embeddings.to_string(),
        "sliding_window": c.sliding_window.map_or("None".to_owned(), |window| window.to_string()),
        "rope_theta": python_float(&format!("{:?}", c.rope.theta)),
        "norm_eps": python_float(&format!("{:?}", c.norm_eps)),
        "act_type": c.activation.name(),
        "tie_word_embeddings": if c.tie_word_embeddings { "True" } else { "False" },
        "quant": quant.unwrap_or(Dtype::F32).name(),
    });
    for (key, value) in extensions(c) {
        metadata[key] = json!(value);
    }
    if let Some(bos) = tokenizer.bos_token_id {
        metadata["bos_token_id"] = json!(bos.to_string());
    }
    if !tokenizer.eos_token_ids.is_empty() {
        let ids: Vec<String> = tokenizer.eos_token_ids.iter().map(u32::to_string).collect();
        metadata["eos_token_id"] = json!(ids.join(","));
    }
    let GenerationDefaults { temperature, top_k, top_p, min_p, repetition_penalty } = *generation;
    let float = |value: Option<f32>| value.map(|value| python_float(&format!("{value:?}")));
    let top_k = top_k.map(|top_k| top_k.to_string());
    let values = [float(temperature), top_k, float(top_p), float(min_p), float(repetition_penalty)];
    for (name, value) in GenerationDefaults::NAMES.into_iter().zip(values) {
        if let Some(value) = value {
            metadata[name] = json!(value);
        }
    }
    metadata
}

/// What a model has that Llama does not, as strings; nothing that says the same as absence.
fn extensions(c: &Config) -> impl Iterator<Item = (&'static str, String)> {
    let float = |value: f32| python_float(&format!("{value:?}"));
    let unless_one = move |value: f32| (value != 1.0).then(|| float(value));
    let theta = |rope: RopeConfig| python_float(&format!("{:?}", rope.theta));
    let list = |layers: &[usize]| {
        let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
        (!numbers.is_empty()).then(|| numbers.join(","))
    };
    let [_, window, long] = c.ropes();
    [
        ("full_attention_layers", list(&c.full_attention_layers)),
        ("no_rope_layers", list(&c.no_rope_layers)),
        ("rotary_dim", c.partial_rotary_dim.map(|n| n.to_string())),
        ("rope_magnitude", unless_one(c.rope.magnitude)),
        ("window_rope_theta", window.map(theta)),
        ("window_rope_magnitude", window.and_then(|rope| unless_one(rope.magnitude))),
        ("long_rope_beyond", c.long_rope.map(|long| long.beyond.to_string())),
        ("long_rope_theta", long.map(theta)),
        ("long_rope_magnitude", long.and_then(|rope| unless_one(rope.magnitude))),
        ("attention_temperature", c.attention_temperature.map(|temperature| float(temperature.beta))),
        ("attention_temperature_positions", c.attention_temperature.map(|t| t.original.to_string())),
        ("embedding_multiplier", unless_one(c.embedding_multiplier)),
        ("residual_multiplier", unless_one(c.residual_multiplier)),
        ("attention_multiplier", c.attention_multiplier.map(float)),
        ("logits_scaling", unless_one(c.logits_scaling)),
        ("attn_logit_softcapping", c.attn_logit_softcapping.map(float)),
        ("final_logit_softcapping", c.final_logit_softcapping.map(float)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
}

/// Python's `repr` from Rust's: both are the shortest that reads back, and switch to exponents at the same magnitudes;
/// Python's exponents have a sign and two digits at least.
fn python_float(repr: &str) -> String {
    match repr.split_once('e') {
        None => repr.to_owned(),
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_spells_them() {
        let f64s =
            [(1e-5, "1e-05"), (1e4, "10000.0"), (0.0001, "0.0001"), (1.5e-7, "1.5e-07"), (1e16, "1e+16")];
        for (value, expected) in f64s {
            assert_eq!(python_float(&format!("{value:?}")), expected);
        }
        assert_eq!(python_float(&format!("{:?}", 1e-5f32)), "1e-05");
    }
}
