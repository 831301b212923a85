//! The `brolly` command: compiles models and runs them.
//!
//! Everything that it does stands in the crates below; here are the command line ([`args`]), one
//! file a command ([`commands`]), and how results and failures are shown ([`output`], [`failure`]).
//!
//! A panic is a bug of ours and is told as one, in a line, with exit code 70.

mod args;
mod commands;
mod context;
mod failure;
mod inspect;
mod keys_values;
mod npy;
mod output;
mod panics;
mod plan;
mod session;
mod source;
mod table;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use context::Context;
use failure::Result;

fn main() -> ExitCode {
    panics::install();
    let cli = Cli::parse();
    context::log_to_stderr();
    match panics::caught(|| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let cx = Context::new(&cli.global)?;
    let result = match &cli.command {
        Command::Compile(args) => commands::compile(args, &cx),
        Command::Check(args) => commands::check(args, &cx),
        Command::Generate(args) => commands::generate(args, &cx),
        Command::Score(args) => commands::score(args, &cx),
        Command::Embed(args) => commands::embed(args, &cx),
        Command::Exec(args) => commands::exec(args, &cx),
        Command::Serve(args) => commands::serve(args, &cx),
        Command::Train(args) => commands::train(args, &cx),
        Command::Plan(args) => commands::plan(args, &cx),
        Command::Inspect(args) => commands::inspect(args, &cx),
        Command::Bench(args) => commands::bench(args, &cx),
        Command::Tune(args) => commands::tune(args, &cx),
        Command::Opt(args) => commands::opt(args, &cx),
    };
    // A timeline of what was done before it went wrong helps most.
    let traced = cx.finish();
    result.and(traced)
}
