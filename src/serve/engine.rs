//! The engine: one thread that owns the scheduler and steps it. Handlers send it orders; each request's events go to a channel
//! of its own, so that whoever reads slowly holds nobody else up.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Error;
use crate::runtime::{Event, Request, RequestId, Scheduler, Stats};

/// What the engine needs of a scheduler; tests have another one, that panics.
pub trait Steps: Send {
    /// See [`Scheduler::submit`].
    fn submit(&mut self, request: Request) -> RequestId;
    /// See [`Scheduler::cancel`].
    fn cancel(&mut self, id: RequestId);
    /// See [`Scheduler::step`].
    fn step(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) -> bool;
    /// See [`Scheduler::stats`].
    fn stats(&self) -> Stats;
    /// See [`Scheduler::install`].
    fn install(&mut self, f: &mut (dyn FnMut(&mut dyn Steps) + Send));
}

impl Steps for Scheduler {
    fn submit(&mut self, request: Request) -> RequestId {
        Scheduler::submit(self, request)
    }

    fn cancel(&mut self, id: RequestId) {
        Scheduler::cancel(self, id);
    }

    fn step(&mut self, on_event: &mut dyn FnMut(RequestId, Event)) -> bool {
        Scheduler::step(self, on_event)
    }

    fn stats(&self) -> Stats {
        Scheduler::stats(self)
    }

    fn install(&mut self, f: &mut (dyn FnMut(&mut dyn Steps) + Send)) {
        Scheduler::install(self, |scheduler| f(scheduler));
    }
}

/// Makes a scheduler: at the start, and where one has panicked.
pub type Start = Box<dyn FnMut() -> Result<Box<dyn Steps>, Error> + Send>;

/// A request's name among the engine's orders. The scheduler has its own, which it tells only the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// Where the events of a request go. Dropped where nothing more comes, and its seat with it.
pub struct Listener {
    index: usize,
    events: UnboundedSender<(usize, Event)>,
    /// Free for another when this goes.
    _seat: OwnedSemaphorePermit,
}

impl Listener {
    /// For the answer `index` of those that share the channel; `seat` is its share of what may run and wait.
    pub fn new(index: usize, events: UnboundedSender<(usize, Event)>, seat: OwnedSemaphorePermit) -> Self {
        Self { index, events, _seat: seat }
    }
}

enum Order {
    Submit(Ticket, Box<Request>, Listener),
    Cancel(Ticket),
    Stop,
}

/// The engine's thread, from outside.
pub struct Engine {
    orders: Sender<Order>,
    tickets: AtomicU64,
    seats: Arc<Semaphore>,
    capacity: usize,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread tells.
#[derive(Default)]
struct Shared {
    stats: Mutex<Stats>,
    restarts: AtomicU64,
    /// There is a scheduler.
    runs: AtomicBool,
}

/// How long to wait before a scheduler that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Engine {
    /// Starts the thread, for `capacity` requests that run or wait.
    pub fn new(mut start: Start, capacity: usize) -> Result<Self, Error> {
        let scheduler = start()?;
        let (orders, received) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        shared.runs.store(true, Ordering::Relaxed);
        let thread = thread::Builder::new().name("engine".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || run(start, scheduler, received, &shared)
        });
        let thread = thread.map_err(|e| Error::Request(format!("no thread for the engine: {e}")))?;
        Ok(Self {
            orders,
            tickets: AtomicU64::default(),
            seats: Arc::new(Semaphore::new(capacity)),
            capacity,
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Most requests that run or wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Seats for this many requests, if they are free.
    pub fn seats(&self, n: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.seats).try_acquire_many_owned(u32::try_from(n).ok()?).ok()
    }

    /// Puts a request at the end of the queue. The listener's channel closes early where the engine fails or is stopped.
    pub fn submit(&self, request: Request, listener: Listener) -> Ticket {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        // Where the thread has ended, the listener goes at once.
        let _ = self.orders.send(Order::Submit(ticket, Box::new(request), listener));
        ticket
    }

    /// Gives a request up, if it is not done.
    pub fn cancel(&self, ticket: Ticket) {
        let _ = self.orders.send(Order::Cancel(ticket));
    }

    /// Gives everything up, and waits for the thread to end.
    pub fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It catches its panics.
        let _ = thread.map(JoinHandle::join);
    }

