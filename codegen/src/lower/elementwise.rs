//! What each elementwise operator does to values in registers.

use ir::DType;

use super::view::{computable, memory_elem, register_elem, settle};
use crate::{
    emit::{Cmp, Elem, Emitter, Ty, Val},
    math,
};

/// The elementwise operators that kernels compute.
pub(super) const OPS: &[&str] = &[
    "neg",
    "abs",
    "sign",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "tanh",
    "erf",
    "sin",
    "cos",
    "floor",
    "ceil",
    "round",
    "not",
    "is_nan",
    "add",
    "sub",
    "mul",
    "div",
    "rem",
    "pow",
    "maximum",
    "minimum",
    "equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "and",
    "or",
    "xor",
    "bit_and",
    "bit_xor",
    "bit_shift_right",
    "select",
    "cast",
    "relu",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
];

/// Operators whose polynomials are made for f32.
const F32_ONLY: &[&str] =
    &["exp", "log", "tanh", "erf", "sin", "cos", "pow", "sigmoid", "silu", "gelu", "gelu_tanh"];

/// One application.
pub(super) struct Apply<'a> {
    pub(super) op: &'a str,
    /// Of the last operand: the condition of a `select` is always boolean.
    pub(super) from: DType,
    pub(super) to: DType,
    /// Value of the last operand, where it is a constant.
    pub(super) constant: Option<f64>,
}

impl Apply<'_> {
    /// Whether there is code for these types.
    pub(super) fn check(&self) -> Result<(), String> {
        if !OPS.contains(&self.op) {
            return Err(format!("`{}` does not work element by element", self.op));
        }
        for dtype in [self.from, self.to] {
            if !computable(dtype) {
                return Err(format!("`{}` of {dtype} has no CPU instructions", self.op));
            }
        }
        if self.from == DType::F64 && F32_ONLY.contains(&self.op) {
            return Err(format!("`{}` is computed in f32, not f64", self.op));
        }
        Ok(())
    }

    /// Emits the operator on scalars or vectors.
    pub(super) fn emit(&self, e: &Emitter, x: &[Val]) -> Val {
        settle(e, self.value(e, x), self.to)
    }

    fn value(&self, e: &Emitter, x: &[Val]) -> Val {
        let a = x[0];
        match self.op {
            "neg" => e.neg(a),
            "abs" if self.from.is_float() => e.abs(a),
            "abs" => e.max(a, e.neg(a)),
            "sign" => sign(e, a),
            "exp" => math::exp(e, a),
            "log" => math::log(e, a),
            "sqrt" => e.sqrt(a),
            "rsqrt" => math::rsqrt(e, a),
            "reciprocal" => e.div(e.like(a, 1.0), a),
            "tanh" => math::tanh(e, a),
            "erf" => math::erf(e, a),
            "sin" => math::sin(e, a),
            "cos" => math::cos(e, a),
            "floor" => e.floor(a),
            "ceil" => e.ceil(a),
            "round" => e.round_even(a),
            "not" => e.xor(a, e.int(a.ty(), 1)),
            "is_nan" => e.cmp(Cmp::Ne, a, a),
            "relu" => math::relu(e, a),
            "sigmoid" => math::sigmoid(e, a),
            "silu" => math::silu(e, a),
            "gelu" => math::gelu_erf(e, a),
            "gelu_tanh" => math::gelu_tanh(e, a),
            "select" => e.select(a, x[1], x[2]),
            "cast" => cast(e, a, self.from, self.to),
            _ => self.binary(e, a, x[1]),
        }
    }

    fn binary(&self, e: &Emitter, a: Val, b: Val) -> Val {
        let float = self.from.is_float();
        match self.op {
            "add" => e.add(a, b),
            "sub" => e.sub(a, b),
            "mul" => e.mul(a, b),
            "div" if float => e.div(a, b),
            "div" => divide(e, a, b),
            "rem" if float => remainder(e, a, b),
            "rem" => modulo(e, a, b),
            "pow" if float => power(e, a, b, self.constant),
            "pow" => integer_power(e, a, b),
            "maximum" => maximum(e, a, b),
            "minimum" => minimum(e, a, b),
            "equal" => e.cmp(Cmp::Eq, a, b),
            "less" => e.cmp(Cmp::Lt, a, b),
            "less_equal" => e.cmp(Cmp::Le, a, b),
            "greater" => e.cmp(Cmp::Gt, a, b),
            "greater_equal" => e.cmp(Cmp::Ge, a, b),
            "and" | "bit_and" => e.and(a, b),
            "or" => e.or(a, b),
            "xor" | "bit_xor" => e.xor(a, b),
            "bit_shift_right" => shift_right(e, a, b),
            other => unreachable!("`{other}` passed the check"),
        }
    }
}

