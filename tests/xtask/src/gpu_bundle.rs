//! `cargo xtask gpu-bundle`: a folder to check a machine with a GPU, where nothing is installed
//! but a driver.
//!
//! It holds the runner, the cases that the suite of GPU kernels writes, their expected results, and
//! `run.sh`, which runs all of it beside PyTorch.

use crate::process::{
    Failure, Result, cargo, file_failure, run as run_command, run_lines, succeeds,
};
use crate::process::{command, root};
use crate::ptxas;
use crate::setup;
use crate::table::megabytes;
use crate::wheel::Fetched;
use object::{Object as _, ObjectSection as _};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// What the folder may weigh.
const MAX_BYTES: u64 = 60_000_000;
/// The newest C library that the runner may ask for: that of Debian 12.
const GLIBC: (u32, u32) = (2, 36);
/// Scripts beside the runner.
const SCRIPTS: [&str; 2] = ["run.sh", "peer.py"];

/// Makes the folder anew and says how large it is.
///
/// # Errors
/// What cannot be built or written; cases that fail in the emulator; a runner that needs a newer C
/// library than old machines have; a folder that is too large.
pub(crate) fn run(folder: &Path) -> Result<()> {
    let llvm = setup::run()?;
    if let Fetched::Skipped(reason) = ptxas::fetch()? {
        let text = format!("cases for sm_90a need NVIDIA's assembler: {reason}");
        return Err(Failure::Explained(text));
    }
    fs::create_dir_all(folder).map_err(file_failure(folder))?;
    let folder = fs::canonicalize(folder).map_err(file_failure(folder))?;
    for part in ["cases", "data", "kernels"] {
        let part = folder.join(part);
        if part.exists() {
            fs::remove_dir_all(&part).map_err(file_failure(&part))?;
        }
    }

    let mut runner = None;
    let mut build = cargo(&llvm, ["build", "--release", "--package", "brolly-gpu-check"]);
    run_lines(build.arg("--message-format=json-render-diagnostics"), |line| {
        let message: Value = serde_json::from_str(line).unwrap_or_default();
        if message["target"]["name"] == "gpu-check" {
            runner = message["executable"].as_str().map(PathBuf::from).or(runner.take());
        }
    })?;
    let runner =
        runner.ok_or_else(|| Failure::Explained("cargo built no `gpu-check`".to_owned()))?;
    let kept = folder.join("gpu-check");
    fs::copy(&runner, &kept).map_err(file_failure(&kept))?;
    if succeeds(command("strip").arg("--version")) {
        run_command(command("strip").arg(&kept))?;
    }
    let needed = newest_glibc(&fs::read(&kept).map_err(file_failure(&kept))?);
    if needed > GLIBC {
        let text = format!("the runner needs glibc {needed:?}, {GLIBC:?} at most: build it there");
        return Err(Failure::Explained(text));
    }

    let mut suite = cargo(&llvm, ["test", "--workspace", "--test", "e2e", "--", "ptx::"]);
    run_command(suite.env("BROLLY_GPU_CASES", &folder))?;
    for script in SCRIPTS {
        let (from, to) = (root().join("tests/gpu").join(script), folder.join(script));
        fs::copy(&from, &to).map_err(file_failure(&to))?;
    }

    let bytes = size(&folder)?;
    println!(
        "{}: {}, {} cases, glibc {}.{}",
        folder.display(),
        megabytes(bytes as f64),
        fs::read_dir(folder.join("cases")).map_err(file_failure(&folder))?.count(),
        needed.0,
        needed.1
    );
    if bytes > MAX_BYTES {
        let limit = megabytes(MAX_BYTES as f64);
        return Err(Failure::Explained(format!("that is more than {limit}")));
    }
    Ok(())
}

/// Bytes of all files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(file_failure(folder))? {
        let entry = entry.map_err(file_failure(folder))?;
        let path = entry.path();
        bytes += match entry.metadata().map_err(file_failure(&path))? {
            found if found.is_dir() => size(&path)?,
            found => found.len(),
        };
    }
    Ok(bytes)
}

/// The newest version of the C library whose symbols a binary asks for.
fn newest_glibc(bytes: &[u8]) -> (u32, u32) {
    let Ok(file) = object::File::parse(bytes) else { return (0, 0) };
    let names = file.section_by_name(".dynstr").and_then(|section| section.data().ok());
    let version = |name: &[u8]| {
        let text = std::str::from_utf8(name).ok()?.strip_prefix("GLIBC_")?;
        let mut numbers = text.split('.').map_while(|n| n.parse().ok());
        Some((numbers.next()?, numbers.next().unwrap_or(0)))
    };
    names
        .into_iter()
        .flat_map(|names| names.split(|b| *b == 0))
        .filter_map(version)
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_of_this_binary_is_found() {
        let bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        let (major, minor) = newest_glibc(&bytes);
        assert!(major == 2 && minor >= 2, "{major}.{minor}");
        assert_eq!(newest_glibc(b"no binary"), (0, 0));
    }
}
