//! `cargo xtask setup`: makes sure that everything in [`NEEDS`](crate::needs::NEEDS) is there.
//!
//! On Debian and its descendants the missing packages are installed with apt, after saying which.
//! Elsewhere nothing is installed: the list of what is missing and how to get it is printed.

use crate::llvm::Llvm;
use crate::needs::{Need, unmet};
use crate::process::{self, Failure, Result, command, probe, succeeds};
use std::fs;
use std::process::Command;

/// Meets every need and returns the LLVM to build with.
///
/// # Errors
/// The list of what is missing and how to get it, where it could not be installed.
pub(crate) fn run() -> Result<Llvm> {
    let mut missing = unmet();
    if !missing.is_empty() && has_apt() {
        let packages = not_installed(&missing);
        let needed = missing.iter().any(|(need, _)| !need.optional);
        if !packages.is_empty() && (needed || is_root()) {
            let done = install(&packages);
            if needed {
                done?;
            }
            missing = unmet();
        }
    }
    let (optional, required): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|(need, _)| need.optional);
    for (need, _) in &optional {
        eprintln!("note: doing without {}; {}", need.what, how(need));
    }
    if !required.is_empty() {
        return Err(Failure::Explained(explain(&required)));
    }
    let llvm = Llvm::find().map_err(|refused| Failure::Explained(refused.join("\n")))?;
    eprintln!("LLVM and MLIR {} in {}", llvm.version, llvm.prefix.display());
    Ok(llvm)
}

/// Installs `packages` with apt, as root or through sudo.
fn install(packages: &[&str]) -> Result<()> {
    eprintln!("These packages are missing and will be installed with apt-get:");
    eprintln!("  {}", packages.join(" "));
    let apt_get = if is_root() {
        vec!["env"]
    } else if succeeds(Command::new("sudo").arg("--version")) {
        vec!["sudo", "env"]
    } else {
        return Err(Failure::Explained(format!(
            "this needs root and there is no sudo; as root, run\n  apt-get update && \
             apt-get install --no-install-recommends {}",
            packages.join(" ")
        )));
    };
    let apt_get = |args: &[&str]| {
        let mut apt = command(apt_get[0]);
        apt.args(&apt_get[1..]).args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        // A fresh machine may be installing its own updates.
        apt.args(["-o", "DPkg::Lock::Timeout=300"]).args(args);
        process::run(&mut apt)
    };
    apt_get(&["update", "--quiet"])?;
    apt_get(&[&["install", "--yes", "--quiet", "--no-install-recommends"], packages].concat())
        .map_err(|failure| {
            Failure::Explained(format!(
                "{failure}\nIf apt knows no llvm-22-dev, its sources lack the suite that has it: \
                 on Debian 12 that is bookworm-security, on releases without it the LLVM \
                 project's own apt packages."
            ))
        })
}

/// The packages for `missing` that dpkg does not know as installed.
fn not_installed(missing: &[(&'static Need, String)]) -> Vec<&'static str> {
    let installed = |package: &str| {
        let query = ["--showformat=${db:Status-Status}", "--show", package];
        probe(Command::new("dpkg-query").args(query)).as_deref() == Some("installed")
    };
    let packages = missing.iter().flat_map(|(need, _)| need.apt).copied();
    packages.filter(|package| !installed(package)).collect()
}

fn has_apt() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| is_debian_like(&text))
        && succeeds(Command::new("apt-get").arg("--version"))
}

/// Whether an `os-release` file describes Debian or a system built on it.
fn is_debian_like(os_release: &str) -> bool {
    let values = os_release.lines().filter_map(|line| {
        line.strip_prefix("ID=")
            .or_else(|| line.strip_prefix("ID_LIKE="))
            .map(|v| v.trim_matches('"'))
    });
    values.flat_map(str::split_whitespace).any(|id| id == "debian" || id == "ubuntu")
}

fn is_root() -> bool {
    probe(Command::new("id").arg("-u")).as_deref() == Some("0")
}

/// The report for needs that could not be met: what, what was found instead, what to do.
fn explain(missing: &[(&'static Need, String)]) -> String {
    let items = missing.iter().map(|(need, found)| {
        let found = if found.is_empty() { String::new() } else { format!("\n    found: {found}") };
        format!("  {}{found}\n    {}", need.what, how(need))
    });
    format!("missing on this machine:\n{}", items.collect::<Vec<_>>().join("\n"))
}

fn how(need: &Need) -> String {
    if has_apt() {
        format!("apt-get install {}", need.apt.join(" "))
    } else {
        need.elsewhere.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_descendants_are_recognised() {
        assert!(is_debian_like("NAME=x\nID=debian\nVERSION_ID=\"12\"\n"));
        assert!(is_debian_like("ID=pop\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian_like("ID=fedora\nPRETTY_NAME=\"not debian\"\n"));
    }

    #[test]
    fn the_report_names_every_missing_need_and_its_remedy() {
        let missing: Vec<_> =
            crate::needs::NEEDS.iter().map(|need| (need, "version 19".to_owned())).collect();
        let report = explain(&missing);
        for need in crate::needs::NEEDS {
            assert!(report.contains(need.what) && report.contains(&how(need)), "{report}");
        }
    }
}
