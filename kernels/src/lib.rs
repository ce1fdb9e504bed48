//! The arithmetic of a transformer on the CPU: int8 matmuls in groups of 64, and what stands between them.
//!
//! Every kernel of every instruction set returns the same bits as the scalar reference (NaNs compare equal whatever
//! their payload). A kernel is reached through a [`Kernels`] handle, which exists only where the CPU can run it; its
//! methods check all lengths, here and nowhere else.
//!
//! ```
//! use torchless_kernels::{Kernels, MatMut, QMatrix, QuantizedBuf};
//! let kernels = Kernels::detect();
//! // One row of 64 weights 0.5 (stored scale = 127 / max|w| = 254), times 64 activations 2.0.
//! let (values, scales) = ([127i8; 64], [254.0f32]);
//! let w = QMatrix::new(&values, &scales, 1, 64);
//! let mut x = QuantizedBuf::new(1, 64);
//! kernels.quantize(&[2.0; 64], x.view_mut(1).token(0));
//! let mut y = [0.0];
//! kernels.matmul_i8(&w, 0..1, &x.view(1), MatMut::new(&mut y, 1, 1));
//! assert!((y[0] - 64.0).abs() < 1e-3);
//! ```

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod dispatch;
mod float;
mod int8;
mod mat;
mod portable;
mod quant;
pub mod scalar;
mod sgemm;
mod simd;
mod table;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use dispatch::{Isa, IsaError, Kernels};
pub use half;
pub use mat::MatMut;
pub use quant::{GROUP, Outlier, QMatrix, QUAD, Quantized, QuantizedBuf, QuantizedMut, QuantizedRow, TINY};
pub use sgemm::sgemm;

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
    /// Any split works; fast ones give whole panels of 32 rows (16 for a single token), some panels a call, adjacent
    /// ones to one thread. Up to 160 KiB of stack are used, nothing is allocated.
    pub fn matmul_i8(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        assert!(rows.start <= rows.end && rows.end <= w.rows(), "rows {rows:?} of {}", w.rows());
        assert_eq!(x.cols(), w.cols(), "activations a token");
        assert_eq!((out.rows(), out.cols()), (x.tokens(), rows.len()), "matmul output");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.matmul_i8)(w, rows, x, out) }
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

    /// `silu(gate) · up`, element by element: see [`scalar::silu_mul`].
    pub fn silu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!((up.len(), out.len()), (gate.len(), gate.len()), "up and output");
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.silu_mul)(gate, up, out) }
    }

    /// `silu(gate) · up` of one token, or whole groups of one, quantised: see [`scalar::silu_mul_quantize`].
    pub fn silu_mul_quantize(self, gate: &[f32], up: &[f32], out: QuantizedRow) {
        assert_eq!(up.len(), gate.len(), "up");
        out.assert_shape(gate.len());
        // SAFETY: lengths checked; the handle proves the CPU has the instructions.
        unsafe { (self.table.silu_mul_quantize)(gate, up, out) }
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

    /// `scores[j] = q · keys[j] · scale`; `keys` is `[scores.len()][q.len()]`: see [`scalar`].
    pub fn attn_scores<T: CacheElement>(self, q: &[f32], keys: &[T], scale: f32, scores: &mut [f32]) {
        assert!(!q.is_empty(), "a query without elements");
        assert_eq!(Some(keys.len()), scores.len().checked_mul(q.len()), "keys");
        T::attn_scores(self, q, keys, scale, scores);
    }

    /// Replaces each score by `e^(score − max)`; returns `(max, sum)`: see [`scalar::softmax_block`].
    pub fn softmax_block(self, scores: &mut [f32]) -> (f32, f32) {
        // SAFETY: the handle proves the CPU has the instructions.
        unsafe { (self.table.softmax_block)(scores) }
    }

    /// `acc[d] += Σ_j p[j]·values[j][d]`; `values` is `[p.len()][acc.len()]`.
    pub fn attn_accumulate<T: CacheElement>(self, p: &[f32], values: &[T], acc: &mut [f32]) {
        assert!(!acc.is_empty(), "values without elements");
        assert_eq!(Some(values.len()), p.len().checked_mul(acc.len()), "values");
        T::attn_accumulate(self, p, values, acc);
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

    /// Stores `x` as cache elements, rounding to nearest even where they are narrower.
    pub fn narrow<T: CacheElement>(self, x: &[f32], out: &mut [T]) {
        assert_eq!(x.len(), out.len(), "narrowed values");
        T::narrow(self, x, out);
    }

    /// The position of the largest value, the lowest among equals: see [`scalar::argmax`].
    pub fn argmax(self, x: &[f32]) -> usize {
        // SAFETY: the handle proves the CPU has the instructions.
        unsafe { (self.table.argmax)(x) }
    }
}

/// A type keys and values can be stored in.
pub trait CacheElement: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    #[doc(hidden)]
    fn attn_scores(kernels: Kernels, q: &[f32], keys: &[Self], scale: f32, scores: &mut [f32]);
    #[doc(hidden)]
    fn attn_accumulate(kernels: Kernels, p: &[f32], values: &[Self], acc: &mut [f32]);
    #[doc(hidden)]
    fn narrow(kernels: Kernels, x: &[f32], out: &mut [Self]);
}

mod sealed {
    /// Only this crate says what a cache element is: its kernels trust the lengths that [`super::Kernels`] checked.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::f16 {}
}

impl CacheElement for f32 {
    fn attn_scores(kernels: Kernels, q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
        // SAFETY: `Kernels::attn_scores` checked the lengths; the handle proves the CPU has the instructions.
        unsafe { (kernels.table.attn_scores_f32)(q, keys, scale, scores) }
    }
    fn attn_accumulate(kernels: Kernels, p: &[f32], values: &[f32], acc: &mut [f32]) {
        // SAFETY: `Kernels::attn_accumulate` checked the lengths; the handle proves the CPU has the instructions.
        unsafe { (kernels.table.attn_accumulate_f32)(p, values, acc) }
    }
    fn narrow(_: Kernels, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }
}

impl CacheElement for f16 {
    fn attn_scores(kernels: Kernels, q: &[f32], keys: &[f16], scale: f32, scores: &mut [f32]) {
        // SAFETY: `Kernels::attn_scores` checked the lengths; the handle proves the CPU has the instructions.
        unsafe { (kernels.table.attn_scores_f16)(q, keys, scale, scores) }
    }
    fn attn_accumulate(kernels: Kernels, p: &[f32], values: &[f16], acc: &mut [f32]) {
        // SAFETY: `Kernels::attn_accumulate` checked the lengths; the handle proves the CPU has the instructions.
        unsafe { (kernels.table.attn_accumulate_f16)(p, values, acc) }
    }
    fn narrow(kernels: Kernels, x: &[f32], out: &mut [f16]) {
        // SAFETY: `Kernels::narrow` checked the lengths; the handle proves the CPU has the instructions.
        unsafe { (kernels.table.narrow_f16)(x, out) }
    }
}
