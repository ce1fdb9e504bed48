//! What a group of activations holds beyond 8 bits.

use crate::quant::{GROUP, QUAD};

/// The high parts of a group's largest quad: its activations are `(value + 128·high) * scale`.
///
/// Where `high` is all zeros, which most groups of most models are, the group has no outlier, and `quad` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlier {
    /// `high[j]`, −127..=127: what value `4·quad + j` of the group lacks, divided by 128.
    pub high: [i8; QUAD],
    /// Which quad of the group, 0..16.
    pub quad: u32,
}

impl Outlier {
    /// That of a group in which nothing stands out.
    pub(crate) const NONE: Self = Self { high: [0; QUAD], quad: 0 };

    /// Splits the values of quad `quad`, −16256..=16256 each, into high parts and `low`, −64..=63 each.
    #[inline(always)]
    pub(crate) fn split(values: impl Iterator<Item = i32>, quad: usize, low: &mut [i8]) -> Self {
        let mut high = [0; QUAD];
        for ((high, low), v) in high.iter_mut().zip(low).zip(values) {
            *high = ((v + 64) >> 7) as i8;
            *low = (v - 128 * i32::from(*high)) as i8;
        }
        Self { high, quad: quad as u32 }
    }

    /// Whether there is none.
    #[inline(always)]
    pub(crate) fn is_none(&self) -> bool {
        self.high == [0; QUAD]
    }

    /// The high parts as they lie in memory.
    #[inline(always)]
    pub(crate) fn high_bits(&self) -> i32 {
        i32::from_ne_bytes(self.high.map(|h| h as u8))
    }

    /// Which quad of the group, 0..16. The remainder spares the check of an index.
    #[inline(always)]
    pub(crate) fn quad_index(&self) -> usize {
        self.quad as usize % (GROUP / QUAD)
    }

    /// What to add to value `k` of the group: `128·high`, or 0 outside the quad.
    pub(crate) fn extra(&self, k: usize) -> i32 {
        if k / QUAD == self.quad as usize { 128 * i32::from(self.high[k % QUAD]) } else { 0 }
    }

    /// The whole values of the quad, `x` being the group's values; without an outlier as they are.
    #[inline(always)]
    pub(crate) fn join(&self, x: &[i8; GROUP]) -> [i16; QUAD] {
        let mut whole = [0; QUAD];
        for ((whole, low), high) in whole.iter_mut().zip(self.quad_of(x)).zip(self.high) {
            *whole = i16::from(low) + 128 * i16::from(high);
        }
        whole
    }

    /// `128·Σ_j high[j]·w[4·quad + j]`
    #[inline(always)]
    pub(crate) fn dot(&self, w: &[i8; GROUP]) -> i32 {
        if self.is_none() {
            return 0;
        }
        let products = self.quad_of(w).into_iter().zip(self.high).map(|(w, h)| i32::from(w) * i32::from(h));
        128 * products.sum::<i32>()
    }

    /// The four of a group's values or weights that the high parts belong to.
    #[inline(always)]
    pub(crate) fn quad_of(&self, group: &[i8; GROUP]) -> [i8; QUAD] {
        group.as_chunks().0[self.quad_index()]
    }
}
