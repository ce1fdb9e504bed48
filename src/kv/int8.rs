//! The int8 cache: keys and values in blocks of 64 positions, as the kernels read them.

use torchless_kernels::{BLOCK, Int8Keys, Int8KeysMut, Int8Values, Int8ValuesMut, Kernels};

use super::huge_pages::HugePages;
use super::table::PageTable;
use crate::arch::{Config, MAX_HEAD_DIM};

/// Keys and values in int8.
pub(crate) struct Int8Cache {
    /// `[n_layers][n_kv_heads][pages][Int8Keys::words]`
    keys: HugePages<f32>,
    /// `[n_layers][n_kv_heads][pages][Int8Values::words]`
    values: HugePages<f32>,
    pages: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl Int8Cache {
    /// Bytes that a head's key and value take.
    pub fn bytes_a_position(head_dim: usize) -> usize {
        (Int8Keys::words(head_dim) + Int8Values::words(head_dim)) * size_of::<f32>() / BLOCK
    }

    /// `pages` pages; nothing where they do not fit in memory.
    pub fn new(config: &Config, pages: usize) -> Option<Self> {
        let blocks = config.n_layers.checked_mul(config.n_kv_heads)?.checked_mul(pages)?;
        Some(Self {
            keys: HugePages::zeroed(blocks.checked_mul(Int8Keys::words(config.head_dim))?)?,
            values: HugePages::zeroed(blocks.checked_mul(Int8Values::words(config.head_dim))?)?,
            pages,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        })
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.keys) + size_of_val(&*self.values)
    }

    /// A page of a layer's head.
    pub fn block(&self, layer: usize, kv_head: usize, page: usize) -> (Int8Keys<'_>, Int8Values<'_>) {
        let at = (layer * self.n_kv_heads + kv_head) * self.pages + page;
        let (key_words, value_words) = (Int8Keys::words(self.head_dim), Int8Values::words(self.head_dim));
        (
            Int8Keys::new(&self.keys[at * key_words..][..key_words], self.head_dim),
            Int8Values::new(&self.values[at * value_words..][..value_words], self.head_dim),
        )
    }

    /// The heads of one layer, for writing.
    pub fn layer_mut(&mut self, layer: usize) -> Int8HeadsMut<'_> {
        let blocks = self.n_kv_heads * self.pages;
        let (keys, values) =
            (blocks * Int8Keys::words(self.head_dim), blocks * Int8Values::words(self.head_dim));
        Int8HeadsMut {
            keys: &mut self.keys[layer * keys..][..keys],
            values: &mut self.values[layer * values..][..values],
            pages: self.pages,
            head_dim: self.head_dim,
        }
    }
}

/// The keys of some heads of one layer, and the values of some, for writing.
pub(crate) struct Int8HeadsMut<'a> {
    /// `[heads][pages][Int8Keys::words]`
    keys: &'a mut [f32],
    /// `[heads][pages][Int8Values::words]`
    values: &'a mut [f32],
    pages: usize,
    head_dim: usize,
}

impl Int8HeadsMut<'_> {
    /// Splits off the first `n`: the heads' keys are counted first, then the heads' values.
    pub fn split(self, n: usize) -> (Self, Self) {
        let Self { pages, head_dim, .. } = self;
        let (key_words, value_words) =
            (pages * Int8Keys::words(head_dim), pages * Int8Values::words(head_dim));
        let of_keys = n.min(self.keys.len() / key_words);
        let (k0, k1) = self.keys.split_at_mut(of_keys * key_words);
        let (v0, v1) = self.values.split_at_mut((n - of_keys) * value_words);
        (Self { keys: k0, values: v0, pages, head_dim }, Self { keys: k1, values: v1, pages, head_dim })
    }

    /// Stores the key that the first of these heads has at `position` of a sequence. Those before must have been stored.
    pub fn store_key(&mut self, kernels: Kernels, table: &PageTable, position: usize, key: &[f32]) {
        let words = Int8Keys::words(self.head_dim);
        let at = |block: usize| table.page(block) * words;
        let block = position / BLOCK;
        if position.is_multiple_of(BLOCK) {
            let mut mean = [0.0; MAX_HEAD_DIM];
            let mean = &mut mean[..self.head_dim];
            match block.checked_sub(1) {
                Some(before) => {
                    Int8Keys::new(&self.keys[at(before)..][..words], self.head_dim).mean_of_keys(mean)
                }
                None => mean.copy_from_slice(key),
            }
            Int8KeysMut::new(&mut self.keys[at(block)..][..words], self.head_dim).set_mean(kernels, mean);
        }
        let mut keys = Int8KeysMut::new(&mut self.keys[at(block)..][..words], self.head_dim);
        keys.store(kernels, position % BLOCK, key);
    }

    /// Stores the value that the first of these heads whose values these are has at `position` of a sequence.
    pub fn store_value(&mut self, kernels: Kernels, table: &PageTable, position: usize, value: &[f32]) {
        let words = Int8Values::words(self.head_dim);
        let mut narrow = [0; MAX_HEAD_DIM];
        let narrow = &mut narrow[..self.head_dim];
        let scale = kernels.narrow_i8(value, narrow);
        let at = table.page(position / BLOCK) * words;
        let mut values = Int8ValuesMut::new(&mut self.values[at..][..words], self.head_dim);
        values.store(position % BLOCK, narrow, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that have large values in common, as a bias gives them, keep what is their own: in every block, the first included.
    #[test]
    fn what_keys_have_in_common_costs_them_nothing() {
        let mut config = crate::arch::shape("smollm2-135m").unwrap();
        (config.n_layers, config.n_kv_heads) = (1, 1);
        let mut cache = Int8Cache::new(&config, 4).unwrap();
        let mut table = PageTable::default();
        [2, 0, 3, 1].into_iter().for_each(|page| table.push(page));
        let key = |position: usize| -> Vec<f32> {
            (0..64).map(|d| (if d == 7 { 300.0 } else { 0.0 }) + ((position * 64 + d) as f32).sin()).collect()
        };
        for position in 0..200 {
            cache.layer_mut(0).store_key(Kernels::detect(), &table, position, &key(position));
        }
        for block in 0..3 {
            let (keys, _) = cache.block(0, 0, table.page(block));
            let mut mean = [0.0; 64];
            keys.mean_of_keys(&mut mean);
            for (d, mean) in mean.into_iter().enumerate() {
                let exact: f32 = (0..64).map(|at| key(block * 64 + at)[d]).sum::<f32>() / 64.0;
                // A step is 2/127 at the most, and half of one the error of each of 64; as they are, steps of 300/127 would be.
                assert!((mean - exact).abs() < 0.005, "block {block}, channel {d}: {mean}, not {exact}");
            }
        }
    }
}
