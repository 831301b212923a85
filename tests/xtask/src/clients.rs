//! `cargo xtask clients`: programs that others have written, against `brolly serve`.
//!
//! Compiles the language model of the repository and a small encoder, serves each on a free port,
//! and runs suites: OpenAI's clients for Python and Node, schemathesis, promtool and lm-eval. What
//! the suites are is in `tests/clients`, with the versions of everything they install. At the end
//! the servers get SIGTERM and must end with exit code 0.
//!
//! Environments are kept in `target/clients`; a run that finds them needs no network.

mod environment;
mod server;
mod suites;

use crate::process::{self, Failure, Result, command, file_failure, root};
use crate::table::{duration, table};
use crate::{runtime_only, setup};
use server::Server;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use suites::{Outcome, SUITES, Stage, Suite};

/// What of the clients to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run this suite alone; may be repeated [default: all]
    #[arg(long = "suite", value_name = "NAME", value_parser = suites::names())]
    suites: Vec<String>,

    /// The `brolly` to test, with its compiler [default: built from this checkout]
    #[arg(long, value_name = "FILE")]
    brolly: Option<PathBuf>,

    /// Minutes of schemathesis
    #[arg(long, value_name = "N", default_value_t = 0.5, value_parser = minutes)]
    minutes: f64,

    /// Seed of schemathesis
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u32,
}

/// Suites that every change is tested by: what they need is small.
const QUICK: [&str; 3] = ["openai-python", "openai-node", "schemathesis"];

/// Sets up, serves, runs the suites and reports in a table.
pub(crate) fn run(args: &Args) -> Result<()> {
    let brolly = match &args.brolly {
        Some(path) => fs::canonicalize(path).map_err(file_failure(path))?,
        None => runtime_only::build(&setup::run()?, &[])?,
    };
    let is_asked = |name: &str| args.suites.is_empty() || args.suites.iter().any(|s| s == name);
    let suites: Vec<&Suite> = SUITES.iter().filter(|suite| is_asked(suite.name)).collect();
    run_suites(brolly, &suites, args.minutes * 60.0, args.seed)
}

/// Runs the quick suites whose packages can be had; returns what was left out.
pub(crate) fn run_quick(brolly: PathBuf) -> Result<String> {
    let folder = folder()?;
    let (mut able, mut left_out) = (Vec::new(), Vec::new());
    for suite in SUITES.iter().filter(|suite| QUICK.contains(&suite.name)) {
        match (suite.prepare)(&folder) {
            Ok(_) => able.push(suite),
            Err(failure) => {
                eprintln!("{} is left out: {failure}", suite.name);
                left_out.push(suite.name);
            }
        }
    }
    run_suites(brolly, &able, 30.0, 1)?;
    Ok(match left_out.is_empty() {
        true => String::new(),
        false => format!("without {}", left_out.join(", ")),
    })
}

fn folder() -> Result<PathBuf> {
    let folder = root().join("target/clients");
    fs::create_dir_all(&folder).map_err(file_failure(&folder))?;
    Ok(folder)
}

fn run_suites(brolly: PathBuf, suites: &[&Suite], seconds: f64, seed: u32) -> Result<()> {
    let folder = folder()?;
    let stories = compile(&brolly, &root().join("tests/data/stories"), &folder, "stories")?;
    let encoder = compile(&brolly, &encoder(&folder)?, &folder, "encoder")?;
    let decoder_server = Server::start(&brolly, &stories)?;
    let encoder_server = Server::start(&brolly, &encoder)?;
    let stage = Stage {
        brolly,
        folder,
        artifacts: [stories, encoder],
        urls: [decoder_server.url().to_owned(), encoder_server.url().to_owned()],
        schemathesis_seconds: seconds,
        seed,
    };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for suite in suites {
        eprintln!("\n== {}", suite.name);
        let start = Instant::now();
        let outcome = (suite.run)(&stage);
        rows.push(row(suite.name, start, &outcome, &mut failed));
    }
    for (name, server) in [("stop", decoder_server), ("stop, encoder", encoder_server)] {
        let start = Instant::now();
        rows.push(row(name, start, &server.stop().map(|()| Outcome::Passed), &mut failed));
    }
    println!("\n{}", table(&rows, false));
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::Explained(format!("failed: {}", failed.join(", ")))),
    }
}

fn row(
    name: &str,
    start: Instant,
    outcome: &Result<Outcome>,
    failed: &mut Vec<String>,
) -> Vec<String> {
    let (word, remark) = match outcome {
        Ok(Outcome::Passed) => ("passed", String::new()),
        Ok(Outcome::Skipped(reason)) => ("skipped", reason.clone()),
        Err(failure) => {
            eprintln!("error: {failure}");
            failed.push(name.to_owned());
            ("FAILED", failure.to_string().lines().next().unwrap_or_default().to_owned())
        }
    };
    [name, word, &duration(start.elapsed()), &remark].map(str::to_owned).to_vec()
}

/// Compiles `model` to `name.brolly` in `folder`; the server calls it `name`.
fn compile(brolly: &Path, model: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let artifact = folder.join(format!("{name}.brolly"));
    process::run(command(brolly).arg("compile").arg(model).arg("-o").arg(&artifact))?;
    Ok(artifact)
}

/// A model of embeddings with a tokenizer: random weights, and a vocabulary of characters.
fn encoder(folder: &Path) -> Result<PathBuf> {
    let to = folder.join("encoder");
    fs::create_dir_all(&to).map_err(file_failure(&to))?;
    for file in [
        "tests/data/families/bert-gelu/config.json",
        "tests/data/families/bert-gelu/model.safetensors",
        "tests/clients/encoder/tokenizer.json",
    ] {
        let from = root().join(file);
        let name = from.file_name().unwrap_or_default();
        fs::copy(&from, to.join(name)).map_err(file_failure(&from))?;
    }
    Ok(to)
}

fn minutes(text: &str) -> std::result::Result<f64, String> {
    let minutes = text.parse().ok().filter(|minutes: &f64| (0.1..=600.0).contains(minutes));
    minutes.ok_or_else(|| "must be a number from 0.1 to 600".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_bounded() {
        assert_eq!(minutes("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "inf", "x", ""] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_failure_is_shown_and_kept() {
        let mut failed = Vec::new();
        let failure = Err(Failure::Explained("first\nsecond".to_owned()));
        let shown = row("x", Instant::now(), &failure, &mut failed);
        assert_eq!((shown[1].as_str(), shown[3].as_str()), ("FAILED", "first"));
        row("y", Instant::now(), &Ok(Outcome::Skipped("why".to_owned())), &mut failed);
        assert_eq!(failed, ["x"]);
    }
}
