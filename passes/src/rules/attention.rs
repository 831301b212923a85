//! Attention, built from the bottom up.
//!
//! A product of two activations is a `score`, which takes up what surrounds it: factors of query,
//! key or scores, a softcap, biases and masks. A softmax of a score times values is `attention`;
//! then repeated key/value heads and masks that are causal by construction are taken off it. No
//! rule sees the whole, so the order and spelling of the parts do not matter.

use std::ops::RangeInclusive;

use ir::{Attrs, Dim, Tensor};

use crate::{
    masks,
    rule::{Example, Match, Numerics, Rule},
    rules::views::swap_last,
};

/// A factor or divisor of a score, or of one of its operands, joins the scale.
macro_rules! scale {
    ($name:literal, $lhs:literal, $rhs:literal, $scale:expr, $before:literal, $after:literal) => {
        Rule {
            name: $name,
            lhs: $lhs,
            rhs: $rhs,
            guard: |m| {
                let f: fn(f64, f64) -> f64 = $scale;
                let scale = f(m.float("?s"), m.scalar("?c")?);
                m.set_attr("?t", Some(scale).filter(|s| s.is_finite())?);
                Some(())
            },
            numerics: Numerics::Reassociates,
            example: Example { leaves: QK, before: $before, after: $after },
        }
    };
}

/// A mask of scores by a value becomes a bias.
macro_rules! hide {
    ($name:literal, $lhs:literal, $rhs:literal, $values:expr, $numerics:expr,
     $before:literal, $after:literal) => {
        Rule {
            name: $name,
            lhs: $lhs,
            rhs: $rhs,
            guard: |m| hidden(m, $values),
            numerics: $numerics,
            example: Example { leaves: QK, before: $before, after: $after },
        }
    };
}

const QK: &[&str] = &["f32[2,4,3,8]", "f32[2,4,5,8]", "f32[2,1,1,5]", "bool[2,1,1,5]"];

