//! Products with weights that a library computes, beside those that are generated.
//!
//! Of one row it may give other bits in another batch, so this table runs only for who asks for it.

use egg::Id;
use ir::{Attr, Attrs, DType, PANEL};

use crate::{
    egraph::{Data, Terms},
    rule::{Example, Numerics, Rule},
};

/// The library reads weights as a checkpoint holds them, by columns, and narrow activations.
pub(super) static PRODUCTS: &[Rule] = &[Rule {
    name: "linear-by-cublaslt",
    lhs: "(linear ?x (pack ?w) ?b ?r ?n :none)",
    rhs: "(cublaslt_linear ?y ?v ?b ?r ?t)",
    guard: |m| {
        let (x, w) = (m.ty("?x")?.dtype, m.ty("?w")?.dtype);
        let is_half = matches!(w, DType::Bf16 | DType::F16);
        if !is_half || ![DType::F32, w].contains(&x) || !m.weight_only("?w") {
            return None;
        }
        m.set_attr("?t", x);
        match x == w {
            true => m.set("?y", m.id("?x")),
            false => m.set_op("?y", "cast", &Attrs::none().with("to", w), &[m.id("?x")])?,
        }
        let exchanged = Attrs::none().with("perm", vec![1i64, 0]);
        m.set_op("?v", "transpose", &exchanged, &[m.id("?w")])
    },
    numerics: Numerics::Rounds,
    example: Example {
        leaves: &["f32[3,8]", "weight bf16[8,16]", "weight f32[16]", "f32[3,16]"],
        before: "(linear %0 (pack %1) %2 %3 16 :none)",
        after: "(cublaslt_linear (cast %0 bf16) (transpose %1 [1,0]) %2 %3 f32)",
    },
}];

/// Says of packed weights side by side that they are the packed weights, side by side: merged
/// products have the former, and the table above wants the latter.
pub(super) fn join_packed(terms: &mut Terms) {
    let mut ids: Vec<Id> = terms.egraph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    for class in ids {
        let nodes = terms.egraph[class].nodes.clone();
        for node in &nodes {
            let Some((parts, &[axis])) = node.op("concat") else { continue };
            if !matches!(terms.egraph[axis].data, Data::Attr(Attr::Int(0))) {
                continue;
            }
            let Some(weights) = parts.iter().map(|part| packed(terms, *part)).collect() else {
                continue;
            };
            let weights: Vec<Option<Id>> = weights;
            let side_by_side = Attrs::none().with("axis", 1i64);
            let joined = terms.op("concat", &side_by_side, &weights);
            let joined = joined.and_then(|w| terms.op("pack", &Attrs::none(), &[Some(w)]));
            if let Ok(joined) = joined {
                terms.join(class, joined);
            }
        }
    }
    terms.egraph.rebuild();
}

/// The matrix of whole panels that a class is packed from.
fn packed(terms: &Terms, class: Id) -> Option<Option<Id>> {
    let pack = |node: &crate::egraph::ENode| match node.op("pack") {
        Some((&[w], _)) => Some(w),
        _ => None,
    };
    let w = terms.egraph[class].nodes.iter().find_map(pack)?;
    let n = terms.egraph[w].data.ty()?.shape.last()?.as_const()?;
    (n % PANEL as i64 == 0).then_some(Some(w))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::terms_of;

    #[test]
    fn weights_that_were_merged_are_one_weight() {
        let leaves = ["weight bf16[8,32]", "weight bf16[8,16]", "weight bf16[8,19]"];
        let whole = "(concat (pack %0) (pack %1) 0)";
        let (mut terms, ids) = terms_of(&leaves, &[whole, "(concat (pack %0) (pack %2) 0)"]);
        join_packed(&mut terms);
        let joined = "(pack (concat %0 %1 1))".parse().unwrap();
        assert_eq!(terms.egraph.lookup_expr(&joined), Some(terms.egraph.find(ids[0])));
        assert_eq!(terms.egraph[ids[1]].nodes.len(), 1, "19 columns are not whole panels");
    }
}
