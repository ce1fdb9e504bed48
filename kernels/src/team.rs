//! Threads that stay together from one parallel region to the next.
//!
//! A forward pass is a hundred and more regions, of a few microseconds each where the model is small. A thread takes as long
//! to find a job by stealing it, or to be woken for one; the members of a team wait where the next region is announced.

use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{hint, ptr, thread};

use crossbeam_utils::CachePadded;

/// What each thread calls in a region; returns whether it found anything to do.
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
    /// One flag a member: whether it may be looking at a region's work.
    busy: Box<[CachePadded<AtomicBool>]>,
    /// Whether there is a region: true from its announcement until the last call of its work has returned.
    running: AtomicBool,
}

/// What all members read while they wait.
struct Notice {
    /// The region's work, which lies on the leader's stack, or null between regions.
    work: AtomicPtr<Work<'static>>,
    /// Whether the leader may announce more regions.
    open: AtomicBool,
}

impl Team {
    /// A team of up to `members` threads, the leader among them; members 1 and up may attend.
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
        let _close = ClearOnDrop(&self.notice.open);
        lead()
    }

    /// One parallel region: calls `work` on this thread, and on each thread that attends, there perhaps several times. Returns
    /// when the call on this thread and every other call that has begun have returned; a thread that has not begun, because
    /// other programs hold it up, is not waited for.
    ///
    /// While the team is in a region, a second one runs on the thread that asks for it only. Allocates nothing.
    pub fn run(&self, work: Work) {
        if self.running.swap(true, SeqCst) {
            // The caller may be a member at work in that region, and busy until it returns: to end a second region, it would
            // wait for itself.
            work();
            return;
        }
        let _end = EndOnDrop(self);
        self.notice.work.store((&raw const work).cast_mut().cast(), SeqCst);
        work();
    }

    /// Takes part in the leader's regions as member `member` (0 to [`Team::members`] − 1), until [`Team::lead`] has returned.
    ///
    /// # Panics
    /// If another thread attends as this member, if there is no member of this number, or if a region's work panics; the
    /// leader then goes on without this thread.
    pub fn attend(&self, member: usize) {
        let busy = &self.busy[member];
        let mut backoff = Backoff::default();
        while self.notice.open.load(SeqCst) {
            if !self.notice.work.load(SeqCst).is_null() {
                assert!(!busy.swap(true, SeqCst), "member {member} of a team is there twice");
                let _leave = ClearOnDrop(busy);
                let work = self.notice.work.load(SeqCst);
                // SAFETY: what a pointer that is not null points to lives until its leader has stored null and, after
                // that, seen every member not busy. This member said that it is busy before it loaded the pointer, and
                // all of this is sequentially consistent: the leader sees it, and waits. `Work` may be shared.
                if !work.is_null() && unsafe { (*work)() } {
                    backoff = Backoff::default();
                }
            }
            backoff.pause();
        }
    }
}

/// Ends a region when dropped, so also where its work panics: takes the announcement back, then waits until no member is busy.
struct EndOnDrop<'a>(&'a Team);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.notice.work.store(ptr::null_mut(), SeqCst);
        for busy in &self.0.busy {
            let mut backoff = Backoff::default();
            while busy.load(SeqCst) {
                backoff.pause();
            }
        }
        self.0.running.store(false, SeqCst);
    }
}

/// Sets its flag to false when dropped.
struct ClearOnDrop<'a>(&'a AtomicBool);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

/// Waits for something that is expected in a few microseconds: first in a loop, for 50 µs, then by 20 yields to other threads,
/// then asleep, 50 µs at a time.
#[derive(Default)]
struct Backoff {
    pauses: u32,
    since: Option<Instant>,
    yields: u32,
}

impl Backoff {
    /// Longer than a region of a small model takes. To yield earlier is dear where the CPU is shared: the system returns it
    /// milliseconds later.
    const SPIN: Duration = Duration::from_micros(50);
    const YIELDS: u32 = 20;

    fn pause(&mut self) {
        if self.yields == 0 {
            hint::spin_loop();
            self.pauses += 1;
            // By the clock, since a pause takes up to 15 times as long on one CPU as on another.
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
