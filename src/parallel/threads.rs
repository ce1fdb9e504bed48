//! The threads of the current rayon pool: what each has of its own, and how they come together for a forward pass.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder, join};
use torchless_kernels::Team;

use crate::Error;

/// One of something for each thread of a pool.
pub(crate) struct PerThread<T>(Vec<Mutex<T>>);

impl<T> PerThread<T> {
    pub fn new(threads: usize, mut make: impl FnMut() -> T) -> Self {
        Self((0..threads).map(|_| Mutex::new(make())).collect())
    }

    /// This thread's: nobody else asks for it.
    pub fn mine(&self) -> MutexGuard<'_, T> {
        self.0[this_thread()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of this thread in its pool.
pub(crate) fn this_thread() -> usize {
    rayon::current_thread_index().unwrap_or(0)
}

/// Calls `lead` on this thread, with the others of its pool as members of `team`: what it [forks](super::fork::fork) then
/// need not be handed over by rayon, which would take longer than the work itself.
pub(crate) fn with_team<R: Send>(team: &Team, lead: impl FnOnce() -> R + Send) -> R {
    join(|| team.lead(lead), || join_as_member(team, team.members() - 1)).0
}

/// Brings `threads` threads into the team.
fn join_as_member(team: &Team, threads: usize) {
    match threads {
        0 => (),
        1 => team.attend(this_thread()),
        _ => _ = join(|| join_as_member(team, threads / 2), || join_as_member(team, threads - threads / 2)),
    }
}

/// A pool of `threads` threads (at least one).
pub(crate) fn thread_pool(threads: usize) -> Result<ThreadPool, Error> {
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|i| format!("torchless-{i}"))
        .build()
        .map_err(|e| Error::Request(format!("{threads} threads cannot be started: {e}")))?;
    // What a thread allocates for itself it does when it first takes work: now rather than in a forward pass.
    pool.broadcast(|_| ());
    Ok(pool)
}
