//! Normalisations: spellings of powers and roots, then RMS norm, then layer norm.
//!
//! A layer norm is the RMS norm of what is left when the mean is taken off, so one pattern finds
//! both.

use ir::{Attrs, Tensor};

use crate::rule::{Example, Match, Numerics, Rule, always};

/// Longest weight of ones that is made up: far above any model's width.
const MAX_ONES: usize = 1 << 20;

/// Powers, roots and means in one spelling.
pub(super) static SPELLING: &[Rule] = &[
    Rule {
        name: "pow-2",
        lhs: "(pow ?x ?c)",
        rhs: "(mul ?x ?x)",
        guard: |m| m.is("?c", 2.0),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3]"],
            before: "(pow %0 (constant 2f32))",
            after: "(mul %0 %0)",
        },
    },
    Rule {
        name: "pow-3",
        lhs: "(pow ?x ?c)",
        rhs: "(mul (mul ?x ?x) ?x)",
        guard: |m| m.is("?c", 3.0),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3]"],
            before: "(pow %0 (constant 3f32))",
            after: "(mul (mul %0 %0) %0)",
        },
    },
    Rule {
        name: "pow-half",
        lhs: "(pow ?x ?c)",
        rhs: "(sqrt ?x)",
        guard: |m| m.is("?c", 0.5),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3]"],
            before: "(pow (mul %0 %0) (constant 0.5f32))",
            after: "(sqrt (mul %0 %0))",
        },
    },
    Rule {
        name: "pow-minus-half",
        lhs: "(pow ?x ?c)",
        rhs: "(rsqrt ?x)",
        guard: |m| m.is("?c", -0.5),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3]"],
            before: "(pow (mul %0 %0) (constant -0.5f32))",
            after: "(rsqrt (mul %0 %0))",
        },
    },
    Rule {
        name: "reciprocal-sqrt",
        lhs: "(reciprocal (sqrt ?x))",
        rhs: "(rsqrt ?x)",
        guard: always,
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3]"],
            before: "(reciprocal (sqrt (mul %0 %0)))",
            after: "(rsqrt (mul %0 %0))",
        },
    },
    Rule {
        name: "divide-by-sqrt",
        lhs: "(div ?a (sqrt ?x))",
        rhs: "(mul ?a (rsqrt ?x))",
        guard: always,
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3]"],
            before: "(div %0 (sqrt (mul %0 %0)))",
            after: "(mul %0 (rsqrt (mul %0 %0)))",
        },
    },
    Rule {
        name: "one-times",
        lhs: "(mul* ?c ?x)",
        rhs: "?x",
        guard: |m| m.is("?c", 1.0),
        numerics: Numerics::Exact,
        example: Example { leaves: &["f32[3]"], before: "(mul %0 (constant 1f32))", after: "%0" },
    },
    Rule {
        name: "sum-of-squares",
        lhs: "(reduce_sum (mul ?x ?x) ?axes ?keep)",
        rhs: "(reduce_sum_square ?x ?axes ?keep)",
        guard: always,
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,4]"],
            before: "(reduce_sum (mul %0 %0) [1] true)",
            after: "(reduce_sum_square %0 [1] true)",
        },
    },
    Rule {
        name: "sum-over-size",
        lhs: "(div (reduce_sum ?x ?axes ?keep) ?n)",
        rhs: "(reduce_mean ?x ?axes ?keep)",
        guard: |m| m.is("?n", extent(m, "?x", "?axes")?),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,4]"],
            before: "(div (reduce_sum %0 [1] true) (constant 4f32))",
            after: "(reduce_mean %0 [1] true)",
        },
    },
    Rule {
        name: "sum-times-inverse-size",
        lhs: "(mul* (reduce_sum ?x ?axes ?keep) ?n)",
        rhs: "(reduce_mean ?x ?axes ?keep)",
        guard: |m| m.near("?n", 1.0 / extent(m, "?x", "?axes")?),
        numerics: Numerics::Approximate,
        example: Example {
            leaves: &["f32[3,5]"],
            before: "(mul (reduce_sum %0 [1] true) (constant 0.2f32))",
            after: "(reduce_mean %0 [1] true)",
        },
    },
    Rule {
        name: "keep-mean-axes",
        lhs: "(reshape (reduce_mean ?x ?axes false) ?shape)",
        rhs: "(reduce_mean ?x ?axes true)",
        guard: always,
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,4]"],
            before: "(reshape (reduce_mean %0 [1] false) <3,1>)",
            after: "(reduce_mean %0 [1] true)",
        },
    },
];

