//! `cargo xtask fuzz`: the fuzz targets at length.
//!
//! The targets are the tests of `brolly-tests` and `brolly-codegen` whose names begin with `fuzz_`:
//! parsers under damage, and kernels whose bits must not depend on batches, threads and schedules.
//! An ordinary test run gives each some seconds; `BROLLY_FUZZ_SECONDS` gives each as long as it
//! says.

use crate::checks::Totals;
use crate::process::{Failure, Result, cargo, run_lines};
use crate::setup;

/// Runs every fuzz target for `seconds`, one after the other.
pub(crate) fn run(seconds: u64) -> Result<()> {
    let llvm = setup::run()?;
    let mut totals = Totals::default();
    let mut fuzz = cargo(&llvm, ["test", "--package", "brolly-tests", "fuzz_", "--no-fail-fast"]);
    fuzz.args(["--package", "brolly-codegen"]);
    fuzz.args(["--", "--nocapture", "--test-threads=1"]);
    fuzz.env("BROLLY_FUZZ_SECONDS", seconds.to_string());
    run_lines(&mut fuzz, |line| {
        println!("{line}");
        totals.add(line);
    })?;
    if totals.passed == 0 {
        return Err(Failure::Explained("no fuzz target was found".to_owned()));
    }
    println!("{} targets ran for {seconds} s each without a finding", totals.passed);
    Ok(())
}
