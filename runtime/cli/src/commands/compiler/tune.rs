//! `brolly tune`: searches schedules for this machine and writes them to a table.

use std::{path::Path, time::Duration};

use driver::{Family, Timed, TuneOptions, Tuned, Tuning};
use serde_json::json;

use super::options::{self, tuning};
use crate::{
    args::{self, Tune},
    context::Context,
    failure::{Failure, Result},
    output,
    table::Table,
};

fn family(family: args::Family) -> Family {
    match family {
        args::Family::F32 => Family::F32,
        args::Family::Bf16 => Family::Bf16,
        args::Family::F16 => Family::F16,
        args::Family::Q8 => Family::Q8,
        args::Family::Q4 => Family::Q4,
        args::Family::Fp8 => Family::Fp8,
    }
}

/// In a line.
fn schedule(tuned: &Tuned) -> String {
    if tuned.entry.tiles.is_empty() {
        return json!(tuned.entry.schedule).to_string();
    }
    json!(tuned.entry.tiles).to_string()
}

/// Times of the library as shares of the generated kernel's, by rows.
fn library(tuned: &Tuned) -> String {
    let ratio = |timed: &Timed| format!(" {:.2} of {}", timed.ratio(), timed.rows);
    let ratios: String = tuned.entry.library.iter().map(ratio).collect();
    if ratios.is_empty() { ratios } else { format!(", cuBLASLt takes{ratios}") }
}

pub(crate) fn tune(args: &Tune, cx: &Context) -> Result<()> {
    let shown = args.model.as_deref().unwrap_or(Path::new("common sizes"));
    let mut compile = options::bare(shown, &args.options, cx)?;
    let known = if args.output.exists() { tuning(&args.output)? } else { Tuning::default() };
    let options = TuneOptions {
        model: args.model.clone(),
        families: args.families.iter().copied().map(family).collect(),
        time_limit: Duration::from_secs(args.time_limit),
    };
    let failed = |e| super::failure(shown, &e, Vec::new());
    let device = driver::tuning_device(&mut compile).map_err(failed)?;
    let products = driver::products(&options, &compile).map_err(failed)?;
    if products.is_empty() {
        return Err(Failure::input(format!(
            "{}: has no product with weights of these families",
            shown.display()
        )));
    }
    let titles = ["weight", ">columns", ">k", ">tried", ">few rows", ">many rows", ""];
    let mut table = Table::new(&titles);
    let mut all: Vec<Tuned> = Vec::new();
    let found = driver::tune(&products, &options, &compile, &device, |product, tuned| {
        let gate = if product.gated { "gated " } else { "" };
        let weight = format!("{gate}{}", product.family.name());
        let time =
            |i: usize| format!("{:+.1} % of {}", (tuned.ratio[i] - 1.0) * 100.0, tuned.rows[i]);
        let [few, many] = [time(0), time(1)];
        let schedule = schedule(tuned);
        eprintln!("{product}: {few}, {many} {schedule}{}", library(tuned));
        let [n, k] = [product.n, product.k].map(|v| v.to_string());
        table.row([weight, n, k, tuned.candidates.to_string(), few, many, schedule]);
        all.push(tuned.clone());
    });
    let found = found.map_err(failed)?;
    let text = found.over(&known).text();
    std::fs::write(&args.output, text).map_err(|e| {
        Failure::input(format!("--output {}: cannot be written: {e}", args.output.display()))
    })?;
    if args.json {
        return output::json(&json!({ "table": args.output, "tuned": all }));
    }
    output::print(&format!("{}\n\n{}", args.output.display(), table.render()))
}
