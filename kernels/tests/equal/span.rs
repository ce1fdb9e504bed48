//! Attention over int8 keys and values: the same bits as the reference, whatever is stored and whoever looks where.

use super::*;
use std::ops::Range;
use torchless_kernels::{
    Int8Keys, Int8KeysMut, Int8Span, Int8Values, Int8ValuesMut, SPAN_BLOCKS, SpanBuffers, SpanQueries,
    SpanResult,
};

/// Some blocks of keys and values of one head.
struct Blocks {
    keys: Vec<f32>,
    values: Vec<f32>,
    head_dim: usize,
}

impl Blocks {
    /// Stores them with some kernels, each block's mean that of the one before.
    fn new(k: Kernels, blocks: usize, head_dim: usize, keys: &[f32], values: &[f32]) -> Self {
        let (key_words, value_words) = (Int8Keys::words(head_dim), Int8Values::words(head_dim));
        let mut stored =
            Self { keys: vec![0.0; blocks * key_words], values: vec![0.0; blocks * value_words], head_dim };
        let rows = keys.chunks(head_dim).zip(values.chunks(head_dim)).enumerate();
        let mut narrow = vec![0; head_dim];
        for (position, (key, value)) in rows {
            let (block, position) = (position / BLOCK, position % BLOCK);
            if position == 0 {
                let mut mean = vec![0.0; head_dim];
                if block > 0 {
                    stored.keys(block - 1).mean_of_keys(&mut mean);
                }
                Int8KeysMut::new(&mut stored.keys[block * key_words..][..key_words], head_dim)
                    .set_mean(k, &mean);
            }
            Int8KeysMut::new(&mut stored.keys[block * key_words..][..key_words], head_dim)
                .store(k, position, key);
            let scale = k.narrow_i8(value, &mut narrow);
            Int8ValuesMut::new(&mut stored.values[block * value_words..][..value_words], head_dim)
                .store(position, &narrow, scale);
        }
        stored
    }

    fn keys(&self, block: usize) -> Int8Keys<'_> {
        let words = Int8Keys::words(self.head_dim);
        Int8Keys::new(&self.keys[block * words..][..words], self.head_dim)
    }

    fn values(&self, block: usize) -> Int8Values<'_> {
        let words = Int8Values::words(self.head_dim);
        Int8Values::new(&self.values[block * words..][..words], self.head_dim)
    }

    /// What some queries see of them: output, and the largest scores and sums.
    fn attend(
        &self,
        k: Kernels,
        queries: &[f32],
        softcap: Option<f32>,
        seen: &[Range<usize>],
    ) -> (Vec<f32>, Vec<f32>) {
        let blocks = self.values.len() / Int8Values::words(self.head_dim);
        let keys: Vec<_> = (0..blocks).map(|block| self.keys(block)).collect();
        let values: Vec<_> = (0..blocks).map(|block| self.values(block)).collect();
        let cols = self.head_dim.next_multiple_of(GROUP);
        let mut padded = vec![0.0; seen.len() * cols];
        let mut quantized = QuantizedBuf::new(&mut Allocator::heap(), seen.len(), cols);
        for (t, query) in queries.chunks(self.head_dim).enumerate() {
            padded[t * cols..][..self.head_dim].copy_from_slice(query);
            all()[0].quantize(&padded[t * cols..][..cols], quantized.view_mut(seen.len()).token(t));
        }
        let queries = SpanQueries { f32: &padded, int8: quantized.view(seen.len()), softcap };
        let mut buffers = SpanBuffers::new(&mut Allocator::heap());
        let (mut output, mut sums) = (vec![0.5; seen.len() * self.head_dim], vec![[0.5; 2]; seen.len()]);
        let result = SpanResult { output: &mut output, sums: &mut sums };
        let span = Int8Span { keys: &keys, values: &values };
        k.attn_span_i8(&queries, &span, seen, &mut buffers, result);
        (output, sums.into_flattened())
    }
}

