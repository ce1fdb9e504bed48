//! A span of int8 keys and values meets some queries: two products of panels, with a softmax between them.

use super::block::{Int8Keys, Int8Values, KEY_PANELS};
use super::float::{largest, scale_of};
use crate::glu::softcap;
use crate::int8::{Group, Int8, TilePanel, TokenGroups, tokens};
use crate::memory::{Aligned, Allocator};
use crate::panels::PANEL_ROWS;
use crate::quant::{GROUP, Outlier, PARTS, Quantized};
use crate::scalar::{BLOCK, EXP_MIN, EXP_ROUND, EXP_SHORT_POLY, SPAN, SPAN_BLOCKS};
use crate::simd::Simd;
use std::ops::Range;

/// Queries of one head, in two forms; head_dim filled up with zeros to whole groups.
#[derive(Clone, Copy, Debug)]
pub struct SpanQueries<'a> {
    /// `[queries][cols]`, multiplied by `1/√head_dim`.
    pub f32: &'a [f32],
    /// The same, quantised.
    pub int8: Quantized<'a>,
    /// What scores are [capped](crate::scalar::softcap) at.
    pub softcap: Option<f32>,
}

/// Up to four neighbouring blocks of one head: 256 positions.
#[derive(Clone, Copy, Debug)]
pub struct Int8Span<'a> {
    /// The keys of each block.
    pub keys: &'a [Int8Keys<'a>],
    /// The values of each block.
    pub values: &'a [Int8Values<'a>],
}

/// What the kernel writes to on the way.
#[derive(Debug)]
pub struct SpanBuffers {
    /// `[12][256]`: the scores of a tile's queries, then their probabilities.
    scores: Aligned<f32>,
    /// `[12][256]`: these in units of their scale.
    weights: Aligned<i8>,
    /// `[12][4]`: one a block.
    weight_scales: Aligned<f32>,
}

/// Queries of a tile at the most.
const MOST_QUERIES: usize = 12;

impl SpanBuffers {
    /// Buffers for one thread.
    pub fn new(memory: &mut Allocator) -> Self {
        Self {
            scores: memory.aligned(MOST_QUERIES * SPAN),
            weights: memory.aligned(MOST_QUERIES * SPAN),
            weight_scales: memory.aligned(MOST_QUERIES * SPAN_BLOCKS),
        }
    }
}

/// What comes out.
pub struct SpanResult<'a> {
    /// `[queries][head_dim]`
    pub output: &'a mut [f32],
    /// Of each query the largest score, and the sum of the probabilities before they were rounded.
    pub sums: &'a mut [[f32; 2]],
}

