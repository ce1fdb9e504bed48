//! The arithmetic of a transformer on the CPU: int8 matmuls in groups of 64, and what stands between them.
//!
//! Every kernel of every instruction set returns the same bits as the scalar reference (NaNs compare equal whatever
//! their payload). A kernel is reached through a [`Kernels`] handle, which exists only where the CPU can run it; its
//! methods check all lengths, here and nowhere else.
//!
//! ```
//! use torchless_kernels::{Allocator, Kernels, MatMut, QMatrix, QuantizedBuf};
//! let kernels = Kernels::detect();
//! // One row of 64 weights 0.5 (stored scale = 127 / max|w| = 254), times 64 activations 2.0.
//! let (values, scales) = ([127i8; 64], [254.0f32]);
//! let w = QMatrix::new(&values, &scales, 1, 64);
//! let mut x = QuantizedBuf::new(&mut Allocator::heap(), 1, 64);
//! kernels.quantize(&[2.0; 64], x.view_mut(1).token(0));
//! let mut y = [0.0];
//! kernels.matmul_i8(&w, 0..1, &x.view(1), MatMut::new(&mut y, 1, 1));
//! assert!((y[0] - 64.0).abs() < 1e-3);
//! ```

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod activations;
mod attention;
mod dispatch;
mod float;
mod glu;
mod int4;
mod int8;
mod mat;
mod memory;
mod outlier;
mod panels;
mod portable;
mod quant;
pub mod scalar;
mod sgemm;
mod simd;
mod table;
mod team;
mod weight;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use activations::{
    ActivationBuf, ActivationFormat, ActivationFormats, ActivationRow, Activations, ActivationsMut,
};
pub use attention::block::{Int8Keys, Int8KeysMut, Int8Values, Int8ValuesMut};
pub use attention::int8::{Int8Span, SpanBuffers, SpanQueries, SpanResult};
pub use dispatch::{Isa, IsaError, Kernels};
pub use half;
pub use int4::{CODE_SPAN, INT4_LIMIT, Int4Matrix, Int4Scales};
pub use mat::MatMut;
pub use memory::{Aligned, Allocator};
pub use panels::{PANEL_ROWS, PanelMatrix};
pub use quant::{GROUP, Outlier, QMatrix, QUAD, Quantized, QuantizedBuf, QuantizedMut, QuantizedRow};
pub use scalar::{BLOCK, Gate, SPAN, SPAN_BLOCKS};
pub use sgemm::{Strided, add_product};
#[doc(hidden)]
pub use team::Team;
pub use weight::{F32Matrix, Weight};

use half::f16;
use std::ops::Range;

