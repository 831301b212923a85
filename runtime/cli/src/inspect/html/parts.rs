//! Pieces of the page: tables that sort, bars, and the graph.

use std::fmt::Write as _;

use super::escape;
use crate::{
    inspect::{
        Cost, Document, Item,
        document::{Entry, KernelUse},
        outline::ranges,
    },
    table,
};

/// A column's name and whether it holds numbers.
pub(super) struct Column<'a>(&'a str, bool);

impl<'a> Column<'a> {
    pub(super) fn text(name: &'a str) -> Column<'a> {
        Column(name, false)
    }

    pub(super) fn number(name: &'a str) -> Column<'a> {
        Column(name, true)
    }
}

/// A cell of text.
pub(super) fn cell(text: &str) -> String {
    format!("<td>{}</td>", escape(text))
}

/// A cell that sorts by its value.
pub(super) fn number(value: f64, shown: &str) -> String {
    format!("<td class=\"n\" data-v=\"{value}\">{}</td>", escape(shown))
}

/// A table whose rows are sorted by a click on a column's name.
pub(super) fn data_table(columns: &[Column<'_>], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
    for Column(name, is_number) in columns {
        let class = if *is_number { " class=\"n\"" } else { "" };
        let _ = write!(out, "<th{class}>{}</th>", escape(name));
    }
    out += "</tr></thead>\n<tbody>\n";
    for row in rows {
        let _ = writeln!(out, "<tr>{}</tr>", row.concat());
    }
    out + "</tbody></table></div>\n"
}

/// The facts of the head.
pub(super) fn facts(document: &Document<'_>) -> String {
    let mut out = String::from("<dl>");
    let mut facts = document.summary.facts();
    facts.push(("file", table::bytes(document.bytes)));
    facts.push(("source", document.source_digest.chars().take(16).collect()));
    for (name, value) in facts {
        let _ = write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    out + "</dl>\n"
}

/// Shares of a whole, side by side.
pub(super) fn bar(parts: &[(&str, u64)]) -> String {
    let total: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let mut out = String::from("<div class=\"bar\">");
    for (i, (name, bytes)) in parts.iter().enumerate().filter(|(_, (_, bytes))| *bytes > 0) {
        let _ = write!(
            out,
            "<span class=\"part{i}\" style=\"flex-grow:{bytes}\" title=\"{name} {}\">{}</span>",
            table::bytes(*bytes),
            // A narrow part has no room for its name.
            if *bytes as f64 > 0.012 * name.len() as f64 * total as f64 { name } else { "" }
        );
    }
    out + "</div>\n"
}

/// Launches by function, in order; calls that are alike are one.
pub(super) fn graph(entry: &Entry<'_>) -> String {
    let cost = |launch: usize| {
        let kernel = entry.program.launches[launch].kernel as usize;
        (&entry.kernels[kernel], entry.kernels[kernel].largest)
    };
    let total: Cost = (0..entry.program.launches.len()).map(|l| cost(l).1).sum();
    let share = |seconds: f64| seconds / total.seconds.max(f64::MIN_POSITIVE);
    let row = |(launch, label): (usize, &str)| {
        let (kernel, cost) = cost(launch);
        format!(
            "<li><span class=\"label\"><code>{}</code> <i>{}</i></span>{}</li>\n",
            escape(label.strip_suffix(&format!(" {}", kernel.op)).unwrap_or(label)),
            escape(kernel.op),
            meter(share(cost.seconds), cost.seconds)
        )
    };
    let mut out = String::from("<ol class=\"graph\">\n");
    for item in &entry.outline {
        match item {
            Item::Launch { launch, label } => out += &row((*launch, label)),
            Item::Function { name, calls, launches } => {
                let one: Cost = launches.iter().map(|(l, _)| cost(*l).1).sum();
                let all = one.seconds * calls.len() as f64;
                let times = match calls.as_slice() {
                    [one] => format!(".{one}"),
                    many => format!(" × {}", many.len()),
                };
                let _ = writeln!(
                    out,
                    "<li><details><summary><span class=\"label\"><b>{}{times}</b> <i>{} launches \
                     each, calls {}</i></span>{}</summary><ol>",
                    escape(name),
                    launches.len(),
                    ranges(calls),
                    meter(share(all), all)
                );
                for (launch, label) in launches {
                    out += &row((*launch, label));
                }
                out += "</ol></details></li>\n";
            }
        }
    }
    let _ = writeln!(
        out,
        "</ol>\n<p>Shares are of the estimated {} of the largest step ({}).</p>",
        table::seconds(total.seconds),
        escape(&entry.largest.describe())
    );
    out
}

/// Kernels with their cost, sorted by a click.
pub(super) fn kernels(entry: &Entry<'_>) -> String {
    let columns = [
        Column::text("kernel"),
        Column::text("operator"),
        Column::number("launches"),
        Column::number("FLOP"),
        Column::number("bytes"),
        Column::number("estimate"),
        Column::number("× launches"),
        Column::number("min FLOP"),
        Column::number("min bytes"),
        Column::number("min estimate"),
    ];
    let mut kernels: Vec<&KernelUse<'_>> = entry.kernels.iter().collect();
    let all = |k: &KernelUse<'_>| k.largest.seconds * k.launches as f64;
    kernels.sort_by(|a, b| all(b).total_cmp(&all(a)));
    let rows: Vec<_> = kernels
        .into_iter()
        .map(|k| {
            let costs = |c: &Cost| {
                [
                    number(c.flops, &table::count(c.flops, "")),
                    number(c.bytes, &table::count(c.bytes, "B")),
                    number(c.seconds, &table::seconds(c.seconds)),
                ]
            };
            let mut row = vec![
                format!("<td><code>{}</code></td>", escape(k.symbol)),
                cell(k.op),
                number(k.launches as f64, &k.launches.to_string()),
            ];
            row.extend(costs(&k.largest));
            row.push(number(all(k), &table::seconds(all(k))));
            row.extend(costs(&k.smallest));
            row
        })
        .collect();
    format!(
        "{}<p>Of one launch in the largest step ({}), and at least, in the smallest ({}); time by the \
         roofline of a core of the target, or of a whole GPU.</p>\n",
        data_table(&columns, &rows),
        escape(&entry.largest.describe()),
        escape(&entry.smallest.describe())
    )
}

/// A share as a bar, with the time beside it.
fn meter(share: f64, seconds: f64) -> String {
    format!(
        "<span class=\"meter\"><span style=\"width:{:.2}%\"></span></span> \
         <span class=\"n\">{:.1} %, {}</span>",
        share * 100.0,
        share * 100.0,
        table::seconds(seconds)
    )
}
