//! Splitting work among the threads of a [`Team`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;
use crossbeam_utils::CachePadded;
use torchless_kernels::Team;

use super::threads::this_thread;

/// Cuts something after its first `n` indices.
pub(crate) type Split<'a, P> = dyn Fn(P, usize) -> (P, P) + Sync + 'a;

/// Runs `work` on pieces of `whole`, which stands for the indices `range`, on all threads of the team.
///
/// Pieces are of `grain` indices, the last may be shorter.
pub(crate) fn fork<P: Send>(
    team: &Team,
    whole: P,
    range: Range<usize>,
    grain: usize,
    split: &Split<P>,
    work: &(impl Fn(P, Range<usize>) + Sync),
) {
    fork2(team, whole, [0..1, range], [1, grain], [split; 2], &|piece, _, range| work(piece, range));
}

/// [`fork`] in two directions: pieces of `grain[0]` of the indices `ranges[0]`, and of these pieces of `grain[1]` of the
/// indices `ranges[1]`.
///
/// Each thread has a part of its own, the same one each time it meets the same ranges, and begins with that; when it is
/// done, it takes half of what another has left.
pub(crate) fn fork2<P: Send>(
    team: &Team,
    whole: P,
    ranges: [Range<usize>; 2],
    grain: [usize; 2],
    split: [&Split<P>; 2],
    work: &(impl Fn(P, Range<usize>, Range<usize>) + Sync),
) {
    let cuts = Cuts { grain, split };
    let run = |Part { piece, ranges: [outer, inner] }| work(piece, outer, inner);
    let whole = Part { piece: whole, ranges };
    if cuts.pieces(&whole, OUTER).max(cuts.pieces(&whole, INNER)) <= 1 {
        return run(whole);
    }
    let mut shares = ArrayVec::<_, MOST_THREADS>::new();
    cuts.deal(Some(whole), team.members().min(MOST_THREADS), &mut |part| shares.push(Share::new(part)));
    team.run(&|| {
        let mut worked = false;
        while let Some(part) = next(&shares, &cuts) {
            run(part);
            worked = true;
        }
        worked
    });
}

/// Most threads that are given work.
const MOST_THREADS: usize = 256;

/// Indices in two directions, and what is written for them.
struct Part<P> {
    piece: P,
    ranges: [Range<usize>; 2],
}

const OUTER: usize = 0;
const INNER: usize = 1;

/// How parts are cut: between pieces.
struct Cuts<'a, P> {
    grain: [usize; 2],
    split: [&'a Split<'a, P>; 2],
}

impl<P> Cuts<'_, P> {
    /// Pieces next to each other in a direction.
    fn pieces(&self, part: &Part<P>, direction: usize) -> usize {
        part.ranges[direction].len().div_ceil(self.grain[direction])
    }

    /// The direction in which a part is cut as long as that can be.
    fn direction(&self, part: &Part<P>) -> usize {
        if self.pieces(part, OUTER) > 1 { OUTER } else { INNER }
    }

    /// The first `pieces` and, if there are more, the others.
    fn cut(&self, part: Part<P>, direction: usize, pieces: usize) -> (Part<P>, Option<Part<P>>) {
        if pieces >= self.pieces(&part, direction) {
            return (part, None);
        }
        let n = pieces * self.grain[direction];
        let (first, second) = self.split[direction](part.piece, n);
        let (mut before, mut after) = (part.ranges.clone(), part.ranges);
        before[direction].end = before[direction].start + n;
        after[direction].start += n;
        (Part { piece: first, ranges: before }, Some(Part { piece: second, ranges: after }))
    }

    /// Calls `give` once for each of `threads` threads with its part.
    fn deal(&self, part: Option<Part<P>>, threads: usize, give: &mut impl FnMut(Option<Part<P>>)) {
        if threads == 1 {
            return give(part);
        }
        let (first, second) = part.map_or((None, None), |part| {
            let direction = self.direction(&part);
            let pieces = self.pieces(&part, direction) * (threads / 2) / threads;
            let (first, second) = self.cut(part, direction, pieces.max(1));
            (Some(first), second)
        });
        self.deal(first, threads / 2, give);
        self.deal(second, threads - threads / 2, give);
    }

    /// Takes one piece off.
    fn first(&self, left: &mut Left<P>) -> Option<Part<P>> {
        let (one, others) = match left.one.take() {
            Some(one) => (one, left.others.take()),
            None => self.cut(left.others.take()?, OUTER, 1),
        };
        let (piece, one) = self.cut(one, INNER, 1);
        *left = Left { one, others };
        Some(piece)
    }

    /// Takes the second half off.
    fn half(&self, left: &mut Left<P>) -> Option<Part<P>> {
        let (from, direction) = match left.others.is_some() {
            true => (&mut left.others, OUTER),
            false => (&mut left.one, INNER),
        };
        let part = from.take()?;
        match self.pieces(&part, direction) {
            1 => Some(part),
            pieces => {
                let (kept, half) = self.cut(part, direction, pieces / 2);
                *from = Some(kept);
                half
            }
        }
    }
}

