//! Writing the keys and values of a position into the cache.

use torchless_kernels::{CacheElement, KEY_LANES, Kernels};

use crate::arch::MAX_HEAD_DIM;

/// Some heads of one layer, for writing.
pub(crate) struct HeadsMut<'a, T> {
    /// `[heads][positions / 16][head_dim][16]`
    pub keys: &'a mut [T],
    /// `[heads][positions][head_dim]`
    pub values: &'a mut [T],
    /// Of all pages.
    pub positions: usize,
    pub head_dim: usize,
}

impl<'a, T: CacheElement> HeadsMut<'a, T> {
    /// Splits off the first `heads` heads.
    pub fn split(self, heads: usize) -> (Self, Self) {
        let Self { positions, head_dim, .. } = self;
        let elements = heads * positions * head_dim;
        let (k0, k1) = self.keys.split_at_mut(elements);
        let (v0, v1) = self.values.split_at_mut(elements);
        let first = Self { keys: k0, values: v0, positions, head_dim };
        (first, Self { keys: k1, values: v1, positions, head_dim })
    }

    /// Stores the key and the value, `head_dim` values each, that head `head` of these has at [`place`](super::PageTable::place)
    /// `place`; whether a finite one of them is kept as infinite.
    pub fn store(&mut self, kernels: Kernels, head: usize, place: usize, key: &[f32], value: &[f32]) -> bool {
        let head_dim = self.head_dim;
        let at = head * self.positions + place;
        kernels.narrow(value, &mut self.values[at * head_dim..][..head_dim]);
        let mut narrow = [T::default(); MAX_HEAD_DIM];
        let narrow = &mut narrow[..head_dim];
        kernels.narrow(key, narrow);
        let (run, lane) = (at / KEY_LANES, at % KEY_LANES);
        let keys = &mut self.keys[run * KEY_LANES * head_dim..][..KEY_LANES * head_dim];
        for (k, lanes) in narrow.iter().zip(keys.as_chunks_mut::<KEY_LANES>().0) {
            lanes[lane] = *k;
        }
        T::OVERFLOWS_FROM.is_finite() && (overflows::<T>(key) || overflows::<T>(value))
    }
}

/// Whether finite ones among these are stored as infinite. Looks at all of them: so it is vector code.
fn overflows<T: CacheElement>(x: &[f32]) -> bool {
    x.iter().fold(false, |any, x| any | (x.abs() >= T::OVERFLOWS_FROM && x.is_finite()))
}
