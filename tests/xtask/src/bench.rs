//! `cargo xtask bench`: verifies and times every kernel family and whole models, beside the peers
//! that are installed.
//!
//! Shared machines change their speed from minute to minute, so only ratios within one run mean
//! anything: what this machine can do at the moment, ours and the peers' are measured by turns, and
//! quartiles over the rounds are shown. Kernels are timed by the bench of the code generator, which
//! holds the table of cases; models by `brolly bench`; this puts it together and links neither.

mod kernels;
mod models;
mod peers;
mod report;
mod serving;

use crate::process::{Failure, Result, file_failure, root};
use crate::{runtime_only, setup};
use report::Measured;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Flags of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench --quick
  cargo xtask bench --only gemv --openblas /usr/lib/libopenblas.so
  cargo xtask bench --no-kernels --model llama.brolly=llama-bf16.gguf --llama-cpp build/bin
  cargo xtask bench --no-kernels --no-models --serve llama.brolly=llama-bf16.gguf --streams 8
  cargo xtask bench --encoder minilm.brolly=minilm.onnx --python env/bin/python --log")]
pub(crate) struct Args {
    /// A minute: the first size of every family, few rounds, the in-repo model
    #[arg(long)]
    quick: bool,

    /// Kernel families whose name contains this
    #[arg(long, value_name = "FAMILY", default_value = "", conflicts_with = "no_kernels")]
    only: String,

    /// Leave the kernels out
    #[arg(long)]
    no_kernels: bool,

    /// Leave whole models out
    #[arg(long, conflicts_with_all = ["model", "encoder"])]
    no_models: bool,

    /// Code for all that this processor has, not for the baseline
    #[arg(long)]
    native: bool,

    /// A compiled language model, and the same for llama.cpp; may be repeated [default: the
    /// in-repo model]
    #[arg(long, value_name = "ARTIFACT[=GGUF]")]
    model: Vec<String>,

    /// A compiled encoder, and the same for ONNX Runtime and torch; may be repeated
    #[arg(long, value_name = "ARTIFACT[=ONNX]")]
    encoder: Vec<String>,

    /// A compiled language model to serve under load, and the same for llama-server; may be
    /// repeated
    #[arg(long, value_name = "ARTIFACT[=GGUF]")]
    serve: Vec<String>,

    /// Clients that send requests to a server at once
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,8,16,32")]
    streams: Vec<NonZeroUsize>,

    /// Folder of llama-bench, llama-batched-bench and llama-server [default: $BROLLY_LLAMA_CPP, or
    /// the PATH]
    #[arg(long, value_name = "DIR")]
    llama_cpp: Option<PathBuf>,

    /// OpenBLAS, to multiply f32 beside us [default: libopenblas.so where linkers look]
    #[arg(long, value_name = "FILE")]
    openblas: Option<PathBuf>,

    /// A Python with onnxruntime, torch or both
    #[arg(long, value_name = "PROGRAM", requires = "encoder")]
    python: Option<PathBuf>,

    /// The `brolly` to measure, with its compiler [default: built from this checkout]
    #[arg(long, value_name = "FILE")]
    brolly: Option<PathBuf>,

    /// Threads, besides one for kernels [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Rounds of whole models [default: 5; 2 with --quick]
    #[arg(long, value_name = "N")]
    rounds: Option<NonZeroUsize>,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Put the tables at the top of tests/benches/LOG.md
    #[arg(long)]
    log: bool,
}

impl Args {
    fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.threads.unwrap_or_else(all).get()
    }

    fn rounds(&self) -> usize {
        self.rounds.map_or(if self.quick { 2 } else { 5 }, NonZeroUsize::get)
    }
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut measured: Vec<Measured> = Vec::new();
    if !args.no_kernels {
        measured.extend(kernels::measure(args, &setup::run()?)?);
        if measured.is_empty() {
            return Err(Failure::Explained(format!(
                "--only {}: no family has that name",
                args.only
            )));
        }
    }
    let has_models = !args.no_models && args.only.is_empty();
    if has_models || !args.serve.is_empty() {
        let brolly = match &args.brolly {
            Some(path) => fs::canonicalize(path).map_err(file_failure(path))?,
            None => runtime_only::build(&setup::run()?, &[])?,
        };
        if has_models {
            measured.extend(models::measure(args, &brolly)?);
        }
        measured.extend(serving::measure(args, &brolly)?);
    }
    let text = report::text(&measured);
    if args.json {
        println!("{}", report::json(&measured));
    } else {
        println!("{text}");
    }
    if args.log { report::log(&root().join("tests/benches/LOG.md"), &text) } else { Ok(()) }
}
