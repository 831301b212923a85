//! `cargo xtask ptxas`: NVIDIA's assembler and disassembler, which tests of GPU kernels run.
//!
//! They come in Python wheels for x86-64, whose digests are pinned here, under NVIDIA's licence, so
//! they are fetched and never distributed. Everything works without them: tests say that they are
//! skipped.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{Result, succeeds};
use crate::wheel::{self, Fetched};

const REQUIREMENTS: &str = "nvidia-cuda-nvcc==13.0.88 \
    --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03\n\
    nvidia-cuda-nvdisasm==13.5.37 \
    --hash=sha256:d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca\n";

const PROGRAMS: [&str; 2] = ["ptxas", "nvdisasm"];

/// Fetches the programs if they are not there yet and says where they are.
pub(crate) fn run() -> Result<()> {
    match fetch()? {
        Fetched::Here(folder) => println!("{}", folder.display()),
        Fetched::Skipped(reason) => println!("skipped: {reason}"),
    }
    Ok(())
}

/// The folder that holds `ptxas` and `nvdisasm`, downloaded on first use.
///
/// # Errors
/// As [`wheel::fetch`].
pub(crate) fn fetch() -> Result<Fetched> {
    wheel::fetch("ptxas", REQUIREMENTS, keep)
}

/// Moves the programs to a folder of their own and sees that they run.
fn keep(unpacked: &Path) -> std::result::Result<PathBuf, String> {
    let to = unpacked.join("programs");
    fs::create_dir_all(&to).map_err(|error| error.to_string())?;
    for program in PROGRAMS {
        let (from, to) = (unpacked.join("nvidia/cu13/bin").join(program), to.join(program));
        fs::rename(&from, &to).map_err(|_| format!("{} is missing", from.display()))?;
        make_executable(&to).map_err(|error| error.to_string())?;
        if !succeeds(std::process::Command::new(&to).arg("--version")) {
            return Err(format!("{program} does not run on this machine"));
        }
    }
    Ok(to)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> std::io::Result<()> {
    Ok(())
}