/// Each method's result is specified by the function of the same name in [`scalar`]; all panic where lengths disagree.
impl Kernels {
    /// Quantises `x`, `n` values of one token, to int8 in groups of 64: see [`scalar::quantize`].
    pub fn quantize(self, x: &[f32], out: QuantizedRow) {
        out.assert_shape(x.len());
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.quantize)(x, out) }
    }

    /// `out[t][i] = w[rows.start + i] · x[t]` for int8 weights and activations: see [`scalar::matmul_i8`].
    ///
    /// `out` is `[tokens][rows.len()]`. Neither the split into `rows` nor the number of tokens changes a bit.
    ///
    /// Any split works; fast ones give whole panels of 16 rows, some panels a call, adjacent ones to one thread. Up to
    /// 160 KiB of stack are used, nothing is allocated.
    pub fn matmul_i8(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        assert_product((w.rows(), w.cols()), &rows, x, &out);
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.matmul_i8)(w, rows, x, out) }
    }

    /// `out[t][i] = w[rows.start + i] · x[t]` for int8 weights in panels: see [`scalar::matmul_panels`].
    ///
    /// As [`Kernels::matmul_i8`]; no more than a few KiB of stack are used.
    pub fn matmul_panels(self, w: &PanelMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        assert_product((w.rows(), w.cols()), &rows, x, &out);
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.matmul_panels)(w, rows, x, out) }
    }

    /// Row `row` of `w` in f32, `w.cols()` values: see [`scalar::dequantize_panel_row`].
    pub fn dequantize_panel_row(self, w: &PanelMatrix, row: usize, out: &mut [f32]) {
        assert!(row < w.rows(), "row {row} of {}", w.rows());
        assert_eq!(out.len(), w.cols(), "dequantised row");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.dequantize_panel_row)(w, row, out) }
    }

    /// `out[t][i] = w[rows.start + i] · x[t]` for int4 weights in panels: see [`scalar::matmul_int4`].
    ///
    /// As [`Kernels::matmul_i8`].
    pub fn matmul_int4(self, w: &Int4Matrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        assert_product((w.rows(), w.cols()), &rows, x, &out);
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.matmul_int4)(w, rows, x, out) }
    }

    /// Row `row` of `w` in f32, `w.cols()` values: see [`scalar::dequantize_int4_row`].
    pub fn dequantize_int4_row(self, w: &Int4Matrix, row: usize, out: &mut [f32]) {
        assert!(row < w.rows(), "row {row} of {}", w.rows());
        assert_eq!(out.len(), w.cols(), "dequantised row");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.dequantize_int4_row)(w, row, out) }
    }

    /// Row `row` of `w` in f32, `w.cols()` values: see [`scalar::dequantize_row`].
    pub fn dequantize_row(self, w: &QMatrix, row: usize, out: &mut [f32]) {
        assert!(row < w.rows(), "row {row} of {}", w.rows());
        assert_eq!(out.len(), w.cols(), "dequantised row");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.dequantize_row)(w, row, out) }
    }

    /// `out[t][i] = w[i] · x[t]` for f32 weights `[out.cols][cols]` and activations `[out.rows][cols]`: see
    /// [`scalar::matmul_f32`].
    pub fn matmul_f32(self, w: &[f32], x: &[f32], cols: usize, out: MatMut<f32>) {
        assert_eq!(Some(w.len()), out.cols().checked_mul(cols), "f32 weights");
        assert_eq!(Some(x.len()), out.rows().checked_mul(cols), "f32 activations");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.matmul_f32)(w, x, cols, out) }
    }

    /// RMSNorm of one token: see [`scalar::rms_norm`].
    pub fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!((weight.len(), out.len()), (x.len(), x.len()), "norm weight and output");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.rms_norm)(x, weight, eps, out) }
    }

    /// RMSNorm of one token, quantised: see [`scalar::rms_norm_quantize`].
    pub fn rms_norm_quantize(self, x: &[f32], weight: &[f32], eps: f32, out: QuantizedRow) {
        assert_eq!(weight.len(), x.len(), "norm weight");
        out.assert_shape(x.len());
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.rms_norm_quantize)(x, weight, eps, out) }
    }

    /// `f(gate) · up`, element by element: see [`scalar::glu`].
    pub fn glu(self, f: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!((up.len(), out.len()), (gate.len(), gate.len()), "up and output");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.glu)(f, gate, up, out) }
    }

    /// `f(gate) · up` of one token, or whole groups of one, quantised: see [`scalar::glu_quantize`].
    pub fn glu_quantize(self, f: Gate, gate: &[f32], up: &[f32], out: QuantizedRow) {
        assert_eq!(up.len(), gate.len(), "up");
        out.assert_shape(gate.len());
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.glu_quantize)(f, gate, up, out) }
    }

    /// `cap · tanh(x / cap)`, element by element; `cap` is positive: see [`scalar::softcap`].
    pub fn softcap(self, x: &mut [f32], cap: f32) {
        // SAFETY: no lengths to agree; the handle proves the CPU has the instructions.
        unsafe { (self.table.softcap)(x, cap) }
    }

    /// Rotates the heads of one token; `cos` and `sin` hold `head_dim/2` values: see [`scalar::rope`].
    pub fn rope(self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert_eq!(cos.len(), sin.len(), "cosines and sines");
        assert!(!cos.is_empty() && x.len().is_multiple_of(2 * cos.len()), "{} values in heads", x.len());
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.rope)(x, cos, sin) }
    }

    /// `x += y`.
    pub fn add(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "summands");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.add)(x, y) }
    }

    /// `x *= y`, element by element.
    pub fn mul(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "factors");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.mul)(x, y) }
    }

    /// `scores[i][j] = q[i] · key j`, `d` in ascending order: the scores of some queries with up to 64 positions.
    ///
    /// `q` is `[scores.len()][head_dim]`, `keys` is `[positions / 16][head_dim][16]`; scores beyond those positions
    /// stay as they are.
    pub fn attn_scores<T: CacheElement>(self, q: &[f32], keys: &[T], scores: &mut [[f32; BLOCK]]) {
        let head_dim = q.len() / scores.len().max(1);
        assert_eq!(q.len(), head_dim * scores.len(), "queries");
        let columns = keys.len() / head_dim.max(1);
        assert!(
            keys.len() == columns * head_dim && columns <= BLOCK && columns.is_multiple_of(KEY_LANES),
            "keys"
        );
        T::attn_scores(self, q, keys, scores);
    }

    /// Replaces each score by `e^(score − max)`; returns `(max, sum)`: see [`scalar::softmax_block`].
    pub fn softmax_block(self, scores: &mut [f32]) -> (f32, f32) {
        // SAFETY: the handle proves the CPU has the instructions.
        unsafe { (self.table.softmax_block)(scores) }
    }

    /// `out[i] = out[i]·factors[i][0] + (Σ_j p[i][first + j]·values[j])·factors[i][1]`, `j` in ascending order: joins
    /// what a block of up to 64 positions gives some queries to what the blocks before it gave.
    ///
    /// `values` is `[positions][head_dim]`, `out` is `[p.len()][head_dim]`.
    pub fn attn_accumulate<T: CacheElement>(
        self,
        p: &[[f32; BLOCK]],
        first: usize,
        values: &[T],
        factors: &[[f32; 2]],
        out: &mut [f32],
    ) {
        let head_dim = out.len() / p.len().max(1);
        assert_eq!((out.len(), factors.len()), (head_dim * p.len(), p.len()), "outputs and factors");
        let positions = values.len() / head_dim.max(1);
        assert!(values.len() == positions * head_dim && first + positions <= BLOCK, "values");
        T::attn_accumulate(self, p, first, values, factors, out);
    }

    /// `a = a·a_factor + b·b_factor`.
    pub fn attn_merge(self, a: &mut [f32], a_factor: f32, b: &[f32], b_factor: f32) {
        assert_eq!(a.len(), b.len(), "attention outputs");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.attn_merge)(a, a_factor, b, b_factor) }
    }

    /// `x *= factor`.
    pub fn scale(self, x: &mut [f32], factor: f32) {
        // SAFETY: the handle proves the CPU has the instructions.
        unsafe { (self.table.scale)(x, factor) }
    }

    /// Stores `x` as cache elements: rounds to nearest, ties to even, where they are narrower.
    pub fn narrow<T: CacheElement>(self, x: &[f32], out: &mut [T]) {
        assert_eq!(x.len(), out.len(), "narrowed values");
        T::narrow(self, x, out);
    }

    /// Rounds `x` to int8; returns the scale: see [`scalar::narrow_i8`].
    pub fn narrow_i8(self, x: &[f32], out: &mut [i8]) -> f32 {
        assert_eq!(x.len(), out.len(), "narrowed values");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.narrow_i8)(x, out) }
    }

    /// What a span of int8 keys and values gives some queries, of which query `t` may look at positions `seen[t]` of the
    /// span: see [`scalar::attn_span_i8`].
    pub fn attn_span_i8(
        self,
        queries: &SpanQueries,
        span: &Int8Span,
        seen: &[Range<usize>],
        buffers: &mut SpanBuffers,
        result: SpanResult,
    ) {
        let (n, blocks, cols) = (seen.len(), span.keys.len(), queries.int8.cols());
        assert_eq!((queries.int8.tokens(), queries.f32.len()), (n, n * cols), "queries");
        assert!(cols.is_multiple_of(GROUP), "{cols} columns of a query are no whole groups");
        assert!(blocks <= SPAN_BLOCKS && span.values.len() == blocks, "blocks of a span");
        assert!(seen.iter().all(|seen| seen.start <= seen.end && seen.end <= blocks * BLOCK), "positions");
        let head_dim = result.output.len() / n.max(1);
        assert_eq!((result.output.len(), result.sums.len()), (n * head_dim, n), "outputs");
        assert!(span.keys.iter().all(|keys| keys.groups() == cols / GROUP), "head_dim of the keys");
        let panels = head_dim.div_ceil(PANEL_ROWS);
        assert!(span.values.iter().all(|values| values.codes.len() == panels), "head_dim of the values");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.attn_span_i8)(queries, span, seen, buffers, result) }
    }

    /// Cache elements in f32, exactly.
    pub fn widen<T: CacheElement>(self, x: &[T], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "widened values");
        T::widen(self, x, out);
    }

    /// The position of the largest value, the lowest among equals: see [`scalar::argmax`].
    pub fn argmax(self, x: &[f32]) -> usize {
        // SAFETY: the handle proves the CPU has the instructions.
        unsafe { (self.table.argmax)(x) }
    }
}

