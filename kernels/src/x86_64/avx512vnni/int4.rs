//! Int4 panels on 512 bits: an oct is a register. `vpdpbusd` multiplies unsigned codes, and the scales of each 16 columns their
//! sums.

use super::Avx512Vnni;
use crate::int4::{Int4Panel, Oct, PanelScales};
use crate::int8::{TokenGroups, any_outlier};
use crate::panels::PANEL_ROWS;
use crate::quant::{Outlier, PARTS};
use crate::simd::isa;
use std::arch::x86_64::*;

/// See [`Int8::int4_dots`](crate::int8::Int8::int4_dots).
#[inline(always)]
pub(super) fn int4_dots<const N: usize>(
    _: Avx512Vnni,
    w: &Int4Panel,
    x: &[TokenGroups; N],
    g: usize,
) -> [__m512i; N] {
    let (table, scales) = (table(w), RowScales::new(w, g));
    let zero = isa!(_mm512_setzero_si512());
    let mut dots = [zero; N];
    for t in 0..N {
        let [first, second] = pairs_of_part_sums(&x[t].part_sums[g]);
        dots[t] = isa!({
            let first = _mm512_dpwssd_epi32(zero, scales.offsets[0], first);
            _mm512_dpwssd_epi32(first, scales.offsets[1], second)
        });
    }
    for (part, octs) in w.nibbles[g].as_chunks::<2>().0.iter().enumerate() {
        let [[a, b], [c, d]] = [codes(table, &octs[0]), codes(table, &octs[1])];
        for t in 0..N {
            let (x, first) = (&x[t], PARTS * part);
            dots[t] = isa!({
                let dot = _mm512_dpbusd_epi32(zero, a, quad(x, g, first));
                let dot = _mm512_dpbusd_epi32(dot, b, quad(x, g, first + 1));
                let dot = _mm512_dpbusd_epi32(dot, c, quad(x, g, first + 2));
                let dot = _mm512_dpbusd_epi32(dot, d, quad(x, g, first + 3));
                _mm512_add_epi32(dots[t], _mm512_mullo_epi32(dot, scales.scales[part]))
            });
        }
    }
    if any_outlier(x.iter().map(|x| &x.outliers[g])) {
        for t in 0..N {
            let outlier = &x[t].outliers[g];
            let oct = &w.nibbles[g][outlier.quad_index() / 2];
            let products = scales.outlier_dots(codes(table, oct), outlier);
            dots[t] = isa!(_mm512_add_epi32(dots[t], _mm512_slli_epi32::<7>(products)));
        }
    }
    dots
}

/// The unsigned codes, in each quarter of the register.
#[inline(always)]
fn table(w: &Int4Panel) -> __m512i {
    isa!(_mm512_broadcast_i32x4(_mm_loadu_si128(w.codes.unsigned.as_ptr().cast())))
}

/// The codes of an oct, its first quad and its second.
#[inline(always)]
fn codes(table: __m512i, oct: &Oct) -> [__m512i; 2] {
    isa!({
        let (bytes, mask) = (_mm512_loadu_si512(oct.as_ptr().cast()), _mm512_set1_epi8(15));
        let (low, high) =
            (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask));
        [_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high)]
    })
}

/// Quad `quad` of a token's group, in all lanes.
#[inline(always)]
fn quad(x: &TokenGroups, g: usize, quad: usize) -> __m512i {
    let quad = x.values[g].as_chunks::<4>().0[quad];
    isa!(_mm512_set1_epi32(i32::from_ne_bytes(quad.map(|x| x as u8))))
}

/// The sums of a token's parts, two and two in all lanes.
#[inline(always)]
fn pairs_of_part_sums(sums: &[i16; PARTS]) -> [__m512i; 2] {
    let [a, b, c, d] = *sums;
    let pair = |a: i16, b: i16| i32::from(a) & 0xffff | i32::from(b) << 16;
    isa!([_mm512_set1_epi32(pair(a, b)), _mm512_set1_epi32(pair(c, d))])
}

/// What a group of 16 rows is scaled with, a row a lane.
struct RowScales {
    /// Of each part.
    scales: [__m512i; PARTS],
    /// What the sums of the parts are multiplied with, two i16 in a lane: the table's zero and the minimum, negative.
    offsets: [__m512i; 2],
}

impl RowScales {
    #[inline(always)]
    fn new(w: &Int4Panel, g: usize) -> Self {
        isa!({
            let zero = _mm512_set1_epi16(-w.codes.zero);
            match w.scales(g) {
                PanelScales::Fine(parts) => {
                    let mut scales = [_mm512_setzero_si512(); PARTS];
                    for (scales, part) in scales.iter_mut().zip(parts) {
                        *scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(part.as_ptr().cast()));
                    }
                    let [a, b, c, d] = scales;
                    let offsets = [
                        _mm512_mullo_epi16(two_in_a_lane(a, b), zero),
                        _mm512_mullo_epi16(two_in_a_lane(c, d), zero),
                    ];
                    Self { scales, offsets }
                }
                PanelScales::Coarse(scales) => {
                    let [a, b] = [widen(&scales[0]), widen(&scales[1])];
                    let offsets = [
                        _mm512_mullo_epi16(two_in_a_lane(a, a), zero),
                        _mm512_mullo_epi16(two_in_a_lane(b, b), zero),
                    ];
                    Self { scales: [a, a, b, b], offsets }
                }
                PanelScales::WithMinimum([scales, minimums]) => {
                    let [a, b] = [widen(&scales[0]), widen(&scales[1])];
                    let [m, n] = [widen(&minimums[0]), widen(&minimums[1])];
                    let offsets = [
                        _mm512_sub_epi16(_mm512_mullo_epi16(two_in_a_lane(a, a), zero), two_in_a_lane(m, m)),
                        _mm512_sub_epi16(_mm512_mullo_epi16(two_in_a_lane(b, b), zero), two_in_a_lane(n, n)),
                    ];
                    Self { scales: [a, a, b, b], offsets }
                }
            }
        })
    }

    /// `Σ_j high[j]·w[4·quad + j]`; `codes` are those of the oct that the outlier's quad is in.
    #[inline(always)]
    fn outlier_dots(&self, [first, second]: [__m512i; 2], outlier: &Outlier) -> __m512i {
        let quad = outlier.quad_index();
        let codes = if quad.is_multiple_of(2) { first } else { second };
        let part = quad * PARTS / 16;
        let sum: i32 = outlier.high.into_iter().map(i32::from).sum();
        isa!({
            let dots =
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, _mm512_set1_epi32(outlier.high_bits()));
            let offset = match part % 2 {
                0 => _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(self.offsets[part / 2])),
                _ => _mm512_srai_epi32::<16>(self.offsets[part / 2]),
            };
            let offset = _mm512_mullo_epi32(offset, _mm512_set1_epi32(sum));
            _mm512_add_epi32(offset, _mm512_mullo_epi32(dots, self.scales[part]))
        })
    }
}

/// 16 values in i32.
#[inline(always)]
fn widen(x: &[i16; PANEL_ROWS]) -> __m512i {
    isa!(_mm512_cvtepi16_epi32(_mm256_loadu_si256(x.as_ptr().cast())))
}

/// The low halves of `low`'s lanes below those of `high`'s.
#[inline(always)]
fn two_in_a_lane(low: __m512i, high: __m512i) -> __m512i {
    isa!(_mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high)))
}
