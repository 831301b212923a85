//! Floating-point arithmetic of all widths.
//!
//! Operands are widened to f64, where sums, products and fused products of narrower types can be
//! rounded to odd; the result is narrowed once. f64 itself rounds to nearest only. The approximate
//! functions are computed in f64 and rounded: closer than the hardware's, within the bounds that
//! the ISA gives.

use super::{At, Machine, Run};
use crate::fault::operand;
use crate::mods::{Mod, Mods};
use crate::module::Inst;
use crate::numeric::{Rounding, fma_odd, is_subnormal, narrow, to_odd, two_sum, widen};
use crate::ops::Op;
use crate::ty::Ty;

impl Machine<'_> {
    pub(super) fn float(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let (ty, op, mods) = (inst.ty(), inst.op, inst.mods);
        let operands = inst.args.len() - 1;
        self.map(at, mask, inst, |values| match ty.half() {
            Some(half) => {
                let low = scalar(op, half, mods, values, operands)?;
                let high = scalar(op, half, mods, values.map(|value| value >> 16), operands)?;
                Ok(high << 16 | low)
            }
            None => scalar(op, ty, mods, values, operands),
        })
    }
}

/// Subnormal values become zeros of the same sign.
pub(super) fn flush(bits: u64, ty: Ty) -> u64 {
    if is_subnormal(bits, ty) { bits & 1 << (ty.bits() - 1) } else { bits }
}

fn scalar(op: Op, ty: Ty, mods: Mods, values: [u64; 4], operands: usize) -> Run<u64> {
    let ftz = mods.has(Mod::Ftz);
    let bits = values.map(|value| {
        let value = ty.truncate(value);
        if ftz { flush(value, ty) } else { value }
    });
    let sign = 1u64 << (ty.bits() - 1);
    match op {
        Op::Neg => return Ok(bits[0] ^ sign),
        Op::Abs => return Ok(bits[0] & !sign),
        Op::Copysign => return Ok(bits[1] & !sign | bits[0] & sign),
        Op::Testp => return Ok(test(bits[0], ty, mods).into()),
        _ => {}
    }
    let rounding = Rounding::of(mods);
    if ty == Ty::F64 && rounding != Rounding::Nearest {
        return operand("f64 arithmetic rounds to nearest only in this emulator");
    }
    let [a, b, c, _] = bits.map(|value| widen(value, ty));
    let exact = match op {
        Op::Add => sum(a, b, ty),
        Op::Sub => sum(a, -b, ty),
        Op::Mul => a * b,
        Op::Fma | Op::Mad if ty == Ty::F64 => a.mul_add(b, c),
        Op::Fma | Op::Mad => fma_odd(a, b, c),
        Op::Div => quotient(a, b, ty),
        Op::Rcp => quotient(1.0, a, ty),
        Op::Sqrt => root(a, ty),
        Op::Rsqrt => 1.0 / a.sqrt(),
        Op::Ex2 => a.exp2(),
        Op::Lg2 => a.log2(),
        Op::Sin => a.sin(),
        Op::Cos => a.cos(),
        Op::Tanh => a.tanh(),
        Op::Min | Op::Max => {
            let smaller = op == Op::Min;
            let mut best = extreme(a, b, smaller, mods);
            if operands > 2 {
                best = extreme(best, c, smaller, mods);
            }
            best
        }
        _ => return operand("no instruction on floats"),
    };
    let mut result = narrow(exact, ty, rounding, false);
    if ftz {
        result = flush(result, ty);
    }
    let value = widen(result, ty);
    if mods.has(Mod::Sat) {
        // Also NaN becomes zero.
        let clamped = if value > 0.0 { value.min(1.0) } else { 0.0 };
        result = narrow(clamped, ty, Rounding::Nearest, false);
    }
    if mods.has(Mod::Relu) && value <= 0.0 {
        result = 0;
    }
    Ok(result)
}

fn sum(a: f64, b: f64, ty: Ty) -> f64 {
    if ty == Ty::F64 {
        return a + b;
    }
    let (sum, error) = two_sum(a, b);
    to_odd(sum, error)
}

fn quotient(a: f64, b: f64, ty: Ty) -> f64 {
    let quotient = a / b;
    if ty == Ty::F64 || quotient == 0.0 || b.is_infinite() {
        return quotient;
    }
    let remainder = (-quotient).mul_add(b, a);
    to_odd(quotient, if remainder == 0.0 { 0.0 } else { remainder.signum() * b.signum() })
}

