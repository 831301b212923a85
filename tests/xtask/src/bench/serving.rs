//! Servers under load: `brolly serve` and llama-server on the same weights, in turns.
//!
//! A number of clients each send one request after the other: token ids at random, of lengths
//! whose logarithms are spread evenly, and read the answer as a stream. All servers get the same.

mod load;
mod server;

use super::Args;
use super::models::pair;
use super::peers::LlamaCpp;
use super::report::{Measured, quartiles};
use crate::process::{Failure, Result};
use load::{Random, Shape};
use server::Server;
use std::path::Path;
use std::time::Instant;

/// Requests of a load: each client has one, and some have a second.
fn requests(streams: usize) -> usize {
    streams + 8
}

/// Tokens of the prefix that two requests share.
const PREFIX: usize = 1000;

/// What one server did in every round; rows by [`WHAT`].
type Rounds = Vec<[f64; WHAT.len()]>;

/// Name, unit, and whether more is better.
const WHAT: [(&str, &str, bool); 5] = [
    ("served", "tokens/s", true),
    ("TTFT p50", "s", false),
    ("TTFT p99", "s", false),
    ("ITL p50", "s", false),
    ("ITL p99", "s", false),
];

/// All models that are to be served.
pub(super) fn measure(args: &Args, brolly: &Path) -> Result<Vec<Measured>> {
    let llama = LlamaCpp::find(args)?;
    let mut measured = Vec::new();
    for model in &args.serve {
        let (artifact, gguf) = pair(model);
        let peer = match (&gguf, &llama) {
            (Some(gguf), Some(llama)) => Some((llama.server()?, gguf.as_path())),
            (Some(_), None) => {
                let reason = "a GGUF file was named, but there is no llama-server; give \
                              --llama-cpp";
                return Err(Failure::Explained(reason.into()));
            }
            (None, _) => None,
        };
        let one = Model { args, brolly, artifact: &artifact, peer };
        measured.extend(one.alone()?);
        for streams in &args.streams {
            measured.extend(one.under_load(streams.get())?);
        }
    }
    Ok(measured)
}

struct Model<'a> {
    args: &'a Args,
    brolly: &'a Path,
    artifact: &'a Path,
    peer: Option<(&'a Path, &'a Path)>,
}

impl Model<'_> {
    fn ours(&self) -> Result<Server> {
        Server::brolly(self.brolly, self.artifact, self.args.threads())
    }

    fn row(&self, case: String, unit: &str, values: &[f64]) -> Measured {
        Measured {
            what: self.artifact.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            case,
            threads: self.args.threads(),
            unit: unit.to_owned(),
            speed: quartiles(values.iter().copied()),
            of_roofline: None,
            peers: Vec::new(),
            roofline: None,
        }
    }

    /// Start, and what the prefix cache saves.
    fn alone(&self) -> Result<Vec<Measured>> {
        let (mut starts, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.args.rounds() {
            let start = Instant::now();
            let server = self.ours()?;
            let shape = |prompt, seed| Shape { prompt, new: 1, seed };
            server.ask(&shape(vec![1; 4], 0))?;
            starts.push(start.elapsed().as_secs_f64());
            let mut random = Random::new(round);
            let prefix = random.tokens(PREFIX);
            for times in [&mut cold, &mut warm] {
                let prompt = [prefix.clone(), random.tokens(16)].concat();
                times.push(server.ask(&shape(prompt, 0))?.first.as_secs_f64());
            }
        }
        let share = warm.iter().zip(&cold).map(|(warm, cold)| warm / cold);
        let mut second = self.row(format!("TTFT, {PREFIX} tokens again"), "s", &warm);
        second.peers = vec![("the first time".into(), quartiles(share.map(f64::recip)))];
        Ok(vec![self.row("exec to first token".into(), "s", &starts), second])
    }

    /// Rates and latencies with so many clients.
    fn under_load(&self, streams: usize) -> Result<Vec<Measured>> {
        let (mut ours, mut theirs) = (Rounds::new(), Rounds::new());
        let (mut http, mut beside, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.args.rounds() {
            let shapes = Random::new(round).shapes(requests(streams));
            let server = self.ours()?;
            let model_seconds = || server.metric("brolly_model_seconds_total");
            let (before, model) = (server.cpu()?, model_seconds()?);
            let start = Instant::now();
            ours.push(server.load(streams, &shapes)?);
            let (cpu, seconds) = (server.cpu()?, start.elapsed().as_secs_f64());
            http.push((cpu.http - before.http) / (cpu.all - before.all));
            beside.push(1.0 - (model_seconds()? - model) / seconds);
            memory.push(server.peak_bytes()? / server.metric("brolly_memory_reserved_bytes")?);
            drop(server);
            eprintln!("{streams} streams, round {round}: ours {:.3?}", ours[round]);
            if let Some((program, gguf)) = self.peer {
                let server = Server::llama(program, gguf, streams, self.args.threads())?;
                theirs.push(server.load(streams, &shapes)?);
                eprintln!("{streams} streams, round {round}: llama-server {:.3?}", theirs[round]);
            }
        }
        let mut rows: Vec<Measured> = Vec::new();
        for (index, (what, unit, more_is_better)) in WHAT.into_iter().enumerate() {
            let of = |rounds: &Rounds| rounds.iter().map(|r| r[index]).collect::<Vec<f64>>();
            let (a, b) = (of(&ours), of(&theirs));
            let mut row = self.row(format!("{what}, {streams} streams"), unit, &a);
            let ratio = |(a, b): (&f64, &f64)| if more_is_better { a / b } else { b / a };
            if !b.is_empty() {
                let ratios = quartiles(a.iter().zip(&b).map(ratio));
                row.peers = vec![("llama-server".into(), ratios)];
            }
            rows.push(row);
        }
        for (what, shares) in [
            ("time beside the model", &beside),
            ("CPU for HTTP", &http),
            ("memory of what was planned", &memory),
        ] {
            let percent: Vec<f64> = shares.iter().map(|share| 100.0 * share).collect();
            rows.push(self.row(format!("{what}, {streams} streams"), "%", &percent));
        }
        Ok(rows)
    }
}
