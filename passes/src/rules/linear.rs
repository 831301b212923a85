//! Products with weights: `linear`, what follows it, and gated pairs.

use crate::rule::{Example, Match, Numerics, Rule, always};

/// Rules that depend on an activation, one row for each that an epilogue computes.
macro_rules! activation {
    ($act:literal, $numerics:ident) => {
        Rule {
            name: concat!("linear-", $act),
            lhs: concat!("(", $act, " (linear ?x ?w ?b none ?n :none))"),
            rhs: concat!("(linear ?x ?w ?b none ?n :", $act, ")"),
            guard: always,
            numerics: Numerics::$numerics,
            example: Example {
                leaves: &["f32[3,5]", "weight f32[5,19]", "weight f32[19]"],
                before: concat!("(", $act, " (linear %0 (pack %1) %2 none 19 :none))"),
                after: concat!("(linear %0 (pack %1) %2 none 19 :", $act, ")"),
            },
        }
    };
}

/// A gated pair from two products, and from the halves of one.
macro_rules! gated {
    ($act:literal) => {
        [
            Rule {
                name: concat!("gated-linear-", $act),
                lhs: concat!(
                    "(mul* (linear ?x ?g none none ?n :",
                    $act,
                    ") (linear ?x ?u none none ?n :none))"
                ),
                rhs: concat!("(gated_linear ?x (interleave ?g ?u) ?n :", $act, ")"),
                guard: always,
                numerics: Numerics::Reassociates,
                example: Example {
                    leaves: &["f32[3,5]", "weight f32[5,19]", "weight f32[5,19]"],
                    before: concat!(
                        "(mul (linear %0 (pack %2) none none 19 :none) ",
                        "(linear %0 (pack %1) none none 19 :",
                        $act,
                        "))"
                    ),
                    after: concat!(
                        "(gated_linear %0 (interleave (pack %1) (pack %2)) 19 :",
                        $act,
                        ")"
                    ),
                },
            },
            Rule {
                name: concat!("gated-halves-", $act),
                lhs: concat!(
                    "(mul* (",
                    $act,
                    " (slice (linear ?x (pack ?w) none none ?m :none) ?a ?r 1))",
                    " (slice (linear ?x (pack ?w) none none ?m :none) ?a ?s 1))"
                ),
                rhs: concat!(
                    "(gated_linear ?x (interleave (pack (slice ?w 1 ?r 1)) ",
                    "(pack (slice ?w 1 ?s 1))) ?n :",
                    $act,
                    ")"
                ),
                guard: halves,
                numerics: Numerics::Approximate,
                example: Example {
                    leaves: &["f32[3,5]", "weight f32[5,38]"],
                    before: concat!(
                        "(mul (",
                        $act,
                        " (slice (linear %0 (pack %1) none none 38 :none) 1 <0,19> 1))",
                        " (slice (linear %0 (pack %1) none none 38 :none) 1 <19,38> 1))"
                    ),
                    after: concat!(
                        "(gated_linear %0 (interleave (pack (slice %1 1 <0,19> 1)) ",
                        "(pack (slice %1 1 <19,38> 1))) 19 :",
                        $act,
                        ")"
                    ),
                },
            },
        ]
    };
}

