//! Ctrl-C and termination: long work is broken off in an orderly way, so that no half file stays behind.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C is only noted; a second one ends the process at once.
pub fn listen() {
    // A handler is missing only where the system refuses one: then Ctrl-C ends the process as it always did.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
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
