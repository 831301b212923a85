//! `cargo xtask soak`: the server under clients that leave, read slowly and send nonsense.
//!
//! The tests are `tests/e2e/soak.rs`; an ordinary run gives them half a minute.

use crate::checks::Totals;
use crate::process::{Failure, Result, cargo, run_lines};
use crate::setup;

/// Soaks the server for so long.
pub(crate) fn run(minutes: u64) -> Result<()> {
    let mut totals = Totals::default();
    let mut test = cargo(&setup::run()?, ["test", "--workspace", "--test", "e2e", "soak::", "--"]);
    test.args(["--nocapture", "--test-threads=1"]);
    test.env("BROLLY_SOAK_SECONDS", (60 * minutes).to_string());
    run_lines(&mut test, |line| {
        println!("{line}");
        totals.add(line);
    })?;
    match totals.passed {
        0 => Err(Failure::Explained("no soak test was found".to_owned())),
        _ => Ok(()),
    }
}
