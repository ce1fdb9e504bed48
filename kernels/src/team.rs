//! Threads that stay together from one parallel region to the next.
//!
//! A forward pass is a hundred and more regions, of a few microseconds each where the model is small. To find a job by
//! stealing it, or to be woken for it, takes as long; members of a team wait where the next region is announced.

use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{hint, ptr, thread};

use crossbeam_utils::CachePadded;

/// What each thread does in a region; returns whether it found anything to do.
type Work<'a> = &'a (dyn Fn() -> bool + Sync);

/// Some threads, one of which leads: see [`Team::run`] and [`Team::attend`].
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
/// use torchless_kernels::Team;
///
/// let team = Team::new(2);
/// let (todo, done) = (AtomicUsize::new(100), AtomicUsize::new(0));
/// let work = || {
///     let mut any = false;
///     while todo.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
///         done.fetch_add(1, Relaxed);
///         any = true;
///     }
///     any
/// };
/// std::thread::scope(|threads| {
///     team.lead(|| {
///         threads.spawn(|| team.attend(1));
///         team.run(&work);
///         assert_eq!(done.load(Relaxed), 100);
///     });
/// });
/// ```
pub struct Team {
    notice: CachePadded<Notice>,
    /// Of each member, whether it may be looking at a region's work.
    busy: Box<[CachePadded<AtomicBool>]>,
    /// Whether there is a region, from its announcement until the last call has returned.
    running: AtomicBool,
}

/// What all look at while they wait.
struct Notice {
    /// The region's work, which lies on the leader's stack, or null between regions.
    work: AtomicPtr<Work<'static>>,
    /// Whether there may be more regions.
    open: AtomicBool,
}

impl Team {
    /// A team of up to `members` threads, the leader among them.
    pub fn new(members: usize) -> Self {
        let notice = Notice { work: AtomicPtr::new(ptr::null_mut()), open: AtomicBool::new(false) };
        Self {
            notice: notice.into(),
            busy: (0..members).map(|_| AtomicBool::new(false).into()).collect(),
            running: AtomicBool::new(false),
        }
    }

    /// How many threads may be members.
    pub fn members(&self) -> usize {
        self.busy.len()
    }

    /// Calls `lead`, during which others may [attend](Team::attend).
    pub fn lead<R>(&self, lead: impl FnOnce() -> R) -> R {
        self.notice.open.store(true, SeqCst);
        let _closed = Cleared(&self.notice.open);
        lead()
    }

    /// Calls `work` here and on each thread that attends, there perhaps several times. Returns when it has returned here and
    /// every other call that was begun has returned as well; whoever is held up elsewhere is not waited for.
    ///
    /// Within a region, another is this thread's alone. Allocates nothing.
    pub fn run(&self, work: Work) {
        if self.running.swap(true, SeqCst) {
            // Within a region. Another would wait until this member is not busy, which it is until it returns.
            work();
            return;
        }
        let _ended = Ended(self);
        self.notice.work.store((&raw const work).cast_mut().cast(), SeqCst);
        work();
    }

    /// Takes part in the regions of the team's leader, as `member`, until there are no more.
    ///
    /// # Panics
    /// If another thread is this member, or there is none of this number. If the work does: the leader goes on then.
    pub fn attend(&self, member: usize) {
        let busy = &self.busy[member];
        let mut wait = Wait::default();
        while self.notice.open.load(SeqCst) {
            if !self.notice.work.load(SeqCst).is_null() {
                assert!(!busy.swap(true, SeqCst), "member {member} of a team is there twice");
                let _left = Cleared(busy);
                let work = self.notice.work.load(SeqCst);
                // SAFETY: what a pointer that is not null points to lives until its leader has stored null and, after
                // that, seen every member not busy. This member said that it is busy before it loaded the pointer, and
                // all of this is sequentially consistent: the leader sees it, and waits. `Work` may be shared.
                if !work.is_null() && unsafe { (*work)() } {
                    wait = Wait::default();
                }
            }
            wait.pause();
        }
    }
}

/// Ends a region when dropped, also by a panic.
struct Ended<'a>(&'a Team);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.notice.work.store(ptr::null_mut(), SeqCst);
        for busy in &self.0.busy {
            let mut wait = Wait::default();
            while busy.load(SeqCst) {
                wait.pause();
            }
        }
        self.0.running.store(false, SeqCst);
    }
}

/// Sets its flag to false when dropped.
struct Cleared<'a>(&'a AtomicBool);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

/// Waits for something that is expected in a few microseconds; the longer it takes, the more it lets others have the CPU.
#[derive(Default)]
struct Wait {
    pauses: u32,
    since: Option<Instant>,
    yields: u32,
}

impl Wait {
    /// Longer than a region of a small model takes. Giving the CPU away earlier is dear where it is shared: the system
    /// returns it milliseconds later.
    const SPIN: Duration = Duration::from_micros(50);
    const YIELDS: u32 = 20;

    fn pause(&mut self) {
        if self.yields == 0 {
            hint::spin_loop();
            self.pauses += 1;
            // How long a pause takes differs by a factor of fifteen between CPUs.
            if self.pauses.is_multiple_of(64)
                && self.since.get_or_insert_with(Instant::now).elapsed() > Self::SPIN
            {
                self.yields = 1;
            }
        } else if self.yields <= Self::YIELDS {
            self.yields += 1;
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(50));
        }
    }
}
