//! Progress bars on stderr; nothing is shown where that is not a terminal.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use torchless::format::convert::Progress;

use super::interrupt::{self, Orderly};
use super::output::{note, one_line};

/// A bar that counts bytes, fed by converting and pulling.
pub struct Bytes {
    bar: ProgressBar,
    /// What is noted once there is something to do.
    announced: Cell<Option<String>>,
    _orderly: Option<Orderly>,
}

impl Bytes {
    /// A bar that shows itself with the first step.
    pub fn new() -> Self {
        Self::with(Some(Orderly::begin()))
    }

    /// With a line that is noted as soon as there is something to do.
    pub fn announcing(self, line: String) -> Self {
        self.announced.set(Some(line));
        self
    }

    /// A bar for work that may end at any moment, since it goes on where it was: Ctrl-C does not wait for a server that says nothing.
    pub fn resumable() -> Self {
        Self::with(None)
    }

    fn with(orderly: Option<Orderly>) -> Self {
        let bar = ProgressBar::new(0);
        bar.set_style(style("{bar:30} {decimal_bytes}/{decimal_total_bytes}, {eta} left  {wide_msg}"));
        Self { bar, announced: Cell::default(), _orderly: orderly }
    }

    /// Shows how far the work has come; breaks it off after Ctrl-C.
    pub fn show(&self, at: Progress<'_>) -> ControlFlow<()> {
        if let Some(line) = self.announced.take() {
            match at.total {
                0 => self.announced.set(Some(line)),
                _ => note(line),
            }
        }
        if self.bar.message() != at.step {
            self.bar.set_message(one_line(at.step));
        }
        self.bar.set_length(at.total);
        self.bar.set_position(at.done);
        interrupt::check()
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar that counts tokens.
pub fn tokens(n: usize) -> ProgressBar {
    ProgressBar::new(n as u64).with_style(style("{bar:30} {pos}/{len} tokens, {per_sec}, {eta} left"))
}

/// A bar that counts the runs of tests, and names the test.
pub fn runs(n: usize) -> ProgressBar {
    ProgressBar::new(n as u64).with_style(style("{bar:30} {pos}/{len} runs, {wide_msg}"))
}

/// A sign of life while something is done whose end is not known: shown until this is dropped.
pub struct Spinner {
    bar: ProgressBar,
    _until_dropped: Sender<()>,
}

/// A [`Spinner`] with this beside it.
pub fn spinner(message: &'static str) -> Spinner {
    let bar = ProgressBar::new_spinner().with_message(message);
    let (until_dropped, dropped) = mpsc::channel();
    let ticked = bar.clone();
    let tick = move || {
        while dropped.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            ticked.tick();
        }
    };
    // `enable_steady_tick` panics where no thread can be started; here nothing turns then.
    let _ = std::thread::Builder::new().name("spinner".to_owned()).spawn(tick);
    Spinner { bar, _until_dropped: until_dropped }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
