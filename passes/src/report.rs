//! What was fused, and why the rest was not.

mod regions;

use std::{collections::BTreeMap, sync::Arc};

use ir::Module;
use serde::Serialize;

pub(crate) use regions::regions;

/// A region of the source that has a fused form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fusion {
    /// `attention`, `norm` or `mlp`.
    pub kind: &'static str,
    /// The function that it is in.
    pub function: Arc<str>,
    /// The source node that computes its result.
    pub loc: Arc<str>,
    /// How often the function runs in one run of the entries.
    pub count: usize,
    /// Whether one operator computes it now.
    pub fused: bool,
    /// Where not, the reason.
    pub why_not: Option<String>,
}

/// What the optimiser did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Every region, function by function.
    pub fusions: Vec<Fusion>,
}

/// Regions of one kind, counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FusionCount {
    /// The kind.
    pub kind: &'static str,
    /// How many were fused; a region inside a function called L times counts L.
    pub count: usize,
    /// Why others were not.
    pub why_not: Vec<String>,
}

impl Report {
    /// Counts by kind.
    pub fn counts(&self) -> Vec<FusionCount> {
        let mut out: Vec<FusionCount> = Vec::new();
        for f in &self.fusions {
            let at = out.iter().position(|c| c.kind == f.kind).unwrap_or_else(|| {
                out.push(FusionCount { kind: f.kind, count: 0, why_not: Vec::new() });
                out.len() - 1
            });
            out[at].count += if f.fused { f.count } else { 0 };
            if let Some(why) = &f.why_not {
                out[at].why_not.push(format!("{} in `{}`: {why}", f.loc, f.function));
            }
        }
        out
    }

    /// Sets how often each region runs.
    pub(crate) fn count(&mut self, module: &Module) {
        let calls = calls(module);
        for f in &mut self.fusions {
            f.count = calls.get(&f.function).copied().unwrap_or(0);
        }
    }
}

/// How often each function runs when every entry runs once.
fn calls(module: &Module) -> BTreeMap<Arc<str>, usize> {
    let mut out: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for entry in &module.entries {
        *out.entry(entry.clone()).or_default() += 1;
    }
    for (name, graph) in module.functions.iter().rev() {
        let times = out.get(name).copied().unwrap_or(0);
        for id in graph.topo() {
            let node = graph.node(id);
            if node.op.name() == "call" {
                *out.entry(node.attrs.str("callee").into()).or_default() += times;
            }
        }
    }
    out
}