/// Head widths, queries and blocks around each tile; some look at everything, some at nothing, some in the middle.
#[test]
fn span() {
    let differences = Differences::default();
    let cases: &[(usize, usize, usize)] = match cfg!(miri) {
        true => &[(20, 3, 2)],
        false => &[
            (1, 1, 1),
            (16, 2, 4),
            (20, 3, 2),
            (64, 1, 4),
            (64, 8, 4),
            (64, 9, 3),
            (80, 5, 4),
            (128, 12, 2),
            (192, 25, 1),
        ],
    };
    for &sort in FLOATS {
        for &(head_dim, queries, blocks) in cases {
            let len = blocks * BLOCK * head_dim;
            let (keys, values) = (sort.make(len, 1), sort.make(len, 2));
            let stored = Blocks::new(all()[0], blocks, head_dim, &keys, &values);
            let q = sort.make(queries * head_dim, 3);
            let seen: Vec<_> = (0..queries).map(|t| seen(t, blocks * BLOCK)).collect();
            let case = (sort, head_dim, queries, blocks);
            for softcap in [None, Some(50.0)] {
                differences.look(&(case, softcap), |k| stored.attend(k, &q, softcap, &seen));
            }
        }
    }
}

/// What query `t` sees of `positions`.
fn seen(t: usize, positions: usize) -> Range<usize> {
    match t % 5 {
        0 => 0..positions,
        1 => 0..(7 * t) % positions + 1,
        2 => positions / 3..positions - t % 20,
        3 => positions - 1..positions,
        _ => 5..5,
    }
}

#[test]
fn stored_keys_and_values() {
    let differences = Differences::default();
    for &sort in FLOATS {
        for head_dim in [1, 16, 20, 64, 80, 192] {
            let len = (BLOCK + 20) * head_dim;
            let (keys, values) = (sort.make(len, 1), sort.make(len, 2));
            differences.look(&(sort, head_dim), |k| {
                let Blocks { keys, values, .. } = Blocks::new(k, 2, head_dim, &keys, &values);
                let bits = |words: Vec<f32>| words.iter().map(|x| x.to_bits() as usize).collect::<Vec<_>>();
                (bits(keys), bits(values))
            });
        }
    }
}

/// Positions that a query may not look at may hold anything, and a span may have blocks that nobody sees: no bit changes.
#[test]
fn what_is_not_seen_does_not_matter() {
    let (head_dim, positions) = (64, 3 * BLOCK);
    let (mut keys, mut values) =
        (Floats::Plain.make(positions * head_dim, 1), Floats::Plain.make(positions * head_dim, 2));
    let q = Floats::Plain.make(2 * head_dim, 3);
    for k in all() {
        let whole = Blocks::new(k, 3, head_dim, &keys, &values);
        let expected = whole.attend(k, &q, None, &[3..100, 64..128]);
        for position in (0..3).chain(128..positions) {
            keys[position * head_dim..][..head_dim].fill(f32::NAN);
            values[position * head_dim..][..head_dim].fill(f32::INFINITY);
        }
        // The mean of the first block has changed the second's keys: only what follows may be spoilt.
        let spoilt = Blocks::new(k, 3, head_dim, &keys, &values);
        let two = Blocks::new(k, 2, head_dim, &keys[..128 * head_dim], &values[..128 * head_dim]);
        assert!(
            spoilt.attend(k, &q, None, &[3..100, 64..128]).same(&two.attend(k, &q, None, &[3..100, 64..128])),
            "{k:?}"
        );
        assert!(expected.0.iter().all(|x| x.is_finite()));
        assert!(
            spoilt.attend(k, &q, None, &[3..100, 64..129]).0[head_dim..].iter().all(|x| x.is_nan()),
            "{k:?}"
        );
    }
    assert_eq!(SPAN_BLOCKS * BLOCK, torchless_kernels::SPAN);
}