/// What a thread has left to do.
struct Share<P> {
    /// Whether there is anything: those who look for work do not lock what is empty.
    any: AtomicBool,
    left: Mutex<Left<P>>,
}

/// What is left of a share. Its pieces are taken in order: all inner ones of one outer piece, then those of the next.
struct Left<P> {
    /// The rest of the outer piece that is under way.
    one: Option<Part<P>>,
    /// The outer pieces after it, whole.
    others: Option<Part<P>>,
}

impl<P> Share<P> {
    fn new(part: Option<Part<P>>) -> CachePadded<Self> {
        let any = AtomicBool::new(part.is_some());
        CachePadded::new(Self { any, left: Mutex::new(Left { one: None, others: part }) })
    }

    /// Fills an empty share; others may take from it at once.
    fn put(&self, part: Part<P>) {
        *self.lock() = Left { one: None, others: Some(part) };
        self.any.store(true, Relaxed);
    }

    /// Takes something from what is left, if there is anything.
    fn take(&self, how: impl FnOnce(&mut Left<P>) -> Option<Part<P>>) -> Option<Part<P>> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let mut left = self.lock();
        let taken = how(&mut left);
        self.any.store(left.one.is_some() || left.others.is_some(), Relaxed);
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Left<P>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This thread's next piece: of its own share, then of the half of another's.
fn next<P>(shares: &[CachePadded<Share<P>>], cuts: &Cuts<P>) -> Option<Part<P>> {
    let me = this_thread();
    let own = shares.get(me)?;
    own.take(|left| cuts.first(left)).or_else(|| {
        let mut others = shares[me..].iter().chain(&shares[..me]).skip(1);
        let half = others.find_map(|share| share.take(|left| cuts.half(left)))?;
        own.put(half);
        own.take(|left| cuts.first(left))
    })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use torchless_kernels::MatMut;

    use super::*;
    use crate::parallel::threads::Threads;

    fn on_threads(threads: usize, f: impl Fn(&Team) + Sync) {
        Threads::new(threads).unwrap().with_team(|team| f(team));
    }

    #[test]
    fn every_index_is_worked_on_once_in_pieces_of_the_grain() {
        for threads in [1, 2, 3, 5, 16] {
            on_threads(threads, |team| {
                for (rows, cols) in [(1, 1), (1, 100), (7, 3), (40, 65), (100, 1)] {
                    for grain in [[1, 1], [1, 16], [3, 64], [200, 7], [200, 200]] {
                        let mut counts = vec![0u32; rows * cols];
                        let whole = MatMut::new(&mut counts, rows, cols);
                        let ranges = [10..10 + rows, 20..20 + cols];
                        let split: [&Split<_>; 2] = [&MatMut::split_rows, &MatMut::split_cols];
                        fork2(team, whole, ranges, grain, split, &|mut part, outer, inner| {
                            assert_eq!((part.rows(), part.cols()), (outer.len(), inner.len()));
                            for (range, (start, len, grain)) in
                                [(&outer, (10, rows, grain[0])), (&inner, (20, cols, grain[1]))]
                            {
                                assert!((range.start - start).is_multiple_of(grain));
                                assert!(
                                    range.len() == grain || range.end == start + len && range.len() < grain
                                );
                            }
                            for (i, row) in outer.enumerate() {
                                for (count, col) in part.row(i).iter_mut().zip(inner.clone()) {
                                    *count += (row * 1000 + col) as u32;
                                }
                            }
                        });
                        for (i, count) in counts.iter().enumerate() {
                            let (row, col) = (10 + i / cols, 20 + i % cols);
                            assert_eq!(
                                *count as usize,
                                row * 1000 + col,
                                "{threads} threads, grain {grain:?}"
                            );
                        }
                    }
                }
            });
        }
    }

    #[test]
    fn others_finish_what_a_thread_that_is_held_up_has_left() {
        on_threads(2, |team| {
            for held in [0, 1, 30, 31] {
                let done = Mutex::new(BTreeSet::new());
                let start = Instant::now();
                fork(team, (), 0..32, 1, &|(), _| ((), ()), &|(), range| {
                    while range.start == held && done.lock().unwrap().len() < 31 {
                        assert!(start.elapsed() < Duration::from_secs(10), "the others were not done");
                        std::thread::yield_now();
                    }
                    done.lock().unwrap().insert(range.start);
                });
                assert_eq!(done.lock().unwrap().len(), 32);
            }
        });
    }

    #[test]
    #[should_panic(expected = "meant to fail")]
    fn a_panic_in_any_piece_reaches_the_caller() {
        on_threads(4, |team| {
            fork(team, (), 0..64, 1, &|(), _| ((), ()), &|(), range| {
                assert_ne!(range.start, 63, "meant to fail");
            });
        });
    }
}