/// Calls `$k.$f::<N>` with `N = $n`, 1 to 12.
macro_rules! by_queries {
    ($n:expr, $k:ident.$f:ident($($arg:expr),*)) => {
        by_queries!($n, $k.$f($($arg),*), 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    ($n:expr, $k:ident.$f:ident $args:tt, $($queries:literal)*) => {
        match $n {
            $($queries if $queries <= K::TILE_TOKENS => by_queries!(@ $k $f $queries $args),)*
            _ => unreachable!("more queries than a tile has"),
        }
    };
    (@ $k:ident $f:ident $queries:literal ($($arg:expr),*)) => { $k.$f::<$queries>($($arg),*) };
}

/// See [`crate::scalar::attn_span_i8`].
#[inline(always)]
pub(crate) fn attn_span_i8<K: Int8>(
    k: K,
    queries: &SpanQueries,
    span: &Int8Span,
    seen: &[Range<usize>],
    buffers: &mut SpanBuffers,
    result: SpanResult,
) {
    let tiles = seen.len().div_ceil(K::TILE_TOKENS);
    let head_dim = result.output.len() / seen.len().max(1);
    let mut first = 0;
    for tile in 0..tiles {
        let n = (seen.len() - first).div_ceil(tiles - tile);
        // One tile asks for all.
        let ahead = if tile == 0 { NextSpan::of(span) } else { NextSpan::NOTHING };
        let tile = TileOfSpan { span, first, ahead };
        let seen = &seen[first..first + n];
        by_queries!(n, k.span_scores(&tile, queries, used_panels(seen), &mut buffers.scores));
        let s = k.lanes();
        if let Some(cap) = queries.softcap {
            softcap(s, &mut buffers.scores[..n * SPAN], cap);
        }
        weigh(s, &tile, seen, buffers, &mut result.sums[first..first + n]);
        let output = &mut result.output[first * head_dim..][..n * head_dim];
        by_queries!(n, k.span_values(&tile, &buffers.weights, &buffers.weight_scales, output));
        first += n;
    }
}

/// Some queries, the first of which is the `first`-th, and the span that they meet.
pub(crate) struct TileOfSpan<'a> {
    span: &'a Int8Span<'a>,
    first: usize,
    ahead: NextSpan,
}

/// The memory that lies behind a span, which whoever goes through a context needs next. A span is too short for the CPU's own
/// prefetching; it is asked for evenly, while this one is worked on.
#[derive(Clone, Copy)]
struct NextSpan {
    keys: *const i8,
    key_lines: usize,
    values: *const i8,
    value_lines: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl NextSpan {
    const NOTHING: Self =
        Self { keys: std::ptr::null(), key_lines: 0, values: std::ptr::null(), value_lines: 0 };

    fn of(span: &Int8Span) -> Self {
        let ([keys, ..], [values, ..]) = (span.keys, span.values) else { return Self::NOTHING };
        let (keys, values) = (keys.memory(), values.memory());
        let blocks = span.keys.len();
        Self {
            keys: keys.as_ptr().wrapping_add(blocks * keys.len()).cast(),
            key_lines: blocks * size_of_val(keys) / LINE,
            values: values.as_ptr().wrapping_add(blocks * values.len()).cast(),
            value_lines: blocks * size_of_val(values) / LINE,
        }
    }

    /// Asks for the share of step `step` of `steps` of a part of the work, which begins at `start` hundredths of the whole and
    /// ends at `end`.
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, (step, steps): (usize, usize), (start, end): (usize, usize)) {
        let lines = self.key_lines + self.value_lines;
        let at = |step: usize| lines * (start * steps + (end - start) * step) / (100 * steps);
        for line in at(step)..at(step + 1) {
            s.prefetch(match line.checked_sub(self.key_lines) {
                None => self.keys.wrapping_add(LINE * line),
                Some(line) => self.values.wrapping_add(LINE * line),
            });
        }
    }
}

/// Which part of the work the scores are, and what is done by the end of the weights: hundredths.
const SCORES_END: usize = 40;
const WEIGHTS_END: usize = 60;

/// The panels of a span's keys that some queries may look at.
fn used_panels(seen: &[Range<usize>]) -> Range<usize> {
    let start = seen.iter().map(|seen| seen.start).min().unwrap_or(0);
    let end = seen.iter().map(|seen| seen.end).max().unwrap_or(0);
    start / PANEL_ROWS..end.div_ceil(PANEL_ROWS)
}

/// The scores of the `N` queries of a tile with some panels of its keys, `[N][256]`.
#[inline(always)]
pub(crate) fn scores<K: Int8, const N: usize>(
    k: K,
    tile: &TileOfSpan,
    queries: &SpanQueries,
    panels: Range<usize>,
    scores: &mut [f32],
) {
    let s = k.lanes();
    let (groups, cols) = (queries.int8.groups(), queries.int8.cols());
    let tokens = tokens::<N>(&queries.int8, tile.first, &(0..groups));
    let rows = &queries.f32[tile.first * cols..][..N * cols];
    for (block, keys) in tile.span.keys.iter().enumerate() {
        let own = panels.start.max(block * KEY_PANELS)..panels.end.min((block + 1) * KEY_PANELS);
        if own.is_empty() {
            continue;
        }
        let biases = dot_mean::<_, N>(s, rows, cols, keys);
        for panel in own {
            tile.ahead.ask(s, (panel, tile.span.keys.len() * KEY_PANELS), (0, SCORES_END));
            let keys = keys.panel(panel % KEY_PANELS);
            assert_eq!((keys.values.len(), keys.scales.len()), (groups, groups));
            let mut sums = [s.splat(0.0); N];
            for t in 0..N {
                sums[t] = s.splat(biases[t]);
            }
            for g in 0..groups {
                let products = keys.products(k, &tokens, g);
                for t in 0..N {
                    sums[t] = s.add(sums[t], products[t]);
                }
            }
            for t in 0..N {
                s.store(sums[t], &mut scores[t * SPAN..].as_chunks_mut().0[panel]);
            }
        }
    }
}

/// `N` queries times what was taken off the keys.
#[inline(always)]
fn dot_mean<S: Simd, const N: usize>(s: S, queries: &[f32], cols: usize, keys: &Int8Keys) -> [f32; N] {
    let mut sums = [s.splat(0.0); N];
    for g in 0..keys.groups() {
        let (mean, scale) = keys.mean_group(g);
        for (i, mean) in mean.as_chunks().0.iter().enumerate() {
            let mean = s.mul(s.load_i8(mean), s.splat(scale));
            for t in 0..N {
                let query = &queries[t * cols + g * GROUP..].as_chunks().0[i];
                sums[t] = s.add(sums[t], s.mul(s.load(query), mean));
            }
        }
    }
    let mut biases = [0.0; N];
    for t in 0..N {
        biases[t] = s.fold_add(sums[t]);
    }
    biases
}

/// Makes the scores of some queries probabilities, times the values' scales, and rounds them; finds the largest scores and the
/// sums of the probabilities.
///
/// Step by step for all queries: what one waits for is the next one's time.
#[inline(always)]
fn weigh<S: Simd>(
    s: S,
    tile: &TileOfSpan,
    seen: &[Range<usize>],
    buffers: &mut SpanBuffers,
    sums: &mut [[f32; 2]],
) {
    let values = tile.span.values;
    let len = values.len() * BLOCK;
    let SpanBuffers { scores, weights, weight_scales } = buffers;
    for ((seen, sums), row) in seen.iter().zip(sums.iter_mut()).zip(scores.chunks_exact_mut(SPAN)) {
        row[..seen.start].fill(f32::NEG_INFINITY);
        row[seen.end..len].fill(f32::NEG_INFINITY);
        sums[0] = largest(s, &row[..len]);
    }
    let mut inverses = [[0.0; SPAN_BLOCKS]; MOST_QUERIES];
    let queries = seen.len();
    for (i, ((seen, sums), row)) in seen.iter().zip(sums).zip(scores.chunks_exact_mut(SPAN)).enumerate() {
        tile.ahead.ask(s, (i, queries), (SCORES_END, WEIGHTS_END));
        let max = s.splat(sums[0]);
        let mut sum = s.splat(0.0);
        for (block, values) in values.iter().enumerate() {
            let p = &mut row[block * BLOCK..][..BLOCK];
            let mut top = s.abs_bits(s.splat(0.0));
            for (p, scales) in p.as_chunks_mut().0.iter_mut().zip(values.scales.as_chunks().0) {
                let e = exp_short(s, s.sub(s.load(p), max));
                sum = s.add(sum, e);
                let weight = s.mul(e, s.load(scales));
                top = s.max_i32(top, s.abs_bits(weight));
                s.store(weight, p);
            }
            let mut top = s.largest_i32(top);
            let first = block * BLOCK;
            if seen.start > first || seen.end < first + BLOCK {
                // What lies there may have any scale.
                p[..seen.start.clamp(first, first + BLOCK) - first].fill(0.0);
                p[seen.end.clamp(first, first + BLOCK) - first..].fill(0.0);
                top = p.iter().fold(0, |top, p| top.max((p.to_bits() & 0x7fff_ffff) as i32));
            }
            (weight_scales[i * SPAN_BLOCKS + block], inverses[i][block]) =
                scale_of(f32::from_bits(top as u32));
        }
        sums[1] = s.fold_add(sum);
    }
    let rows = scores.chunks_exact(SPAN).zip(weights.chunks_exact_mut(SPAN));
    for ((row, weights), inverses) in rows.zip(&inverses[..seen.len()]) {
        let blocks = row[..len].as_chunks::<BLOCK>().0.iter().zip(weights.as_chunks_mut::<BLOCK>().0);
        for ((p, weights), inverse) in blocks.zip(inverses) {
            let inverse = s.splat(*inverse);
            for (p, weights) in p.as_chunks().0.iter().zip(weights.as_chunks_mut().0) {
                s.store_i8(s.round(s.mul(s.load(p), inverse)), weights);
            }
        }
    }
}

/// See [`scalar::exp_short`].
#[inline(always)]
fn exp_short<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let power = s.mul(x, s.splat(std::f32::consts::LOG2_E));
    let shifted = s.add(power, s.splat(EXP_ROUND));
    let fraction = s.sub(power, s.sub(shifted, s.splat(EXP_ROUND)));
    let mut p = s.splat(EXP_SHORT_POLY[0]);
    for &c in &EXP_SHORT_POLY[1..] {
        p = s.add(s.mul(p, fraction), s.splat(c));
    }
    let scale = s.exponent(shifted, 127i32.wrapping_sub(EXP_ROUND.to_bits() as i32));
    s.keep_where_ge(s.mul(p, scale), x, s.splat(EXP_MIN))
}

