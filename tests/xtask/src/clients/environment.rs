//! Python and Node environments with pinned packages, made once and kept.
//!
//! A copy of the list of packages lies in each environment once it is whole: it is made anew where
//! the list has changed.

use crate::process::{self, Failure, Result, command, file_failure, root, succeeds};
use std::fs;
use std::path::{Path, PathBuf};

/// The Python of the environment `name` with the packages of a requirements file of
/// `tests/clients`, which lists everything, so that pip has no dependencies to resolve.
///
/// # Errors
/// Without a Python that can make environments, or without its packages and a network.
pub(super) fn python(folder: &Path, name: &str, requirements: &str) -> Result<PathBuf> {
    let list = root().join("tests/clients").join(requirements);
    let venv = folder.join(name);
    let python = venv.join("bin/python");
    if is_made_from(&venv, &list)? {
        return Ok(python);
    }
    remove(&venv)?;
    if !succeeds(command("python3").args(["-m", "venv"]).arg(&venv)) {
        return Err(missing("python3 with its `venv` module", "python3-venv"));
    }
    let mut pip = command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]);
    // Compiled on first use: most of it is not used.
    process::run(pip.arg("--no-compile").arg("--requirement").arg(&list))?;
    made_from(&venv, &list)?;
    Ok(python)
}

/// A folder with the `node_modules` of `tests/clients/package-lock.json`.
///
/// # Errors
/// Without Node and npm, or without their packages and a network.
pub(super) fn node(folder: &Path) -> Result<PathBuf> {
    let clients = root().join("tests/clients");
    let list = clients.join("package-lock.json");
    let to = folder.join("node");
    if !["node", "npm"].iter().all(|name| succeeds(command(name).arg("--version"))) {
        return Err(missing("node and npm", "nodejs npm"));
    }
    if is_made_from(&to, &list)? {
        return Ok(to);
    }
    remove(&to)?;
    fs::create_dir_all(&to).map_err(file_failure(&to))?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(clients.join(name), to.join(name)).map_err(file_failure(&clients.join(name)))?;
    }
    let mut npm = command("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&to);
    process::run(&mut npm)?;
    made_from(&to, &list)?;
    Ok(to)
}

fn missing(what: &str, apt: &str) -> Failure {
    Failure::Explained(format!("this suite needs {what}; on Debian, apt-get install {apt}"))
}

fn is_made_from(environment: &Path, list: &Path) -> Result<bool> {
    let wanted = fs::read(list).map_err(file_failure(list))?;
    Ok(fs::read(environment.join("made-from")).is_ok_and(|made| made == wanted))
}

fn made_from(environment: &Path, list: &Path) -> Result<()> {
    fs::copy(list, environment.join("made-from")).map_err(file_failure(environment))?;
    Ok(())
}

/// Removes a folder if it is there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match folder.exists() {
        true => fs::remove_dir_all(folder).map_err(file_failure(folder)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_kept_until_its_list_changes() {
        let folder = std::env::temp_dir().join(format!("xtask-made-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let list = folder.join("list.txt");
        fs::write(&list, "a==1\n").unwrap();
        assert!(!is_made_from(&folder, &list).unwrap());
        made_from(&folder, &list).unwrap();
        assert!(is_made_from(&folder, &list).unwrap());
        fs::write(&list, "a==2\n").unwrap();
        assert!(!is_made_from(&folder, &list).unwrap());
        remove(&folder).unwrap();
    }
}
