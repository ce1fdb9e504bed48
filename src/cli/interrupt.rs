//! Ctrl-C and termination: long work is broken off in an orderly way, so that no half file stays behind.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The exit code after Ctrl-C: 128 + SIGINT, as shells have it.
pub const EXIT_CODE: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static ORDERLY: AtomicUsize = AtomicUsize::new(0);

/// From now on Ctrl-C ends the process at once, with [`EXIT_CODE`]; while there is [`Orderly`] work, only the second does.
pub fn listen() {
    // A handler is missing only where the system refuses one: then Ctrl-C ends the process as it always did.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) || ORDERLY.load(Ordering::SeqCst) == 0 {
            end();
        }
    });
}

/// Ends the process as interrupted.
pub fn end() -> ! {
    std::process::exit(EXIT_CODE.into())
}

/// Work that ends by itself, and soon, after [`check`] breaks it off: while this lives, the first Ctrl-C is only noted.
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
    match INTERRUPTED.load(Ordering::SeqCst) {
        false => ControlFlow::Continue(()),
        true => ControlFlow::Break(()),
    }
}

/// Whether Ctrl-C was pressed.
pub fn happened() -> bool {
    check().is_break()
}

/// Forgets that it was, where only an answer was to be stopped.
pub fn forget() {
    INTERRUPTED.store(false, Ordering::SeqCst);
}
