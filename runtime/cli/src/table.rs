//! Tables and figures for people: columns that line up, bytes and times in fitting units.

use std::fmt::Write as _;

/// Rows of cells under a header; numbers are right-aligned.
#[derive(Debug, Default)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of columns; a name that begins with `>` is that of a right-aligned one.
    pub(crate) fn new(header: &[&str]) -> Table {
        Table { header: header.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.header.len(), "cells of a row");
        self.rows.push(cells.into());
    }

    /// The lines, indented by two spaces. Without rows there is nothing to show.
    pub(crate) fn render(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let right: Vec<bool> = self.header.iter().map(|h| h.starts_with('>')).collect();
        let header: Vec<String> =
            self.header.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
        let has_header = header.iter().any(|h| !h.is_empty());
        let rows: Vec<&Vec<String>> =
            has_header.then_some(&header).into_iter().chain(&self.rows).collect();
        let width =
            |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        let mut out = String::new();
        for row in rows {
            let mut line = String::from(" ");
            for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
                let gap = " ".repeat(width - cell.chars().count());
                let (before, after) = if *right { (&*gap, "") } else { ("", &*gap) };
                let _ = write!(line, " {before}{cell}{after} ");
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}

/// Bytes in binary units: `1.50 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// A count in decimal units: `1.50 GFLOP`.
pub(crate) fn count(n: f64, unit: &str) -> String {
    let text = scaled(n, 1000.0, &["", "k", "M", "G", "T", "P", "E"]) + unit;
    text.trim_end().to_owned()
}

/// A time in a fitting unit: `1.50 ms`.
pub(crate) fn seconds(s: f64) -> String {
    match s {
        s if s >= 60.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s if s >= 0.9995 => format!("{s:.2} s"),
        s if s >= 0.999_5e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.2} µs", s * 1e6),
    }
}

/// A number of things: `1 thread`, `2 threads`.
pub(crate) fn plural(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

fn scaled(n: f64, base: f64, units: &[&str]) -> String {
    let mut value = n;
    let mut unit = 0;
    // What would be printed as a whole step is.
    while value >= base - 0.005 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = if unit == 0 && value.fract() == 0.0 { 0 } else { 2 };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["stage", ">time"]);
        table.row(["import".into(), seconds(0.0123)]);
        table.row(["é".into(), seconds(75.0)]);
        let text = table.render();
        assert_eq!(text, "  stage         time\n  import    12.30 ms\n  é       1 min 15 s\n");
    }

    #[test]
    fn figures_are_in_fitting_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.00 MiB");
        assert_eq!(count(12.0, "FLOP"), "12 FLOP");
        assert_eq!(count(2.5e9, "FLOP"), "2.50 GFLOP");
        assert_eq!(seconds(2.5e-6), "2.50 µs");
        assert_eq!(seconds(0.999_9), "1.00 s");
    }
}
