//! How one layer's attention is dealt out to the threads: in tiles, a few tokens of one sequence and all the heads that share a head
//! of keys. Where there are few tokens (decode) there are few tiles, so there the spans of a context are worked out in parallel too.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use torchless_kernels::{Aligned, Allocator, Kernels, MatMut, Team};

use super::over_cache::{Buffers, OverCache, Queries, Softmax, Spans, TileQueries, tile_queries};
use crate::arch::Config;
use crate::model::segment::{Segment, tokens_of};
use crate::model::workspace::Room;
use crate::parallel::fork::{Split, fork, fork2, grain};
use crate::parallel::threads::PerThread;

/// Tiles for each thread at the least, smaller ones if need be: the later ones look at more than the earlier ones.
const TILES_A_THREAD: usize = 4;

/// Fewer tiles of single tokens than this for each thread are cut into spans.
const WHOLE_TOKENS_A_THREAD: usize = 16;

/// The attention of one layer's heads over some sequences.
pub(crate) struct LayerAttention<'a, C> {
    pub kernels: Kernels,
    pub team: &'a Team,
    pub config: &'a Config,
    pub cache: &'a C,
    pub layer: usize,
    pub segments: &'a [Segment<'a>],
    /// `[tokens][stride]`, whose first `q_dim` values are the queries.
    pub queries: &'a [f32],
    pub stride: usize,
    pub buffers: &'a AttentionBuffers,
}

/// What attention writes to beside its output.
pub(crate) struct AttentionBuffers {
    threads: PerThread<Buffers>,
    single_tokens: Mutex<SpanResults>,
}

/// What each span of a context gives single tokens of some sequences.
struct SpanResults {
    /// `[segments][n_kv_heads][queries_per_kv_head]`
    queries: Queries,
    /// `[units][queries_per_kv_head][head_dim]`: see [`Units`].
    outputs: Aligned<f32>,
    /// `[units][queries_per_kv_head]`
    sums: Aligned<Softmax>,
}

impl AttentionBuffers {
    pub fn new(memory: &mut Allocator, config: &Config, room: Room) -> Self {
        let sequences = room.sequences.min(whole_tokens(config, room.threads));
        let spans = sequences * (room.ctx.div_ceil(torchless_kernels::SPAN) + 1);
        let single_tokens = SpanResults {
            queries: Queries::new(memory, sequences * config.n_heads, config.head_dim),
            outputs: memory.aligned(spans * config.n_heads * config.head_dim),
            sums: memory.aligned(spans * config.n_heads),
        };
        let threads = PerThread::new(room.threads, || Buffers::new(memory, config));
        Self { threads, single_tokens: single_tokens.into() }
    }
}

/// So many single tokens, or more, are not cut into spans.
fn whole_tokens(config: &Config, threads: usize) -> usize {
    (WHOLE_TOKENS_A_THREAD * threads).div_ceil(config.n_kv_heads)
}

