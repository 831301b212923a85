//! `mma.sync`: products of fragments that the lanes of a warp hold together.
//!
//! With `g = lane / 4` and `t = lane % 4`, and `e` elements in a register of 32 bits:
//!
//! - register `r` of A holds row `g + 8 (r % 2)`, columns `4 e (r / 2) + e t ..`;
//! - register `r` of B holds column `g`, rows `4 e r + e t ..`;
//! - element `i` of C and D is at row `g + 8 (i / 2)`, column `2 t + i % 2`.
//!
//! The ISA leaves open in which order products are added. Here products are exact, the sum over the
//! instruction's `k` runs upward from the accumulator in f64, and is rounded once, at its end.

use super::{At, Machine, Run};
use crate::fault::operand;
use crate::mods::Mod;
use crate::module::{Arg, Inst};
use crate::numeric::{Rounding, narrow, widen};
use crate::ty::Ty;

impl<'a> Machine<'a> {
    pub(super) fn mma(&mut self, at: At, inst: &'a Inst) -> Run {
        let [to, left, right, from] = inst.ty[..] else { return operand("mma needs four types") };
        let k = check_shape(inst, left, right)?;
        if !inst.has(Mod::Row) || !inst.has(Mod::Col) {
            return operand("mma.m16n8 is .row.col");
        }
        let a = self.fragment_a(at, self.arg(inst, 1)?, left, k)?;
        let b = self.fragment_b(at, self.arg(inst, 2)?, right, k)?;
        let mut c = self.fragment_c(at, self.arg(inst, 3)?, from)?;
        for (row, sums) in c.chunks_exact_mut(8).enumerate() {
            let a = &a[row * k..][..k];
            for (column, sum) in sums.iter_mut().enumerate() {
                let b = &b[column * k..][..k];
                *sum = a.iter().zip(b).fold(*sum, |sum, (a, b)| sum + a * b);
            }
        }
        let bits: Vec<u64> =
            c.iter().map(|sum| round(*sum, to, inst.has(Mod::Satfinite))).collect();
        self.set_fragment_d(at, self.arg(inst, 0)?, to, &bits)
    }

    /// A as 16 rows of `k`.
    pub(super) fn fragment_a(&self, at: At, arg: &Arg, ty: Ty, k: usize) -> Run<Vec<f64>> {
        let each = 32 / ty.bits() as usize;
        let registers = vector(arg, k / (2 * each))?;
        let mut matrix = vec![0.0; 16 * k];
        for lane in 0..32 {
            let (group, thread) = (lane as usize / 4, lane as usize % 4);
            for (index, register) in registers.iter().enumerate() {
                let bits = self.value(at, lane, register)?;
                let row = group + 8 * (index % 2);
                let column = 4 * each * (index / 2) + each * thread;
                for element in 0..each {
                    let value = number(bits >> (element as u32 * ty.bits()), ty);
                    matrix[row * k + column + element] = value;
                }
            }
        }
        Ok(matrix)
    }

    /// B as 8 columns of `k`.
    fn fragment_b(&self, at: At, arg: &Arg, ty: Ty, k: usize) -> Run<Vec<f64>> {
        let each = 32 / ty.bits() as usize;
        let registers = vector(arg, k / (4 * each))?;
        let mut matrix = vec![0.0; 8 * k];
        for lane in 0..32 {
            let (group, thread) = (lane as usize / 4, lane as usize % 4);
            for (index, register) in registers.iter().enumerate() {
                let bits = self.value(at, lane, register)?;
                let row = 4 * each * index + each * thread;
                for element in 0..each {
                    let value = number(bits >> (element as u32 * ty.bits()), ty);
                    matrix[group * k + row + element] = value;
                }
            }
        }
        Ok(matrix)
    }

    /// C as 16 rows of 8.
    fn fragment_c(&self, at: At, arg: &Arg, ty: Ty) -> Run<Vec<f64>> {
        let each = 32 / ty.bits() as usize;
        let registers = vector(arg, 4 / each)?;
        let mut matrix = vec![0.0; 128];
        for lane in 0..32 {
            for index in 0..4 {
                let bits = self.value(at, lane, &registers[index / each])?;
                let bits = bits >> ((index % each) as u32 * ty.bits());
                matrix[place_c(lane, index, 8)] = number(bits, ty);
            }
        }
        Ok(matrix)
    }

    fn set_fragment_d(&mut self, at: At, arg: &Arg, ty: Ty, matrix: &[u64]) -> Run {
        let each = 32 / ty.bits() as usize;
        let registers = vector(arg, 4 / each)?;
        for lane in 0..32 {
            for (index, register) in registers.iter().enumerate() {
                let element = |nth: usize| matrix[place_c(lane, index * each + nth, 8)];
                let bits =
                    (0..each).fold(0, |bits, nth| bits | element(nth) << (nth as u32 * ty.bits()));
                self.set(at, lane, register, bits)?;
            }
        }
        Ok(())
    }
}

/// Where element `index` of an accumulator lies in a matrix of `columns` columns.
pub(super) fn place_c(lane: u32, index: usize, columns: usize) -> usize {
    let (group, thread) = (lane as usize / 4, lane as usize % 4);
    let row = group + 8 * (index / 2 % 2);
    row * columns + 8 * (index / 4) + 2 * thread + index % 2
}

/// An element as a number.
pub(super) fn number(bits: u64, ty: Ty) -> f64 {
    if ty.is_float() { widen(ty.truncate(bits), ty) } else { ty.extend(bits) as f64 }
}

/// A sum, rounded to the accumulator's type; integers wrap.
pub(super) fn round(sum: f64, ty: Ty, saturate: bool) -> u64 {
    if ty.is_float() {
        return narrow(sum, ty, Rounding::Nearest, false);
    }
    let sum = sum as i64;
    let sum = if saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
    u64::from(sum as u32)
}

fn vector(arg: &Arg, count: usize) -> Run<&[Arg]> {
    let registers = match arg {
        Arg::Vec(parts) => &parts[..],
        single => std::slice::from_ref(single),
    };
    if registers.len() == count {
        return Ok(registers);
    }
    operand(format!("a fragment of {} registers, not {count}", registers.len()))
}

/// The `k` of a shape that the types allow.
fn check_shape(inst: &Inst, left: Ty, right: Ty) -> Run<usize> {
    let Some([16, 8, k]) = inst.shape else { return operand("mma shapes are m16n8kK here") };
    let accumulators = (inst.ty[0], inst.ty[3]);
    let floats = [(Ty::F32, Ty::F32), (Ty::F16, Ty::F16), (Ty::F16, Ty::F32), (Ty::F32, Ty::F16)];
    let fits = match (left, right) {
        (Ty::F16, Ty::F16) => matches!(k, 8 | 16) && floats.contains(&accumulators),
        (Ty::Bf16, Ty::Bf16) => matches!(k, 8 | 16) && accumulators == (Ty::F32, Ty::F32),
        (Ty::Tf32, Ty::Tf32) => matches!(k, 4 | 8) && accumulators == (Ty::F32, Ty::F32),
        (Ty::E4m3 | Ty::E5m2, Ty::E4m3 | Ty::E5m2) => {
            k == 32 && floats[..2].contains(&accumulators)
        }
        (Ty::S8 | Ty::U8, Ty::S8 | Ty::U8) => {
            matches!(k, 16 | 32) && accumulators == (Ty::S32, Ty::S32)
        }
        _ => false,
    };
    if fits { Ok(k as usize) } else { operand("mma has no such shape and types") }
}
