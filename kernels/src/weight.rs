//! A matrix of weights as a value: it knows its number format, how it lies in memory, and which activations it wants.
//!
//! Whoever multiplies with a weight, or looks up one of its rows, asks it. This file is the only one that tells formats apart.

use crate::Kernels;
use crate::activations::{ActivationFormat, Activations};
use crate::half::f16;
use crate::int4::Int4Matrix;
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, PanelMatrix};
use crate::quant::{GROUP, QMatrix};
use crate::sgemm::sgemm;
use std::ops::Range;

/// A matrix of weights, `[rows][cols]`: a row an output feature.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Weight<'a> {
    /// f32, row after row.
    F32(F32Matrix<'a>),
    /// Int8 in groups of 64, row after row.
    Int8(QMatrix<'a>),
    /// Int8 in groups of 64, in panels of 16 rows.
    Int8Panels(PanelMatrix<'a>),
    /// Int4 in panels of 16 rows.
    Int4(Int4Matrix<'a>),
}

/// An f32 matrix, row-major.
#[derive(Clone, Copy, Debug)]
pub struct F32Matrix<'a> {
    values: &'a [f32],
    cols: usize,
    any_order: bool,
}

/// Fewest tokens for which a product in any order is left to `sgemm`.
const SGEMM_TOKENS: usize = 8;

impl<'a> F32Matrix<'a> {
    /// A view of `[rows][cols]` values. With `any_order` a product with many tokens may add in whichever order is fastest on
    /// this CPU: its bits are then not the same everywhere.
    ///
    /// # Panics
    /// If `values` are not whole rows.
    pub fn new(values: &'a [f32], cols: usize, any_order: bool) -> Self {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "{} values in rows of {cols}", values.len());
        Self { values, cols, any_order }
    }

    /// All values, row after row.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }
}

impl Weight<'_> {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Weight::F32(w) => w.values.len() / w.cols,
            Weight::Int8(w) => w.rows(),
            Weight::Int8Panels(w) => w.rows(),
            Weight::Int4(w) => w.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Weight::F32(w) => w.cols,
            Weight::Int8(w) => w.cols(),
            Weight::Int8Panels(w) => w.cols(),
            Weight::Int4(w) => w.cols(),
        }
    }

    /// The format that a product wants its input in.
    pub fn activation(&self) -> ActivationFormat {
        match self {
            Weight::F32(_) => ActivationFormat::F32,
            Weight::Int8(_) | Weight::Int8Panels(_) | Weight::Int4(_) => ActivationFormat::Int8,
        }
    }

    /// Rows that a kernel takes together: products of multiples of it are the fast ones. A power of two.
    pub fn row_granule(&self) -> usize {
        match self {
            Weight::F32(_) | Weight::Int8(_) | Weight::Int8Panels(_) | Weight::Int4(_) => PANEL_ROWS,
        }
    }

    /// Bytes of a row, scales included.
    pub fn row_bytes(&self) -> usize {
        match self {
            Weight::F32(w) => size_of::<f32>() * w.cols,
            Weight::Int8(w) => w.cols() + size_of::<f32>() * w.cols().div_ceil(GROUP),
            Weight::Int8Panels(w) => w.cols() + size_of::<f16>() * w.groups(),
            Weight::Int4(w) => w.row_bytes(),
        }
    }
}

impl Kernels {
    /// `out[t][i] = w[rows.start + i] · x[t]`; `out` is `[tokens][rows.len()]`.
    ///
    /// Neither the split into `rows` nor the number of tokens changes a bit, unless `w` is an [`F32Matrix`] of any order.
    ///
    /// # Panics
    /// If `x` lacks the format that the weight wants, or shapes disagree.
    pub fn matmul(self, w: &Weight, rows: Range<usize>, x: &Activations, out: MatMut<f32>) {
        const MISSING: &str = "activations in the format that the weight wants";
        match w {
            Weight::Int8(w) => self.matmul_i8(w, rows, &x.int8.expect(MISSING), out),
            Weight::Int8Panels(w) => self.matmul_panels(w, rows, &x.int8.expect(MISSING), out),
            Weight::Int4(w) => self.matmul_int4(w, rows, &x.int8.expect(MISSING), out),
            Weight::F32(w) => {
                let values = &w.values[rows.start * w.cols..rows.end * w.cols];
                let x = x.f32.expect(MISSING);
                match w.any_order && out.rows() >= SGEMM_TOKENS {
                    true => sgemm(values, x, w.cols, out),
                    false => self.matmul_f32(values, x, w.cols, out),
                }
            }
        }
    }

    /// Row `row` of `w` in f32, `w.cols()` values.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn weight_row(self, w: &Weight, row: usize, out: &mut [f32]) {
        match w {
            Weight::Int8(w) => self.dequantize_row(w, row, out),
            Weight::Int8Panels(w) => self.dequantize_panel_row(w, row, out),
            Weight::Int4(w) => self.dequantize_int4_row(w, row, out),
            Weight::F32(w) => out.copy_from_slice(&w.values[row * w.cols..(row + 1) * w.cols]),
        }
    }
}
