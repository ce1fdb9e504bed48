//! Ctrl-C and termination: long work is broken off in an orderly way, so that no half file stays behind.

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// The exit code after Ctrl-C: 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// The exit code that the first signal asks for, 0 before it.
static ASKED: AtomicU8 = AtomicU8::new(0);
static ORDERLY: AtomicUsize = AtomicUsize::new(0);
static AT_END: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();
static AT_FIRST: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// From now on Ctrl-C, SIGTERM and SIGHUP end the process at once, with 128 + the signal as its exit code; while there is
/// [`Orderly`] work, only the second does.
pub fn listen() {
    // A handler is missing only where the system refuses one: then Ctrl-C ends the process as it always did.
    let _ = on_signal(|code| {
        if ASKED.swap(code, Ordering::SeqCst) != 0 || ORDERLY.load(Ordering::SeqCst) == 0 {
            end();
        }
        if let Some(f) = AT_FIRST.get() {
            f();
        }
    });
}

/// Has `f` called with the exit code of each signal, on a thread of its own.
#[cfg(unix)]
fn on_signal(f: impl Fn(u8) + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    // A file at the limit of its size would end the process. Where the signal is taken, writing fails instead, and what was
    // begun is removed.
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGXFSZ])?;
    if !is_ignored(SIGHUP) {
        signals.add_signal(SIGHUP)?;
    }
    let wait = move || {
        let ends = signals.forever().filter(|&signal| signal != SIGXFSZ);
        ends.for_each(|signal| f((128 + signal) as u8));
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}

#[cfg(not(unix))]
fn on_signal(f: impl Fn(u8) + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || f(INTERRUPTED))
}

/// Whether whoever started the process had it ignore this signal, as `nohup` does. Only Linux says; elsewhere it counts as
/// ignored, which leaves it to the system.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Has `f` called where a signal ends the process. There is one such call: only the first `f` is kept.
pub fn at_end(f: impl Fn() + Send + Sync + 'static) {
    let _ = AT_END.set(Box::new(f));
}

/// Has `f` called by the first signal where there is [`Orderly`] work. There is one such call: only the first `f` is kept.
pub fn at_first(f: impl Fn() + Send + Sync + 'static) {
    let _ = AT_FIRST.set(Box::new(f));
}

/// Ends the process as interrupted.
pub fn end() -> ! {
    if let Some(f) = AT_END.get() {
        f();
    }
    std::process::exit(exit_code().into())
}

/// Work that ends by itself, and soon, after [`check`] breaks it off: while this lives, the first signal is only noted.
pub struct Orderly(());

impl Orderly {
    /// The work begins.
    pub fn begin() -> Self {
        ORDERLY.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Orderly {
    fn drop(&mut self) {
        ORDERLY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether to go on, for progress callbacks.
pub fn check() -> ControlFlow<()> {
    match exit_code() {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

/// Whether there was a signal.
pub fn happened() -> bool {
    check().is_break()
}

/// What the process has to end with, 0 where no signal came.
pub fn exit_code() -> u8 {
    ASKED.load(Ordering::SeqCst)
}

/// Forgets the signal, where what it asked for has been done in good order.
pub fn forget() {
    ASKED.store(0, Ordering::SeqCst);
}

/// Forgets Ctrl-C, where only an answer was to be stopped. Other signals ask the program to end.
pub fn forget_ctrl_c() {
    let _ = ASKED.compare_exchange(INTERRUPTED, 0, Ordering::SeqCst, Ordering::SeqCst);
}
