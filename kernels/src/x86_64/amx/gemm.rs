//! Many tokens: 64 rows meet every token, 16 rows × 16 tokens at a time. Weights in panels are multiplied as they lie; rows are
//! packed into panels first, and int4 weights unpacked.

use super::super::avx512vnni::Avx512Vnni;
use super::int4::{UNPACKED_GROUPS, Unpacked};
use super::stripe::{STRIPE_PANELS, STRIPE_ROWS, Stripe, StripePanel, multiply_stripe};
use super::tiles;
use crate::int4::Int4Matrix;
use crate::int8::{Packed, prefetch_groups};
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, Panel, PanelMatrix};
use crate::quant::{GROUP, QMatrix, Quantized};
use crate::simd::Simd;
use std::ops::Range;

/// The most groups of each row that meet the tokens together: 64 rows × 32 groups are 128 KiB of weights, which stay in the
/// second-level cache.
const STRIPE_GROUPS: usize = 32;

/// `out[t][i] = w[rows.start + i] · x[t]`, for 16 tokens or more: stripes of 64 rows × up to 32 groups are packed, and each
/// meets every token.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn gemm(w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let (k, groups) = (Avx512Vnni::new(), w.cols() / GROUP);
    let mut packed = [const { Packed::<STRIPE_GROUPS>::new() }; STRIPE_PANELS];
    for_each_stripe(rows, groups, STRIPE_GROUPS, |stripe| {
        let mut panels = [StripePanel::EMPTY; STRIPE_PANELS];
        let panels = &mut panels[..stripe.panels()];
        for (i, (panel, packed)) in panels.iter_mut().zip(&mut packed).enumerate() {
            let rows = stripe.rows.start + i * PANEL_ROWS..stripe.rows.end;
            packed.pack(k, w, rows, stripe.groups.clone(), 0, |_| ());
            // SAFETY: these have just been packed.
            *panel = unsafe { packed.panel(0..stripe.groups.len()) }.into();
        }
        let next = match stripe.ends_rows() {
            false => (stripe.rows.start, stripe.groups.end),
            true => (stripe.rows.start + STRIPE_ROWS, 0),
        };
        multiply_stripe(panels, stripe, x, &mut out, |part, parts| {
            for row in share(STRIPE_ROWS, part, parts) {
                let from = (next.0 + row, next.1);
                prefetch_groups(k, w.values().as_chunks().0, groups, STRIPE_GROUPS, from);
            }
        });
    });
}

/// `out[t][i] = w[rows.start + i] · x[t]`, for 16 tokens or more, and whole panels but for the last: stripes of 4 panels × up to
/// 32 groups meet every token.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn gemm_panels(w: &PanelMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    for_each_stripe(rows, w.groups(), STRIPE_GROUPS, |stripe| {
        let mut panels = [StripePanel::EMPTY; STRIPE_PANELS];
        let panels = &mut panels[..stripe.panels()];
        for (i, panel) in panels.iter_mut().enumerate() {
            let Panel { values, scales } = w.panel(stripe.rows.start / PANEL_ROWS + i);
            let (values, scales) = (&values[stripe.groups.clone()], &scales[stripe.groups.clone()]);
            *panel = Panel { values, scales }.into();
        }
        let panels = &*panels;
        multiply_stripe(panels, stripe, x, &mut out, |part, parts| {
            for panel in panels {
                prefetch_next(stripe, panel.values, STRIPE_GROUPS, (part, parts));
            }
        });
    });
}

/// `out[t][i] = w[rows.start + i] · x[t]`, for 16 tokens or more, and whole panels but for the last: stripes of 4 panels × up to
/// 16 groups are unpacked, and each meets every token.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn gemm_int4(w: &Int4Matrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let mut unpacked = [const { Unpacked::new() }; STRIPE_PANELS];
    for_each_stripe(rows, w.cols() / GROUP, UNPACKED_GROUPS, |stripe| {
        let first = stripe.rows.start / PANEL_ROWS;
        let mut panels = [StripePanel::EMPTY; STRIPE_PANELS];
        let panels = &mut panels[..stripe.panels()];
        for (i, (panel, unpacked)) in panels.iter_mut().zip(&mut unpacked).enumerate() {
            *panel = unpacked.unpack(&w.panel(first + i), stripe.groups.clone());
        }
        multiply_stripe(panels, stripe, x, &mut out, |part, parts| {
            for i in 0..stripe.panels() {
                let nibbles = &w.panel(first + i).nibbles[stripe.groups.clone()];
                prefetch_next(stripe, nibbles, UNPACKED_GROUPS, (part, parts));
            }
        });
    });
}

/// Calls `multiply` for 64 rows × up to `max_groups` groups after the other, with tiles that are configured.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn for_each_stripe(rows: Range<usize>, groups: usize, max_groups: usize, mut multiply: impl FnMut(&Stripe)) {
    // SAFETY: the CPU has tiles and this process may use them, or this table would not be chosen.
    unsafe { tiles::configure() };
    for first in rows.clone().step_by(STRIPE_ROWS) {
        let stripe_rows = first..(first + STRIPE_ROWS).min(rows.end);
        for from in (0..groups).step_by(max_groups) {
            multiply(&Stripe {
                rows: stripe_rows.clone(),
                columns: stripe_rows.start - rows.start..stripe_rows.end - rows.start,
                groups: from..(from + max_groups).min(groups),
                row_groups: groups,
            });
        }
    }
    // SAFETY: as above.
    unsafe { tiles::release() };
}

/// Part `part` of `0..n` in `parts` of equal size.
#[inline(always)]
fn share(n: usize, part: usize, parts: usize) -> Range<usize> {
    let size = n.div_ceil(parts);
    (part * size).min(n)..((part + 1) * size).min(n)
}

/// Prefetches a part of what the next stripe has where this one has `groups` of a panel: the groups behind these; at the ends of
/// rows those of the panels behind.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn prefetch_next<G>(stripe: &Stripe, groups: &[G], max_groups: usize, (part, parts): (usize, usize)) {
    const LINE: usize = 64;
    let distance = match stripe.ends_rows() {
        false => max_groups,
        true => stripe.row_groups * STRIPE_PANELS - stripe.groups.start,
    };
    let next = groups.as_ptr().wrapping_add(distance);
    for line in share(max_groups * size_of::<G>() / LINE, part, parts) {
        Avx512Vnni::new().prefetch(next.wrapping_byte_add(LINE * line));
    }
}