/// RMS norm and layer norm.
pub(super) static NORMS: &[Rule] = &[
    Rule {
        name: "rms-norm",
        lhs: "(mul* (mul* ?x (rsqrt (add* (reduce_mean (mul ?x ?x) ?axes true) ?e))) ?w)",
        rhs: "(rms_norm ?x ?v ?eps)",
        guard: |m| {
            m.last_axis("?axes", "?x")?;
            m.as_vector("?w", "?v")?;
            m.set_attr("?eps", m.scalar("?e")?);
            Some(())
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,4]", "weight f32[4]"],
            before: "(mul %1 (mul %0 (rsqrt (add (reduce_mean (mul %0 %0) [1] true) \
                     (constant 0.5f32)))))",
            after: "(rms_norm %0 %1 0.5)",
        },
    },
    Rule {
        name: "rms-norm-without-weight",
        lhs: "(mul* ?x (rsqrt (add* (reduce_mean (mul ?x ?x) ?axes true) ?e)))",
        rhs: "(rms_norm ?x ?ones ?eps)",
        guard: |m| {
            m.last_axis("?axes", "?x")?;
            let ty = m.ty("?x")?;
            let (dtype, h) = (ty.dtype, usize::try_from(ty.shape.last()?.as_const()?).ok()?);
            (h <= MAX_ONES).then_some(())?;
            let ones = Tensor::from_f64s(dtype, &[h], vec![1.0; h]);
            m.set_op("?ones", "constant", &Attrs::none().with("value", ones), &[])?;
            m.set_attr("?eps", m.scalar("?e")?);
            Some(())
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,2]"],
            before: "(mul %0 (rsqrt (add (reduce_mean (mul %0 %0) [1] true) (constant 0.5f32))))",
            after: "(rms_norm %0 (constant 1,1f32) 0.5)",
        },
    },
    Rule {
        name: "layer-norm",
        lhs: "(rms_norm (sub ?x (reduce_mean ?x ?axes true)) ?w ?eps)",
        rhs: "(layer_norm ?x ?w none ?eps)",
        guard: |m| m.last_axis("?axes", "?x"),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3,4]", "weight f32[4]"],
            before: "(rms_norm (sub %0 (reduce_mean %0 [1] true)) %1 0.5)",
            after: "(layer_norm %0 %1 none 0.5)",
        },
    },
    Rule {
        name: "layer-norm-bias",
        lhs: "(add* (layer_norm ?x ?w none ?eps) ?b)",
        rhs: "(layer_norm ?x ?w ?v ?eps)",
        guard: |m| m.as_vector("?b", "?v"),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,4]", "weight f32[4]", "weight f32[4]"],
            before: "(add (layer_norm %0 %1 none 0.5) %2)",
            after: "(layer_norm %0 %1 %2 0.5)",
        },
    },
];

/// Number of elements that a reduction over `axes` takes together.
#[allow(clippy::cast_precision_loss, reason = "extents are far below 2^53")]
fn extent(m: &Match<'_>, x: &str, axes: &str) -> Option<f64> {
    let ty = m.ty(x)?;
    let mut n = 1;
    for a in m.ints(axes) {
        n *= ty.shape.get(usize::try_from(*a).ok()?)?.as_const()?;
    }
    Some(n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rule::{Compiled, Limits, saturate},
        rules::tests::terms_of,
    };

    /// Whether one round of every rule joins the terms.
    fn joined(leaves: &[&str], a: &str, b: &str) -> bool {
        let (mut terms, ids) = terms_of(leaves, &[a, b]);
        let rules: Vec<_> =
            SPELLING.iter().chain(NORMS).map(|r| Compiled::new(r).unwrap()).collect();
        saturate(&mut terms, &rules, Limits { rounds: 4, nodes: 10_000, matches: 1000 });
        terms.egraph.find(ids[0]) == terms.egraph.find(ids[1])
    }

    #[test]
    fn constants_that_are_almost_whole_are_kept() {
        for (almost, whole) in [
            ("(mul %0 (constant 1.0000005f32))", "%0"),
            ("(pow %0 (constant 2.000001f32))", "(mul %0 %0)"),
            ("(pow %0 (constant 0.5000001f32))", "(sqrt %0)"),
            ("(div (reduce_sum %0 [1] true) (constant 4.000001f32))", "(reduce_mean %0 [1] true)"),
        ] {
            assert!(!joined(&["f32[3,4]"], almost, whole), "{almost}");
        }
    }

    #[test]
    fn no_weight_of_ones_is_made_up_for_an_absurd_width() {
        let norm = "(mul %0 (rsqrt (add (reduce_mean (mul %0 %0) [1] true) (constant 0.5f32))))";
        let (mut terms, ids) = terms_of(&["f32[1,1099511627776]"], &[norm]);
        let rules: Vec<_> = NORMS.iter().map(|r| Compiled::new(r).unwrap()).collect();
        saturate(&mut terms, &rules, Limits { rounds: 1, nodes: 10_000, matches: 1000 });
        let class = terms.egraph.find(ids[0]);
        assert!(terms.egraph[class].nodes.iter().all(|n| n.op("rms_norm").is_none()));
    }
}
