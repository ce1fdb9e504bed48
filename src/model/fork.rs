//! Splitting work among the threads of the current rayon pool.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::join;

/// One of something for each thread of a pool.
pub(crate) struct PerThread<T>(Vec<Mutex<T>>);

impl<T> PerThread<T> {
    pub fn new(threads: usize, mut make: impl FnMut() -> T) -> Self {
        Self((0..threads).map(|_| Mutex::new(make())).collect())
    }

    /// This thread's: nobody else asks for it.
    pub fn mine(&self) -> MutexGuard<'_, T> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        self.0[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` on pieces of `whole`, which stands for the indices `range`, in parallel.
///
/// `split(piece, n)` cuts a piece after its first `n` indices. Pieces are of `grain` indices, the last may be shorter.
pub(crate) fn fork<P: Send>(
    whole: P,
    range: Range<usize>,
    grain: usize,
    split: &(impl Fn(P, usize) -> (P, P) + Sync),
    work: &(impl Fn(P, Range<usize>) + Sync),
) {
    if range.len() <= grain {
        return work(whole, range);
    }
    let half = (range.len() / 2).next_multiple_of(grain);
    let middle = range.start + half;
    let (left, right) = split(whole, half);
    join(
        || fork(left, range.start..middle, grain, split, work),
        || fork(right, middle..range.end, grain, split, work),
    );
}

/// [`fork`] in two directions: pieces of `grain[0]` of the indices `ranges[0]`, and of these pieces of `grain[1]` of the
/// indices `ranges[1]`.
pub(crate) fn fork2<P: Send>(
    whole: P,
    [outer, inner]: [Range<usize>; 2],
    grain: [usize; 2],
    split_outer: &(impl Fn(P, usize) -> (P, P) + Sync),
    split_inner: &(impl Fn(P, usize) -> (P, P) + Sync),
    work: &(impl Fn(P, Range<usize>, Range<usize>) + Sync),
) {
    fork(whole, outer, grain[0], split_outer, &|part, outer| {
        fork(part, inner.clone(), grain[1], split_inner, &|piece, inner| work(piece, outer.clone(), inner));
    });
}

/// How many of `n` indices a piece should have: a few pieces a thread, so that a thread which is held up loses little,
/// but no piece smaller than `least`, of which it is a multiple.
pub(crate) fn grain(n: usize, least: usize) -> usize {
    const PIECES_A_THREAD: usize = 16;
    match rayon::current_num_threads() {
        1 => n.max(1),
        threads => n.div_ceil(threads * PIECES_A_THREAD).next_multiple_of(least).max(least),
    }
}