/// From products of activations to scores.
pub(super) static SCORES: &[Rule] = &[
    Rule {
        name: "score",
        lhs: "(matmul ?q ?k)",
        rhs: "(score ?q (transpose ?k ?p) none 1.0 0.0)",
        guard: |m| {
            let rank = m.ty("?q")?.rank();
            let activations = !m.weight_only("?q") && !m.weight_only("?k");
            if !activations || rank < 3 || m.ty("?k")?.rank() != rank {
                return None;
            }
            m.set_attr("?p", swap_last(rank));
            Some(())
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,3,8]", "f32[2,8,5]"],
            before: "(matmul %0 %1)",
            after: "(score %0 (transpose %1 [0,2,1]) none 1.0 0.0)",
        },
    },
    scale!(
        "factor-of-score",
        "(mul* (score ?q ?k none ?s 0.0) ?c)",
        "(score ?q ?k none ?t 0.0)",
        |s, c| s * c,
        "(mul (constant 0.5f32) (score %0 %1 none 0.5 0.0))",
        "(score %0 %1 none 0.25 0.0)"
    ),
    scale!(
        "divisor-of-score",
        "(div (score ?q ?k none ?s 0.0) ?c)",
        "(score ?q ?k none ?t 0.0)",
        |s, c| s / c,
        "(div (score %0 %1 none 0.5 0.0) (constant 2f32))",
        "(score %0 %1 none 0.25 0.0)"
    ),
    scale!(
        "factor-of-query",
        "(score (mul* ?q ?c) ?k ?b ?s ?cap)",
        "(score ?q ?k ?b ?t ?cap)",
        |s, c| s * c,
        "(score (mul %0 (constant 0.5f32)) %1 %2 0.5 0.0)",
        "(score %0 %1 %2 0.25 0.0)"
    ),
    scale!(
        "divisor-of-query",
        "(score (div ?q ?c) ?k ?b ?s ?cap)",
        "(score ?q ?k ?b ?t ?cap)",
        |s, c| s / c,
        "(score (div %0 (constant 2f32)) %1 %2 0.5 0.0)",
        "(score %0 %1 %2 0.25 0.0)"
    ),
    scale!(
        "factor-of-key",
        "(score ?q (mul* ?k ?c) ?b ?s ?cap)",
        "(score ?q ?k ?b ?t ?cap)",
        |s, c| s * c,
        "(score %0 (mul %1 (constant 0.5f32)) %2 0.5 0.0)",
        "(score %0 %1 %2 0.25 0.0)"
    ),
    scale!(
        "divisor-of-key",
        "(score ?q (div ?k ?c) ?b ?s ?cap)",
        "(score ?q ?k ?b ?t ?cap)",
        |s, c| s / c,
        "(score %0 (div %1 (constant 2f32)) %2 0.5 0.0)",
        "(score %0 %1 %2 0.25 0.0)"
    ),
    Rule {
        name: "softcap",
        lhs: "(mul* (tanh (score ?q ?k none ?s 0.0)) ?c)",
        rhs: "(score ?q ?k none ?t ?cap)",
        guard: |m| {
            let cap = m.scalar("?c").filter(|c| *c > 0.0 && c.is_finite())?;
            m.set_attr("?cap", cap);
            m.set_attr("?t", m.float("?s") * cap);
            Some(())
        },
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: QK,
            before: "(mul (tanh (score %0 %1 none 0.25 0.0)) (constant 2f32))",
            after: "(score %0 %1 none 0.5 2.0)",
        },
    },
    Rule {
        name: "bias",
        lhs: "(add* (score ?q ?k none ?s ?cap) ?b)",
        rhs: "(score ?q ?k ?b ?s ?cap)",
        guard: |m| (m.ty("?b")?.rank() <= m.ty("?root")?.rank()).then_some(()),
        numerics: Numerics::Exact,
        example: Example {
            leaves: QK,
            before: "(add %2 (score %0 %1 none 0.5 0.0))",
            after: "(score %0 %1 %2 0.5 0.0)",
        },
    },
    Rule {
        name: "second-bias",
        lhs: "(add* (score ?q ?k ?b ?s ?cap) ?c)",
        rhs: "(score ?q ?k (add ?b ?c) ?s ?cap)",
        guard: |m| (!m.absent("?b")).then_some(()),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: QK,
            before: "(add (score %0 %1 %2 0.5 0.0) %2)",
            after: "(score %0 %1 (add %2 %2) 0.5 0.0)",
        },
    },
    hide!(
        "hide-where-not",
        "(select ?m (score ?q ?k ?b ?s ?cap) ?n)",
        "(score ?q ?k (select ?m ?c ?n) ?s ?cap)",
        f64::NEG_INFINITY..=f64::NEG_INFINITY,
        Numerics::Exact,
        "(softmax (select %3 (score %0 %1 none 0.5 0.0) (constant -inff32)) 3)",
        "(softmax (score %0 %1 (select %3 (constant -0f32) (constant -inff32)) 0.5 0.0) 3)"
    ),
    hide!(
        "hide-where",
        "(select ?m ?n (score ?q ?k ?b ?s ?cap))",
        "(score ?q ?k (select ?m ?n ?c) ?s ?cap)",
        f64::NEG_INFINITY..=f64::NEG_INFINITY,
        Numerics::Exact,
        "(softmax (select %3 (constant -inff32) (score %0 %1 %2 0.5 0.0)) 3)",
        "(softmax (score %0 %1 (select %3 (constant -inff32) %2) 0.5 0.0) 3)"
    ),
    // A finite value, as exporters write it, takes up finite scores alone.
    hide!(
        "lower-where-not",
        "(select ?m (score ?q ?k ?b ?s ?cap) ?n)",
        "(score ?q ?k (select ?m ?c ?n) ?s ?cap)",
        f64::MIN..=LOW,
        Numerics::Approximate,
        "(softmax (select %3 (score %0 %1 none 0.5 0.0) (constant -3e38f32)) 3)",
        "(softmax (score %0 %1 (select %3 (constant -0f32) (constant -3e38f32)) 0.5 0.0) 3)"
    ),
    hide!(
        "lower-where",
        "(select ?m ?n (score ?q ?k ?b ?s ?cap))",
        "(score ?q ?k (select ?m ?n ?c) ?s ?cap)",
        f64::MIN..=LOW,
        Numerics::Approximate,
        "(softmax (select %3 (constant -3e38f32) (score %0 %1 %2 0.5 0.0)) 3)",
        "(softmax (score %0 %1 (select %3 (constant -3e38f32) %2) 0.5 0.0) 3)"
    ),
];

