//! Products of one operand with several weights, merged into one: query, key and value.

use std::collections::BTreeMap;

use egg::Id;
use ir::{Attr, Attrs, Dim, PANEL};

use crate::egraph::{Data, Terms};

/// A product that may join others: its class, weight, bias and width.
struct Part {
    class: Id,
    weight: Id,
    bias: Option<Id>,
    width: i64,
}

/// Adds, for each operand that several plain products read, one product over the weights' panels
/// side by side, of which each is a slice.
///
/// Widths must be multiples of [`PANEL`], so that panels stay whole; products with and without a
/// bias do not mix. Whether merging pays is the extractor's decision.
pub(super) fn merge_products(terms: &mut Terms) {
    for ((x, _), parts) in groups(terms) {
        if parts.len() > 1 {
            merge(terms, x, &parts);
        }
    }
    terms.egraph.rebuild();
}

/// Plain products by operand and by what must be alike: weight type and presence of a bias.
fn groups(terms: &Terms) -> BTreeMap<(Id, String), Vec<Part>> {
    let egraph = &terms.egraph;
    let mut groups: BTreeMap<(Id, String), Vec<Part>> = BTreeMap::new();
    let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    for class in ids {
        for node in &egraph[class].nodes {
            let Some((&[x, w, bias, residual], &[n, act])) = node.op("linear") else { continue };
            let (Data::Attr(Attr::Int(width)), Data::Attr(Attr::Str(act))) =
                (&egraph[n].data, &egraph[act].data)
            else {
                continue;
            };
            let plain = &**act == "none" && matches!(egraph[residual].data, Data::Absent);
            let Some(ty) = egraph[w].data.ty() else { continue };
            if !plain || width % PANEL as i64 != 0 || !egraph[w].data.weight_only() {
                continue;
            }
            let bias = (!matches!(egraph[bias].data, Data::Absent)).then_some(bias);
            if bias.is_some_and(|b| !egraph[b].data.weight_only()) {
                continue;
            }
            let key = (egraph.find(x), format!("{} {}", ty.dtype, bias.is_some()));
            let part = Part { class, weight: egraph.find(w), bias, width: *width };
            let parts = groups.entry(key).or_default();
            if parts.iter().all(|p| p.weight != part.weight) {
                parts.push(part);
            }
        }
    }
    groups
}

fn merge(terms: &mut Terms, x: Id, parts: &[Part]) {
    let product = (|| {
        let join = |terms: &mut Terms, ids: Vec<Id>| {
            let ids: Vec<_> = ids.into_iter().map(Some).collect();
            terms.op("concat", &Attrs::none().with("axis", 0i64), &ids)
        };
        let weight = join(terms, parts.iter().map(|p| p.weight).collect())?;
        let biases: Option<Vec<Id>> = parts.iter().map(|p| p.bias).collect();
        let bias = biases.map(|ids| join(terms, ids)).transpose()?;
        let n: i64 = parts.iter().map(|p| p.width).sum();
        terms.op("linear", &Attrs::none().with("n", n), &[Some(x), Some(weight), bias, None])
    })();
    let Ok(product) = product else { return };
    let mut start = 0;
    for part in parts {
        let range = vec![Dim::from(start), Dim::from(start + part.width)];
        start += part.width;
        let attrs = Attrs::none().with("axis", -1i64).with("range", range);
        if let Ok(slice) = terms.op("slice", &attrs, &[Some(product)]) {
            terms.join(part.class, slice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::terms_of;

    #[test]
    fn products_of_one_operand_become_slices_of_one() {
        let leaves = ["f32[3,5]", "weight f32[5,32]", "weight f32[5,16]", "weight f32[5,19]"];
        let (mut terms, ids) = terms_of(
            &leaves,
            &[
                "(linear %0 (pack %1) none none 32 :none)",
                "(linear %0 (pack %2) none none 16 :none)",
                "(linear %0 (pack %3) none none 19 :none)",
            ],
        );
        merge_products(&mut terms);
        let merged = "(linear %0 (concat (pack %1) (pack %2) 0) none none 48 :none)";
        for (id, range) in [(ids[0], "<0,32>"), (ids[1], "<32,48>")] {
            let slice = format!("(slice {merged} 1 {range} 1)").parse().unwrap();
            assert_eq!(terms.egraph.lookup_expr(&slice), Some(terms.egraph.find(id)));
        }
        assert_eq!(terms.egraph[ids[2]].nodes.len(), 1, "19 columns are not whole panels");
    }
}
