//! The same work on many items, on some threads.

use std::{
    num::NonZeroUsize,
    panic,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Threads to work on: so many as are asked for, or as the process may use.
pub(crate) fn threads(asked: Option<NonZeroUsize>) -> NonZeroUsize {
    let available = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    asked.unwrap_or_else(available)
}

/// `work` of every item, in their order.
///
/// # Panics
/// As `work` does.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    threads: NonZeroUsize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let some = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(item)));
        }
    };
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let count = threads.get().min(items.len());
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(some)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Vec<(usize, R)>>| {
            worker.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        };
        workers.into_iter().flat_map(join).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_from_any_number_of_threads() {
        let items: Vec<usize> = (0..100).collect();
        for n in [1, 3, 200] {
            let doubled = map(&items, NonZeroUsize::new(n).unwrap(), |i| 2 * i);
            assert!(doubled.iter().enumerate().all(|(i, v)| *v == 2 * i) && doubled.len() == 100);
        }
        assert!(map(&[0; 0], NonZeroUsize::MIN, |i| *i).is_empty());
    }
}
