//! Int4 panels on 256 bits: `vpmaddubsw` multiplies unsigned codes with signed bytes, two of its sums fit in an i16, and the
//! instruction that adds pairs of those to i32 multiplies them with the scales as well.

use crate::int4::{Int4Panel, Oct, PanelScales};
use crate::int8::{TokenGroups, any_outlier};
use crate::panels::PANEL_ROWS;
use crate::quant::{Outlier, PARTS};
use crate::simd::isa;
use std::arch::x86_64::*;

/// See [`Int8::int4_dots`](crate::int8::Int8::int4_dots); `dot_pairs(sum, a, b)` adds to each i32 of `sum` the products of two i16.
///
/// Eight rows at a time, so that the sums of eight tokens fit the registers.
#[inline(always)]
pub(in crate::x86_64) fn int4_dots<const N: usize>(
    w: &Int4Panel,
    x: &[TokenGroups; N],
    g: usize,
    dot_pairs: impl Fn(__m256i, __m256i, __m256i) -> __m256i + Copy,
) -> [[__m256i; 2]; N] {
    let (zero, table) = (isa!(_mm256_setzero_si256()), table(w));
    let mut dots = [[zero; 2]; N];
    for half in 0..2 {
        let sums = dots_of_8_rows(w, table, half, x, g, dot_pairs);
        for (dots, sum) in dots.iter_mut().zip(sums) {
            dots[half] = sum;
        }
    }
    if any_outlier(x.iter().map(|x| &x.outliers[g])) {
        let scales = [HalfScales::new(w, g, 0), HalfScales::new(w, g, 1)];
        // One by one: what is worked out for a token costs more than a branch that was not foreseen.
        for t in 0..N {
            let outlier = &x[t].outliers[g];
            if outlier.high_bits() != 0 {
                let oct = &w.nibbles[g][outlier.quad_index() / 2];
                for half in 0..2 {
                    let products = scales[half].outlier_dots(codes(table, oct, half), outlier);
                    dots[t][half] = isa!(_mm256_add_epi32(dots[t][half], _mm256_slli_epi32::<7>(products)));
                }
            }
        }
    }
    dots
}

/// Those of rows 0..8 (`half` 0) or 8..16 (1), without outliers' high parts.
#[inline(always)]
fn dots_of_8_rows<const N: usize>(
    w: &Int4Panel,
    table: __m256i,
    half: usize,
    x: &[TokenGroups; N],
    g: usize,
    dot_pairs: impl Fn(__m256i, __m256i, __m256i) -> __m256i + Copy,
) -> [__m256i; N] {
    let zero = isa!(_mm256_setzero_si256());
    let scales = HalfScales::new(w, g, half);
    let mut sums = [zero; N];
    for t in 0..N {
        let [first, second] = pairs_of_part_sums(&x[t].part_sums[g]);
        sums[t] = dot_pairs(dot_pairs(zero, scales.offsets[0], first), scales.offsets[1], second);
    }
    for (part, octs) in w.nibbles[g].as_chunks::<2>().0.iter().enumerate() {
        for (i, oct) in octs.iter().enumerate() {
            let [low, high] = codes(table, oct, half);
            for t in 0..N {
                let first = 2 * (2 * part + i);
                let products = isa!(_mm256_add_epi16(
                    _mm256_maddubs_epi16(low, quad(&x[t], g, first)),
                    _mm256_maddubs_epi16(high, quad(&x[t], g, first + 1))
                ));
                sums[t] = dot_pairs(sums[t], products, scales.scales[part]);
            }
        }
    }
    sums
}

/// The unsigned codes, in both halves of the register.
#[inline(always)]
fn table(w: &Int4Panel) -> __m256i {
    isa!(_mm256_broadcastsi128_si256(_mm_loadu_si128(w.codes.unsigned.as_ptr().cast())))
}

/// The codes of half an oct's rows (0: 0..8, 1: 8..16), its first quad and its second.
#[inline(always)]
fn codes(table: __m256i, oct: &Oct, half: usize) -> [__m256i; 2] {
    isa!({
        let (bytes, mask) =
            (_mm256_loadu_si256(oct.as_ptr().cast::<__m256i>().add(half)), _mm256_set1_epi8(15));
        let (low, high) =
            (_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask));
        [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
    })
}

