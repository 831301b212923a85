//! `cargo xtask`: sets a machine up, runs every check, and shows brolly at work.
//!
//! Each subcommand is one file. The tool needs only a Rust toolchain and a C linker: it links no
//! LLVM, because installing LLVM is the first thing that it does.
#![allow(clippy::print_stdout, reason = "a command line tool: its results go to stdout")]

mod bench;
mod checks;
mod clients;
mod demo;
mod dist;
mod fuzz;
mod gpu_bundle;
mod llvm;
mod minilm;
mod needs;
mod process;
mod ptxas;
mod runtime_only;
mod setup;
mod soak;
mod table;
mod wheel;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo               set up, compile, generate, train for a minute, embed, measure
  cargo xtask test               everything that a change has to pass
  cargo xtask test --fast        formatting, lints and tests only
  cargo xtask bench --quick      a minute of measurements
  cargo xtask fuzz --seconds 600 ten minutes for every fuzz target
  cargo xtask soak               half an hour of difficult clients, and a hundred kills
  cargo xtask dist               the runtime alone, packed for deployment
  cargo xtask clients            other people's clients against `brolly serve`";

/// Sets a machine up, runs every check, and shows brolly at work.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find LLVM and MLIR 22, or install them with apt, or say exactly what is missing.
    Setup,
    /// Compile the models at hand, generate text, train one, embed sentences, print what it took.
    Demo,
    /// Run every check: formatting, lints, documentation, the runtime-only binary, the tests.
    Test {
        /// Leave out the documentation, the runtime-only binary, the clients and the downloads.
        #[arg(long)]
        fast: bool,
    },
    /// Verify and time every kernel family and whole models, beside the peers that are installed.
    Bench(bench::Args),
    /// Run the fuzz targets at length.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Kill a training run at random moments, and see that it goes on with the same bits; serve
    /// clients that leave, read slowly and send nonsense, and see that nothing leaks.
    Soak {
        /// Minutes of clients.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..9999))]
        minutes: u64,
        /// Kills of the training run.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..9999))]
        kills: u64,
    },
    /// Pack the runtime-only binary, with what runs it as a service, into target/dist.
    Dist,
    /// Run other people's clients and checks against `brolly serve`.
    Clients(clients::Args),
    /// Fetch the all-MiniLM-L6-v2 sentence encoder into .cache/minilm.
    Minilm,
    /// Fetch NVIDIA's assembler and disassembler into .cache/ptxas.
    Ptxas,
    /// Make a folder that checks a machine with a GPU: runner, kernels, expected results, a script.
    GpuBundle {
        /// The folder, which is made anew.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::run().map(|_| ()),
        Task::Demo => demo::run(),
        Task::Test { fast } => checks::run(fast),
        Task::Bench(args) => bench::run(&args),
        Task::Fuzz { seconds } => fuzz::run(seconds),
        Task::Soak { minutes, kills } => soak::run(minutes, kills),
        Task::Dist => dist::run(),
        Task::Clients(args) => clients::run(&args),
        Task::Minilm => minilm::run(),
        Task::Ptxas => ptxas::run(),
        Task::GpuBundle { folder } => gpu_bundle::run(&folder),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}
