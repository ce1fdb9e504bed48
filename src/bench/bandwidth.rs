//! How fast memory can be read: what a generated token is held against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::Error;
use crate::model::Model;
use crate::runtime::Threads;

/// Models smaller than this may stay in a cache, so that other memory has to be read.
const LEAST: usize = 128 << 20;
/// No more of a model than this is read: enough for any cache.
const MOST: usize = 1 << 30;
/// Bytes a thread takes at a time.
const PIECE: usize = 1 << 20;
/// How long to go on reading.
const TIME: Duration = Duration::from_millis(400);

/// Bytes a second that `threads` threads read with a plain loop: the mean of many passes, as tokens a second are one, over
/// the model's own mapped weights, or over as much other memory where they are so few that a cache could hold them.
///
/// # Errors
/// If the threads cannot be started.
pub fn memory_bandwidth(model: &Model, threads: usize) -> Result<f64, Error> {
    let weights = model.file().contents();
    let other;
    let bytes = if weights.len() >= LEAST {
        weights.get(..MOST).unwrap_or(weights)
    } else {
        other = vec![1u8; 2 * LEAST];
        &other[..]
    };
    let threads = Threads::new(threads)?;
    Ok(threads.install(|| {
        let pass = || bytes.par_chunks(PIECE).map(read).reduce(|| 0, u64::wrapping_add);
        black_box(pass());
        let (start, mut read) = (Instant::now(), 0);
        while start.elapsed() < TIME {
            black_box(pass());
            read += bytes.len();
        }
        read as f64 / start.elapsed().as_secs_f64()
    }))
}

/// Reads all of `bytes`; the sum makes sure that nobody optimises the reading away.
///
/// Independent accumulators, so that the compiler makes them vectors and no load waits for a sum.
pub fn read(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<128>();
    let mut sums = [0u64; 16];
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    let rest = rest.iter().fold(0, |sum: u64, &byte| sum.wrapping_add(byte.into()));
    sums.into_iter().fold(rest, u64::wrapping_add)
}
