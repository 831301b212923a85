//! Activations and softmax from their definitions.

use crate::rule::{Example, Match, Numerics, Rule, always};

/// A term of `x` and a factor, times `x` and one half, in each association.
macro_rules! half_of {
    ($name:literal, $factor:literal, $example:literal, $result:literal, $guard:expr) => {
        [
            half_of!(@ concat!($name, "-inner-half"), concat!("(mul* ?x (mul* ?h ", $factor, "))"),
                concat!("(mul %0 (mul (constant 0.5f32) ", $example, "))"), $result, $guard),
            half_of!(@ concat!($name, "-outer-half"), concat!("(mul* ?h (mul* ?x ", $factor, "))"),
                concat!("(mul (mul %0 ", $example, ") (constant 0.5f32))"), $result, $guard),
            half_of!(@ concat!($name, "-half-operand"), concat!("(mul* (mul* ?x ?h) ", $factor, ")"),
                concat!("(mul (mul %0 (constant 0.5f32)) ", $example, ")"), $result, $guard),
        ]
    };
    (@ $name:expr, $lhs:expr, $before:expr, $result:literal, $guard:expr) => {
        Rule {
            name: $name,
            lhs: $lhs,
            rhs: concat!("(", $result, " ?x)"),
            guard: $guard,
            numerics: Numerics::Approximate,
            example: Example {
                leaves: &["f32[3,5]"],
                before: $before,
                after: concat!("(", $result, " %0)"),
            },
        }
    };
}

/// Activations.
pub(super) static ACTIVATIONS: &[&[Rule]] = &[
    &[
        Rule {
            name: "sigmoid",
            lhs: "(reciprocal (add* ?one (exp (neg ?x))))",
            rhs: "(sigmoid ?x)",
            guard: |m| m.is("?one", 1.0),
            numerics: Numerics::Exact,
            example: Example {
                leaves: &["f32[3,5]"],
                before: "(reciprocal (add (exp (neg %0)) (constant 1f32)))",
                after: "(sigmoid %0)",
            },
        },
        Rule {
            name: "sigmoid-quotient",
            lhs: "(div ?one (add* ?one2 (exp (neg ?x))))",
            rhs: "(sigmoid ?x)",
            guard: |m| m.is("?one", 1.0).and(m.is("?one2", 1.0)),
            numerics: Numerics::Exact,
            example: Example {
                leaves: &["f32[3,5]"],
                before: "(div (constant 1f32) (add (exp (neg %0)) (constant 1f32)))",
                after: "(sigmoid %0)",
            },
        },
        Rule {
            name: "silu",
            lhs: "(mul* ?x (sigmoid ?x))",
            rhs: "(silu ?x)",
            guard: always,
            numerics: Numerics::Exact,
            example: Example {
                leaves: &["f32[3,5]"],
                before: "(mul (sigmoid %0) %0)",
                after: "(silu %0)",
            },
        },
        Rule {
            name: "relu",
            lhs: "(maximum ?x ?zero)",
            rhs: "(relu ?x)",
            guard: |m| (m.scalar("?zero")? == 0.0).then_some(()),
            numerics: Numerics::Exact,
            example: Example {
                leaves: &["f32[3,5]"],
                before: "(maximum %0 (constant 0f32))",
                after: "(relu %0)",
            },
        },
    ],
    &half_of!(
        "gelu-quotient",
        "(add* ?one (erf (div ?x ?c)))",
        "(add (erf (div %0 (constant 1.4142135f32))) (constant 1f32))",
        "gelu",
        |m| gelu(m, std::f64::consts::SQRT_2)
    ),
    &half_of!(
        "gelu-product",
        "(add* ?one (erf (mul* ?x ?c)))",
        "(add (constant 1f32) (erf (mul %0 (constant 0.70710677f32))))",
        "gelu",
        |m| gelu(m, std::f64::consts::FRAC_1_SQRT_2)
    ),
    &half_of!(
        "gelu-tanh-cube",
        "(add* ?one (tanh (mul* ?c (add* ?x (mul* ?k (mul* (mul ?x ?x) ?x))))))",
        "(add (constant 1f32) (tanh (mul (constant 0.7978846f32) \
         (add %0 (mul (constant 0.044715f32) (mul (mul %0 %0) %0))))))",
        "gelu_tanh",
        gelu_tanh
    ),
    &half_of!(
        "gelu-tanh-left",
        "(add* ?one (tanh (mul* ?c (add* ?x (mul* ?x (mul* ?x (mul* ?k ?x)))))))",
        "(add (constant 1f32) (tanh (mul (constant 0.7978846f32) \
         (add %0 (mul (mul (mul (constant 0.044715f32) %0) %0) %0)))))",
        "gelu_tanh",
        gelu_tanh
    ),
    &half_of!(
        "gelu-tanh-factored",
        "(add* ?one (tanh (mul* (mul* ?c ?x) (add* ?one (mul* ?x (mul* ?k ?x))))))",
        "(add (constant 1f32) (tanh (mul (mul (constant 0.7978846f32) %0) \
         (add (constant 1f32) (mul (mul (constant 0.044715f32) %0) %0)))))",
        "gelu_tanh",
        gelu_tanh
    ),
];

/// Softmax along an axis.
pub(super) static SOFTMAX: &[Rule] = &[
    Rule {
        name: "divide-by-sum",
        lhs: "(mul* ?e (reciprocal (reduce_sum ?e ?axes true)))",
        rhs: "(div ?e (reduce_sum ?e ?axes true))",
        guard: always,
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3,5]"],
            before: "(mul (exp %0) (reciprocal (reduce_sum (exp %0) [1] true)))",
            after: "(div (exp %0) (reduce_sum (exp %0) [1] true))",
        },
    },
    Rule {
        name: "softmax-less-maximum",
        lhs: "(div (exp (sub ?x (reduce_max ?x ?axes true))) \
              (reduce_sum (exp (sub ?x (reduce_max ?x ?axes true))) ?axes true))",
        rhs: "(softmax ?x ?axis)",
        guard: one_axis,
        numerics: Numerics::Exact,
        example: Example {
            leaves: &["f32[3,5]"],
            before: "(div (exp (sub %0 (reduce_max %0 [1] true))) \
                     (reduce_sum (exp (sub %0 (reduce_max %0 [1] true))) [1] true))",
            after: "(softmax %0 1)",
        },
    },
    Rule {
        name: "softmax",
        lhs: "(div (exp ?x) (reduce_sum (exp ?x) ?axes true))",
        rhs: "(softmax ?x ?axis)",
        guard: one_axis,
        numerics: Numerics::Reassociates,
        example: Example {
            leaves: &["f32[3,5]"],
            before: "(div (exp %0) (reduce_sum (exp %0) [0] true))",
            after: "(softmax %0 0)",
        },
    },
];

fn one_axis(m: &mut Match<'_>) -> Option<()> {
    let [axis] = *m.ints("?axes") else { return None };
    m.set_attr("?axis", axis);
    Some(())
}

/// The constants of the error-function form.
fn gelu(m: &mut Match<'_>, c: f64) -> Option<()> {
    m.is("?one", 1.0)?;
    m.is("?h", 0.5)?;
    m.near("?c", c)
}

/// The constants of the tanh form.
fn gelu_tanh(m: &mut Match<'_>) -> Option<()> {
    m.is("?one", 1.0)?;
    m.is("?h", 0.5)?;
    m.near("?k", 0.044715)?;
    m.near("?c", (2.0 / std::f64::consts::PI).sqrt())
}
