//! What was measured, as a table, as JSON and in the log.

use crate::process::{Result, command, file_failure, probe};
use crate::table::table;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Lower quartile, median, upper quartile.
pub(super) type Quartiles = [f64; 3];

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Kernel family, or model.
    pub(super) what: String,
    pub(super) case: String,
    pub(super) threads: usize,
    pub(super) unit: String,
    pub(super) speed: Quartiles,
    /// Share of what the machine could do in the same round.
    pub(super) of_roofline: Option<Quartiles>,
    /// How many times faster than each peer, in the same round.
    pub(super) peers: Vec<(String, Quartiles)>,
    /// Operations and bytes a second that the machine could do.
    pub(super) roofline: Option<[f64; 2]>,
}

/// Quartiles of some values; NaN of none.
pub(super) fn quartiles(values: impl IntoIterator<Item = f64>) -> Quartiles {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    [last / 4, last / 2, last - last / 4].map(|i| values.get(i).copied().unwrap_or(f64::NAN))
}

impl Measured {
    fn cells(&self) -> Vec<String> {
        let ratio = |q: &Quartiles| format!("{:.2} ({:.2}-{:.2})", q[1], q[0], q[2]);
        let peer = |(name, q): &(String, Quartiles)| format!("{name} {}", ratio(q));
        vec![
            self.what.clone(),
            self.case.clone(),
            self.threads.to_string(),
            format!("{} {}", significant(self.speed[1]), self.unit),
            self.of_roofline.as_ref().map_or_else(String::new, ratio),
            self.peers.iter().map(peer).collect::<Vec<_>>().join(", "),
        ]
    }

    /// One line, while more is measured.
    pub(super) fn line(&self) -> String {
        self.cells().join("  ")
    }
}

/// Three digits or more.
fn significant(value: f64) -> String {
    let decimals = if value.abs() >= 10.0 {
        1
    } else if value.abs() >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}")
}

/// The aligned table, and what it was measured on.
pub(super) fn text(measured: &[Measured]) -> String {
    let header = ["what", "case", "threads", "speed", "of roofline", "times as fast as"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(measured.iter().map(Measured::cells));
    format!("{}\n\n{}", machine(measured), table(&rows, false))
}

/// The processor, and what it could do while this was measured.
fn machine(measured: &[Measured]) -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let most = measured.iter().map(|m| m.threads).max().unwrap_or(1);
    let of = |index: usize| {
        let all = measured.iter().filter(|m| m.threads == most).filter_map(|m| m.roofline);
        quartiles(all.map(|r| r[index] / 1e9))
    };
    let processor = model.map_or("unknown processor", |(_, name)| name);
    if measured.iter().all(|m| m.roofline.is_none()) {
        return format!("{processor}, {most} threads");
    }
    let [flops, bytes] = [of(0), of(1)].map(|q| format!("{:.0} to {:.0}", q[0], q[2]));
    format!(
        "{processor}, {most} threads: FMA peak {flops} GFLOP/s, read bandwidth {bytes} GB/s \
         (quartiles)"
    )
}

/// One document.
pub(super) fn json(measured: &[Measured]) -> Value {
    let row = |m: &Measured| {
        let peers = m.peers.iter().map(|(name, q)| (name.clone(), json!(q)));
        json!({
            "what": m.what,
            "case": m.case,
            "threads": m.threads,
            "unit": m.unit,
            "speed": m.speed,
            "of_roofline": m.of_roofline,
            "times_as_fast_as": peers.collect::<serde_json::Map<_, _>>(),
            "peak_flops": m.roofline.map(|r| r[0]),
            "read_bandwidth": m.roofline.map(|r| r[1]),
        })
    };
    let rows: Vec<Value> = measured.iter().map(row).collect();
    json!({ "quartiles": ["lower", "median", "upper"], "rows": rows })
}

/// Puts a section before all others of the log.
pub(super) fn log(path: &Path, text: &str) -> Result<()> {
    let old = fs::read_to_string(path).map_err(file_failure(path))?;
    let commit = probe(command("git").args(["show", "-s", "--format=%h of %cs", "HEAD"]));
    let new = with_section(&old, &commit.unwrap_or_else(|| "unknown".into()), text);
    fs::write(path, new).map_err(file_failure(path))
}

fn with_section(log: &str, commit: &str, text: &str) -> String {
    let at = log.find("\n## ").map_or(log.len(), |at| at + 1);
    let (head, rest) = log.split_at(at);
    format!(
        "{head}## `cargo xtask bench` at {commit}\n\n```text\n{}\n```\n\n{rest}",
        text.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Measured {
        Measured {
            what: "gemm f32".into(),
            case: "2x3x4".into(),
            threads: 2,
            unit: "GFLOP/s".into(),
            speed: [1.0, 2.0, 3.0],
            of_roofline: Some([0.7, 0.8, 0.9]),
            peers: vec![("OpenBLAS".into(), [1.0, 1.1, 1.2])],
            roofline: Some([2e11, 3e10]),
        }
    }

    #[test]
    fn a_row_has_its_median_between_the_quartiles() {
        assert_eq!(quartiles([5.0, 1.0, 3.0, 2.0, 4.0]), [2.0, 3.0, 4.0]);
        assert_eq!(quartiles([7.0]), [7.0; 3]);
        let text = text(&[row(), Measured { of_roofline: None, peers: Vec::new(), ..row() }]);
        assert!(text.contains("peak 200 to 200 GFLOP/s, read bandwidth 30 to 30 GB/s"), "{text}");
        assert!(
            text.contains("2.00 GFLOP/s  0.80 (0.70-0.90)  OpenBLAS 1.10 (1.00-1.20)"),
            "{text}"
        );
        assert_eq!(json(&[row()])["rows"][0]["times_as_fast_as"]["OpenBLAS"][1], 1.1);
    }

    #[test]
    fn the_log_has_the_newest_first() {
        let log = with_section("# M\n\nWords.\n\n## Old\n\nx\n", "abc of 2026-01-01", "a\nb\n");
        let wanted = "# M\n\nWords.\n\n## `cargo xtask bench` at abc of 2026-01-01\n\n\
                      ```text\na\nb\n```\n\n## Old\n\nx\n";
        assert_eq!(log, wanted);
    }
}
