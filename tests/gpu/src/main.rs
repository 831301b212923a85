//! `gpu-check FOLDER`: checks, or times, the kernels of a folder of cases on the first GPU.
#![allow(clippy::print_stdout, reason = "a command line tool: its results go to stdout")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use clap::Parser;
use gpu_check::{Case, Folder, library, models, report, supervisor, worker};

/// Checks, or times, the kernels of a folder of cases on the first GPU.
///
/// Every kernel is launched twice, must give the expected results, the same bits both times, and
/// write nothing else. Exits with 1 if anything is wrong or was not run.
#[derive(Parser)]
#[command(name = "gpu-check")]
struct Args {
    /// The folder.
    folder: PathBuf,
    /// Check whole models instead of kernels.
    #[arg(long)]
    models: bool,
    /// Write the artifact MODEL, whose weights follow from a seed, as one that holds them to OUT.
    #[arg(long, num_args = 2, value_names = ["MODEL", "OUT"])]
    store: Vec<PathBuf>,
    /// Run the cases that are timed, and time them; else the others.
    #[arg(long)]
    timings: bool,
    /// Only cases whose names hold this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Stop after so many seconds.
    #[arg(long, value_name = "N", default_value_t = 120)]
    seconds: u64,
    /// Write all that was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A peer's microseconds by names of cases, in JSON, to be printed beside.
    #[arg(long, value_name = "FILE")]
    peer: Option<PathBuf>,
    /// Compute the products among the cases that are timed by cuBLASLt, and write its microseconds
    /// by names of cases to this file, in JSON.
    #[arg(long, value_name = "FILE")]
    by_library: Option<PathBuf>,
    /// What `--by-library` has written, to be printed beside.
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
    /// Be a worker: run the cases from this number on in this process, and say so in JSON.
    #[arg(long, value_name = "N")]
    worker_from: Option<usize>,
    /// Of a worker: run every so manieth of them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    worker_step: usize,
}

/// Workers that check cases side by side.
const LANES: usize = 8;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Microseconds by names, of a file.
fn times(path: Option<&PathBuf>) -> Result<BTreeMap<String, f64>, Box<dyn std::error::Error>> {
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let times = serde_json::from_str(&fs::read_to_string(path)?);
    Ok(times.map_err(|error| format!("{}: {error}", path.display()))?)
}

fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    if let [model, out] = &args.store[..] {
        models::store(model, out)?;
        return Ok(true);
    }
    if args.models {
        return models::run(&args.folder, &args.only, |line| println!("{line}"));
    }
    let folder = Folder::new(&args.folder);
    let mut cases = folder.read()?;
    if let Some(path) = &args.by_library {
        let names = cases.iter().filter_map(|case| Some(case.timing.as_ref()?.peer.as_str()));
        let limit = Duration::from_secs(args.seconds);
        let times = library::run(names, limit, |line| println!("{line}"))?;
        fs::write(path, serde_json::to_string(&times.clone().unwrap_or_default())?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(times.is_some());
    }
    cases.retain(|case| case.timing.is_some() == args.timings && case.name.contains(&args.only));
    if let Some(first) = args.worker_from {
        let cases = cases.into_iter().enumerate().skip(first).step_by(args.worker_step.max(1));
        let cases: Vec<(usize, Case)> = cases.collect();
        worker::run(&folder, &cases, args.timings, &mut std::io::stdout())?;
        return Ok(true);
    }
    if cases.is_empty() {
        return Err(format!("no case's name holds `{}`", args.only).into());
    }
    let program = std::env::current_exe()?;
    let command = |first: usize, step: usize| {
        let mut command = Command::new(&program);
        command.arg(&args.folder).args(["--only", &args.only]);
        command.args(["--worker-from", &first.to_string(), "--worker-step", &step.to_string()]);
        if args.timings {
            command.arg("--timings");
        }
        command
    };
    // What is timed has the device for itself.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let lanes = if args.timings { 1 } else { threads.min(LANES) };
    let findings = supervisor::run(&cases, Duration::from_secs(args.seconds), lanes, command)?;
    print!("{}", report::device(&findings));
    if args.timings {
        let (peer, library) = (times(args.peer.as_ref())?, times(args.library.as_ref())?);
        print!("{}", report::timings(&cases, &findings, &peer, &library));
    } else {
        print!("{}", report::checks(&cases, &findings));
    }
    if let Some(path) = &args.json {
        fs::write(path, report::json(&cases, &findings))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report::is_right(&findings))
}
