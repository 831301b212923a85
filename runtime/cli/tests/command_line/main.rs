//! The command line from outside: exit codes, where output goes, and what it is.
//!
//! What models compute is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[cfg(feature = "compiler")]
mod adapters;
#[cfg(feature = "compiler")]
mod compiled;
#[cfg(feature = "compiler")]
mod trained;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::LazyLock,
};

/// A folder of this run alone.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("command-line");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
});

fn brolly(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brolly"));
    command.args(args).env("BROLLY_CACHE", DIR.join("cache")).env_remove("RUST_BACKTRACE");
    command
}

/// Runs a command that must fail with this exit code, and returns what it says on stderr.
fn refused(args: &[&str], code: i32) -> String {
    let Output { status, stdout, stderr } = brolly(args).output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{args:?}: {said}");
    assert!(!said.trim().is_empty(), "{args:?} says nothing");
    assert!(stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&stdout));
    said
}

fn accepted(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = brolly(args).output().unwrap();
    assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn file(name: &str, bytes: &[u8]) -> String {
    let path = DIR.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_is_a_result_and_has_examples() {
    for command in [
        "compile", "check", "generate", "score", "embed", "exec", "serve", "inspect", "bench",
        "opt", "train", "plan",
    ] {
        let help = accepted(&[command, "--help"]);
        assert!(help.contains("Example") && help.contains("--threads"), "{command}: {help}");
    }
    assert!(accepted(&["--version"]).starts_with("brolly "));
}

#[test]
fn flags_that_make_no_sense_are_usage_errors() {
    refused(&[], 2);
    refused(&["launch", "m"], 2);
    refused(&["serve", "m", "--tls-cert", "cert.pem"], 2);
    let said = refused(&["serve", "m", "--kv-cache", "much"], 2);
    assert!(said.contains("--kv-cache"), "{said}");
    refused(&["generate", "m"], 2);
    let said = refused(&["generate", "m", "--prompt", "x", "--temperature", "nan"], 2);
    assert!(said.contains("--temperature"), "{said}");
    let said = refused(&["generate", "m", "--prompt", "x", "--max-tokens", "-3"], 2);
    assert!(said.contains("--max-tokens"), "{said}");
    refused(&["bench", "m", "--batch", "0"], 2);
    refused(&["score", "m", "--prompt", "x", "--threads", "-1"], 2);
}

#[test]
fn what_is_no_artifact_is_the_inputs_fault() {
    let missing = DIR.join("missing.brolly");
    let said = refused(&["score", missing.to_str().unwrap(), "--prompt", "x"], 1);
    assert!(said.contains("missing.brolly") && said.contains("No such file"), "{said}");
    for (name, bytes) in [("empty", &b""[..]), ("text", b"hello"), ("zeros", &[0; 4096])] {
        let path = file(name, bytes);
        let said = refused(&["inspect", &path, "--json"], 1);
        assert!(said.contains(&path) && said.contains("brolly compile"), "{said}");
    }
    let said = refused(&["score", "m", "--prompt", "x", "--trace", "/nowhere/at/all"], 1);
    assert!(said.contains("--trace"), "{said}");
}

#[test]
fn a_stderr_that_takes_nothing_does_not_change_the_exit_code() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = brolly(&["inspect", "/nowhere"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[cfg(not(feature = "compiler"))]
#[test]
fn the_runtime_alone_says_that_models_need_the_compiler() {
    let said = refused(&["score", DIR.to_str().unwrap(), "--prompt", "x"], 1);
    assert!(said.contains("brolly compile"), "{said}");
    refused(&["compile", DIR.to_str().unwrap(), "-o", "x.brolly"], 2);
}
