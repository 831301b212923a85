//! NVIDIA's assembler, where a machine has it: from PTX to an image that a device loads as it is.
//!
//! Nothing needs it: drivers assemble PTX themselves, which takes seconds when a model is first
//! loaded and nothing when it was assembled before.

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// `ptxas`, found and asked for its version.
#[derive(Clone, Debug)]
pub struct Assembler {
    path: PathBuf,
    version: String,
}

/// What the assembler said against a kernel, or why it could not be run.
#[derive(Debug, thiserror::Error)]
#[error("kernel `{symbol}`: {path} for {arch}: {reason}")]
pub struct AssembleError {
    symbol: String,
    path: String,
    arch: String,
    reason: String,
}

impl Assembler {
    /// The program that `BROLLY_PTXAS` names, or the first `ptxas` on the path.
    pub fn find() -> Option<Assembler> {
        if let Some(path) = env::var_os("BROLLY_PTXAS") {
            return Assembler::at(Path::new(&path));
        }
        let folders = env::var_os("PATH")?;
        env::split_paths(&folders).find_map(|folder| Assembler::at(&folder.join("ptxas")))
    }

    /// The program at `path`, if it answers.
    pub fn at(path: &Path) -> Option<Assembler> {
        if !path.is_file() {
            return None;
        }
        let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().rfind(|line| !line.trim().is_empty())?.trim().to_owned();
        output.status.success().then(|| Assembler { path: path.into(), version })
    }

    /// As the program tells it: what it makes follows from that and the text.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The image for `arch`, `sm_80` or `sm_90a`, of a kernel's PTX.
    ///
    /// # Errors
    /// [`AssembleError`], with the program's own words.
    pub fn assemble(&self, symbol: &str, ptx: &str, arch: &str) -> Result<Vec<u8>, AssembleError> {
        let fail = |reason: &dyn fmt::Display| AssembleError {
            symbol: symbol.into(),
            path: self.path.display().to_string(),
            arch: arch.into(),
            reason: reason.to_string(),
        };
        self.run(ptx, arch).map_err(|e| fail(&e))
    }

    fn run(&self, ptx: &str, arch: &str) -> io::Result<Vec<u8>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = env::temp_dir().join(format!("brolly-ptx-{}-{number}", std::process::id()));
        let files = Files { text: base.with_extension("ptx"), image: base.with_extension("cubin") };
        std::fs::write(&files.text, ptx)?;
        let mut program = Command::new(&self.path);
        program.args(["-O3", &format!("-arch={arch}"), "-o"]).arg(&files.image).arg(&files.text);
        let output = program.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(said));
        }
        std::fs::read(&files.image)
    }
}

/// Files that are removed when they have been read.
struct Files {
    text: PathBuf,
    image: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in [&self.text, &self.image] {
            let _ = std::fs::remove_file(file);
        }
    }
}
