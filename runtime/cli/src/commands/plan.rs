//! `brolly plan`: memory by category and entry, nothing run.

use std::sync::Arc;

use ir::artifact::Artifact;
use serde::Serialize;

use crate::{
    args,
    commands::train,
    context::Context,
    failure::{Failure, Result},
    inspect::state_symbols,
    output,
    plan::Plan,
    source,
};

#[derive(Serialize)]
struct Document<'a> {
    /// Of the rank that takes most.
    predicted_peak_bytes: u64,
    memory_cap_bytes: Option<u64>,
    threads: usize,
    ranks: Vec<Rank<'a>>,
}

#[derive(Serialize)]
struct Rank<'a> {
    rank: usize,
    #[serde(flatten)]
    plan: &'a Plan,
}

pub(crate) fn plan(args: &args::Plan, cx: &Context) -> Result<()> {
    let path = &args.source.path;
    let (plans, cap) = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml")) {
        if let Some(flag) = source::first_set(&args.source.options) {
            return Err(Failure::Usage(format!(
                "{flag} is for a model: {} says itself what is trained",
                path.display()
            )));
        }
        train::plan(path, cx)?
    } else {
        let artifact: Arc<Artifact> = source::open_foreign(&args.source, cx)?;
        let symbols = state_symbols(artifact.manifest());
        let symbols: Vec<(&str, i64)> = symbols.iter().map(|(s, n)| (s.as_str(), *n)).collect();
        (vec![Plan::of(artifact.manifest(), cx.threads().get(), &symbols)?], None)
    };
    let cap = args.memory.or(cap);
    let most = plans.iter().max_by_key(|plan| plan.predicted_peak_bytes);
    let most = most.ok_or_else(|| Failure::Bug("a plan of no ranks".into()))?;
    if args.json {
        let ranks = plans.iter().enumerate().map(|(rank, plan)| Rank { rank, plan });
        output::json(&Document {
            predicted_peak_bytes: most.predicted_peak_bytes,
            memory_cap_bytes: cap,
            threads: cx.threads().get(),
            ranks: ranks.collect(),
        })?;
    } else {
        if plans.len() > 1 {
            output::print(&format!("of {} ranks, the one that takes most:\n", plans.len()))?;
        }
        output::print(&most.table())?;
    }
    most.check(cap)
}