    /// Figures of all schedulers so far.
    pub fn stats(&self) -> Stats {
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a panic made a new scheduler necessary.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    /// Whether there is a scheduler: not while a new one is made, or cannot be.
    pub fn runs(&self) -> bool {
        self.shared.runs.load(Ordering::Relaxed)
    }
}

/// The thread: steps schedulers until it is told to stop.
fn run(mut start: Start, scheduler: Box<dyn Steps>, mut orders: Receiver<Order>, shared: &Shared) {
    let mut next = Some(scheduler);
    let mut before = Stats::default();
    while let Some(mut scheduler) = next {
        // All that a panic leaves half done goes with the scheduler and the listeners.
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            scheduler.install(&mut |scheduler| {
                Running { scheduler, live: HashMap::new(), ids: HashMap::new(), before }
                    .until_stopped(&mut orders, shared);
            });
        }));
        if stopped.is_ok() {
            return;
        }
        shared.runs.store(false, Ordering::Relaxed);
        shared.restarts.fetch_add(1, Ordering::Relaxed);
        tracing::error!("the engine has panicked: what ran is lost, and it starts anew");
        before = counters(&shared.stats.lock().unwrap_or_else(PoisonError::into_inner));
        *shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = before;
        let _ = catch_unwind(AssertUnwindSafe(|| drop(scheduler)));
        next = Some(anew(&mut start));
        shared.runs.store(true, Ordering::Relaxed);
    }
}

/// Another scheduler, as soon as one can be made.
fn anew(start: &mut Start) -> Box<dyn Steps> {
    loop {
        match catch_unwind(AssertUnwindSafe(&mut *start)) {
            Ok(Ok(scheduler)) => return scheduler,
            Ok(Err(error)) => tracing::error!("the engine does not start: {error}"),
            Err(_) => tracing::error!("the engine does not start: it panics"),
        }
        thread::sleep(RETRY);
    }
}

/// The figures that only grow.
fn counters(stats: &Stats) -> Stats {
    Stats { queued: 0, running: 0, pages_used: 0, pages_cached: 0, ..*stats }
}

/// A scheduler and whom its events are for.
struct Running<'s> {
    scheduler: &'s mut dyn Steps,
    live: HashMap<RequestId, (Ticket, Listener)>,
    ids: HashMap<Ticket, RequestId>,
    /// Figures of the schedulers before this one.
    before: Stats,
}

impl Running<'_> {
    fn until_stopped(mut self, orders: &mut Receiver<Order>, shared: &Shared) {
        let mut busy = false;
        loop {
            // Without anything to do it sleeps here.
            let mut order = if busy { orders.try_recv().ok() } else { orders.recv().ok() };
            if order.is_none() && !busy {
                return;
            }
            while let Some(next) = order {
                match next {
                    Order::Submit(ticket, request, listener) => self.submit(ticket, *request, listener),
                    Order::Cancel(ticket) => self.cancel(ticket),
                    Order::Stop => return,
                }
                order = orders.try_recv().ok();
            }
            self.publish(shared);
            busy = self.step();
            self.publish(shared);
        }
    }

    fn submit(&mut self, ticket: Ticket, request: Request, listener: Listener) {
        let id = self.scheduler.submit(request);
        self.live.insert(id, (ticket, listener));
        self.ids.insert(ticket, id);
    }

    fn cancel(&mut self, ticket: Ticket) {
        if let Some(id) = self.ids.remove(&ticket) {
            self.scheduler.cancel(id);
            self.live.remove(&id);
        }
    }

    fn step(&mut self) -> bool {
        let Self { scheduler, live, ids, .. } = self;
        scheduler.step(&mut |id, event| {
            let ended = matches!(event, Event::Finished(_) | Event::Failed(_));
            if let Some((_, listener)) = live.get(&id) {
                // Who has gone away cancels.
                let _ = listener.events.send((listener.index, event));
            }
            if ended && let Some((ticket, _)) = live.remove(&id) {
                ids.remove(&ticket);
            }
        })
    }

    fn publish(&self, shared: &Shared) {
        let (now, before) = (self.scheduler.stats(), &self.before);
        *shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = Stats {
            prompt_tokens: before.prompt_tokens + now.prompt_tokens,
            cached_tokens: before.cached_tokens + now.cached_tokens,
            generated_tokens: before.generated_tokens + now.generated_tokens,
            preemptions: before.preemptions + now.preemptions,
            steps: before.steps + now.steps,
            ..now
        };
    }
}