const QKV: &[&str] = &["f32[2,4,3,8]", "f32[2,4,5,8]", "f32[2,4,5,6]", "f32[2,1,1,5]"];

/// From scores to attention.
pub(super) static ATTENTION: &[Rule] = &[
    Rule {
        name: "attention",
        lhs: "(matmul (softmax (score ?q ?k ?b ?s ?cap) ?axis) ?v)",
        rhs: "(attention ?q ?k ?v none ?b ?s :full 0 ?cap)",
        guard: |m| last_of_four(m),
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: QKV,
            before: "(matmul (softmax (score %0 %1 %3 0.5 0.0) 3) %2)",
            after: "(attention %0 %1 %2 none %3 0.5 :full 0 0.0)",
        },
    },
    Rule {
        name: "attention-of-merged-batch",
        lhs: "(matmul (softmax (score ?q ?k ?b ?s ?cap) ?axis) ?v)",
        rhs: "(reshape (attention ?q4 ?k4 ?v4 none ?b4 ?s :full 0 ?cap) ?shape)",
        guard: merged_batch,
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[4,3,8]", "f32[4,5,8]", "f32[4,5,6]", "f32[1,3,5]"],
            before: "(matmul (softmax (score %0 %1 %3 0.5 0.0) 2) %2)",
            after: "(reshape (attention (reshape %0 <4,1,3,8>) (reshape %1 <4,1,5,8>) \
                    (reshape %2 <4,1,5,6>) none (reshape %3 <1,1,3,5>) 0.5 :full 0 0.0) <4,3,6>)",
        },
    },
    Rule {
        name: "drop-nan-guard",
        lhs: "(matmul (select (is_nan (softmax (score ?q ?k ?b ?s ?cap) ?axis)) ?zero \
              (softmax (score ?q ?k ?b ?s ?cap) ?axis)) ?v)",
        rhs: "(attention ?q ?k ?v none ?b ?s :full 0 ?cap)",
        guard: |m| {
            (m.scalar("?zero")? == 0.0).then_some(())?;
            last_of_four(m)
        },
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: QKV,
            before: "(matmul (select (is_nan (softmax (score %0 %1 %3 0.5 0.0) 3)) (constant 0f32) \
                     (softmax (score %0 %1 %3 0.5 0.0) 3)) %2)",
            after: "(attention %0 %1 %2 none %3 0.5 :full 0 0.0)",
        },
    },
    Rule {
        name: "drop-row-guard",
        lhs: "(matmul (select (equal* (reduce_max ?b ?axes true) ?inf) ?zero \
              (softmax (score ?q ?k ?b ?s ?cap) ?axis)) ?v)",
        rhs: "(attention ?q ?k ?v none ?b ?s :full 0 ?cap)",
        guard: |m| {
            let guard = (m.scalar("?zero")?, m.scalar("?inf")?) == (0.0, f64::NEG_INFINITY);
            guard.then(|| m.last_axis("?axes", "?b")).flatten()?;
            last_of_four(m)
        },
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: QKV,
            before: "(matmul (select (equal (reduce_max %3 [3] true) (constant -inff32)) \
                     (constant 0f32) (softmax (score %0 %1 %3 0.5 0.0) 3)) %2)",
            after: "(attention %0 %1 %2 none %3 0.5 :full 0 0.0)",
        },
    },
    Rule {
        name: "drop-known-row-guard",
        lhs: "(matmul (select ?rows ?zero (softmax (score ?q ?k ?b ?s ?cap) ?axis)) ?v)",
        rhs: "(attention ?q ?k ?v none ?b ?s :full 0 ?cap)",
        guard: |m| {
            (m.scalar("?zero")? == 0.0).then_some(())?;
            guards_empty_rows(m)?;
            last_of_four(m)
        },
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[2,4,1,8]", "f32[2,4,2,8]", "f32[2,4,2,6]"],
            before: "(matmul (select (constant 0bool) (constant 0f32) \
                     (softmax (score %0 %1 (constant 0,-1e38f32) 0.5 0.0) 3)) %2)",
            after: "(attention %0 %1 %2 none (constant 0,-1e38f32) 0.5 :full 0 0.0)",
        },
    },
    Rule {
        name: "repeated-heads",
        lhs: "(attention ?q (reshape (broadcast_to ?x ?xb) ?xs) (reshape (broadcast_to ?y ?yb) ?ys) \
              none ?b ?s ?mask ?w ?cap)",
        rhs: "(attention ?q ?k ?v none ?b ?s ?mask ?w ?cap)",
        guard: |m| {
            repeated_heads(m, "?x", "?xb", "?xs", "?k")?;
            repeated_heads(m, "?y", "?yb", "?ys", "?v")
        },
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[2,4,3,8]", "f32[2,2,5,8]", "f32[2,2,5,6]"],
            before: "(attention %0 \
                     (reshape (broadcast_to (reshape %1 <2,2,1,5,8>) <2,2,2,5,8>) <2,4,5,8>) \
                     (reshape (broadcast_to (reshape %2 <2,2,1,5,6>) <2,2,2,5,6>) <2,4,5,6>) \
                     none none 0.5 :full 0 0.0)",
            after: "(attention %0 (reshape (reshape %1 <2,2,1,5,8>) <2,2,5,8>) \
                    (reshape (reshape %2 <2,2,1,5,6>) <2,2,5,6>) none none 0.5 :full 0 0.0)",
        },
    },
    Rule {
        name: "mask-by-construction",
        lhs: "(attention ?q ?k ?v none ?b ?s :full 0 ?cap)",
        rhs: "(attention ?q ?k ?v none none ?s ?mask ?w ?cap)",
        guard: |m| {
            let (b, queries, keys) = (m.id("?b"), m.ty("?q")?.clone(), m.ty("?k")?.clone());
            let [m_, n] = [&queries, &keys].map(|t| t.shape.get(2).cloned());
            let found = masks::attention_mask(&m.terms.egraph, b, &m_?, &n?)?;
            m.set_attr("?mask", if found.causal { "causal" } else { "full" });
            m.set_attr("?w", found.window);
            Some(())
        },
        numerics: Numerics::Approximate,
        example: Example {
            leaves: &["f32[2,4,5,8]"],
            before: "(attention %0 %0 %0 none (select (less_equal (iota <5,5> 1 i64) \
                     (iota <5,5> 0 i64)) (constant 0f32) (constant -1e38f32)) 0.5 :full 0 0.0)",
            after: "(attention %0 %0 %0 none none 0.5 :causal 0 0.0)",
        },
    },
];

