//! The promise of the runtime-only binary: it links no LLVM and stays under 40 MB.
//!
//! A statically linked LLVM leaves no trace in the list of shared libraries, so the symbol table is
//! read as well.

use crate::llvm::Llvm;
use crate::process::{Failure, Result, cargo, file_failure, run_lines};
use crate::table::megabytes;
use object::{Object, ObjectSymbol};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAX_BYTES: usize = 40_000_000;

/// How symbols of LLVM's and MLIR's C++ and C interfaces begin.
const LLVM_SYMBOLS: [&str; 6] = ["_ZN4llvm", "_ZNK4llvm", "_ZN4mlir", "_ZNK4mlir", "LLVM", "mlir"];

/// Builds `brolly` without the compiler and checks what came out; returns a line about it.
pub(crate) fn check(llvm: &Llvm) -> Result<String> {
    let binary = build(llvm, &["--no-default-features"])?;
    let bytes = fs::read(&binary).map_err(file_failure(&binary))?;
    let problems = problems(&bytes).map_err(|error| explained(&binary, &error.to_string()))?;
    if problems.is_empty() {
        return Ok(format!("{}, no LLVM", megabytes(bytes.len() as f64)));
    }
    Err(explained(&binary, &problems.join("; ")))
}

/// Builds `brolly` in the release profile and returns where cargo put it.
pub(crate) fn build(llvm: &Llvm, features: &[&str]) -> Result<PathBuf> {
    executable(cargo(llvm, ["build", "--release", "--package", "brolly"]).args(features))
}

/// The `brolly` that the tests of the command line use.
pub(crate) fn build_for_tests(llvm: &Llvm) -> Result<PathBuf> {
    executable(&mut cargo(llvm, ["test", "--workspace", "--no-run"]))
}

/// Runs a build and returns where it has put `brolly`.
fn executable(build: &mut Command) -> Result<PathBuf> {
    let mut executable = None;
    run_lines(build.arg("--message-format=json-render-diagnostics"), |line| {
        let message: Value = serde_json::from_str(line).unwrap_or_default();
        // Its unit tests have its name too.
        if message["target"]["name"] == "brolly" && message["profile"]["test"] == false {
            executable = message["executable"].as_str().map(PathBuf::from).or(executable.take());
        }
    })?;
    executable.ok_or_else(|| Failure::Explained("cargo built no `brolly` binary".to_owned()))
}

/// What is wrong with the executable whose bytes these are.
fn problems(bytes: &[u8]) -> object::Result<Vec<String>> {
    let mut problems = Vec::new();
    if bytes.len() >= MAX_BYTES {
        let (size, limit) = (megabytes(bytes.len() as f64), megabytes(MAX_BYTES as f64));
        problems.push(format!("is {size}, the limit is {limit}"));
    }
    let file = object::File::parse(bytes)?;
    for library in file.import_libraries()? {
        let name = String::from_utf8_lossy(library?.name()).into_owned();
        if name.contains("LLVM") || name.contains("MLIR") {
            problems.push(format!("needs the shared library {name}"));
        }
    }
    let names: Vec<&str> = file.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    if names.is_empty() {
        problems.push("is stripped, so that what it links can not be seen".to_owned());
    }
    let is_llvm = |name: &&&str| LLVM_SYMBOLS.iter().any(|start| name.starts_with(start));
    if let Some(first) = names.iter().find(is_llvm) {
        let count = names.iter().filter(is_llvm).count();
        problems.push(format!("holds {count} symbols of LLVM, such as {first}"));
    }
    Ok(problems)
}

fn explained(binary: &Path, reason: &str) -> Failure {
    Failure::Explained(format!("{} {reason}", binary.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_binary_holds_no_llvm() {
        let bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        let problems = problems(&bytes).unwrap();
        assert!(!problems.iter().any(|problem| problem.contains("LLVM")), "{problems:?}");
    }

    #[test]
    fn what_is_no_executable_is_an_error() {
        assert!(problems(b"#!/bin/sh\n").is_err());
    }
}
