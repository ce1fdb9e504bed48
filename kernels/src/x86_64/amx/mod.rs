//! AMX: one `tdpbssd` multiplies a group of 16 tokens with one of 16 rows. Everything but the int8 and int4 matmul of many tokens
//! is [`avx512vnni`](super::avx512vnni)'s.

mod gemm;
mod int4;
mod stripe;
mod tiles;

use super::avx512vnni::{self, Avx512Vnni};
use crate::int4::Int4Matrix;
use crate::int8;
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, PanelMatrix};
use crate::quant::{QMatrix, Quantized};
use crate::table::Table;
use gemm::{gemm, gemm_int4, gemm_panels};
use std::ops::Range;
use std::sync::OnceLock;

/// The most tokens that are left to AVX-512. At least 15: those that do not fill a tile.
const AVX512_TOKENS: usize = 23;

pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| avx512vnni::is_available() && tiles::in_cpu() && tiles::permitted())
}

pub(crate) static TABLE: Table = Table { matmul_i8, matmul_panels, matmul_int4, ..avx512vnni::TABLE };

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn matmul_i8(w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    if x.tokens() <= AVX512_TOKENS || !w.is_aligned() || w.cols() == 0 {
        int8::matmul_i8(Avx512Vnni::new(), w, rows, x, out);
    } else {
        gemm(w, rows, x, out);
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn matmul_panels(w: &PanelMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    if x.tokens() <= AVX512_TOKENS || w.cols() == 0 || !rows.start.is_multiple_of(PANEL_ROWS) {
        int8::matmul_panels(Avx512Vnni::new(), w, rows, x, out);
    } else {
        gemm_panels(w, rows, x, out);
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn matmul_int4(w: &Int4Matrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    if x.tokens() <= AVX512_TOKENS || w.cols() == 0 || !rows.start.is_multiple_of(PANEL_ROWS) {
        int8::matmul_int4(Avx512Vnni::new(), w, rows, x, out);
    } else {
        gemm_int4(w, rows, x, out);
    }
}