/// The values of a tile's span, times the weights of its `N` queries: `[N][head_dim]`.
#[inline(always)]
pub(crate) fn values<K: Int8, const N: usize>(
    k: K,
    tile: &TileOfSpan,
    weights: &[i8],
    scales: &[f32],
    output: &mut [f32],
) {
    /// Weights are never negative and need no more than their bytes.
    const SUMS: &[i32; SPAN_BLOCKS] = &[0; SPAN_BLOCKS];
    const PART_SUMS: &[[i16; PARTS]; SPAN_BLOCKS] = &[[0; PARTS]; SPAN_BLOCKS];
    const OUTLIERS: &[Outlier; SPAN_BLOCKS] = &[Outlier::NONE; SPAN_BLOCKS];
    let (s, blocks, head_dim) = (k.lanes(), tile.span.values, output.len() / N);
    let groups: &[Group] = weights.as_chunks().0;
    let mut tokens = [TokenGroups {
        values: &groups[..SPAN_BLOCKS],
        scales: &scales[..SPAN_BLOCKS],
        sums: SUMS,
        part_sums: PART_SUMS,
        outliers: OUTLIERS,
    }; N];
    for t in 1..N {
        tokens[t].values = &groups[t * SPAN_BLOCKS..][..SPAN_BLOCKS];
        tokens[t].scales = &scales[t * SPAN_BLOCKS..][..SPAN_BLOCKS];
    }
    let panels = head_dim.div_ceil(PANEL_ROWS);
    for panel in 0..panels {
        let mut sums = [s.splat(0.0); N];
        for (g, values) in blocks.iter().enumerate() {
            tile.ahead.ask(s, (panel * blocks.len() + g, panels * blocks.len()), (WEIGHTS_END, 100));
            let dots = k.nonnegative_dots(&values.codes[panel], &tokens, g);
            for t in 0..N {
                sums[t] = s.add(sums[t], s.mul(s.to_f32(dots[t]), s.splat(tokens[t].scales[g])));
            }
        }
        for t in 0..N {
            let output = &mut output[t * head_dim + panel * PANEL_ROWS..(t + 1) * head_dim];
            match output.first_chunk_mut() {
                Some(whole) => s.store(sums[t], whole),
                None => {
                    let mut last = [0.0; PANEL_ROWS];
                    s.store(sums[t], &mut last);
                    output.copy_from_slice(&last[..output.len()]);
                }
            }
        }
    }
}
