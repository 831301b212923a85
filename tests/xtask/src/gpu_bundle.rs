//! `cargo xtask gpu-bundle`: a folder to check a machine with a GPU, where nothing is installed
//! but a driver.
//!
//! It holds the runner, the cases and models that the suites of GPU kernels and models write, their
//! expected results, the runtime without its compiler, shapes of real models without their weights,
//! all in one archive, and `run.sh`, which unpacks it, checks and times all of it beside PyTorch.

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
use std::process::Command;

/// What the folder may weigh.
const MAX_BYTES: u64 = 60_000_000;
/// The newest C library that the runner may ask for: that of Debian 12.
const GLIBC: (u32, u32) = (2, 36);
/// Shapes that are timed, and how they are compiled.
const SHAPES: [(&str, &[&str]); 2] = [
    ("llama-1b", &["--max-seq-len", "8192", "--max-batch-tokens", "4096"]),
    ("llama-8b", &["--max-seq-len", "8192", "--max-batch-tokens", "4096"]),
];
/// What runs all, beside the archive.
const SCRIPT: &str = "run.sh";
/// The archive of all else.
const ARCHIVE: &str = "parts.tar.gz";
/// Scripts of the peers.
const PEERS: [&str; 3] = ["peer.py", "models_peer.py", "train_peer.py"];
/// The training run that is timed, a folder beside the scripts, and what is in it.
const TRAINING: &str = "gpt2-124m";
const TRAINING_FILES: [&str; 2] = ["config.json", "run.toml"];
/// Rows and tokens a row of its data.
const TOKENS: [usize; 2] = [64, 1024];

/// Makes the folder anew and says how large it is.
///
/// # Errors
/// What cannot be built or written; cases that fail in the emulator; a runner that needs a newer C
/// library than old machines have; a folder that is too large.
pub(crate) fn run(bundle: &Path) -> Result<()> {
    let llvm = setup::run()?;
    let assembler = match ptxas::fetch()? {
        Fetched::Here(folder) => folder.join("ptxas"),
        Fetched::Skipped(reason) => {
            let text = format!("cases for sm_90a need NVIDIA's assembler: {reason}");
            return Err(Failure::Explained(text));
        }
    };
    let parts = bundle.join("parts");
    if parts.exists() {
        fs::remove_dir_all(&parts).map_err(file_failure(&parts))?;
    }
    fs::create_dir_all(&parts).map_err(file_failure(&parts))?;
    let folder = fs::canonicalize(&parts).map_err(file_failure(&parts))?;

    let mut needed = (0, 0);
    for (program, package) in
        [("gpu-check", &["brolly-gpu-check"][..]), ("brolly", &["brolly", "--no-default-features"])]
    {
        let mut cargo = cargo(&llvm, ["build", "--release", "--package"]);
        cargo.args(package);
        let built = build(cargo, program)?;
        let kept = folder.join(program);
        fs::copy(&built, &kept).map_err(file_failure(&kept))?;
        if succeeds(command("strip").arg("--version")) {
            run_command(command("strip").arg(&kept))?;
        }
        let newest = newest_glibc(&fs::read(&kept).map_err(file_failure(&kept))?);
        if newest > GLIBC {
            let text =
                format!("`{program}` needs glibc {newest:?}, {GLIBC:?} at most: build it there");
            return Err(Failure::Explained(text));
        }
        needed = newest.max(needed);
    }

    let mut suite = cargo(&llvm, ["test", "--workspace", "--test", "e2e", "--", "ptx::", "gpu::"]);
    run_command(suite.env("BROLLY_GPU_CASES", &folder))?;
    let compiler = build(cargo(&llvm, ["build", "--package", "brolly"]), "brolly")?;
    let shapes = folder.join("shapes");
    fs::create_dir_all(&shapes).map_err(file_failure(&shapes))?;
    for (name, flags) in SHAPES {
        let mut compile = command(&compiler);
        compile.args(["compile", name, "--random-weights", "--target", "cuda:sm_90a"]);
        compile.args(flags).arg("--output").arg(shapes.join(format!("{name}.brolly")));
        run_command(compile.env("BROLLY_PTXAS", &assembler))?;
    }
    let training = folder.join(TRAINING);
    fs::create_dir_all(&training).map_err(file_failure(&training))?;
    for name in TRAINING_FILES {
        let (from, to) = (root().join("tests/gpu").join(TRAINING).join(name), training.join(name));
        fs::copy(&from, &to).map_err(file_failure(&to))?;
    }
    let data = training.join("tokens.npy");
    fs::write(&data, tokens()).map_err(file_failure(&data))?;
    let mut compile = command(&compiler);
    compile.current_dir(&folder).env("BROLLY_PTXAS", &assembler);
    compile.args(["compile", "gpt2-124m/run.toml", "--target", "cuda:sm_90a"]);
    run_command(compile.args(["--output", "gpt2-124m/run.brolly"]))?;
    let scripts = root().join("tests/gpu");
    for peer in PEERS {
        let to = folder.join(peer);
        fs::copy(scripts.join(peer), &to).map_err(file_failure(&to))?;
    }
    let cases = fs::read_dir(folder.join("cases")).map_err(file_failure(&folder))?.count();
    let unpacked = size(&folder)?;

    let (archive, script) = (bundle.join(ARCHIVE), bundle.join(SCRIPT));
    run_command(command("tar").arg("-czf").arg(&archive).arg("-C").arg(&folder).arg("."))?;
    fs::copy(scripts.join(SCRIPT), &script).map_err(file_failure(&script))?;
    fs::remove_dir_all(&folder).map_err(file_failure(&folder))?;
    let bytes = size(bundle)?;
    println!(
        "{}: {}, {} unpacked, {cases} cases, glibc {}.{}",
        bundle.display(),
        megabytes(bytes as f64),
        megabytes(unpacked as f64),
        needed.0,
        needed.1
    );
    if bytes > MAX_BYTES {
        let limit = megabytes(MAX_BYTES as f64);
        return Err(Failure::Explained(format!("that is more than {limit}")));
    }
    Ok(())
}

/// Tokens that look random, the same every time, as an array of NumPy's format 1.0.
fn tokens() -> Vec<u8> {
    let [rows, length] = TOKENS;
    let header =
        format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({rows}, {length}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    let width = (10 + header.len() + 1).next_multiple_of(64) - 10;
    bytes.extend_from_slice(&u16::try_from(width).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(format!("{header:<0$}\n", width - 1).as_bytes());
    let mut state = 1u64;
    for _ in 0..rows * length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = u32::try_from((state >> 33) % 50257).unwrap_or(0);
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    bytes
}

/// Builds a program and returns its path.
fn build(mut cargo: Command, program: &str) -> Result<PathBuf> {
    let mut found = None;
    run_lines(cargo.arg("--message-format=json-render-diagnostics"), |line| {
        let message: Value = serde_json::from_str(line).unwrap_or_default();
        if message["target"]["name"] == program {
            found = message["executable"].as_str().map(PathBuf::from).or(found.take());
        }
    })?;
    found.ok_or_else(|| Failure::Explained(format!("cargo built no `{program}`")))
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