/// Asserts that some rows of a matrix of `rows × cols`, the activations and the output of their product agree.
fn assert_product((w_rows, cols): (usize, usize), rows: &Range<usize>, x: &Quantized, out: &MatMut<f32>) {
    assert!(rows.start <= rows.end && rows.end <= w_rows, "rows {rows:?} of {w_rows}");
    assert_eq!(x.cols(), cols, "activations a token");
    assert_eq!((out.rows(), out.cols()), (x.tokens(), rows.len()), "matmul output");
}

/// Positions whose keys lie side by side: keys are `[positions / 16][head_dim][16]`.
pub const KEY_LANES: usize = 16;

/// A type keys and values can be stored in.
pub trait CacheElement: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// The least finite magnitude that is stored as infinity; infinity where there is none.
    const OVERFLOWS_FROM: f32;
    #[doc(hidden)]
    fn attn_scores(kernels: Kernels, q: &[f32], keys: &[Self], scores: &mut [[f32; BLOCK]]);
    #[doc(hidden)]
    fn attn_accumulate(
        kernels: Kernels,
        p: &[[f32; BLOCK]],
        first: usize,
        values: &[Self],
        factors: &[[f32; 2]],
        out: &mut [f32],
    );
    #[doc(hidden)]
    fn narrow(kernels: Kernels, x: &[f32], out: &mut [Self]);
    #[doc(hidden)]
    fn widen(kernels: Kernels, x: &[Self], out: &mut [f32]);
}

