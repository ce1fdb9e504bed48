//! One instruction set's kernels as plain function pointers.

use crate::attention::int8::{Int8Span, SpanBuffers, SpanQueries, SpanResult};
use crate::half::f16;
use crate::int4::Int4Matrix;
use crate::mat::MatMut;
use crate::panels::PanelMatrix;
use crate::quant::{QMatrix, Quantized, QuantizedRow};
use crate::scalar::{self, BLOCK, Gate};
use std::ops::Range;

/// The kernels of one instruction set. The callers in `lib.rs` have checked every length.
///
/// # Safety
/// The functions may only be called on a CPU that has the features they are compiled for (`Isa::table` sees to that),
/// and with lengths that agree as the methods of [`crate::Kernels`] assert.
pub(crate) struct Table {
    pub quantize: unsafe fn(&[f32], QuantizedRow),
    pub matmul_i8: unsafe fn(&QMatrix, Range<usize>, &Quantized, MatMut<f32>),
    pub matmul_panels: unsafe fn(&PanelMatrix, Range<usize>, &Quantized, MatMut<f32>),
    pub matmul_int4: unsafe fn(&Int4Matrix, Range<usize>, &Quantized, MatMut<f32>),
    pub dequantize_row: unsafe fn(&QMatrix, usize, &mut [f32]),
    pub dequantize_panel_row: unsafe fn(&PanelMatrix, usize, &mut [f32]),
    pub dequantize_int4_row: unsafe fn(&Int4Matrix, usize, &mut [f32]),
    pub matmul_f32: unsafe fn(&[f32], &[f32], usize, MatMut<f32>),
    pub rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub rms_norm_quantize: unsafe fn(&[f32], &[f32], f32, QuantizedRow),
    pub glu: unsafe fn(Gate, &[f32], &[f32], &mut [f32]),
    pub glu_quantize: unsafe fn(Gate, &[f32], &[f32], QuantizedRow),
    pub softcap: unsafe fn(&mut [f32], f32),
    pub rope: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub add: unsafe fn(&mut [f32], &[f32]),
    pub mul: unsafe fn(&mut [f32], &[f32]),
    pub attn_scores_f32: unsafe fn(&[f32], &[f32], &mut [[f32; BLOCK]]),
    pub attn_scores_f16: unsafe fn(&[f32], &[f16], &mut [[f32; BLOCK]]),
    pub softmax_block: unsafe fn(&mut [f32]) -> (f32, f32),
    pub attn_accumulate_f32: Accumulate<f32>,
    pub attn_accumulate_f16: Accumulate<f16>,
    pub widen_f32: unsafe fn(&[f32], &mut [f32]),
    pub widen_f16: unsafe fn(&[f16], &mut [f32]),
    pub attn_span_i8: unsafe fn(&SpanQueries, &Int8Span, &[Range<usize>], &mut SpanBuffers, SpanResult),
    pub attn_merge: unsafe fn(&mut [f32], f32, &[f32], f32),
    pub scale: unsafe fn(&mut [f32], f32),
    pub narrow_f16: unsafe fn(&[f32], &mut [f16]),
    pub narrow_i8: unsafe fn(&[f32], &mut [i8]) -> f32,
    pub argmax: unsafe fn(&[f32]) -> usize,
}

type Accumulate<T> = unsafe fn(&[[f32; BLOCK]], usize, &[T], &[[f32; 2]], &mut [f32]);

pub(crate) static SCALAR: Table = Table {
    quantize: scalar::quantize,
    matmul_i8: scalar::matmul_i8,
    matmul_panels: scalar::matmul_panels,
    matmul_int4: scalar::matmul_int4,
    dequantize_row: scalar::dequantize_row,
    dequantize_panel_row: scalar::dequantize_panel_row,
    dequantize_int4_row: scalar::dequantize_int4_row,
    matmul_f32: scalar::matmul_f32,
    rms_norm: scalar::rms_norm,
    rms_norm_quantize: scalar::rms_norm_quantize,
    glu: scalar::glu,
    glu_quantize: scalar::glu_quantize,
    softcap: scalar::softcap,
    rope: scalar::rope,
    add: scalar::add,
    mul: scalar::mul,
    attn_scores_f32: scalar::attn_scores::<f32>,
    attn_scores_f16: scalar::attn_scores::<f16>,
    softmax_block: scalar::softmax_block,
    attn_accumulate_f32: scalar::attn_accumulate::<f32>,
    attn_accumulate_f16: scalar::attn_accumulate::<f16>,
    widen_f32: scalar::widen::<f32>,
    widen_f16: scalar::widen::<f16>,
    attn_span_i8: |queries, span, seen, _, result| scalar::attn_span_i8(queries, span, seen, result),
    attn_merge: scalar::attn_merge,
    scale: scalar::scale,
    narrow_f16: scalar::narrow_f16,
    narrow_i8: scalar::narrow_i8,
    argmax: scalar::argmax,
};

