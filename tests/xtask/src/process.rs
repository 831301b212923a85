//! Running other programs, and the folders that they work in.
//!
//! Every command is printed before it runs, as it could be typed in a shell. Nothing goes through
//! a shell here.

use crate::llvm::Llvm;
use std::env;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Why a task could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A program could not be started.
    #[error("cannot run `{command}`: {source}")]
    Spawn { command: String, source: io::Error },
    /// A program ended with an error; what it had to say is on the terminal already.
    #[error("`{command}` failed: {status}")]
    Status { command: String, status: ExitStatus },
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// Anything that a sentence explains best.
    #[error("{0}")]
    Explained(String),
}

/// The result of a task or a part of one.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).ancestors().nth(2).unwrap_or(Path::new(".")).to_path_buf()
}

/// The folder for what tasks download and build; git ignores it.
pub(crate) fn cache() -> Result<PathBuf> {
    let folder = root().join(".cache");
    std::fs::create_dir_all(&folder).map_err(file_failure(&folder))?;
    Ok(folder)
}

/// Turns an I/O error on `path` into a [`Failure`].
pub(crate) fn file_failure(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_path_buf();
    move |source| Failure::File { path, source }
}

/// A command that runs in the root of the repository.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// A cargo command whose build scripts use `llvm`.
pub(crate) fn cargo<const N: usize>(llvm: &Llvm, args: [&str; N]) -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(args).envs(llvm.build_env());
    cargo
}

/// Runs `command`, its output going to the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().map_err(spawn_failure(command))?;
    succeeded(command, status)
}

/// Runs `command` quietly and returns its standard output; its standard error goes to the terminal.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().map_err(spawn_failure(command))?;
    succeeded(command, output.status)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `command` can be run and succeeds; its output is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Standard output of `command`, trimmed, if it can be run and succeeds.
pub(crate) fn probe(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// Runs `command`, handing every line of its standard output to `each_line` as it comes.
pub(crate) fn run_lines(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<()> {
    announce(command);
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(spawn_failure(command))?;
    let pipe = child.stdout.take().map(BufReader::new);
    for line in pipe.into_iter().flat_map(|pipe| pipe.split(b'\n')) {
        let line = line.map_err(spawn_failure(command))?;
        each_line(String::from_utf8_lossy(&line).trim_end());
    }
    let status = child.wait().map_err(spawn_failure(command))?;
    succeeded(command, status)
}

/// The program and arguments of `command`, quoted where a shell would need it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn announce(command: &Command) {
    eprintln!("$ {}", shown(command));
}

fn spawn_failure(command: &Command) -> impl FnOnce(io::Error) -> Failure {
    let command = shown(command);
    |source| Failure::Spawn { command, source }
}

fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(Failure::Status { command: shown(command), status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_a_shell_would_take_them() {
        let mut command = Command::new("brolly");
        command.args(["embed", "--text", "it's a cat", ""]);
        assert_eq!(shown(&command), r"brolly embed --text 'it'\''s a cat' ''");
    }

    #[test]
    fn lines_arrive_and_a_failure_is_reported_after_them() {
        let mut lines = Vec::new();
        let mut script = Command::new("sh");
        script.args(["-c", "echo one; echo two; exit 3"]);
        let failure = run_lines(&mut script, |line| lines.push(line.to_owned())).unwrap_err();
        assert_eq!(lines, ["one", "two"]);
        assert!(failure.to_string().contains("exit status: 3"), "{failure}");
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("tests/xtask/Cargo.toml").is_file());
    }
}
