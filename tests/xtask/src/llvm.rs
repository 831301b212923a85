//! Finding an LLVM 22 that has MLIR.
//!
//! `/usr/lib/llvm-22` is where Debian puts it and what `.cargo/config.toml` names; any other prefix
//! is handed to the build scripts through the environment, which overrides that file.

use crate::process::probe;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The major version that the bindings are made for.
const MAJOR: &str = "22";

/// What the build scripts of `mlir-sys`, `tblgen` and `llvm-sys` read.
const PREFIX_VARIABLES: [&str; 3] =
    ["MLIR_SYS_220_PREFIX", "TABLEGEN_220_PREFIX", "LLVM_SYS_221_PREFIX"];

/// Where distributions and package managers install LLVM 22.
const USUAL_PREFIXES: [&str; 6] = [
    "/usr/lib/llvm-22",
    "/usr/lib/llvm/22",
    "/usr/lib64/llvm22",
    "/usr/local/llvm-22",
    "/opt/homebrew/opt/llvm@22",
    "/usr/local/opt/llvm@22",
];

/// An installed LLVM 22 with MLIR.
#[derive(Debug)]
pub(crate) struct Llvm {
    /// The folder that holds `bin`, `include` and `lib`.
    pub(crate) prefix: PathBuf,
    /// The full version, such as `22.1.8`.
    pub(crate) version: String,
    /// The linker arguments for the system libraries that LLVM needs, such as `-lz`.
    pub(crate) system_libs: Vec<String>,
}

impl Llvm {
    /// The first usable LLVM, or for each place that has one the reason why it is of no use.
    pub(crate) fn find() -> Result<Self, Vec<String>> {
        let mut refused = Vec::new();
        for prefix in candidates() {
            match Self::at(&prefix) {
                Ok(llvm) => return Ok(llvm),
                Err(reason) => refused.push(format!("{}: {reason}", prefix.display())),
            }
        }
        Err(refused)
    }

    /// The LLVM under `prefix`, or what is wrong with it.
    fn at(prefix: &Path) -> Result<Self, String> {
        let llvm_config = |args: &[&str]| {
            probe(Command::new(prefix.join("bin/llvm-config")).args(args)).ok_or_else(|| {
                format!("`bin/llvm-config {}` fails: development files are missing", args.join(" "))
            })
        };
        let version = llvm_config(&["--version"])?;
        if version.split('.').next() != Some(MAJOR) {
            return Err(format!("is version {version}, not {MAJOR}"));
        }
        let include = PathBuf::from(llvm_config(&["--includedir"])?);
        if !include.join("mlir-c/IR.h").is_file() {
            return Err("has no MLIR headers (include/mlir-c)".to_owned());
        }
        let lib = PathBuf::from(llvm_config(&["--libdir"])?);
        let mlir = ["libMLIRIR.a", "libMLIR-C.so", "libMLIR-C.dylib"];
        if !mlir.iter().any(|name| lib.join(name).is_file()) {
            return Err("has no MLIR libraries to link with".to_owned());
        }
        // Fails where LLVM was built with Polly and Polly's own package is not installed.
        let mode = ["--link-static", "--link-shared"]
            .into_iter()
            .find(|mode| llvm_config(&[mode, "--libnames"]).is_ok())
            .ok_or("is incomplete: `llvm-config --link-static --libnames` fails")?;
        let libs = llvm_config(&[mode, "--system-libs"])?;
        let system_libs = libs.split_whitespace().map(str::to_owned).collect();
        Ok(Self { prefix: prefix.to_path_buf(), version, system_libs })
    }

    /// The environment that points the build scripts at this LLVM.
    pub(crate) fn build_env(&self) -> Vec<(&'static str, PathBuf)> {
        let mut vars = PREFIX_VARIABLES.map(|name| (name, self.prefix.clone())).to_vec();
        if self.prefix != Path::new(USUAL_PREFIXES[0]) {
            // Where the binding generator looks for libclang first.
            vars.push(("LLVM_CONFIG_PATH", self.prefix.join("bin/llvm-config")));
        }
        vars
    }
}

/// Existing folders that may hold LLVM 22, most explicit first.
fn candidates() -> Vec<PathBuf> {
    let named = PREFIX_VARIABLES.iter().filter_map(|name| env::var_os(name).map(PathBuf::from));
    let asked = ["llvm-config-22", "llvm-config"]
        .iter()
        .filter_map(|program| probe(Command::new(program).arg("--prefix")).map(PathBuf::from));
    let mut found: Vec<PathBuf> = Vec::new();
    for prefix in named.chain(USUAL_PREFIXES.map(PathBuf::from)).chain(asked) {
        if prefix.join("bin/llvm-config").exists() && !found.contains(&prefix) {
            found.push(prefix);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_llvm_is_refused_with_a_reason() {
        let reason = Llvm::at(Path::new("/nowhere")).unwrap_err();
        assert!(reason.contains("llvm-config --version"), "{reason}");
    }
}