/// Quad `quad` of a token's group, in all lanes.
#[inline(always)]
fn quad(x: &TokenGroups, g: usize, quad: usize) -> __m256i {
    let quad = x.values[g].as_chunks::<4>().0[quad];
    isa!(_mm256_set1_epi32(i32::from_ne_bytes(quad.map(|x| x as u8))))
}

/// The sums of a token's parts, two and two in all lanes.
#[inline(always)]
fn pairs_of_part_sums(sums: &[i16; PARTS]) -> [__m256i; 2] {
    let [a, b, c, d] = *sums;
    let pair = |a: i16, b: i16| i32::from(a) & 0xffff | i32::from(b) << 16;
    isa!([_mm256_set1_epi32(pair(a, b)), _mm256_set1_epi32(pair(c, d))])
}

/// What a group of eight rows is scaled with, a row an i32 lane.
struct HalfScales {
    /// Of each part, twice in a lane.
    scales: [__m256i; PARTS],
    /// What the sums of the parts are multiplied with, two in a lane: the table's zero and the minimum, negative.
    offsets: [__m256i; 2],
}

impl HalfScales {
    /// Of rows 0..8 (`half` 0) or 8..16 (1).
    #[inline(always)]
    fn new(w: &Int4Panel, g: usize, half: usize) -> Self {
        isa!({
            let zero = _mm256_set1_epi16(-w.codes.zero);
            match w.scales(g) {
                PanelScales::Fine(parts) => {
                    let mut wide = [_mm256_setzero_si256(); PARTS];
                    for (wide, part) in wide.iter_mut().zip(parts) {
                        *wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(part.as_ptr().add(8 * half).cast()));
                    }
                    let [a, b, c, d] = wide;
                    let offsets = [
                        _mm256_mullo_epi16(two_in_a_lane(a, b), zero),
                        _mm256_mullo_epi16(two_in_a_lane(c, d), zero),
                    ];
                    let scales =
                        [two_in_a_lane(a, a), two_in_a_lane(b, b), two_in_a_lane(c, c), two_in_a_lane(d, d)];
                    Self { scales, offsets }
                }
                PanelScales::Coarse(scales) => {
                    let [a, b] = [twice(&scales[0], half), twice(&scales[1], half)];
                    let offsets = [_mm256_mullo_epi16(a, zero), _mm256_mullo_epi16(b, zero)];
                    Self { scales: [a, a, b, b], offsets }
                }
                PanelScales::WithMinimum([scales, minimums]) => {
                    let [a, b] = [twice(&scales[0], half), twice(&scales[1], half)];
                    let offsets = [
                        _mm256_sub_epi16(_mm256_mullo_epi16(a, zero), twice(&minimums[0], half)),
                        _mm256_sub_epi16(_mm256_mullo_epi16(b, zero), twice(&minimums[1], half)),
                    ];
                    Self { scales: [a, a, b, b], offsets }
                }
            }
        })
    }

    /// `Σ_j high[j]·w[4·quad + j]`; `codes` are those of the oct that the outlier's quad is in.
    #[inline(always)]
    fn outlier_dots(&self, [first, second]: [__m256i; 2], outlier: &Outlier) -> __m256i {
        let quad = outlier.quad_index();
        let codes = if quad.is_multiple_of(2) { first } else { second };
        let part = quad * PARTS / 16;
        let offset = self.offsets[part / 2];
        let sum: i32 = outlier.high.into_iter().map(i32::from).sum();
        isa!({
            let products = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(outlier.high_bits()));
            let products = _mm256_madd_epi16(products, self.scales[part]);
            let offset = match part % 2 {
                0 => _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(offset)),
                _ => _mm256_srai_epi32::<16>(offset),
            };
            _mm256_add_epi32(products, _mm256_mullo_epi32(offset, _mm256_set1_epi32(sum)))
        })
    }
}

/// Eight of 16 values, each twice in a lane.
#[inline(always)]
fn twice(x: &[i16; PANEL_ROWS], half: usize) -> __m256i {
    isa!({
        let wide = _mm256_cvtepi16_epi32(_mm_loadu_si128(x.as_ptr().add(8 * half).cast()));
        two_in_a_lane(wide, wide)
    })
}

/// The low halves of `low`'s lanes below those of `high`'s.
#[inline(always)]
fn two_in_a_lane(low: __m256i, high: __m256i) -> __m256i {
    isa!(_mm256_blend_epi16::<0b1010_1010>(low, _mm256_slli_epi32::<16>(high)))
}
