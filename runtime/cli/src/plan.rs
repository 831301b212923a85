//! What a program takes of memory, by what it is for, before anything runs.

use exec::{Memory, memory_limit_bytes};
use ir::{Interval, Program, artifact::Manifest};
use serde::Serialize;

use crate::{
    failure::{Failure, Result},
    table::{self, Table},
};

/// Tensors that are named where a plan does not fit.
const TOLD: usize = 8;

/// Kinds of training states by what their names begin with: what people call them, prefix. All
/// other states belong to the optimizer.
const KINDS: [(&str, &[&str]); 5] = [
    ("parameters", &["param."]),
    ("gradients", &["grad."]),
    ("kept of micro-batches", &["hidden.", "kept.", "cotangent."]),
    ("weights as computed with", &["weight."]),
    (KEYS_VALUES, &["k_cache", "v_cache", "k_scales", "v_scales"]),
];
const KEYS_VALUES: &str = "keys and values";
const OPTIMIZER: &str = "optimizer";

/// What people call memory of the host that copies to and from a GPU go through: it is beside the
/// peak, which is the GPU's.
pub(crate) const PINNED: &str = "pinned on the host";

/// The memory of one rank.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    /// The sum of all categories.
    pub(crate) predicted_peak_bytes: u64,
    /// What is held for as long as the program runs, and the arenas.
    pub(crate) categories: Vec<Category>,
    /// Pinned memory of the host, which is in none of them.
    pub(crate) pinned_bytes: u64,
    pub(crate) entries: Vec<Entry>,
    #[serde(skip)]
    memory: Memory,
    /// States, and what is live at the peaks of arenas, the largest first.
    #[serde(skip)]
    tensors: Vec<(String, u64)>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Category {
    pub(crate) name: &'static str,
    pub(crate) bytes: u64,
}

/// An entry point's own memory.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) launches: usize,
    pub(crate) arena_bytes: u64,
    /// Of all threads.
    pub(crate) scratch_bytes: u64,
}

impl Plan {
    /// The plan of a manifest's entries on so many threads; `symbols` has a value for every symbol
    /// in the types of states.
    ///
    /// # Errors
    /// [`Failure::Input`] for symbols without a value.
    pub(crate) fn of(manifest: &Manifest, threads: usize, symbols: &[(&str, i64)]) -> Result<Plan> {
        Plan::with_sets(manifest, threads, symbols, 1)
    }