mod sealed {
    /// Only this crate says what a cache element is: its kernels trust the lengths that [`super::Kernels`] checked.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::f16 {}
}

/// The kernels of the table for one cache element.
macro_rules! cache_element {
    ($element:ty, overflows_from: $limit:expr, $scores:ident, $accumulate:ident, $widen:ident, $narrow:expr) => {
        impl CacheElement for $element {
            const OVERFLOWS_FROM: f32 = $limit;
            fn attn_scores(kernels: Kernels, q: &[f32], keys: &[Self], scores: &mut [[f32; BLOCK]]) {
                // SAFETY: `Kernels` checked the lengths; the handle proves the CPU has the instructions.
                unsafe { (kernels.table.$scores)(q, keys, scores) }
            }
            fn attn_accumulate(
                kernels: Kernels,
                p: &[[f32; BLOCK]],
                first: usize,
                values: &[Self],
                factors: &[[f32; 2]],
                out: &mut [f32],
            ) {
                // SAFETY: `Kernels` checked the lengths; the handle proves the CPU has the instructions.
                unsafe { (kernels.table.$accumulate)(p, first, values, factors, out) }
            }
            fn narrow(kernels: Kernels, x: &[f32], out: &mut [Self]) {
                let narrow: fn(Kernels, &[f32], &mut [Self]) = $narrow;
                narrow(kernels, x, out)
            }
            fn widen(kernels: Kernels, x: &[Self], out: &mut [f32]) {
                // SAFETY: `Kernels` checked the lengths; the handle proves the CPU has the instructions.
                unsafe { (kernels.table.$widen)(x, out) }
            }
        }
    };
}

cache_element!(f32, overflows_from: f32::INFINITY, attn_scores_f32, attn_accumulate_f32, widen_f32, |_, x, out| {
    out.copy_from_slice(x);
});
// Halfway between the largest f16 and what would be the next.
cache_element!(f16, overflows_from: 65_520.0, attn_scores_f16, attn_accumulate_f16, widen_f16, |kernels, x, out| {
    // SAFETY: `Kernels` checked the lengths; the handle proves the CPU has the instructions.
    unsafe { (kernels.table.narrow_f16)(x, out) }
});
