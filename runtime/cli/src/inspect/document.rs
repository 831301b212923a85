//! `inspect --json`: everything, for programs.

use ir::{Interval, Port, Program, Symbols, Target, artifact::Manifest};
use serde::Serialize;

use super::{
    Cost, FusionCount, Item, Region, Report, Step, Summary, counts, outline, state_symbols,
};
use crate::failure::Result;

/// An artifact.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    /// The file.
    pub(crate) artifact: String,
    /// The file's size.
    pub(crate) bytes: u64,
    pub(crate) format: u32,
    pub(crate) source_digest: String,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) fusions: Vec<FusionCount>,
    /// The regions that `fusions` counts.
    pub(crate) regions: &'a [Region],
    /// Schedules that the compiler was given.
    pub(crate) tuning: &'a [serde_json::Value],
    pub(crate) programs: Vec<Entry<'a>>,
    pub(crate) weights: Vec<Weight<'a>>,
    #[serde(skip)]
    pub(crate) manifest: &'a Manifest,
}

/// An entry point.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) symbols: &'a Symbols,
    pub(crate) inputs: Vec<Typed<'a>>,
    pub(crate) outputs: Vec<Typed<'a>>,
    pub(crate) states: Vec<Typed<'a>>,
    pub(crate) kernels: Vec<KernelUse<'a>>,
    /// Launches by function.
    pub(crate) outline: Vec<Item>,
    pub(crate) launches: Vec<LaunchOf<'a>>,
    /// Bytes of the arena: the exact peak at the bounds.
    pub(crate) arena_bytes: u64,
    /// What lies where and when in the arena.
    pub(crate) memory_timeline: &'a [Interval],
    #[serde(skip)]
    pub(crate) program: &'a Program,
    #[serde(skip)]
    pub(crate) largest: Step,
    #[serde(skip)]
    pub(crate) smallest: Step,
}

/// A named input, output or state.
#[derive(Debug, Serialize)]
pub(crate) struct Typed<'a> {
    pub(crate) name: &'a str,
    pub(crate) r#type: String,
}

/// A kernel and what one launch of it costs.
#[derive(Debug, Serialize)]
pub(crate) struct KernelUse<'a> {
    pub(crate) op: &'a str,
    pub(crate) symbol: &'a str,
    pub(crate) launches: usize,
    pub(crate) flops: String,
    pub(crate) bytes: String,
    /// In the smallest step.
    pub(crate) smallest: Cost,
    /// In the largest step.
    pub(crate) largest: Cost,
}

/// A launch.
#[derive(Debug, Serialize)]
pub(crate) struct LaunchOf<'a> {
    pub(crate) kernel: u32,
    pub(crate) label: &'a str,
}

/// A packed weight.
#[derive(Debug, Serialize)]
pub(crate) struct Weight<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: &'static str,
    pub(crate) shape: &'a [u64],
    pub(crate) bytes: u64,
    pub(crate) sources: &'a [String],
}

impl<'a> Document<'a> {
    /// Everything about an artifact, run with so many threads.
    ///
    /// # Errors
    /// As [`Summary::of`].
    pub(crate) fn new(
        artifact: String,
        bytes: u64,
        manifest: &'a Manifest,
        report: &'a Report,
        threads: usize,
    ) -> Result<Document<'a>> {
        let states = state_symbols(manifest);
        let entry = |program| Entry::new(program, &manifest.target, &states);
        let weight = |w: &'a ir::artifact::PackedWeight| Weight {
            name: &w.name,
            dtype: w.dtype.name(),
            shape: &w.shape,
            bytes: w.bytes,
            sources: &w.sources,
        };
        Ok(Document {
            artifact,
            bytes,
            format: manifest.format,
            source_digest: manifest.source_digest.to_string(),
            summary: Summary::of(manifest, threads)?,
            fusions: counts(&report.fusions),
            regions: &report.fusions,
            tuning: &report.tuning,
            programs: manifest.programs.iter().map(entry).collect(),
            weights: manifest.weights.iter().map(weight).collect(),
            manifest,
        })
    }
}

impl<'a> Entry<'a> {
    fn new(program: &'a Program, target: &Target, states: &[(String, i64)]) -> Entry<'a> {
        let typed = |ports: &'a [Port]| {
            ports.iter().map(|p| Typed { name: &p.name, r#type: p.ty.to_string() }).collect()
        };
        let largest = Step::largest(program, target, states);
        let smallest = Step::smallest(program, target, states);
        let kernel = |(number, k): (usize, &'a ir::Kernel)| KernelUse {
            op: &k.op,
            symbol: &k.symbol,
            launches: program.launches.iter().filter(|l| l.kernel as usize == number).count(),
            flops: k.flops.to_string(),
            bytes: k.bytes.to_string(),
            smallest: smallest.cost(k),
            largest: largest.cost(k),
        };
        let launch = |l: &'a ir::Launch| LaunchOf { kernel: l.kernel, label: &l.label };
        Entry {
            name: &program.name,
            symbols: &program.symbols,
            inputs: typed(&program.inputs),
            outputs: typed(&program.outputs),
            states: typed(&program.states),
            kernels: program.kernels.iter().enumerate().map(kernel).collect(),
            outline: outline(program),
            launches: program.launches.iter().map(launch).collect(),
            arena_bytes: program.arena_bytes,
            memory_timeline: &program.intervals,
            program,
            largest,
            smallest,
        }
    }
}