/// The larger; NaN if either is.
pub(super) fn maximum(e: &Emitter, a: Val, b: Val) -> Val {
    keep_nan(e, a, e.max(a, b))
}

/// The smaller; NaN if either is.
pub(super) fn minimum(e: &Emitter, a: Val, b: Val) -> Val {
    keep_nan(e, a, e.min(a, b))
}

/// `max` and `min` return their second operand where either is NaN.
fn keep_nan(e: &Emitter, a: Val, value: Val) -> Val {
    if !a.elem().is_float() {
        return value;
    }
    e.select(e.cmp(Cmp::Ne, a, a), a, value)
}

fn sign(e: &Emitter, a: Val) -> Val {
    if a.elem().is_float() {
        let nonzero = e.cmp(Cmp::Ne, a, e.like(a, 0.0));
        let number = e.cmp(Cmp::Eq, a, a);
        return e.select(e.and(nonzero, number), e.copysign(e.like(a, 1.0), a), a);
    }
    e.max(e.int(a.ty(), -1), e.min(e.int(a.ty(), 1), a))
}

/// Truncating division; by zero it gives zero, and the smallest by -1 wraps.
pub(super) fn divide(e: &Emitter, a: Val, b: Val) -> Val {
    let int = |v| e.int(a.ty(), v);
    let (zero, minus) = (e.cmp(Cmp::Eq, b, int(0)), e.cmp(Cmp::Eq, b, int(-1)));
    let safe = e.select(e.or(zero, minus), int(1), b);
    let quotient = e.select(minus, e.neg(a), e.div(a, safe));
    e.select(zero, int(0), quotient)
}

/// Zeros come in from the left; zero where `b` is negative or at least the width.
fn shift_right(e: &Emitter, a: Val, b: Val) -> Val {
    let int = |v| e.int(a.ty(), v);
    let bits = i64::from(a.elem().bits());
    let fits = e.and(e.cmp(Cmp::Ge, b, int(0)), e.cmp(Cmp::Lt, b, int(bits)));
    e.select(fits, e.shr_by(a, e.select(fits, b, int(0))), int(0))
}

/// Remainder with the divisor's sign; by zero it gives zero.
fn modulo(e: &Emitter, a: Val, b: Val) -> Val {
    let int = |v| e.int(a.ty(), v);
    let trivial = e.or(e.cmp(Cmp::Eq, b, int(0)), e.cmp(Cmp::Eq, b, int(-1)));
    let rest = e.rem(a, e.select(trivial, int(1), b));
    let differs = e.cmp(Cmp::Lt, e.xor(rest, b), int(0));
    let adjust = e.and(differs, e.cmp(Cmp::Ne, rest, int(0)));
    e.select(trivial, int(0), e.select(adjust, e.add(rest, b), rest))
}

/// `a - trunc(a / b) b` with the dividend's sign: exact, as C's `fmod`, for f32, and for f64 with a
/// quotient below 2^1023.
///
/// In f64: a quotient of at most 53 bits is exact but for the last one; of a larger one the first
/// 53 bits are taken off per turn. What is left after a turn always fits into the 53 bits of an
/// f64, so nothing is rounded.
fn remainder(e: &Emitter, a: Val, b: Val) -> Val {
    let [dividend, divisor] = [a, b].map(|v| e.abs(e.cast(v, Elem::F64)));
    let exponent = |v: Val| e.shr(e.bitcast(v, v.ty().with_elem(Elem::I64)), 52);
    let apart = e.reduce_max(e.sub(exponent(dividend), exponent(divisor)));
    // The exponent of a subnormal f64 says up to 52 too much.
    let slack = if a.elem() == Elem::F64 { 53 } else { 1 };
    let bits = e.max(e.add_const(apart, slack), e.i64(0));
    let turns = e.add_const(e.div_unsigned(bits, e.i64(52)), 1);
    let rest = e.for_loop(e.i64(0), turns, 1, &[dividend], |_, rest| {
        let quotient = e.trunc(e.div(rest[0], divisor));
        vec![e.fma(e.neg(quotient), divisor, rest[0])]
    });
    // A rounded quotient may be one too large.
    let negative = e.cmp(Cmp::Lt, rest[0], e.like(rest[0], 0.0));
    let rest = e.select(negative, e.add(rest[0], divisor), rest[0]);
    let small = e.cmp(Cmp::Lt, dividend, divisor);
    e.copysign(e.cast(e.select(small, dividend, rest), a.elem()), a)
}

