//! What the compiler fused, and why not the rest.

use serde::{Deserialize, Serialize};

use crate::table::Table;

/// A region of the source that has a fused form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Region {
    /// `attention`, `norm`, `mlp`, ..
    pub(crate) kind: String,
    /// The function that it is in.
    pub(crate) function: String,
    /// The source node that computes its result.
    pub(crate) loc: String,
    /// How often the function runs in one run of the entries.
    pub(crate) count: u64,
    /// Whether one operator computes it.
    pub(crate) fused: bool,
    /// Where not, the reason.
    pub(crate) why_not: Option<String>,
}

/// The compiler's report, as the artifact carries it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Report {
    /// Every region.
    #[serde(default)]
    pub(crate) fusions: Vec<Region>,
    /// Schedules that the compiler was given, as tables have them.
    #[serde(default)]
    pub(crate) tuning: Vec<serde_json::Value>,
}

/// Regions of one kind, counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FusionCount {
    /// The kind.
    pub(crate) kind: String,
    /// How many are fused; a region inside a function called L times counts L.
    pub(crate) count: u64,
    /// How many there are.
    pub(crate) regions: u64,
    /// Why others are not.
    pub(crate) why_not: Vec<String>,
}

/// Counts regions by kind, in the order in which kinds first occur.
pub(crate) fn counts(regions: &[Region]) -> Vec<FusionCount> {
    let mut out: Vec<FusionCount> = Vec::new();
    for region in regions {
        let at = out.iter().position(|c| c.kind == region.kind).unwrap_or_else(|| {
            let kind = region.kind.clone();
            out.push(FusionCount { kind, count: 0, regions: 0, why_not: Vec::new() });
            out.len() - 1
        });
        out[at].regions += region.count;
        out[at].count += if region.fused { region.count } else { 0 };
        if let Some(why) = region.why_not.as_ref().filter(|_| !region.fused) {
            out[at].why_not.push(format!("{} in `{}`: {why}", region.loc, region.function));
        }
    }
    out
}

/// The counts as a table, reasons under it; empty where there is nothing to fuse.
pub(crate) fn fusion_table(counts: &[FusionCount]) -> String {
    let mut table = Table::new(&["fused", ">count"]);
    for c in counts {
        table.row([c.kind.clone(), format!("{} of {}", c.count, c.regions)]);
    }
    let mut out = table.render();
    for c in counts {
        for why in &c.why_not {
            out += &format!("  not fused: {}: {why}\n", c.kind);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_counts_as_often_as_its_function_runs() {
        let region = |kind: &str, count, why_not: Option<&str>| Region {
            kind: kind.into(),
            function: "layer".into(),
            loc: "attn".into(),
            count,
            fused: why_not.is_none(),
            why_not: why_not.map(Into::into),
        };
        let regions = [
            region("attention", 6, None),
            region("norm", 1, None),
            region("attention", 2, Some("the mask is dense")),
        ];
        let counts = counts(&regions);
        assert_eq!((counts[0].count, counts[0].regions, counts[1].count), (6, 8, 1));
        assert_eq!(counts[0].why_not, ["attn in `layer`: the mask is dense"]);
        let text = fusion_table(&counts);
        assert!(text.contains("attention  6 of 8\n") && text.contains("mask is dense"), "{text}");
    }
}
