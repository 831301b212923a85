//! Bytes that one thread lends to others while it waits for them.
//!
//! As with scoped threads, [`lending`] returns only after every [`Loan`] is dropped, also when it
//! unwinds. So a loan never outlives what it borrows, wherever it is put meanwhile.

#![allow(unsafe_code, reason = "ranks of one process read each other's buffers in place")]

use std::{
    marker::PhantomData,
    slice,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use super::watch::lock;

/// Bytes of another thread.
#[derive(Debug)]
pub(super) struct Loan {
    start: *const u8,
    bytes: usize,
    desk: Arc<Desk>,
}

/// Lends slices that live at least for `'env`.
pub(super) struct Lender<'env> {
    desk: Arc<Desk>,
    // Invariant: a lender of longer lived slices is not one of shorter lived ones.
    env: PhantomData<fn(&'env ()) -> &'env ()>,
}

#[derive(Debug, Default)]
struct Desk {
    out: Mutex<usize>,
    returned: Condvar,
}

// SAFETY: a loan is a shared slice of bytes, and those may be read from any thread.
unsafe impl Send for Loan {}
// SAFETY: as above.
unsafe impl Sync for Loan {}

/// Runs `body`, then `recall`, which has to see to it that loans are dropped soon, and waits until
/// all are.
pub(super) fn lending<'env, R>(recall: impl FnOnce(), body: impl FnOnce(&Lender<'env>) -> R) -> R {
    struct Closing<F: FnOnce()>(Option<F>, Arc<Desk>);
    impl<F: FnOnce()> Drop for Closing<F> {
        fn drop(&mut self) {
            struct Waiting<'a>(&'a Desk);
            impl Drop for Waiting<'_> {
                fn drop(&mut self) {
                    self.0.wait_for_all();
                }
            }
            let waiting = Waiting(&self.1);
            if let Some(recall) = self.0.take().filter(|_| *lock(&self.1.out) > 0) {
                recall();
            }
            drop(waiting);
        }
    }
    let lender = Lender { desk: Arc::default(), env: PhantomData };
    let closing = Closing(Some(recall), lender.desk.clone());
    let result = body(&lender);
    drop(closing);
    result
}

impl<'env> Lender<'env> {
    pub(super) fn lend(&self, bytes: &'env [u8]) -> Loan {
        *lock(&self.desk.out) += 1;
        Loan { start: bytes.as_ptr(), bytes: bytes.len(), desk: self.desk.clone() }
    }

    /// Waits until all loans are back, but no longer than that; whether they are.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let out = lock(&self.desk.out);
        let waited = self.desk.returned.wait_timeout_while(out, timeout, |out| *out > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

impl Loan {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `lend` took this from a slice that outlives `'env`, which outlives the call of
        // `lending`, which waits for the drop of this loan.
        unsafe { slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut out = lock(&self.desk.out);
        *out -= 1;
        if *out == 0 {
            self.desk.returned.notify_all();
        }
    }
}

impl Desk {
    fn wait_for_all(&self) {
        let mut out = lock(&self.out);
        while *out > 0 {
            out = self.returned.wait(out).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::mpsc,
        thread,
    };

    #[test]
    fn nothing_returns_before_the_loans_do() {
        let data = vec![7u8; 1000];
        let (sender, receiver) = mpsc::channel::<Loan>();
        let reader = thread::spawn(move || {
            let loan = receiver.recv().unwrap();
            thread::sleep(Duration::from_millis(50));
            loan.bytes().iter().map(|&byte| usize::from(byte)).sum::<usize>()
        });
        let in_time = lending(
            || (),
            |lender| {
                sender.send(lender.lend(&data)).unwrap();
                lender.wait(Duration::from_millis(1))
            },
        );
        drop(data);
        assert!(!in_time);
        assert_eq!(reader.join().unwrap(), 7000);
    }

    #[test]
    fn loans_are_recalled_when_the_lender_panics() {
        let (sender, receiver) = mpsc::channel::<Loan>();
        let data = [1u8; 8];
        let result = catch_unwind(AssertUnwindSafe(|| {
            lending(
                || drop(receiver.recv()),
                |lender| {
                    sender.send(lender.lend(&data)).unwrap();
                    panic!("lender");
                },
            )
        }));
        assert!(result.is_err());
    }
}
