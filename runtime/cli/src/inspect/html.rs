//! `inspect --html`: one page that needs nothing but itself.

mod parts;

use std::fmt::Write as _;

use super::{Document, document::Entry, timeline::timeline};
use crate::{plan::PINNED, table};
use parts::{Column, bar, cell, data_table, facts, graph, kernels, number};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub(crate) fn page(document: &Document<'_>) -> String {
    let title = escape(&document.artifact);
    let mut body = format!("<h1>{title}</h1>\n");
    body += &facts(document);
    body += &memory(document);
    body += &fusions(document);
    for entry in &document.programs {
        body += &section(entry);
    }
    body += &weights(document);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}<script>\n{SCRIPT}</script>\n</body>\n\
         </html>\n"
    )
}

/// Text as HTML, attributes included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

fn memory(document: &Document<'_>) -> String {
    let summary = &document.summary;
    let mut out = String::from("<h2>Memory</h2>\n");
    let parts = summary.parts();
    out += &bar(&parts);
    let columns = [Column::text("use"), Column::number("bytes"), Column::number("share")];
    let total = summary.predicted_peak_bytes.max(1) as f64;
    let row = |name: &str, bytes: u64| {
        let share = bytes as f64 / total;
        vec![
            cell(name),
            number(bytes as f64, &table::bytes(bytes)),
            number(share, &format!("{:.1} %", share * 100.0)),
        ]
    };
    let mut rows: Vec<_> = parts.iter().map(|(name, bytes)| row(name, *bytes)).collect();
    rows.push(row("predicted peak", summary.predicted_peak_bytes));
    if summary.memory.pinned_bytes > 0 {
        // No share of what it is not a part of.
        let bytes = summary.memory.pinned_bytes;
        rows.push(vec![cell(PINNED), number(bytes as f64, &table::bytes(bytes)), cell("")]);
    }
    out += &data_table(&columns, &rows);
    let keys = if summary.memory.state_bytes > 0 {
        " Keys and values have room for one sequence of the greatest length."
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "<p>For {}.{keys} What runs never takes more than predicted.</p>",
        table::plural(summary.threads, "thread")
    );
    out
}

fn fusions(document: &Document<'_>) -> String {
    if document.regions.is_empty() {
        return String::new();
    }
    let mut out = String::from("<h2>Fusions</h2>\n");
    let columns = [Column::text("kind"), Column::number("fused"), Column::number("of")];
    let rows: Vec<_> = document
        .fusions
        .iter()
        .map(|f| {
            let count = |n: u64| number(n as f64, &n.to_string());
            vec![cell(&f.kind), count(f.count), count(f.regions)]
        })
        .collect();
    out += &data_table(&columns, &rows);
    let columns = [
        Column::text("kind"),
        Column::text("function"),
        Column::text("source node"),
        Column::number("times"),
        Column::text("fused"),
    ];
    let rows: Vec<_> = document
        .regions
        .iter()
        .map(|r| {
            let fused = match &r.why_not {
                _ if r.fused => "yes".to_owned(),
                Some(why) => format!("no: {why}"),
                None => "no".to_owned(),
            };
            vec![
                cell(&r.kind),
                cell(&r.function),
                cell(&r.loc),
                number(r.count as f64, &r.count.to_string()),
                cell(&fused),
            ]
        })
        .collect();
    let open = if document.regions.iter().all(|r| r.fused) { "" } else { " open" };
    let _ = writeln!(
        out,
        "<details{open}><summary>every region</summary>\n{}</details>",
        data_table(&columns, &rows)
    );
    out
}

fn section(entry: &Entry<'_>) -> String {
    let mut out = format!("<h2>Entry <code>{}</code></h2>\n", escape(entry.name));
    let mut rows = Vec::new();
    let roles = [("input", &entry.inputs), ("output", &entry.outputs), ("state", &entry.states)];
    for (role, ports) in roles {
        rows.extend(ports.iter().map(|p| vec![cell(role), cell(p.name), cell(&p.r#type)]));
    }
    let columns = [Column::text("role"), Column::text("name"), Column::text("type")];
    let bounds: Vec<String> =
        entry.symbols.iter().map(|(s, b)| format!("{s} in {}..{}", b.lo, b.hi)).collect();
    let _ = writeln!(
        out,
        "<details><summary>{}, {}, {}; {}</summary>\n{}</details>",
        table::plural(entry.inputs.len(), "input"),
        table::plural(entry.outputs.len(), "output"),
        table::plural(entry.states.len(), "state"),
        escape(&bounds.join(", ")),
        data_table(&columns, &rows)
    );
    out += "<h3>Memory timeline</h3>\n";
    out += &timeline(entry.program);
    out += "<h3>Graph by function</h3>\n";
    out += &graph(entry);
    out += "<h3>Kernels</h3>\n";
    out += &kernels(entry);
    out
}

fn weights(document: &Document<'_>) -> String {
    let columns = [
        Column::text("weight"),
        Column::text("type"),
        Column::text("shape as packed"),
        Column::number("bytes"),
        Column::text("made from"),
    ];
    let rows: Vec<_> = document
        .weights
        .iter()
        .map(|w| {
            vec![
                cell(w.name),
                cell(w.dtype),
                cell(&format!("{:?}", w.shape)),
                number(w.bytes as f64, &table::bytes(w.bytes)),
                cell(&w.sources.join(", ")),
            ]
        })
        .collect();
    format!(
        "<h2>Weights</h2>\n<details><summary>{} packed weights, {}</summary>\n{}</details>\n",
        rows.len(),
        table::bytes(document.manifest.weight_bytes()),
        data_table(&columns, &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic, *};

    #[test]
    fn the_page_is_complete_and_stands_alone() {
        let (manifest, report) = synthetic::decoder(3);
        let document = Document::new("a <b>.brolly".into(), 1, &manifest, &report, 2).unwrap();
        let html = page(&document);
        // For a look at it: BROLLY_PAGE=page.html cargo test -p brolly the_page
        if let Some(path) = std::env::var_os("BROLLY_PAGE") {
            std::fs::write(path, &html).unwrap();
        }
        assert!(html.contains("<title>a &lt;b&gt;.brolly</title>"));
        assert_eq!(html.matches("<b>layer").count(), 1, "layers are folded");
        assert!(html.contains("<b>layer × 3</b> <i>4 launches each, calls 0-2</i></span>"));
        assert_eq!(html.matches("<rect class=\"norm\" x=").count(), 3);
        assert!(html.contains("class=\"peak\""));
        for outside in ["http://", "https://", "src=", "href=", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
        for tag in ["table", "tr", "td", "details", "summary", "svg", "p", "span"] {
            let opened = html.matches(&format!("<{tag}>")).count()
                + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(escape("<a b='\"&'>"), "&lt;a b=&#39;&quot;&amp;&#39;&gt;");
    }
}