impl<C: Spans> LayerAttention<'_, C> {
    /// Fills `out`, `[tokens][n_heads·head_dim]`.
    pub fn run(&self, out: MatMut<f32>) {
        let few = self.segments.len() < whole_tokens(self.config, self.team.members());
        match few && self.segments.iter().all(|segment| segment.rows.len() == 1) {
            true => self.attend_single_tokens(out),
            false => self.attend_tiles(out),
        }
    }

    /// The attention of one sequence's tokens.
    fn over<'s>(&'s self, segment: &'s Segment) -> OverCache<'s, C> {
        OverCache {
            kernels: self.kernels,
            config: self.config,
            cache: self.cache,
            layer: self.layer,
            window: self.config.window_of(self.layer),
            segment,
            queries: &self.queries[segment.rows.start * self.stride..],
            stride: self.stride,
        }
    }

    fn attend_tiles(&self, out: MatMut<f32>) {
        let per_token = self.config.queries_per_kv_head();
        let width = per_token * self.config.head_dim;
        let wanted = (TILES_A_THREAD * self.team.members() / self.config.n_kv_heads).max(1);
        let most = tokens_of(self.segments).div_ceil(wanted).min(tile_queries(self.config) / per_token);
        let tiles = Tiles { segments: self.segments, most };
        let ranges = [0..out.cols(), 0..tiles.count()];
        let split: [&Split<(MatMut<f32>, usize)>; 2] = [
            &|(out, first), n| {
                let (a, b) = out.split_cols(n);
                ((a, first), (b, first))
            },
            &|(out, first), n| {
                let (a, b) = out.split_rows(tiles.row(first + n) - tiles.row(first));
                ((a, first), (b, first + n))
            },
        ];
        fork2(self.team, (out, 0), ranges, [width, 1], split, &|(mut out, first), features, numbers| {
            for number in numbers {
                let (segment, tokens) = tiles.tile(number);
                let (rows, top) = (segment.rows.start, tiles.row(first));
                let mut buffers = self.buffers.threads.mine();
                let over = self.over(segment);
                over.attend_tile(features.start / width, tokens, &mut buffers, |token, heads| {
                    out.row(rows + token - top).copy_from_slice(heads);
                });
            }
        });
    }

    /// One token of each sequence: its spans one by one in parallel, then joined.
    fn attend_single_tokens(&self, out: MatMut<f32>) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let n_kv_heads = self.config.n_kv_heads;
        let mut guard = self.buffers.single_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let SpanResults { queries, outputs, sums } = &mut *guard;
        for (i, segment) in self.segments.iter().enumerate() {
            self.over(segment).load(0..n_kv_heads, 0..1, queries, i * self.config.n_heads);
        }
        let queries = &*queries;
        let spans = |segment: &Segment| self.over(segment).spans_of(0..1);
        let units = Units { segments: self.segments, n_kv_heads, spans: &spans };
        let count = units.before(self.segments.len());
        let outputs = MatMut::new(&mut outputs[..count * per_token * head_dim], count, per_token * head_dim);
        let whole = (outputs, MatMut::new(&mut sums[..count * per_token], count, per_token));
        fork(
            self.team,
            whole,
            0..count,
            grain(count, 1),
            &split_rows,
            &|(mut outputs, mut sums), numbers| {
                let tile = &mut self.buffers.threads.mine().tile;
                for (row, number) in numbers.enumerate() {
                    let (i, kv_head, span) = units.unit(number);
                    let first = i * self.config.n_heads + kv_head * per_token;
                    let of = TileQueries { kv_head, tokens: 0..1, queries, first };
                    C::attend_span(&self.over(&self.segments[i]), &of, span, tile);
                    outputs.row(row).copy_from_slice(&tile.span_output[..per_token * head_dim]);
                    sums.row(row).copy_from_slice(&tile.span_sums[..per_token]);
                }
            },
        );
        let SpanResults { outputs, sums, .. } = &*guard;
        fork(self.team, out, 0..self.segments.len(), 1, &MatMut::split_rows, &|mut out, range| {
            for (row, i) in range.enumerate() {
                let spans = spans(&self.segments[i]).len();
                for (head, out) in out.row(row).chunks_exact_mut(head_dim).enumerate() {
                    let first = units.before(i) + head / per_token * spans;
                    let queries = (first..first + spans).map(|unit| unit * per_token + head % per_token);
                    self.join(queries, outputs, sums, out);
                }
            }
        });
    }

    /// Joins what the spans, in ascending order, give one query.
    fn join(&self, queries: impl Iterator<Item = usize>, outputs: &[f32], sums: &[Softmax], out: &mut [f32]) {
        let head_dim = out.len();
        out.fill(0.0);
        let mut softmax = Softmax::EMPTY;
        for query in queries {
            let [old, new] = softmax.join(sums[query]);
            self.kernels.attn_merge(out, old, &outputs[query * head_dim..][..head_dim], new);
        }
        self.kernels.scale(out, 1.0 / softmax.sum);
    }
}

/// Tiles of up to `most` tokens, none of which has tokens of two sequences.
struct Tiles<'a> {
    segments: &'a [Segment<'a>],
    most: usize,
}

impl Tiles<'_> {
    fn count(&self) -> usize {
        self.segments.iter().map(|segment| segment.rows.len().div_ceil(self.most)).sum()
    }

    /// Whose tokens a tile has, and which of these.
    fn tile(&self, mut number: usize) -> (&Segment<'_>, Range<usize>) {
        let mut segments = self.segments.iter();
        loop {
            let segment = segments.next().expect("a tile of these");
            let (tokens, own) = (segment.rows.len(), segment.rows.len().div_ceil(self.most));
            if number < own {
                let first = number * self.most;
                return (segment, first..tokens.min(first + self.most));
            }
            number -= own;
        }
    }

    /// The row of a tile's first token, or where the last one ends.
    fn row(&self, number: usize) -> usize {
        if number == self.count() {
            return tokens_of(self.segments);
        }
        let (segment, tokens) = self.tile(number);
        segment.rows.start + tokens.start
    }
}

/// A span of one sequence's context and one head of keys is a unit: those of the first sequence are counted first, and of these those of
/// the first head.
struct Units<'a> {
    segments: &'a [Segment<'a>],
    n_kv_heads: usize,
    spans: &'a (dyn Fn(&Segment) -> Range<usize> + Sync),
}

impl Units<'_> {
    /// Units of the first `n` sequences.
    fn before(&self, n: usize) -> usize {
        self.segments[..n].iter().map(|segment| self.n_kv_heads * (self.spans)(segment).len()).sum()
    }

    /// Sequence, head and span of a unit.
    fn unit(&self, mut number: usize) -> (usize, usize, usize) {
        let mut i = 0;
        loop {
            let spans = (self.spans)(&self.segments[i]);
            if number < self.n_kv_heads * spans.len() {
                return (i, number / spans.len(), spans.start + number % spans.len());
            }
            number -= self.n_kv_heads * spans.len();
            i += 1;
        }
    }
}

type Rows<'a> = (MatMut<'a, f32>, MatMut<'a, Softmax>);

fn split_rows((outputs, sums): Rows, n: usize) -> (Rows, Rows) {
    let ((a, b), (c, d)) = (outputs.split_rows(n), sums.split_rows(n));
    ((a, c), (b, d))
}
