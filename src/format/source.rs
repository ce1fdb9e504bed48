//! A model to convert, whatever file it comes from: configuration, tokenizer, and tensors under Hugging Face's names.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

use crate::Malformed;
use crate::format::dequant::Encoding;
use crate::model::Config;
use crate::tokenizer::Spec;

/// A model as its source file describes it. Nothing of the weights has been read yet.
pub struct Source {
    /// The hyper-parameters.
    pub config: Config,
    /// The tokenizer.
    pub tokenizer: Spec,
    /// Every tensor the source holds, by Hugging Face's name.
    pub tensors: HashMap<String, Tensor>,
    /// What the user should know about the conversion, one line each.
    pub notes: Vec<String>,
}

impl Source {
    /// Takes out the tensors, in the order a forward pass reads them, after checking that all are there, that none is left over
    /// (what it would have computed would be missing), and that their shapes fit the configuration.
    pub fn take_tensors(&mut self) -> Result<Vec<(String, Tensor)>, Malformed> {
        let mut ordered = Vec::new();
        for (name, shape) in tensor_shapes(&self.config) {
            let Some(tensor) = self.tensors.remove(&name) else {
                return Err(Malformed(format!("tensor {name} is missing")));
            };
            if tensor.shape != shape {
                return Err(Malformed(format!(
                    "tensor {name} has shape {:?}, the configuration asks for {shape:?}",
                    tensor.shape
                )));
            }
            ordered.push((name, tensor));
        }
        match self.tensors.keys().min() {
            Some(name) => Err(unsupported_tensor(name)),
            None => Ok(ordered),
        }
    }
}

/// The refusal of a tensor that a plain Mistral or Llama model does not have.
fn unsupported_tensor(name: &str) -> Malformed {
    let what = if name.ends_with(".bias") { "biases are" } else { "it is" };
    Malformed(format!("tensor {name}: {what} not part of the Mistral and Llama models that are supported"))
}

/// Names and shapes (`[rows, cols]`, or `[n]` for a norm) of the tensors of a model with configuration `c`.
///
/// Lazy: an absurd number of layers costs nothing until the first tensor that is not there.
fn tensor_shapes(c: &Config) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (hidden, inter) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.q_dim(), c.kv_dim());
    let layer = move |i: usize| {
        [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inter, hidden]),
            ("mlp.up_proj", vec![inter, hidden]),
            ("mlp.down_proj", vec![hidden, inter]),
        ]
        .map(|(name, shape)| (format!("model.layers.{i}.{name}.weight"), shape))
    };
    let named = |name: &str, shape| (name.to_owned(), shape);
    let table = vec![c.vocab_size, hidden];
    let head = (!c.tie_word_embeddings).then(|| named("lm_head.weight", table.clone()));
    [named("model.embed_tokens.weight", table)]
        .into_iter()
        .chain((0..c.n_layers).flat_map(layer))
        .chain([named("model.norm.weight", vec![hidden])])
        .chain(head)
}

/// The width of a head where the source does not give it.
pub fn head_dim(hidden_size: usize, n_heads: usize) -> Result<usize, Malformed> {
    match hidden_size.checked_div(n_heads) {
        Some(head_dim) if hidden_size.is_multiple_of(n_heads) => Ok(head_dim),
        _ => Err(Malformed(format!("{n_heads} heads do not divide a width of {hidden_size}"))),
    }
}

