//! Panics, which are bugs of ours: told in a line, without a backtrace unless one is asked for.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::{Mutex, PoisonError},
};

use crate::failure::{Failure, Result};

/// What the latest panic said, and where.
static LATEST: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics off stderr, but for those who set `RUST_BACKTRACE`.
///
/// Libraries may catch panics of their own and go on; only what reaches [`caught`] is told.
pub(crate) fn install() {
    let default = panic::take_hook();
    let is_verbose = std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0");
    panic::set_hook(Box::new(move |info| {
        if is_verbose {
            default(info);
        }
        *LATEST.lock().unwrap_or_else(PoisonError::into_inner) = Some(described(info));
    }));
}

/// Runs a command; a panic is a [`Failure::Bug`].
pub(crate) fn caught(run: impl FnOnce() -> Result<()>) -> Result<()> {
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(Failure::Bug(latest.unwrap_or_else(|| message(&*payload))))
    })
}

fn described(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map_or(String::new(), |l| format!(" ({}:{})", l.file(), l.line()));
    format!("{}{place}", message(info.payload()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_bug_of_ours() {
        let failure = caught(|| panic!("a {} that cannot be", "state")).unwrap_err();
        assert_eq!(failure.code(), 70);
        let Failure::Bug(text) = failure else { panic!("a bug") };
        assert!(text.contains("a state that cannot be"), "{text}");
        assert!(caught(|| Ok(())).is_ok());
    }
}
