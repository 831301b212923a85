//! The demo's training run: its memory before, its losses, and what came of it.

use super::{Compiled, compile, json};
use crate::process::{self, Failure, Result, command, file_failure, root};
use crate::table::{duration, megabytes, table};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const CONFIG: &str = "tests/data/stories/demo.toml";
/// Where the configuration writes.
const FOLDER: &str = ".cache/demo";

/// Losses that are shown.
const SHOWN: usize = 8;

/// Of the steps at each end of a run that are compared.
const SHARE: usize = 10;

/// Trains, prints what that took, and compiles what came out.
pub(super) fn train(brolly: &Path) -> Result<Compiled> {
    let folder = root().join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(file_failure(&folder))?;
    }
    let plan = json(command(brolly).args(["plan", CONFIG, "--json"]))?;
    let planned = plan["predicted_peak_bytes"].as_f64().unwrap_or(0.0);
    let start = Instant::now();
    process::run(command(brolly).args(["train", CONFIG]))?;
    let time = start.elapsed();
    let path = folder.join("metrics.jsonl");
    let steps = steps(&fs::read_to_string(&path).map_err(file_failure(&path))?);
    println!("\n{}\n", table(&losses(&steps), true));
    println!("{}", table(&took(&steps, time, planned), true));
    if !is_falling(&steps) {
        return Err(Failure::Explained("the loss of the training run did not fall".to_owned()));
    }
    compile(brolly, &folder.join("ckpt/final"), "trained.brolly")
}

/// The lines of figures.
fn steps(metrics: &str) -> Vec<Value> {
    let lines = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["loss"].is_f64()).collect()
}

fn loss(step: &Value) -> f64 {
    step["loss"].as_f64().unwrap_or(f64::NAN)
}

fn mean(steps: &[Value]) -> f64 {
    steps.iter().map(loss).sum::<f64>() / steps.len() as f64
}

/// Whether the last steps have a smaller loss than the first ones.
fn is_falling(steps: &[Value]) -> bool {
    let few = steps.len() / SHARE;
    few > 0 && mean(&steps[steps.len() - few..]) < mean(&steps[..few])
}

/// Steps and losses, evenly spread from the first to the last.
fn losses(steps: &[Value]) -> Vec<Vec<String>> {
    let last = steps.len().saturating_sub(1);
    let places = (0..SHOWN).map(|i| i * last / (SHOWN - 1));
    let shown: Vec<&Value> = places.filter_map(|place| steps.get(place)).collect();
    let row = |label: &str, value: &dyn Fn(&Value) -> String| {
        std::iter::once(label.to_owned()).chain(shown.iter().map(|s| value(s))).collect()
    };
    vec![
        row("step", &|step| step["step"].to_string()),
        row("loss", &|step| format!("{:.2}", loss(step))),
    ]
}

fn took(steps: &[Value], time: Duration, planned: f64) -> Vec<Vec<String>> {
    let of = |key: &str| steps.iter().filter_map(|step| step[key].as_f64()).collect::<Vec<f64>>();
    let mut rates = of("tokens_per_s");
    rates.sort_by(f64::total_cmp);
    let rate = rates.get(rates.len() / 2).copied().unwrap_or(0.0);
    let peak = of("peak_bytes").into_iter().fold(0.0, f64::max);
    let rows = [
        ("training, with compiling the step", duration(time)),
        ("a step's median", format!("{rate:.0} tokens/s")),
        ("peak memory, predicted", megabytes(planned)),
        ("peak memory, measured", megabytes(peak)),
    ];
    rows.map(|(label, value)| vec![label.to_owned(), value]).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(losses: impl Iterator<Item = f64>) -> String {
        let line = |(i, loss): (usize, f64)| {
            format!("{{\"step\":{},\"loss\":{loss:?},\"peak_bytes\":{i}}}\n", i + 1)
        };
        losses.enumerate().map(line).collect::<String>() + "{\"step\":2,\"samples\":[]}\n"
    }

    #[test]
    fn losses_go_from_the_first_to_the_last() {
        let steps = steps(&metrics((0..50).map(|i| 8.0 - f64::from(i) / 10.0)));
        assert_eq!(steps.len(), 50);
        let rows = losses(&steps);
        assert_eq!(rows[0], ["step", "1", "8", "15", "22", "29", "36", "43", "50"]);
        assert_eq!((&*rows[1][1], &*rows[1][8]), ("8.00", "3.10"));
        assert_eq!(took(&steps, Duration::from_secs(1), 60.0)[3][1], megabytes(49.0));
    }

    #[test]
    fn a_loss_that_does_not_fall_is_seen() {
        let falling = |losses: Vec<f64>| is_falling(&steps(&metrics(losses.into_iter())));
        assert!(falling((0..40).map(|i| 4.0 - f64::from(i) / 20.0).collect()));
        assert!(!falling(vec![4.0; 40]));
        assert!(!falling((0..40).map(f64::from).collect()));
        assert!(!falling(vec![4.0, 3.0]), "nothing to compare");
    }
}