/// Checks what the sizes of a configuration from outside must satisfy before anything is computed with them.
pub fn check_config(c: &Config) -> Result<(), Malformed> {
    let fail = |problem: String| Err(Malformed(problem));
    let sizes = [
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("n_layers", c.n_layers),
        ("n_heads", c.n_heads),
        ("n_kv_heads", c.n_kv_heads),
        ("head_dim", c.head_dim),
        ("vocab_size", c.vocab_size),
        ("max_position_embeddings", c.max_position_embeddings),
    ];
    for (name, size) in sizes {
        if size == 0 || u32::try_from(size).is_err() {
            return fail(format!("{name} is {size}, which no model has"));
        }
    }
    if c.n_heads.checked_mul(c.head_dim).is_none() {
        return fail(format!("{} heads of {} are too many to count", c.n_heads, c.head_dim));
    }
    if !c.head_dim.is_multiple_of(2) {
        return fail(format!("head_dim is {}: rotary embeddings need an even one", c.head_dim));
    }
    if !c.n_heads.is_multiple_of(c.n_kv_heads) {
        return fail(format!("{} key/value heads do not divide {} heads", c.n_kv_heads, c.n_heads));
    }
    if !(c.rope_theta.is_finite() && c.rope_theta > 0.0) {
        return fail(format!("rope_theta is {}", c.rope_theta));
    }
    if !(c.norm_eps.is_finite() && c.norm_eps >= 0.0) {
        return fail(format!("the norm's epsilon is {}", c.norm_eps));
    }
    Ok(())
}

/// One tensor of a source: a range of a mapped file and how to read it.
#[derive(Debug)]
pub struct Tensor {
    map: Arc<Mmap>,
    range: Range<usize>,
    encoding: Encoding,
    shape: Vec<usize>,
    /// Bytes of one row.
    row_bytes: usize,
    /// The `head_dim` of a tensor whose rows are stored for the interleaved rotary embedding.
    interleaved: Option<usize>,
}

impl Tensor {
    /// A tensor of `shape` (`[rows, cols]`, or `[n]`: one row) that fills `range` of `map`.
    ///
    /// # Errors
    /// When the range is not in the map or not exactly as long as the shape needs.
    pub fn new(
        map: Arc<Mmap>,
        range: Range<usize>,
        encoding: Encoding,
        shape: Vec<usize>,
    ) -> Result<Self, Malformed> {
        let (rows, cols) = match shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return Err(Malformed(format!("has shape {shape:?}, not one or two dimensions"))),
        };
        let Some(row_bytes) = encoding.bytes(cols) else {
            return Err(Malformed(format!(
                "has rows of {cols} values, not whole blocks of {} as {encoding:?} needs",
                encoding.block_len()
            )));
        };
        if row_bytes.checked_mul(rows) != Some(range.len()) || map.get(range.clone()).is_none() {
            return Err(Malformed(format!(
                "of shape {shape:?} ({encoding:?}) does not fit the bytes {range:?} of a file of {}",
                map.len()
            )));
        }
        Ok(Self { map, range, encoding, shape, row_bytes, interleaved: None })
    }

    /// The same tensor, known to hold its rows in the order of the interleaved rotary embedding: within each head of
    /// `head_dim` rows, rows 2i and 2i+1 rotate together. They are read in the half-split order, i with i + head_dim/2.
    pub fn interleaved(self, head_dim: usize) -> Self {
        Self { interleaved: Some(head_dim), ..self }
    }

    /// `[rows, cols]`, or `[n]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Reads row `row` (0 for a one-dimensional tensor) into `out`, which must be one row long.
    ///
    /// # Errors
    /// When the row holds a NaN or an infinity.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "`new` has checked the range"
    )]
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), Malformed> {
        let stored = match self.interleaved {
            Some(head_dim) => interleaved_row(row, head_dim),
            None => row,
        };
        let bytes = &self.map[self.range.clone()][stored * self.row_bytes..][..self.row_bytes];
        self.encoding.decode(bytes, out);
        match out.iter().position(|value| !value.is_finite()) {
            Some(col) => Err(Malformed(format!("holds {} at row {row}, column {col}", out[col]))),
            None => Ok(()),
        }
    }
}

/// Where row `row` of the half-split order lies in the interleaved order.
///
/// llama.cpp's converter reshapes the rows to (heads, 2, head_dim/2) and swaps the last two; this is its inverse.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "rows of a tensor that is in memory, and heads of 2 at least"
)]
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, i) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * i + half
}

/// The note that `count` tokens are matched in text by the model's own tokenizer but not by ours.
pub fn added_tokens_note(count: usize) -> String {
    format!(
        "{count} added tokens are not control tokens: they are kept in the vocabulary and decode as text, but text that \
         spells one is encoded by the ordinary merges"
    )
}
