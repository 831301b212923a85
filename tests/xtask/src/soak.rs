//! `cargo xtask soak`: the server under clients that leave, read slowly and send nonsense, and a
//! training run that is killed again and again.
//!
//! The tests are `tests/e2e/soak.rs` and `runtime/cli/tests/command_line/trained/killed.rs`; an
//! ordinary run gives them half a minute and five kills.

use crate::checks::Totals;
use crate::llvm::Llvm;
use crate::process::{Failure, Result, cargo, run_lines};
use crate::setup;

/// Soaks the server for so long, and kills a training run so often.
pub(crate) fn run(minutes: u64, kills: u64) -> Result<()> {
    let llvm = setup::run()?;
    soak(&llvm, "command_line", "killed::", ("BROLLY_SOAK_KILLS", kills))?;
    soak(&llvm, "e2e", "soak::", ("BROLLY_SOAK_SECONDS", 60 * minutes))
}

/// Runs the tests of that name, which read how long from a variable.
fn soak(llvm: &Llvm, binary: &str, tests: &str, (variable, value): (&str, u64)) -> Result<()> {
    let mut totals = Totals::default();
    let mut test = cargo(llvm, ["test", "--workspace", "--test", binary, tests, "--"]);
    test.args(["--nocapture", "--test-threads=1"]);
    test.env(variable, value.to_string());
    run_lines(&mut test, |line| {
        println!("{line}");
        totals.add(line);
    })?;
    match totals.passed {
        0 => Err(Failure::Explained(format!("no test of {tests} was found"))),
        _ => Ok(()),
    }
}