fn root(a: f64, ty: Ty) -> f64 {
    let root = a.sqrt();
    if ty == Ty::F64 || root == 0.0 || root.is_infinite() {
        return root;
    }
    to_odd(root, (-root).mul_add(root, a))
}

/// Of a number and a NaN the number, unless `.NaN` is asked for; -0 is less than +0.
fn extreme(a: f64, b: f64, smaller: bool, mods: Mods) -> f64 {
    if a.is_nan() || b.is_nan() {
        if mods.has(Mod::PropagateNan) || (a.is_nan() && b.is_nan()) {
            return f64::NAN;
        }
        return if a.is_nan() { b } else { a };
    }
    let (x, y) = if mods.has(Mod::XorSign) { (a.abs(), b.abs()) } else { (a, b) };
    let first = if smaller { x.total_cmp(&y).is_le() } else { x.total_cmp(&y).is_ge() };
    let best = if first { x } else { y };
    if mods.has(Mod::XorSign) { best * a.signum() * b.signum() } else { best }
}

fn test(bits: u64, ty: Ty, mods: Mods) -> bool {
    let value = widen(bits, ty);
    let all =
        [Mod::Finite, Mod::Infinite, Mod::Number, Mod::NotANumber, Mod::Normal, Mod::Subnormal];
    match mods.which(&all) {
        Some(Mod::Finite) => value.is_finite(),
        Some(Mod::Infinite) => value.is_infinite(),
        Some(Mod::Number) => !value.is_nan(),
        Some(Mod::NotANumber) => value.is_nan(),
        Some(Mod::Subnormal) => is_subnormal(bits, ty),
        _ => value.is_finite() && value != 0.0 && !is_subnormal(bits, ty),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32_op(op: Op, mods: &[Mod], a: f32, b: f32, c: f32) -> f32 {
        let mut set = Mods::default();
        mods.iter().for_each(|item| set.insert(*item));
        let values = [a, b, c, 0.0].map(|value| value.to_bits().into());
        f32::from_bits(scalar(op, Ty::F32, set, values, 2).unwrap() as u32)
    }

    #[test]
    fn arithmetic_is_correctly_rounded() {
        let mut state = 3u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f32::from_bits((state >> 33) as u32)
        };
        for _ in 0..50_000 {
            let (a, b, c) = (draw(), draw(), draw());
            let cases = [
                (f32_op(Op::Add, &[], a, b, c), a + b),
                (f32_op(Op::Sub, &[], a, b, c), a - b),
                (f32_op(Op::Mul, &[], a, b, c), a * b),
                (f32_op(Op::Div, &[], a, b, c), a / b),
                (f32_op(Op::Sqrt, &[], a, b, c), a.sqrt()),
                (f32_op(Op::Fma, &[], a, b, c), a.mul_add(b, c)),
            ];
            for (index, (found, expected)) in cases.into_iter().enumerate() {
                let same = found.to_bits() == expected.to_bits();
                assert!(same || found.is_nan() && expected.is_nan(), "{index}: {a} {b} {c}");
            }
        }
    }

    #[test]
    fn modifiers_do_what_the_isa_says() {
        assert_eq!(f32_op(Op::Add, &[Mod::Sat], 0.75, 0.75, 0.0), 1.0);
        assert_eq!(f32_op(Op::Add, &[Mod::Sat], f32::NAN, 0.75, 0.0), 0.0);
        assert_eq!(f32_op(Op::Mul, &[Mod::Ftz], 1e-30, 1e-10, 0.0), 0.0);
        assert!(f32_op(Op::Mul, &[], 1e-30, 1e-10, 0.0) > 0.0);
        assert_eq!(f32_op(Op::Max, &[], f32::NAN, 2.0, 0.0), 2.0);
        assert!(f32_op(Op::Max, &[Mod::PropagateNan], f32::NAN, 2.0, 0.0).is_nan());
        assert!(f32_op(Op::Min, &[], 0.0, -0.0, 0.0).is_sign_negative());
        assert_eq!(f32_op(Op::Add, &[Mod::Rz], 1.0, 1e-9, 0.0), 1.0);
        assert_eq!(f32_op(Op::Add, &[Mod::Rp], 1.0, 1e-9, 0.0), 1.0 + f32::EPSILON);
        assert_eq!(f32_op(Op::Ex2, &[Mod::Approx], 3.0, 0.0, 0.0), 8.0);
    }
}
