//! Matrix products, parallel over output features.

use std::ops::Range;

use torchless_kernels::{Kernels, MatMut, Quantized, QuantizedBuf, Team, sgemm};

use crate::format::bin::{BinFile, Dtype, Matrix, Tensor};
use crate::parallel::aligned::Lines;
use crate::parallel::fork::{Split, fork2, grain};
use crate::parallel::threads::PerThread;

/// The rows a kernel packs together.
pub(crate) const ROWS: usize = 32;

/// Bytes of weights a task reads at the least: two microseconds' worth, several times what handing it over takes.
const TASK_BYTES: usize = 48 << 10;

/// How many output features of `n` a task is given, of weights with `cols` inputs: a multiple of `multiple`, itself one of 32.
pub(crate) fn rows_grain(n: usize, cols: usize, multiple: usize) -> usize {
    grain(n, (TASK_BYTES / cols.max(1)).next_multiple_of(multiple).max(multiple))
}

/// Where all weights are f32, so that nobody was promised the same bits, products of this many tokens go through `sgemm`.
const SGEMM_TOKENS: usize = 8;

/// The input of one or several products, kept in each form their weights need: int8 weights take quantised
/// activations, f32 weights take them as they are.
pub(crate) struct Activations {
    pub int8: Option<QuantizedBuf>,
    pub f32: Option<Vec<f32>>,
    cols: usize,
}

/// Which forms some weights need their input in.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    pub int8: bool,
    pub f32: bool,
}

impl Forms {
    pub fn of<'a>(weights: impl IntoIterator<Item = &'a Tensor>) -> Self {
        weights.into_iter().fold(Self::default(), |forms, w| Self {
            int8: forms.int8 || w.dtype() == Dtype::Int8,
            f32: forms.f32 || w.dtype() == Dtype::F32,
        })
    }

    pub fn or(self, other: Self) -> Self {
        Self { int8: self.int8 || other.int8, f32: self.f32 || other.f32 }
    }
}

impl Activations {
    /// Room for `tokens` tokens of `cols` values in the given forms.
    pub fn new(tokens: usize, cols: usize, forms: Forms) -> Self {
        Self {
            int8: forms.int8.then(|| QuantizedBuf::new(tokens, cols)),
            f32: forms.f32.then(|| bytemuck::zeroed_vec(tokens * cols)),
            cols,
        }
    }

    /// Bytes on the heap.
    pub fn bytes(tokens: usize, cols: usize, forms: Forms) -> usize {
        usize::from(forms.int8) * QuantizedBuf::bytes(tokens, cols)
            + usize::from(forms.f32) * tokens * cols * 4
    }

    /// The first `tokens` tokens.
    pub fn view(&self, tokens: usize) -> Input<'_> {
        Input {
            int8: self.int8.as_ref().map(|q| q.view(tokens)),
            f32: self.f32.as_ref().map(|f| &f[..tokens * self.cols]),
        }
    }
}

/// Activations of some tokens, for reading.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub int8: Option<Quantized<'a>>,
    pub f32: Option<&'a [f32]>,
}

impl Input<'_> {
    /// Only `tokens` of all `n`.
    pub fn part(&self, tokens: Range<usize>, n: usize) -> Self {
        Self {
            int8: self.int8.map(|x| x.part(tokens.clone())),
            f32: self.f32.map(|x| &x[x.len() / n * tokens.start..x.len() / n * tokens.end]),
        }
    }
}

/// Fewest tokens that products are split into: each part packs the weights anew.
const PART_TOKENS: usize = 256;

/// Most values of weights that are read by several parts of the tokens: more would come from memory each time.
const PART_WEIGHTS: usize = 4 << 20;

/// How many of `tokens` go through products with so many values of weights together. Threads that keep to tokens of their
/// own find them in their caches, and do not write into each other's cache lines.
pub(crate) fn tokens_grain(tokens: usize, weights: usize) -> usize {
    let most = if weights > PART_WEIGHTS { 1 } else { rayon::current_num_threads() };
    let parts = (tokens / PART_TOKENS).clamp(1, most);
    tokens.div_ceil(parts).next_multiple_of(16).min(tokens)
}

/// `out[t] = (weights[0] · x[t], weights[1] · x[t], …)`: the features of several matrices side by side, `out` being
/// `[tokens][features of all]`.
///
/// # Panics
/// If `x` lacks a form that the weights need.
pub(crate) fn matmul(
    file: &BinFile,
    weights: &[Tensor],
    x: Input,
    kernels: Kernels,
    team: &Team,
    out: MatMut<f32>,
) {
    let cols = weights.first().map_or(1, |w| w.rows_cols().1);
    let n = out.rows();
    let grain = [tokens_grain(n, out.cols() * cols), rows_grain(out.cols(), cols, ROWS)];
    let ranges = [0..n, 0..out.cols()];
    let split: [&Split<_>; 2] = [&MatMut::split_rows, &MatMut::split_cols];
    fork2(team, out, ranges, grain, split, &|out, tokens, features| {
        let x = x.part(tokens, n);
        let (mut rest, mut first) = (out, 0);
        for tensor in weights {
            let rows = tensor.rows_cols().0;
            let (start, end) =
                (features.start.clamp(first, first + rows), features.end.clamp(first, first + rows));
            let (part, after) = rest.split_cols(end - start);
            product(file, tensor, start - first..end - first, x, kernels, part);
            (rest, first) = (after, first + rows);
        }
    });
}

/// `out[t] = w[rows] · x[t]` on this thread.
pub(crate) fn product(
    file: &BinFile,
    tensor: &Tensor,
    rows: Range<usize>,
    x: Input,
    kernels: Kernels,
    out: MatMut<f32>,
) {
    const MISSING: &str = "the scratch was sized for the forms all weights need";
    match file.matrix(tensor) {
        _ if rows.is_empty() => (),
        Matrix::Int8(w) => kernels.matmul_i8(&w, rows, &x.int8.expect(MISSING), out),
        Matrix::F32 { values, cols } => {
            let w = &values[rows.start * cols..rows.end * cols];
            let x = x.f32.expect(MISSING);
            match file.is_f32() && out.rows() >= SGEMM_TOKENS {
                true => sgemm(w, x, cols, out),
                false => kernels.matmul_f32(w, x, cols, out),
            }
        }
    }
}

/// Where a thread keeps the products of a block of features until it has done with them what comes next, while they are
/// still in its cache.
pub(crate) struct Blocks {
    /// Two blocks of `len` for each thread.
    pub threads: PerThread<[Lines; 2]>,
    len: usize,
}

/// Features of a block for a full chunk: with 512 tokens two such blocks and the input fit the second-level cache.
const BLOCK_FEATURES: usize = 64;

/// Fewest values a block holds.
const BLOCK_LEN: usize = 8192;

impl Blocks {
    /// Blocks for chunks of up to `chunk` tokens.
    pub fn new(chunk: usize, threads: usize) -> Self {
        let len = Self::len(chunk);
        let block = || Lines::zeroed(len);
        Self { threads: PerThread::new(threads, || [block(), block()]), len }
    }

    /// Bytes [`Blocks::new`] allocates.
    pub fn bytes(chunk: usize, threads: usize) -> usize {
        2 * threads * Lines::bytes(Self::len(chunk))
    }

    fn len(chunk: usize) -> usize {
        (BLOCK_FEATURES * chunk).max(BLOCK_LEN)
    }

    /// Features that a block has room for with `tokens` tokens.
    pub fn features(&self, tokens: usize) -> usize {
        self.len / tokens / BLOCK_FEATURES * BLOCK_FEATURES
    }
}