/// From here on a finite score beside it is lost in rounding, and the softmax gives no weight.
const LOW: f64 = -1e30;

/// Binds `?c` to the bias that the other scores keep; without one, to what changes no score, which
/// is negative zero.
fn hidden(m: &mut Match<'_>, values: RangeInclusive<f64>) -> Option<()> {
    m.scalar("?n").filter(|v| values.contains(v))?;
    if m.absent("?b") {
        return m.set_scalar("?c", -0.0, "?q");
    }
    m.set("?c", m.id("?b"));
    Some(())
}

/// The softmax runs over the keys of the batched form.
fn last_of_four(m: &mut Match<'_>) -> Option<()> {
    let rank = m.ty("?q")?.rank();
    (rank == 4 && m.int("?axis") == 3).then_some(())
}

/// The condition, a constant, names the queries from which the bias hides every key.
fn guards_empty_rows(m: &Match<'_>) -> Option<()> {
    let rows = m.fact("?rows")?.constant.as_ref()?;
    let bias = m.fact("?b")?.constant.as_ref()?;
    let (n, lead) = bias.shape().split_last()?;
    let values = bias.to_f64s();
    let hidden = |row: &[f64]| i64::from(row.iter().all(|v| *v == f64::NEG_INFINITY));
    let empty = values.chunks(*n).map(hidden);
    let empty = Tensor::from_i64s(rows.dtype(), &[lead, &[1]].concat(), empty);
    let rank = rows.rank().max(empty.rank());
    let from_end = |t: &Tensor, i: usize| t.shape().iter().rev().nth(i).copied().unwrap_or(1);
    let shape: Vec<usize> =
        (0..rank).rev().map(|i| from_end(rows, i).max(from_end(&empty, i))).collect();
    let same = rows.broadcast_to(&shape) == empty.broadcast_to(&shape);
    (same && shape.last() == Some(&1)).then_some(())
}

