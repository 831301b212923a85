//! Views in one spelling, and factors outside of them.

use ir::Dim;

use crate::rule::{Example, Numerics, Rule, always};

/// Reshapes of reshapes.
pub(super) static RESHAPES: &[Rule] = &[
    Rule {
        name: "reshape-twice",
        lhs: "(reshape (reshape ?x ?s) ?t)",
        rhs: "(reshape ?x ?t)",
        guard: always,
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,3]"],
            before: "(reshape (reshape %0 <6>) <3,2>)",
            after: "(reshape %0 <3,2>)",
        },
    },
    Rule {
        name: "reshape-nothing",
        lhs: "(reshape ?x ?s)",
        rhs: "?x",
        guard: |m| (m.ty("?x")? == m.ty("?root")?).then_some(()),
        numerics: Numerics::Exact,
        example: Example { leaves: &["f32[2,3]"], before: "(reshape %0 <2,3>)", after: "%0" },
    },
];

/// Transposes of transposes, and of what a factor can leave.
pub(super) static TRANSPOSES: &[Rule] = &[
    Rule {
        name: "transpose-twice",
        lhs: "(transpose (transpose ?x ?p) ?q)",
        rhs: "(transpose ?x ?r)",
        guard: |m| {
            let at = |i: &i64| m.ints("?p").get(usize::try_from(*i).ok()?).copied();
            let perm: Vec<i64> = m.ints("?q").iter().map(at).collect::<Option<_>>()?;
            m.set_attr("?r", perm);
            Some(())
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,3,4]"],
            before: "(transpose (transpose %0 [1,2,0]) [0,2,1])",
            after: "(transpose %0 [1,0,2])",
        },
    },
    Rule {
        name: "transpose-nothing",
        lhs: "(transpose ?x ?p)",
        rhs: "?x",
        guard: |m| m.ints("?p").iter().zip(0..).all(|(p, i)| *p == i).then_some(()),
        numerics: Numerics::Exact,
        example: Example { leaves: &["f32[2,3]"], before: "(transpose %0 [0,1])", after: "%0" },
    },
    Rule {
        name: "transpose-in-merged-batch",
        lhs: "(reshape (transpose (reshape ?x ?s) [0,2,1]) ?t)",
        rhs: "(transpose (reshape ?x ?u) ?p)",
        guard: |m| {
            let ([batch, r, c], [lead @ .., c2, r2]) = (m.dims("?s"), m.dims("?t")) else {
                return None;
            };
            let product = lead.iter().fold(Dim::from(1i64), |n, d| n * d.clone());
            if (c, r) != (c2, r2) || *batch != product {
                return None;
            }
            let shape: Vec<Dim> = lead.iter().chain([r, c]).cloned().collect();
            let rank = shape.len();
            m.set_attr("?u", shape);
            m.set_attr("?p", swap_last(rank));
            Some(())
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,3,4,5]"],
            before: "(reshape (transpose (reshape %0 <6,4,5>) [0,2,1]) <2,3,5,4>)",
            after: "(transpose (reshape %0 <2,3,4,5>) [0,1,3,2])",
        },
    },
    Rule {
        name: "factor-out-of-transpose",
        lhs: "(transpose (mul* ?x ?c) ?p)",
        rhs: "(mul (transpose ?x ?p) ?c)",
        guard: |m| m.scalar("?c").map(|_| ()),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,3]"],
            before: "(transpose (mul %0 (constant 0.5f32)) [1,0])",
            after: "(mul (transpose %0 [1,0]) (constant 0.5f32))",
        },
    },
    Rule {
        name: "divisor-out-of-transpose",
        lhs: "(transpose (div ?x ?c) ?p)",
        rhs: "(div (transpose ?x ?p) ?c)",
        guard: |m| m.scalar("?c").map(|_| ()),
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,3]"],
            before: "(transpose (div %0 (constant 3f32)) [1,0])",
            after: "(div (transpose %0 [1,0]) (constant 3f32))",
        },
    },
];

/// The permutation that exchanges the last two of `rank` axes.
pub(super) fn swap_last(rank: usize) -> Vec<i64> {
    let mut perm: Vec<i64> = (0..).take(rank).collect();
    perm.swap(rank - 2, rank - 1);
    perm
}
