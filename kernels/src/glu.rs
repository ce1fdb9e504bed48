//! Gated linear units, and the cap that scores and logits may have: what is one exponential an element.
//!
//! As in `float.rs`, everything is inlined into functions that have the instruction set's features.

use crate::float::{exp, load_group, map2, quantize_groups, update};
use crate::quant::QuantizedRow;
use crate::scalar::{GELU, Gate};
use crate::simd::Simd;

#[inline(always)]
fn glu_one<S: Simd>(s: S, f: Gate, g: S::F32, u: S::F32) -> S::F32 {
    let exponent = match f {
        Gate::Silu => s.mul(g, s.splat(-1.0)),
        Gate::Gelu => {
            let square = s.mul(g, g);
            s.mul(g, s.add(s.splat(GELU[0]), s.mul(s.splat(GELU[1]), square)))
        }
    };
    s.mul(s.div(g, s.add(s.splat(1.0), exp(s, exponent))), u)
}

#[inline(always)]
pub(crate) fn glu<S: Simd>(s: S, f: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
    map2(
        s,
        gate,
        up,
        out,
        #[inline(always)]
        |g, u| glu_one(s, f, g, u),
    );
}

#[inline(always)]
pub(crate) fn softcap<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let twice = s.splat(2.0 / cap);
    update(
        s,
        x,
        #[inline(always)]
        |x| {
            let e = exp(s, s.mul(x, twice));
            let tanh = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
            s.mul(tanh, s.splat(cap))
        },
    );
}

#[inline(always)]
pub(crate) fn glu_quantize<S: Simd>(s: S, f: Gate, gate: &[f32], up: &[f32], out: QuantizedRow) {
    quantize_groups(
        s,
        gate.len(),
        out,
        #[inline(always)]
        |at, n| {
            let (mut g, u) = (load_group(s, &gate[at..at + n]), load_group(s, &up[at..at + n]));
            for (g, u) in g.iter_mut().zip(&u) {
                *g = glu_one(s, f, *g, *u);
            }
            g
        },
    );
}