/// Products with weights, and what follows them.
pub(super) static PRODUCTS: &[Rule] = &[
    Rule {
        name: "matmul-to-linear",
        lhs: "(matmul ?x ?w)",
        rhs: "(linear ?x (pack ?w) none none ?n :none)",
        guard: |m| {
            let (x, w) = (m.ty("?x")?, m.ty("?w")?);
            let n = w.shape.last()?.as_const().filter(|n| *n > 0)?;
            let fits = w.rank() == 2 && x.dtype.is_float() && x.shape.last()?.as_const()? > 0;
            if !fits || m.weight_only("?x") || !m.weight_only("?w") {
                return None;
            }
            m.set_attr("?n", n);
            Some(())
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,3,5]", "weight f32[5,19]"],
            before: "(matmul %0 %1)",
            after: "(linear %0 (pack %1) none none 19 :none)",
        },
    },
    Rule {
        name: "linear-of-rows",
        lhs: "(reshape (linear ?x ?w ?b none ?n ?act) ?s)",
        rhs: "(linear (reshape ?x ?t) ?w ?b none ?n ?act)",
        guard: |m| {
            let [lead @ .., n] = m.dims("?s") else { return None };
            n.is(m.int("?n")).then_some(())?;
            let k = m.ty("?x")?.shape.last()?.clone();
            m.set_attr("?t", lead.iter().cloned().chain([k]).collect::<Vec<_>>());
            Some(())
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[6,5]", "weight f32[5,19]"],
            before: "(reshape (linear %0 (pack %1) none none 19 :none) <2,3,19>)",
            after: "(linear (reshape %0 <2,3,5>) (pack %1) none none 19 :none)",
        },
    },
    Rule {
        name: "transpose-stored-weight",
        lhs: "(transpose (cast ?w ?t) ?p)",
        rhs: "(cast (transpose ?w ?p) ?t)",
        guard: |m| m.weight_only("?w").then_some(()),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["weight bf16[4,3]"],
            before: "(transpose (cast %0 f32) [1,0])",
            after: "(cast (transpose %0 [1,0]) f32)",
        },
    },
    Rule {
        name: "slice-stored-weight",
        lhs: "(slice (cast ?w ?t) ?a ?r ?s)",
        rhs: "(cast (slice ?w ?a ?r ?s) ?t)",
        guard: |m| m.weight_only("?w").then_some(()),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["weight bf16[4,3]"],
            before: "(slice (cast %0 f32) 1 <1,3> 1)",
            after: "(cast (slice %0 1 <1,3> 1) f32)",
        },
    },
    Rule {
        name: "read-weight-as-stored",
        lhs: "(linear ?x (pack (cast ?w ?t)) ?b ?r ?n ?act)",
        rhs: "(linear ?x (pack ?w) ?b ?r ?n ?act)",
        guard: |m| (widens(m, "?w", "?t") && m.weight_only("?w")).then_some(()),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,5]", "weight bf16[5,19]"],
            before: "(linear %0 (pack (cast %1 f32)) none none 19 :none)",
            after: "(linear %0 (pack %1) none none 19 :none)",
        },
    },
    Rule {
        name: "linear-bias",
        lhs: "(add* (linear ?x ?w none none ?n :none) ?b)",
        rhs: "(linear ?x ?w ?v none ?n :none)",
        guard: |m| m.as_vector("?b", "?v"),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3,5]", "weight f32[5,19]", "weight f32[1,19]"],
            before: "(add %2 (linear %0 (pack %1) none none 19 :none))",
            after: "(linear %0 (pack %1) (reshape %2 <19>) none 19 :none)",
        },
    },
    activation!("relu", Reassociates),
    activation!("tanh", Reassociates),
    activation!("sigmoid", Reassociates),
    activation!("silu", Reassociates),
    activation!("gelu", Approximate),
    activation!("gelu_tanh", Approximate),
    Rule {
        name: "linear-residual",
        lhs: "(add* (linear ?x ?w ?b none ?n ?act) ?r)",
        rhs: "(linear ?x ?w ?b ?r ?n ?act)",
        guard: |m| (m.ty("?r")? == m.ty("?root")? && !m.weight_only("?r")).then_some(()),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3,5]", "weight f32[5,19]", "f32[3,19]"],
            before: "(add %2 (linear %0 (pack %1) none none 19 :silu))",
            after: "(linear %0 (pack %1) none %2 19 :silu)",
        },
    },
];

/// `act(x · gate) · (x · up)`.
pub(super) static GATED: &[&[Rule]] = &[
    &gated!("relu"),
    &gated!("tanh"),
    &gated!("sigmoid"),
    &gated!("silu"),
    &gated!("gelu"),
    &gated!("gelu_tanh"),
];

/// Whether a cast to `to` keeps every value.
fn widens(m: &Match<'_>, x: &str, to: &str) -> bool {
    use ir::{Attr, DType};
    let (Some(from), Attr::DType(to)) = (m.ty(x).map(|t| t.dtype), m.attr(to)) else {
        return false;
    };
    let narrow = matches!(from, DType::Bf16 | DType::F16 | DType::F8E4M3 | DType::F8E5M2);
    (narrow && matches!(to, DType::F32 | DType::F64)) || (from, *to) == (DType::F32, DType::F64)
}

/// Binds the width of two slices of one product's columns.
fn halves(m: &mut Match<'_>) -> Option<()> {
    let n = m.ty("?root")?.shape.last()?.as_const()?;
    let rank = m.ty("?root")?.rank();
    let wide = |m: &Match<'_>, r: &str| {
        let [start, end] = m.dims(r) else { return None };
        Some(end.as_const()? - start.as_const()? == n)
    };
    let last = usize::try_from(m.int("?a")).ok()? + 1 == rank;
    if !last || !m.weight_only("?w") || !wide(m, "?r")? || !wide(m, "?s")? {
        return None;
    }
    m.set_attr("?n", n);
    Some(())
}
