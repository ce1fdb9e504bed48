//! Worker threads: a pool of rayon's, how its threads come together for a forward pass, and what each has of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder, join};
use torchless_kernels::Team;

use crate::Error;

/// Worker threads that any number of sessions share.
///
/// Sessions that work at the same time share them as they come: no result depends on it.
pub struct Threads {
    pool: ThreadPool,
    team: Team,
}

impl Threads {
    /// Starts `count` threads: at least one, and no more than [`Threads::most`].
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(count: usize) -> Result<Self, Error> {
        let count = count.clamp(1, Self::most());
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("torchless-{i}"))
            .build()
            .map_err(|e| Error::Request(format!("{count} threads cannot be started: {e}")))?;
        // What a thread allocates for itself it does when it first takes work: now rather than in a forward pass.
        pool.broadcast(|_| ());
        Ok(Self { pool, team: Team::new(count) })
    }

    /// How many are started at the most: four for each CPU that this process may use, or 16 where those are fewer. More would
    /// only wait for each other.
    pub fn most() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(4).max(16)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.team.members()
    }

    /// Runs `f` on one of the threads; what it does with the others then need not be handed over to them.
    pub(crate) fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// Calls `lead` on one of the threads, with the others as members of the team: what it
    /// [forks](super::fork::fork) then need not be handed over by rayon, which would take longer than the work itself.
    pub(crate) fn with_team<R: Send>(&self, lead: impl FnOnce(&Team) -> R + Send) -> R {
        let team = &self.team;
        self.pool.install(|| join(|| team.lead(|| lead(team)), || join_as_member(team, team.members() - 1)).0)
    }
}

/// Brings `threads` threads of the current pool into the team.
fn join_as_member(team: &Team, threads: usize) {
    match threads {
        0 => (),
        1 => team.attend(this_thread()),
        _ => _ = join(|| join_as_member(team, threads / 2), || join_as_member(team, threads - threads / 2)),
    }
}

/// The number of this thread in its pool.
pub(crate) fn this_thread() -> usize {
    rayon::current_thread_index().unwrap_or(0)
}

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