/// `a^b`. Relative error about 1e-7 · (1 + |b log a|); exact forms for common constant exponents.
fn power(e: &Emitter, a: Val, b: Val, exponent: Option<f64>) -> Val {
    let one = e.like(a, 1.0);
    match exponent {
        Some(0.0) => return one,
        Some(1.0) => return a,
        Some(2.0) => return e.mul(a, a),
        Some(3.0) => return e.mul(e.mul(a, a), a),
        Some(0.5) => return e.sqrt(a),
        Some(-0.5) => return math::rsqrt(e, a),
        Some(-1.0) => return e.div(one, a),
        _ => {}
    }
    let zero = e.like(a, 0.0);
    let log = math::log(e, e.abs(a));
    let product = e.mul(b, log);
    let lost = e.fma(b, log, e.neg(product));
    let size = math::exp(e, product);
    let finite = e.cmp(Cmp::Lt, e.abs(lost), one);
    let size = e.select(finite, e.fma(size, lost, size), size);
    // A negative base needs a whole exponent, and an odd one keeps the sign.
    let whole = e.cmp(Cmp::Eq, e.floor(b), b);
    let half = e.mul(b, e.like(a, 0.5));
    let odd = e.and(whole, e.cmp(Cmp::Ne, e.floor(half), half));
    let signed = e.select(odd, e.copysign(size, a), size);
    let negative = e.cmp(Cmp::Lt, a, zero);
    let invalid = e.and(negative, e.cmp(Cmp::Ne, e.floor(b), b));
    let value = e.select(invalid, e.like(a, f64::NAN), signed);
    let base_one = e.cmp(Cmp::Eq, a, one);
    e.select(e.or(base_one, e.cmp(Cmp::Eq, b, zero)), one, value)
}

/// By repeated squaring, wrapping; zero for a negative exponent.
fn integer_power(e: &Emitter, a: Val, b: Val) -> Val {
    let int = |v| e.int(a.ty(), v);
    let start = [int(1), a, b];
    let state = e.for_loop(e.i64(0), e.i64(32), 1, &start, |_, state| {
        let [result, base, rest] = *state else { unreachable!("three values are carried") };
        let odd = e.cmp(Cmp::Ne, e.and(rest, int(1)), int(0));
        let result = e.select(odd, e.mul(result, base), result);
        vec![result, e.mul(base, base), e.shr(rest, 1)]
    });
    let large = e.cmp(Cmp::Lt, b, int(0));
    let large = match a.elem() {
        Elem::I64 => e.or(large, e.cmp(Cmp::Gt, b, int(0xffff_ffff))),
        _ => large,
    };
    e.select(large, int(0), state[0])
}

/// Floats round to nearest even, floats to integers truncate (NaN to zero, beyond the type's range
/// to its end), integers wrap, anything but zero is true.
fn cast(e: &Emitter, a: Val, from: DType, to: DType) -> Val {
    let elem = register_elem(to);
    if to == DType::Bool && from.is_float() {
        return e.cmp(Cmp::Ne, a, e.like(a, 0.0));
    }
    if from == DType::F64 && matches!(to, DType::F16 | DType::Bf16) {
        return e.cast(e.cast(a, memory_elem(to)), Elem::F32);
    }
    match to.int_range().filter(|_| from.is_float()) {
        Some(range) => saturate(e, a, elem, range),
        None => e.cast(a, elem),
    }
}

/// A float as the nearest integer towards zero within `lo..=hi`; NaN is zero.
fn saturate(e: &Emitter, a: Val, elem: Elem, (lo, hi): (i64, i64)) -> Val {
    let number = e.select(e.cmp(Cmp::Eq, a, a), a, e.like(a, 0.0));
    // The greatest float of this type that is no greater than `hi`.
    let digits = if a.elem() == Elem::F64 { 53 } else { 24 };
    let unused = (64 - hi.leading_zeros()).saturating_sub(digits);
    let below = hi >> unused << unused;
    let bounded = e.max(e.like(a, lo as f64), e.min(e.like(a, below as f64), number));
    let value = e.cast(bounded, elem);
    if below == hi {
        return value;
    }
    let beyond = e.cmp(Cmp::Gt, number, e.like(a, below as f64));
    e.select(beyond, e.int(value.ty(), hi), value)
}

/// A constant in a register of `dtype`.
pub(super) fn literal(e: &Emitter, dtype: DType, lanes: u32, float: f64, int: i64) -> Val {
    let ty = Ty::of(register_elem(dtype), lanes);
    if dtype.is_float() { e.float(ty, float) } else { e.int(ty, int) }
}