/// `table!(Token, [attribute])` defines `TABLE`: the generic kernels, each compiled once for the instruction set of
/// `Token` inside a function that carries `attribute` (a `target_feature` with the features of `Token::new`).
macro_rules! table {
    ($token:ty, $attribute:tt) => {
        pub(crate) static TABLE: $crate::table::Table = {
            use $crate::{
                BLOCK, Gate, Int4Matrix, Int8Span, MatMut, PanelMatrix, QMatrix, Quantized, QuantizedRow,
                SpanBuffers, SpanQueries, SpanResult,
                attention::{float as attention_f32, int8 as attention_i8},
                float, glu,
                half::f16,
                int8,
            };

            $crate::table::kernels! { [$token] $attribute
                float::quantize(x: &[f32], out: QuantizedRow);
                float::dequantize_row(w: &QMatrix, row: usize, out: &mut [f32]);
                float::dequantize_panel_row(w: &PanelMatrix, row: usize, out: &mut [f32]);
                float::dequantize_int4_row(w: &Int4Matrix, row: usize, out: &mut [f32]);
                float::matmul_f32(w: &[f32], x: &[f32], cols: usize, out: MatMut<f32>);
                float::rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]);
                float::rms_norm_quantize(x: &[f32], weight: &[f32], eps: f32, out: QuantizedRow);
                glu::glu(f: Gate, gate: &[f32], up: &[f32], out: &mut [f32]);
                glu::glu_quantize(f: Gate, gate: &[f32], up: &[f32], out: QuantizedRow);
                glu::softcap(x: &mut [f32], cap: f32);
                float::rope(x: &mut [f32], cos: &[f32], sin: &[f32]);
                float::add(x: &mut [f32], y: &[f32]);
                float::mul(x: &mut [f32], y: &[f32]);
                attention_f32::attn_scores_f32(q: &[f32], keys: &[f32], scores: &mut [[f32; BLOCK]]);
                attention_f32::attn_scores_f16(q: &[f32], keys: &[f16], scores: &mut [[f32; BLOCK]]);
                attention_f32::softmax_block(scores: &mut [f32]) -> (f32, f32);
                attention_f32::attn_accumulate_f32(
                    p: &[[f32; BLOCK]], first: usize, values: &[f32], factors: &[[f32; 2]], out: &mut [f32]
                );
                attention_f32::attn_accumulate_f16(
                    p: &[[f32; BLOCK]], first: usize, values: &[f16], factors: &[[f32; 2]], out: &mut [f32]
                );
                attention_f32::attn_merge(a: &mut [f32], a_factor: f32, b: &[f32], b_factor: f32);
                attention_f32::widen_f32(x: &[f32], out: &mut [f32]);
                attention_f32::widen_f16(x: &[f16], out: &mut [f32]);
                attention_i8::attn_span_i8(
                    queries: &SpanQueries,
                    span: &Int8Span,
                    seen: &[std::ops::Range<usize>],
                    buffers: &mut SpanBuffers,
                    result: SpanResult
                );
                attention_f32::narrow_i8(x: &[f32], out: &mut [i8]) -> f32;
                float::scale(x: &mut [f32], factor: f32);
                float::narrow_f16(x: &[f32], out: &mut [f16]);
                float::argmax(x: &[f32]) -> usize;
                int8::matmul_i8(w: &QMatrix, rows: std::ops::Range<usize>, x: &Quantized, out: MatMut<f32>);
                int8::matmul_panels(
                    w: &PanelMatrix, rows: std::ops::Range<usize>, x: &Quantized, out: MatMut<f32>
                );
                int8::matmul_int4(
                    w: &Int4Matrix, rows: std::ops::Range<usize>, x: &Quantized, out: MatMut<f32>
                );
            }
        };
    };
}

/// One function a kernel, and the table of them all.
macro_rules! kernels {
    ([$token:ty] $attribute:tt $($module:ident :: $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {{
        $(
            #$attribute
            fn $name($($arg: $ty),*) $(-> $out)? {
                $module::$name(<$token>::new(), $($arg),*)
            }
        )*
        $crate::table::Table { $($name),* }
    }};
}

pub(crate) use {kernels, table};
