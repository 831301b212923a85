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
    let (plan, cap) = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml")) {
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
        (Plan::of(artifact.manifest(), cx.threads().get(), &symbols)?, None)
    };
    let cap = args.memory.or(cap);
    if args.json {
        output::json(&Document {
            predicted_peak_bytes: plan.predicted_peak_bytes,
            memory_cap_bytes: cap,
            threads: cx.threads().get(),
            ranks: vec![Rank { rank: 0, plan: &plan }],
        })?;
    } else {
        output::print(&plan.table())?;
    }
    plan.check(cap)
}
