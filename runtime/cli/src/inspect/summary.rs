//! The facts of an artifact that fit in a few lines.

use exec::Memory;
use ir::{CudaArch, ModelInfo, artifact::Manifest};
use serde::Serialize;

use crate::{
    failure::{Failure, Result},
    keys_values::KeysValues,
    plan::PINNED,
    table::{self, Table},
};

/// What code is for: a processor, or GPUs by architecture.
fn target(manifest: &Manifest) -> String {
    if manifest.target.cuda.is_none() {
        return manifest.target.to_string();
    }
    let of = |arch: CudaArch| {
        let mut modules = manifest.modules.iter().filter(|m| m.arch == arch).peekable();
        modules.peek()?;
        let form = if modules.all(|m| m.cubin.is_some()) { "assembled" } else { "PTX" };
        Some(format!("{} ({form})", arch.name()))
    };
    let all = [CudaArch::Sm80, CudaArch::Sm90a].into_iter().filter_map(of);
    format!("NVIDIA GPUs, {}", all.collect::<Vec<_>>().join(" and "))
}

/// Counts and bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) model: ModelInfo,
    pub(crate) compiler: String,
    pub(crate) target: String,
    pub(crate) cpu_features: Vec<&'static str>,
    /// Distinct kernels of all entry points.
    pub(crate) kernels: usize,
    /// Launches of one run, by entry point.
    pub(crate) launches: Vec<(String, usize)>,
    /// How keys and values are kept, of a language model.
    pub(crate) keys_values: Option<KeysValues>,
    /// Bytes by use, for `threads` threads and one sequence of the greatest length.
    pub(crate) memory: Memory,
    pub(crate) threads: usize,
    /// What states are for.
    #[serde(skip)]
    pub(crate) states: &'static str,
    /// The sum of `memory`.
    pub(crate) predicted_peak_bytes: u64,
}

impl Summary {
    /// The summary of a manifest, run with so many threads.
    ///
    /// # Errors
    /// [`Failure::Input`] where a state's size does not follow from the bounds.
    pub(crate) fn of(manifest: &Manifest, threads: usize) -> Result<Summary> {
        let entries: Vec<&str> = manifest.programs.iter().map(|p| p.name.as_str()).collect();
        let symbols = state_symbols(manifest);
        let symbols: Vec<(&str, i64)> = symbols.iter().map(|(s, v)| (s.as_str(), *v)).collect();
        let memory =
            Memory::predict(manifest, &entries, threads, &symbols).map_err(Failure::input)?;
        let symbols = manifest.programs.iter().flat_map(|p| p.kernels.iter().map(|k| &k.symbol));
        Ok(Summary {
            model: manifest.model.clone(),
            compiler: manifest.compiler.clone(),
            target: target(manifest),
            cpu_features: manifest.target.features.iter().map(|f| f.name()).collect(),
            kernels: symbols.collect::<std::collections::BTreeSet<_>>().len(),
            launches: manifest
                .programs
                .iter()
                .map(|p| (p.name.clone(), p.launches.len()))
                .collect(),
            keys_values: manifest.programs.iter().find_map(KeysValues::of),
            memory,
            threads,
            states: match is_training(manifest) {
                true => "training's state",
                false => "keys and values",
            },
            predicted_peak_bytes: memory.total(),
        })
    }

    /// Facts and values, in the order in which they are shown.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let ModelInfo { architecture, parameters, max_seq_len, vocab_size, .. } = &self.model;
        let mut facts = vec![("model", architecture.clone())];
        let mut counted = |name, value: u64, shown: String| {
            if value > 0 {
                facts.push((name, shown));
            }
        };
        counted("parameters", *parameters, table::count(*parameters as f64, ""));
        counted("vocabulary", *vocab_size, format!("{vocab_size} tokens"));
        counted("longest sequence", *max_seq_len, format!("{max_seq_len} tokens"));
        if let Some(KeysValues { dtype, bytes_per_token }) = &self.keys_values {
            let each = table::bytes(*bytes_per_token);
            facts.push(("keys and values", format!("{dtype}, {each} a token")));
        }
        let features = self.cpu_features.join(", ");
        facts.push(match features.is_empty() {
            true => ("target", self.target.clone()),
            false => ("target", format!("{} ({features})", self.target)),
        });
        facts.push(("compiler", self.compiler.clone()));
        let launches: Vec<String> =
            self.launches.iter().map(|(entry, n)| format!("{n} launches in `{entry}`")).collect();
        facts.push(("kernels", format!("{}; {}", self.kernels, launches.join(", "))));
        facts
    }

    /// Bytes by use.
    pub(crate) fn parts(&self) -> [(&'static str, u64); 6] {
        let m = &self.memory;
        [
            ("weights", m.weight_bytes),
            ("code", m.code_bytes),
            ("arena", m.arena_bytes),
            ("scratch", m.scratch_bytes),
            (self.states, m.state_bytes),
            ("overhead", m.host_bytes),
        ]
    }

    /// Everything, as lines.
    pub(crate) fn table(&self) -> String {
        let mut facts = Table::new(&["", ""]);
        for (name, value) in self.facts() {
            facts.row([name.into(), value]);
        }
        let mut memory = Table::new(&["memory", ">bytes"]);
        for (name, bytes) in self.parts().into_iter().filter(|(_, bytes)| *bytes > 0) {
            memory.row([name.into(), table::bytes(bytes)]);
        }
        memory.row(["predicted peak".into(), table::bytes(self.predicted_peak_bytes)]);
        if self.memory.pinned_bytes > 0 {
            memory.row([PINNED.into(), table::bytes(self.memory.pinned_bytes)]);
        }
        format!("{}\n{}", facts.render(), memory.render())
    }
}

fn is_training(manifest: &Manifest) -> bool {
    manifest.programs.iter().any(|program| &*program.name == "update")
}

/// Values for the symbols in the types of states: room for one sequence of the greatest length.
pub(crate) fn state_symbols(manifest: &Manifest) -> Vec<(String, i64)> {
    let mut out: Vec<(String, i64)> = Vec::new();
    for program in &manifest.programs {
        let tables = program.inputs.iter().find(|port| &*port.name == "block_tables");
        let blocks = tables.and_then(|port| port.ty.shape.get(1)?.as_const()).unwrap_or(1);
        for symbol in program.states.iter().flat_map(|s| &s.ty.shape).flat_map(ir::Dim::symbols) {
            if !out.iter().any(|(name, _)| *name == *symbol) {
                let bounds = program.symbols.get(&symbol);
                let value = bounds.map_or(blocks, |b| blocks.clamp(b.lo, b.hi));
                out.push((symbol.to_string(), value));
            }
        }
    }
    out
}