    /// As [`of`](Self::of), for a stage of a pipeline that keeps things of so many micro-batches at
    /// once; symbols without a value have the largest.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(crate) fn of_stage(
        manifest: &Manifest,
        threads: usize,
        symbols: &[(&str, i64)],
        sets: usize,
    ) -> Result<Plan> {
        let known = |name: &str| symbols.iter().any(|(symbol, _)| *symbol == name);
        let all = manifest.programs.iter().flat_map(|program| &program.symbols);
        let mut symbols = symbols.to_vec();
        for (name, bounds) in all.filter(|(name, _)| !known(name)) {
            if !symbols.iter().any(|(symbol, _)| *symbol == &**name) {
                symbols.push((name, bounds.hi));
            }
        }
        Plan::with_sets(manifest, threads, &symbols, sets as u64)
    }

    fn with_sets(
        manifest: &Manifest,
        threads: usize,
        symbols: &[(&str, i64)],
        sets: u64,
    ) -> Result<Plan> {
        let entries: Vec<&str> = manifest.programs.iter().map(|p| p.name.as_str()).collect();
        let predict = |manifest: &Manifest, entries: &[&str]| {
            Memory::predict(manifest, entries, threads, symbols).map_err(Failure::input)
        };
        let mut memory = predict(manifest, &entries)?;
        // Of each state alone, by a program that has no other.
        let mut states: Vec<(String, u64)> = Vec::new();
        for program in &manifest.programs {
            for port in &program.states {
                let is_part = program.parts.iter().any(|part| part.state == port.name);
                if is_part || states.iter().any(|(name, _)| **name == *port.name) {
                    continue;
                }
                let alone = Program { states: vec![port.clone()], ..bare(program) };
                let alone = Manifest { programs: vec![alone], ..manifest.clone() };
                let bytes = predict(&alone, &[&program.name])?.state_bytes;
                let copies = Program::copies(&port.name, sets);
                memory.state_bytes += bytes * (copies - 1);
                states.push((port.name.to_string(), bytes * copies));
            }
        }
        let of_kind = |name: &str| {
            let is =
                |(_, prefixes): &&(&str, &[&str])| prefixes.iter().any(|p| name.starts_with(p));
            KINDS.iter().find(is).map_or(OPTIMIZER, |(kind, _)| kind)
        };
        let sum = |kind: &str| {
            states.iter().filter(|(name, _)| of_kind(name) == kind).map(|(_, bytes)| bytes).sum()
        };
        let is_training = states.iter().any(|(name, _)| name.starts_with("grad."));
        let weights = if is_training { "frozen weights" } else { "weights" };
        let kinds = KINDS.iter().map(|(kind, _)| *kind).chain([OPTIMIZER]);
        let parts = [(weights, memory.weight_bytes)]
            .into_iter()
            .chain(kinds.map(|kind| (kind, sum(kind))))
            .chain([
                ("activations", memory.arena_bytes),
                ("scratch", memory.scratch_bytes),
                ("code", memory.code_bytes),
                ("overhead", memory.host_bytes),
            ]);
        let parts = parts.filter(|(_, bytes)| *bytes > 0);
        let mut tensors = states.clone();
        tensors.extend(manifest.programs.iter().flat_map(at_peak));
        tensors.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(Plan {
            predicted_peak_bytes: memory.total(),
            pinned_bytes: memory.pinned_bytes,
            categories: parts.map(|(name, bytes)| Category { name, bytes }).collect(),
            entries: manifest.programs.iter().map(|program| entry(program, threads)).collect(),
            memory,
            tensors,
        })
    }

    /// Compares it with a cap, or where there is none with what this process may use, which mapped
    /// weights and code do not count against.
    ///
    /// # Errors
    /// [`Failure::Input`], which names the largest tensors.
    pub(crate) fn check(&self, cap: Option<u64>) -> Result<()> {
        let (needed, limit, whose) = match cap {
            Some(cap) => (self.predicted_peak_bytes, cap, "the cap is"),
            None => match memory_limit_bytes() {
                Some(limit) => {
                    let mapped = self.memory.weight_bytes + self.memory.code_bytes;
                    (self.predicted_peak_bytes - mapped, limit, "this process may use")
                }
                None => return Ok(()),
            },
        };
        if needed <= limit {
            return Ok(());
        }
        let told = self.tensors.iter().take(TOLD);
        let told = told.map(|(name, bytes)| format!("`{name}` {}", table::bytes(*bytes)));
        let headline = format!(
            "the plan takes {} and {whose} {}: the largest tensors are",
            table::bytes(needed),
            table::bytes(limit)
        );
        let told: Vec<String> = told.collect();
        Err(Failure::input(format!("{headline} {}", told.join(", "))))
    }

    /// All of it, as lines.
    pub(crate) fn table(&self) -> String {
        let mut memory = Table::new(&["memory", ">bytes"]);
        for Category { name, bytes } in &self.categories {
            memory.row([(*name).into(), table::bytes(*bytes)]);
        }
        memory.row(["predicted peak".into(), table::bytes(self.predicted_peak_bytes)]);
        if self.pinned_bytes > 0 {
            memory.row([PINNED.into(), table::bytes(self.pinned_bytes)]);
        }
        let mut entries = Table::new(&["entry", ">launches", ">activations", ">scratch"]);
        for Entry { name, launches, arena_bytes, scratch_bytes } in &self.entries {
            let [arena, scratch] = [arena_bytes, scratch_bytes].map(|bytes| table::bytes(*bytes));
            entries.row([name.clone(), launches.to_string(), arena, scratch]);
        }
        format!("{}\n{}", memory.render(), entries.render())
    }
}

/// A program without memory.
fn bare(program: &Program) -> Program {
    let (name, symbols) = (program.name.clone(), program.symbols.clone());
    Program { name, symbols, ..Program::default() }
}

fn entry(program: &Program, threads: usize) -> Entry {
    Entry {
        name: program.name.clone(),
        launches: program.launches.len(),
        arena_bytes: program.arena_bytes,
        scratch_bytes: program.scratch_bytes().next_multiple_of(4096) * threads as u64,
    }
}

/// What is live in the arena when it is fullest.
fn at_peak(program: &Program) -> Vec<(String, u64)> {
    let is_live = |i: &&Interval, launch: u32| (i.first..=i.last).contains(&launch);
    let live = |launch: u32| program.intervals.iter().filter(move |i| is_live(i, launch));
    let launches = 0..u32::try_from(program.launches.len()).unwrap_or(u32::MAX);
    let fullest = launches.max_by_key(|launch| live(*launch).map(|i| i.bytes).sum::<u64>());
    let named = |i: &Interval| (format!("{} in {}", i.name, program.name), i.bytes);
    fullest.map_or_else(Vec::new, |launch| live(launch).map(named).collect())
}
