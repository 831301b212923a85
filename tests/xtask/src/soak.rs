//! `cargo xtask soak`: the server under clients that leave, read slowly and send nonsense.
//!
//! The tests are `tests/e2e/soak.rs`, which ordinary runs leave out: they watch the memory of a
//! process and need the machine to themselves.

use crate::checks::Totals;
use crate::llvm::Llvm;
use crate::process::{Failure, Result, cargo, run_lines};
use crate::setup;
use std::time::Duration;

/// How long every change is soaked.
pub(crate) const SHORT: Duration = Duration::from_secs(30);

/// Soaks the server for so long.
pub(crate) fn run(minutes: u64) -> Result<()> {
    let totals = soak(&setup::run()?, Duration::from_secs(60 * minutes))?;
    println!("{totals}");
    Ok(())
}

/// As [`run`], where LLVM has been found.
pub(crate) fn soak(llvm: &Llvm, duration: Duration) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut test = cargo(llvm, ["test", "--workspace", "--test", "e2e", "soak::"]);
    test.args(["--", "--ignored", "--nocapture", "--test-threads=1"]);
    test.env("BROLLY_SOAK_SECONDS", duration.as_secs().to_string());
    run_lines(&mut test, |line| {
        println!("{line}");
        totals.add(line);
    })?;
    match totals.passed {
        0 => Err(Failure::Explained("no soak test was found".to_owned())),
        _ => Ok(totals),
    }
}
