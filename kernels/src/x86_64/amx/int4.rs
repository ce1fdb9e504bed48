//! Int4 weights as tiles want them: a whole weight, `scale · code − minimum`, is two int8 numbers.

use super::stripe::{StripePanel, Unscaled};
use crate::int4::{Int4Panel, OCTS, Oct, PanelScales};
use crate::int8::assume_init;
use crate::panels::{PANEL_ROWS, PanelGroup, QUADS};
use crate::quant::PARTS;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The most groups of a panel that are unpacked together: 4 panels × 16 groups become 128 KiB, which stay in the second-level
/// cache.
pub(super) const UNPACKED_GROUPS: usize = 16;

/// The weights of a group of 16 rows, w = 256·high + low: first the high bytes, −112..=112, then the low ones, −128..=127.
type Bytes = [PanelGroup; 2];

/// Room for up to 16 groups of a panel.
#[repr(align(64))]
pub(super) struct Unpacked([MaybeUninit<Bytes>; UNPACKED_GROUPS]);

impl Unpacked {
    /// Not unpacked yet.
    pub const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; UNPACKED_GROUPS])
    }

    /// Unpacks `groups` of a panel, no more than there is room for.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub fn unpack<'a>(&'a mut self, w: &Int4Panel<'a>, groups: Range<usize>) -> StripePanel<'a, Unscaled, 2> {
        let room = &mut self.0[..groups.len()];
        for (g, to) in groups.zip(&mut *room) {
            unpack_group(w, g, to);
        }
        // SAFETY: each has just been written.
        let values = unsafe { assume_init(room) };
        StripePanel {
            values,
            scales: &[Unscaled; UNPACKED_GROUPS][..values.len()],
            row_scales: Some(w.row_scales),
        }
    }
}

/// Initialises `to` with the weights of group `g`.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unpack_group(w: &Int4Panel, g: usize, to: &mut MaybeUninit<Bytes>) {
    // SAFETY: 16 codes.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(w.codes.signed.as_ptr().cast()) });
    let to = to.as_mut_ptr().cast::<__m256i>();
    for (part, [scales, minimums]) in part_scales(w.scales(g)).into_iter().enumerate() {
        let (scales, minimums) = (each_in_four(scales), each_in_four(minimums));
        for i in part * OCTS / PARTS..(part + 1) * OCTS / PARTS {
            for (j, codes) in codes(table, &w.nibbles[g][i]).into_iter().enumerate() {
                let halves = [_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes)];
                for (half, codes) in halves.into_iter().enumerate() {
                    let products = _mm512_mullo_epi16(_mm512_cvtepi8_epi16(codes), scales[half]);
                    let weights = _mm512_sub_epi16(products, minimums[half]);
                    let high = _mm512_srai_epi16::<8>(_mm512_add_epi16(weights, _mm512_set1_epi16(128)));
                    let at = 2 * (2 * i + j) + half;
                    // SAFETY: half of the quads 0..16, of the high bytes and then of the low ones: all are written.
                    unsafe {
                        _mm256_storeu_si256(to.add(at), _mm512_cvtepi16_epi8(high));
                        _mm256_storeu_si256(to.add(2 * QUADS + at), _mm512_cvtepi16_epi8(weights));
                    }
                }
            }
        }
    }
}

/// The codes of an oct, its first quad and its second, `[row][4]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes(table: __m512i, oct: &Oct) -> [__m512i; 2] {
    // SAFETY: 16 rows of four bytes.
    let bytes = unsafe { _mm512_loadu_si512(oct.as_ptr().cast()) };
    let mask = _mm512_set1_epi8(15);
    let (low, high) = (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask));
    [_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high)]
}

/// The scales of each part and the minimums, 16 rows in i16.
#[inline]
#[target_feature(enable = "avx2")]
fn part_scales(scales: PanelScales) -> [[__m256i; 2]; PARTS] {
    let zero = _mm256_setzero_si256();
    match scales {
        PanelScales::Fine(parts) => {
            let mut wide = [[zero; 2]; PARTS];
            for (wide, part) in wide.iter_mut().zip(parts) {
                // SAFETY: 16 scales.
                wide[0] = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(part.as_ptr().cast()) });
            }
            wide
        }
        PanelScales::Coarse([a, b]) => {
            let [a, b] = [load(a), load(b)];
            [[a, zero], [a, zero], [b, zero], [b, zero]]
        }
        PanelScales::WithMinimum([[a, b], [m, n]]) => {
            let [a, b, m, n] = [load(a), load(b), load(m), load(n)];
            [[a, m], [a, m], [b, n], [b, n]]
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[i16; PANEL_ROWS]) -> __m256i {
    // SAFETY: 16 values.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

/// Four times each of 16 values: of the first eight, and of the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn each_in_four(x: __m256i) -> [__m512i; 2] {
    let x = _mm512_castsi256_si512(x);
    let rows = _mm512_set_epi64(
        0x0007_0007_0007_0007,
        0x0006_0006_0006_0006,
        0x0005_0005_0005_0005,
        0x0004_0004_0004_0004,
        0x0003_0003_0003_0003,
        0x0002_0002_0002_0002,
        0x0001_0001_0001_0001,
        0,
    );
    let other_rows = _mm512_add_epi16(rows, _mm512_set1_epi16(8));
    [_mm512_permutexvar_epi16(rows, x), _mm512_permutexvar_epi16(other_rows, x)]
}
