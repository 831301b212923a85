//! What was found, as tables and as JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use crate::{Case, supervisor::Findings, worker::Outcome};

/// Failures that are printed in full.
const SHOWN: usize = 40;

/// A case and what came of it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    family: &'a str,
    target: &'a str,
    symbol: &'a str,
    outcome: &'a Option<Outcome>,
    tflops: Option<f64>,
    gigabytes_per_second: Option<f64>,
}

/// All of it as JSON.
#[must_use]
pub fn json(cases: &[Case], findings: &Findings) -> String {
    let row = |(case, outcome)| {
        let case: &Case = case;
        let outcome: &Option<Outcome> = outcome;
        let us = outcome.as_ref().and_then(|o| o.us);
        let rate = |work: f64, unit: f64| us.map(|us| work / us / unit);
        Row {
            name: &case.name,
            family: &case.family,
            target: &case.target,
            symbol: &case.launch.symbol,
            outcome,
            tflops: case.timing.as_ref().and_then(|t| rate(t.flops, 1e6)),
            gigabytes_per_second: case.timing.as_ref().and_then(|t| rate(t.bytes, 1e3)),
        }
    };
    let rows: Vec<Row<'_>> = cases.iter().zip(&findings.outcomes).map(row).collect();
    let all = serde_json::json!({
        "device": findings.device,
        "failed": findings.failed,
        "cases": rows,
    });
    serde_json::to_string_pretty(&all).expect("plain data")
}

/// Whether every case was run and is right.
#[must_use]
pub fn is_right(findings: &Findings) -> bool {
    let right = |outcome: &Option<Outcome>| outcome.as_ref().is_some_and(|o| o.error.is_none());
    findings.failed.is_none() && findings.outcomes.iter().all(right)
}

/// What the device is.
#[must_use]
pub fn device(findings: &Findings) -> String {
    let mut text = String::new();
    if let Some((facts, copied)) = &findings.device {
        let (major, minor) = facts.capability;
        let _ = writeln!(
            text,
            "{}: sm_{major}{minor}, {} multiprocessors at {} MHz, {} GB, {} MB of L2, CUDA {}.{}",
            facts.name,
            facts.multiprocessors,
            facts.clock_khz / 1000,
            facts.memory_bytes / 1_000_000_000,
            facts.l2_bytes >> 20,
            facts.driver / 1000,
            facts.driver % 1000 / 10
        );
        if let Some(copied) = copied {
            let _ = writeln!(text, "copies on the device: {:.0} GB/s", copied / 1e9);
        }
    }
    if let Some(failed) = &findings.failed {
        let _ = writeln!(text, "FAILED: {failed}");
    }
    text
}

/// A line for each family and architecture, and what failed.
#[must_use]
pub fn checks(cases: &[Case], findings: &Findings) -> String {
    #[derive(Default)]
    struct Sum {
        right: usize,
        wrong: usize,
        missing: usize,
        worst: f64,
    }
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    let mut text = String::new();
    let mut failures = Vec::new();
    for (case, outcome) in cases.iter().zip(&findings.outcomes) {
        let sum = sums.entry((&case.family, &case.target)).or_default();
        match outcome {
            None => sum.missing += 1,
            Some(Outcome { error: Some(error), worst, .. }) => {
                sum.wrong += 1;
                failures.push(format!("{}: {error} (error {worst:.2e} of the bound)", case.name));
            }
            Some(outcome) => {
                sum.right += 1;
                sum.worst = sum.worst.max(outcome.worst);
            }
        }
    }
    let _ = writeln!(
        text,
        "{:<12} {:<8} {:>6} {:>6} {:>8}  worst of those right, of the bound",
        "family", "target", "right", "wrong", "not run"
    );
    for ((family, target), sum) in &sums {
        let _ = writeln!(
            text,
            "{family:<12} {target:<8} {:>6} {:>6} {:>8}  {:.3}",
            sum.right, sum.wrong, sum.missing, sum.worst
        );
    }
    for failure in failures.iter().take(SHOWN) {
        let _ = writeln!(text, "WRONG {failure}");
    }
    if failures.len() > SHOWN {
        let _ = writeln!(text, "and {} more, in the JSON", failures.len() - SHOWN);
    }
    text
}

/// A line for each case that was timed, beside a peer's microseconds by its names, and those of
/// cuBLASLt where the runtime has it compute the product.
#[must_use]
pub fn timings(
    cases: &[Case],
    findings: &Findings,
    peer: &BTreeMap<String, f64>,
    library: &BTreeMap<String, f64>,
) -> String {
    let copied = findings.device.as_ref().and_then(|(_, copied)| *copied);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<32} {:>10} {:>9} {:>9} {:>7} {:>10} {:>8} {:>11}  check",
        "", "us", "TFLOP/s", "GB/s", "of copy", "peer us", "peer/us", "cuBLASLt us"
    );
    for (case, outcome) in cases.iter().zip(&findings.outcomes) {
        let Some(timing) = &case.timing else { continue };
        let peers = peer.get(&timing.peer);
        let check = match outcome {
            None => "not run".to_owned(),
            Some(Outcome { error: Some(error), .. }) => format!("WRONG {error}"),
            Some(outcome) => format!("{:.2} of the bound", outcome.worst),
        };
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let us = outcome.as_ref().and_then(|o| o.us);
        let rate = us.map(|us| timing.bytes / us / 1e3);
        let part = rate.zip(copied).map(|(rate, copied)| rate * 1e9 / copied);
        let _ = writeln!(
            text,
            "{:<32} {:>10} {:>9} {:>9} {:>7} {:>10} {:>8} {:>11}  {check}",
            timing.peer,
            shown(us, 1),
            shown(us.map(|us| timing.flops / us / 1e6), 1),
            shown(rate, 0),
            shown(part, 2),
            shown(peers.copied(), 1),
            shown(us.zip(peers).map(|(us, peer)| peer / us), 2),
            shown(library.get(&timing.peer).copied(), 1),
        );
    }
    text
}
