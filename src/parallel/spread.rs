//! Work on what is not a forward pass, as when a model is opened: on threads that start for it and end with it.

use std::sync::{Mutex, PoisonError};
use std::thread;

/// Most threads that work on one thing: reading memory is no faster with more.
const MOST_THREADS: usize = 16;

/// Calls `work` for each of `items`, in their order, on as many threads as there are CPUs and items. Where the system gives
/// fewer threads, those that there are do it all: this one always is.
pub(crate) fn spread<I: Iterator + Send>(items: I, work: impl Fn(I::Item) + Sync) {
    let most = items.size_hint().1.unwrap_or(usize::MAX).min(MOST_THREADS);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(most);
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let take_all = || {
        while let Some(item) = next() {
            work(item);
        }
    };
    thread::scope(|scope| {
        for i in 1..threads {
            let thread = thread::Builder::new().name(format!("torchless-open-{i}"));
            if thread.spawn_scoped(scope, take_all).is_err() {
                break;
            }
        }
        take_all();
    });
}

/// [`spread`] for work that can fail: the error of the first item, in their order, that has one. Items after it may be left
/// out.
pub(crate) fn try_spread<I: Iterator + Send, E: Send>(
    items: I,
    work: impl Fn(I::Item) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    spread(items.enumerate(), |(i, item)| {
        if lock().as_ref().is_some_and(|(first, _)| *first < i) {
            return;
        }
        if let Err(error) = work(item) {
            let mut failed = lock();
            if failed.as_ref().is_none_or(|(first, _)| i < *first) {
                *failed = Some((i, error));
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn each_item_is_worked_on_once() {
        for n in [0, 1, 2, 100] {
            let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            spread(0..n, |i| _ = counts[i].fetch_add(1, Relaxed));
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "{n}");
        }
    }

    #[test]
    fn the_first_error_is_the_one() {
        for _ in 0..50 {
            let result = try_spread(0..100, |i| if i % 10 == 7 { Err(i) } else { Ok(()) });
            assert_eq!(result, Err(7));
        }
        assert_eq!(try_spread(0..100, |_| Ok::<_, ()>(())), Ok(()));
    }
}
