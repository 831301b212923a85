//! `cargo xtask test`: every check that a change has to pass, in one table at the end.
//!
//! A stage that fails does not stop those after it, so that one run shows everything.

use crate::llvm::Llvm;
use crate::minilm;
use crate::process::{self, Failure, Result, cargo, run_lines, succeeds};
use crate::table::{duration, table};
use crate::wheel::Fetched;
use crate::{clients, ptxas, runtime_only, setup};
use std::time::Instant;

/// How a stage went, with a remark for the table.
enum Outcome {
    Passed(String),
    Skipped(String),
}

impl From<Fetched> for Outcome {
    fn from(fetched: Fetched) -> Outcome {
        match fetched {
            Fetched::Here(folder) => Outcome::Passed(folder.display().to_string()),
            Fetched::Skipped(reason) => Outcome::Skipped(reason),
        }
    }
}

/// The table of stages as it grows.
#[derive(Default)]
struct Stages {
    rows: Vec<Vec<String>>,
    failed: usize,
}

impl Stages {
    fn run(&mut self, name: &str, stage: impl FnOnce() -> Result<Outcome>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let (word, remark) = match stage() {
            Ok(Outcome::Passed(remark)) => ("passed", remark),
            Ok(Outcome::Skipped(reason)) => ("skipped", reason),
            Err(failure) => {
                eprintln!("error: {failure}");
                self.failed += 1;
                let first_line = failure.to_string().lines().next().unwrap_or_default().to_owned();
                ("FAILED", first_line)
            }
        };
        let row = [name, word, &duration(start.elapsed()), &remark];
        self.rows.push(row.map(str::to_owned).to_vec());
    }
}

/// Runs the stages; with `fast` only formatting, lints and tests.
pub(crate) fn run(fast: bool) -> Result<()> {
    let start = Instant::now();
    let llvm = setup::run()?;
    components()?;
    let mut stages = Stages::default();
    if !fast {
        stages.run("MiniLM", || minilm::fetch().map(Outcome::from));
        stages.run("ptxas", || ptxas::fetch().map(Outcome::from));
    }
    stages.run("format", || {
        quiet(cargo(&llvm, ["fmt", "--all", "--check"]))?;
        // cargo does not see these files: a macro declares their modules.
        let mut operators = process::command("rustfmt");
        operators.args(["--edition", "2024", "--check"]).args(operator_files()?);
        quiet(operators)
    });
    stages.run("clippy", || {
        let args = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
        quiet(cargo(&llvm, args))
    });
    if !fast {
        stages.run("documentation", || {
            let mut doc = cargo(&llvm, ["doc", "--no-deps", "--workspace"]);
            doc.env("RUSTDOCFLAGS", "--deny warnings");
            quiet(doc)
        });
        stages.run("runtime-only binary", || runtime_only::check(&llvm).map(Outcome::Passed));
    }
    stages.run("tests", || tests(&llvm));
    if !fast {
        stages.run("clients", || {
            let brolly = runtime_only::build_for_tests(&llvm)?;
            clients::run_quick(brolly).map(Outcome::Passed)
        });
    }
    println!("\n{}", table(&stages.rows, false));
    let total = duration(start.elapsed());
    if stages.failed == 0 {
        println!("everything passed in {total}");
        return Ok(());
    }
    let failed = stages.failed;
    Err(Failure::Explained(format!("{failed} of {} stages failed in {total}", stages.rows.len())))
}

/// Adds cargo's fmt and clippy where a minimal toolchain lacks them.
fn components() -> Result<()> {
    let there = |name| succeeds(process::command("cargo").args([name, "--version"]));
    if ["fmt", "clippy"].into_iter().all(there) {
        return Ok(());
    }
    process::run(process::command("rustup").args(["component", "add", "rustfmt", "clippy"]))
}

/// The files of the operator table.
fn operator_files() -> Result<Vec<std::path::PathBuf>> {
    let folder = process::root().join("ir/src/ops");
    let entries = std::fs::read_dir(&folder).map_err(process::file_failure(&folder))?;
    let paths = entries.filter_map(|e| Some(e.ok()?.path()));
    // Modules in folders are seen by the files that rustfmt is given.
    let mut files: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "rs")).collect();
    files.sort();
    Ok(files)
}

fn quiet(mut command: std::process::Command) -> Result<Outcome> {
    process::run(&mut command).map(|()| Outcome::Passed(String::new()))
}

/// Runs all tests and adds up the result lines of all test binaries.
fn tests(llvm: &Llvm) -> Result<Outcome> {
    let mut totals = Totals::default();
    let mut test = cargo(llvm, ["test", "--workspace", "--no-fail-fast"]);
    let done = run_lines(&mut test, |line| {
        println!("{line}");
        totals.add(line);
    });
    match done {
        Ok(()) => Ok(Outcome::Passed(totals.to_string())),
        Err(failure) => Err(Failure::Explained(format!("{totals}\n{failure}"))),
    }
}

/// The sums of libtest's result lines.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Totals {
    /// Adds what `line` reports if it is a result line:
    /// `test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; ..`.
    pub(crate) fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|l| l.split_once(". "))
        else {
            return;
        };
        for count in counts.1.split("; ") {
            let (number, what) = count.split_once(' ').unwrap_or_default();
            let number: u64 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, ignored } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up_and_other_lines_do_not_count() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; x",
        ] {
            totals.add(line);
        }
        assert_eq!(totals, Totals { passed: 7, failed: 2, ignored: 1 });
    }
}