/// Binds operands of the batched form, one head each, from `[B·H, M, D]`.
fn merged_batch(m: &mut Match<'_>) -> Option<()> {
    if m.ty("?q")?.rank() != 3 || m.int("?axis") != 2 {
        return None;
    }
    let shape = m.ty("?root")?.shape.to_vec();
    m.set_attr("?shape", shape);
    for (from, to) in [("?q", "?q4"), ("?k", "?k4"), ("?v", "?v4"), ("?b", "?b4")] {
        if m.absent(from) || m.ty(from)?.rank() < 3 {
            m.set(to, m.id(from));
            continue;
        }
        let mut shape = m.ty(from)?.shape.to_vec();
        shape.insert(1, Dim::from(1i64));
        m.set_op(to, "reshape", &Attrs::none().with("shape", shape), &[m.id(from)])?;
    }
    Some(())
}

/// Binds `to` to the heads that `[B, G, 1, N, D]` repeats: `[B, G, N, D]`.
fn repeated_heads(m: &mut Match<'_>, x: &str, wide: &str, merged: &str, to: &str) -> Option<()> {
    let [b, g, one, n, d] = m.ty(x)?.shape.as_slice() else { return None };
    let [b2, g2, r, n2, d2] = m.dims(wide) else { return None };
    let [b3, h, n3, d3] = m.dims(merged) else { return None };
    let same = (b, n, d) == (b2, n2, d2) && (b, n, d) == (b3, n3, d3) && g == g2;
    if !same || !one.is(1) || *h != g.clone() * r.clone() {
        return None;
    }
    let shape = vec![b.clone(), g.clone(), n.clone(), d.clone()];
    m.set_op(to, "reshape", &Attrs::none().with("shape", shape), &[m.id(x)])
}

#[cfg(test)]
mod tests {
    use ir::Precision;

    use super::*;
    use crate::rules::tests::eval;

    #[test]
    fn a_hidden_score_may_be_anything() {
        // Keys that the mask hides are infinite, so that their scores are infinite or no numbers.
        let leaves = ["f32[2,4,3,8]", "f32[2,4,5,8]", "f32[2,4,5,6]", "bool[2,1,1,5]"];
        let key = "(select (reshape %3 <2,1,5,1>) %1 (constant inff32))";
        let rows: Vec<&Rule> = SCORES.iter().filter(|r| r.name == "hide-where-not").collect();
        assert_eq!(rows.len(), 1);
        let [before, after] = [rows[0].example.before, rows[0].example.after];
        let [before, after] = [before, after].map(|t| t.replace("%1", key));
        let [x, y] = [&before, &after].map(|t| eval(&leaves, t, Precision::F32));
        assert!(x[0].to_f64s().iter().all(|v| v.is_finite()), "{x:?}");
        assert_eq!(x, y);
        let mask = "(select %3 (constant -0f32) (constant -inff32))";
        let fused = format!("(attention %0 {key} %2 none {mask} 0.5 :full 0 0.0)");
        let spelt = format!("(matmul {before} %2)");
        let [x, y] = [&spelt, &fused].map(|t| eval(&leaves, t, Precision::F64));
        for (x, y) in x[0].to_f64s().into_iter().zip(y[0].to_f64s()) {
            assert!((x - y).abs() < 1e-12, "{x} and {y}");
        }
    }

    #[test]
    fn finite_values_are_not_called_exact() {
        let exact = SCORES.iter().filter(|r| r.lhs.contains("select"));
        for rule in exact.filter(|r| r.numerics == Numerics::Exact) {
            assert!(rule.example.before.contains("-inf"), "{}", rule.name);
        }
    }
}
