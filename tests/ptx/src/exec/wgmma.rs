//! `wgmma`: products of a warpgroup, from registers and shared memory, in groups.
//!
//! Each warp computes the 16 rows of its rank in the warpgroup. Operands are checked when the
//! instruction is issued, but read, and accumulators written, when the warp waits for its group.
//! Until then its registers may not be touched, and, since its reads are known only to who learns
//! of that wait, nobody may write what it reads. Sums are those of `mma`.

use std::collections::VecDeque;

use super::descriptor::{Descriptor, Major};
use super::mma::{number, place_c, round};
use super::{At, Machine, Run};
use crate::fault::{FaultKind, operand};
use crate::mods::Mod;
use crate::module::{Arg, Inst, RegId};
use crate::ops::Op;
use crate::shadow::{Author, Kind};
use crate::shared::Use;
use crate::ty::Ty;

/// An operand in shared memory.
#[derive(Clone, Copy, Debug)]
struct InShared {
    descriptor: Descriptor,
    major: Major,
    ty: Ty,
    /// The first row, and how many.
    rows: (usize, usize),
}

#[derive(Clone, Debug)]
enum Left {
    /// 16 rows of `k`.
    Registers(Vec<f64>),
    Shared(InShared),
}

/// A product that is in flight.
#[derive(Clone, Debug)]
struct Product {
    line: u32,
    n: usize,
    k: usize,
    to: Ty,
    registers: Vec<RegId>,
    a_registers: Vec<RegId>,
    left: Left,
    right: InShared,
    accumulates: bool,
    negates: bool,
    saturates: bool,
    epoch: u32,
}

/// A warp's products.
#[derive(Default)]
pub(super) struct Wgmma {
    open: Vec<Product>,
    groups: VecDeque<Vec<Product>>,
    /// By register: how many products in flight use it, and the line of one.
    in_flight: Vec<(u32, u32)>,
    /// By register: when it was last accessed.
    touched: Vec<u64>,
    now: u64,
    fenced: Option<u64>,
    epoch: u32,
    /// How many collective operations the warp took part in.
    steps: usize,
}

impl Wgmma {
    pub(super) fn new(registers: usize) -> Wgmma {
        let (in_flight, touched) = (vec![(0, 0); registers], vec![0; registers]);
        Wgmma { in_flight, touched, ..Wgmma::default() }
    }
}

impl<'a> Machine<'a> {
    /// Notes that an instruction accesses registers, which may not be in flight.
    pub(super) fn touch(&mut self, at: At, inst: &'a Inst) -> Run {
        let warp = &mut self.ctas[at.cta].warps[at.warp];
        warp.wgmma.now += 1;
        if inst.op == Op::Wgmma {
            return Ok(());
        }
        for register in &inst.regs {
            let (count, wgmma_line) = warp.wgmma.in_flight[*register];
            if count > 0 {
                let register = self.kernel.regs[*register].name.clone();
                return Err(FaultKind::WgmmaInFlight { register, wgmma_line }.into());
            }
            warp.wgmma.touched[*register] = warp.wgmma.now;
        }
        Ok(())
    }

    pub(super) fn wgmma(&mut self, at: At, inst: &'a Inst) -> Run {
        match inst.op {
            Op::WgmmaFence => {
                let wgmma = &mut self.warp_mut(at).wgmma;
                wgmma.fenced = Some(wgmma.now);
                Ok(())
            }
            Op::WgmmaCommit => {
                let wgmma = &mut self.warp_mut(at).wgmma;
                let group = std::mem::take(&mut wgmma.open);
                wgmma.groups.push_back(group);
                Ok(())
            }
            Op::WgmmaWait => {
                let keep = self.uniform(at, u32::MAX, inst, 0)? as usize;
                while self.warp(at).wgmma.groups.len() > keep {
                    let group = self.warp_mut(at).wgmma.groups.pop_front().unwrap_or_default();
                    group.into_iter().try_for_each(|product| self.finish_product(at, product))?;
                }
                Ok(())
            }
            Op::SetMaxNReg => {
                let count = self.uniform(at, u32::MAX, inst, 0)?;
                if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
                    return operand(format!("setmaxnreg of {count} registers"));
                }
                self.agree(at, inst, [count, 0])
            }
            _ => self.issue(at, inst),
        }
    }

    /// Checks that the four warps of a warpgroup do the same collective operations.
    fn agree(&mut self, at: At, inst: &Inst, operands: [u64; 2]) -> Run {
        let block = &mut self.ctas[at.cta];
        let group = at.warp / 4;
        if block.warps.len() < group * 4 + 4 {
            let reason = format!("warp {} is in no warpgroup of four", at.warp);
            return Err(FaultKind::Warpgroup(reason).into());
        }
        let step = block.warps[at.warp].wgmma.steps;
        block.warps[at.warp].wgmma.steps += 1;
        let log = &mut block.warpgroups[group];
        let entry = (inst.line, operands);
        match log.get(step) {
            None => log.push(entry),
            Some(other) if *other == entry => {}
            Some((line, _)) => {
                let reason = if *line == inst.line {
                    format!("warp {} has other operands in line {line}", at.warp)
                } else {
                    format!("warp {} is at line {}, another at {line}", at.warp, inst.line)
                };
                return Err(FaultKind::Warpgroup(reason).into());
            }
        }
        Ok(())
    }

    fn issue(&mut self, at: At, inst: &'a Inst) -> Run {
        let [to, left_ty, right_ty] = inst.ty[..] else {
            return operand("wgmma needs three types");
        };
        let (n, k) = check_shape(inst)?;
        let registers = registers(self.arg(inst, 0)?, n * 4 / 8 / (32 / to.bits() as usize))?;
        let sixteen_bits = left_ty.bits() == 16;
        let is_float = to.is_float();
        // d, a, b, scale-d, then for floats the signs, then for 16 bits which are transposed.
        let immediate = |index: usize| match inst.args.get(index) {
            Some(Arg::Imm(value)) => Ok(*value as i64),
            _ => operand(format!("operand {index} of wgmma is an immediate")),
        };
        let mut negates = false;
        if is_float {
            for index in [4, 5] {
                match immediate(index)? {
                    1 => {}
                    -1 => negates = !negates,
                    other => return operand(format!("a scale of {other}")),
                }
            }
        }
        let from_registers = matches!(self.arg(inst, 1)?, Arg::Vec(_));
        let flags = if sixteen_bits { 2 - usize::from(from_registers) } else { 0 };
        if inst.args.len() != 4 + 2 * usize::from(is_float) + flags {
            return operand(format!("wgmma with {} operands", inst.args.len()));
        }
        let major = |index: usize| match immediate(index)? {
            0 => Ok(Major::K),
            1 => Ok(Major::Row),
            other => operand(format!("a transposition of {other}")),
        };
        let rank = at.warp % 4;
        let right_bits = self.uniform(at, u32::MAX, inst, 2)?;
        let right_major = if sixteen_bits { major(5 + flags)? } else { Major::K };
        let right = InShared {
            descriptor: Descriptor::decode(right_bits)?,
            major: right_major,
            ty: right_ty,
            rows: (0, n),
        };
        right.descriptor.check(n, right_major)?;
        let mut left_bits = 0;
        let mut a_registers = Vec::new();
        let left = if from_registers {
            let fragment = self.arg(inst, 1)?;
            a_registers = self::registers(fragment, 4)?;
            Left::Registers(self.fragment_a(at, fragment, left_ty, k)?)
        } else {
            left_bits = self.uniform(at, u32::MAX, inst, 1)?;
            let left_major = if sixteen_bits { major(6)? } else { Major::K };
            let descriptor = Descriptor::decode(left_bits)?;
            descriptor.check(64, left_major)?;
            Left::Shared(InShared {
                descriptor,
                major: left_major,
                ty: left_ty,
                rows: (rank * 16, 16),
            })
        };
        self.agree(at, inst, [left_bits, right_bits])?;
        self.check_registers(at, &registers, &a_registers)?;
        let accumulates = self.uniform(at, u32::MAX, inst, 3)? & 1 != 0;
        let wgmma = &mut self.warp_mut(at).wgmma;
        wgmma.epoch += 1;
        let epoch = wgmma.epoch;
        for register in registers.iter().chain(&a_registers) {
            let (count, _) = wgmma.in_flight[*register];
            wgmma.in_flight[*register] = (count + 1, inst.line);
        }
        let slot = self.warp_slot(at) + self.clocks.len() / 32;
        let author = Author { slot, epoch, line: inst.line };
        if let Left::Shared(shared) = &left {
            self.note_operand(at, shared, k, author)?;
        }
        self.note_operand(at, &right, k, author)?;
        let product = Product {
            line: inst.line,
            n,
            k,
            to,
            registers,
            a_registers,
            left,
            right,
            accumulates,
            negates,
            saturates: inst.has(Mod::Satfinite),
            epoch,
        };
        self.warp_mut(at).wgmma.open.push(product);
        Ok(())
    }

    fn check_registers(&self, at: At, accumulators: &[RegId], fragments: &[RegId]) -> Run {
        let wgmma = &self.warp(at).wgmma;
        let name = |register: RegId| self.kernel.regs[register].name.clone();
        for register in accumulators.iter().chain(fragments) {
            let stale = wgmma.fenced.is_none_or(|fenced| wgmma.touched[*register] > fenced);
            if stale {
                let register = name(*register);
                return Err(FaultKind::MissingWgmmaFence { register }.into());
            }
        }
        let products = wgmma.groups.iter().flatten().chain(&wgmma.open);
        for product in products {
            // The accumulators of earlier products may go on in order; all else is a conflict.
            let same = product.registers == accumulators;
            let mut clashes = accumulators.iter().filter(|register| {
                product.a_registers.contains(register)
                    || (!same && product.registers.contains(register))
            });
            let mut reads =
                fragments.iter().filter(|register| product.registers.contains(register));
            if let Some(register) = clashes.next().or_else(|| reads.next()) {
                let (register, wgmma_line) = (name(*register), product.line);
                return Err(FaultKind::WgmmaInFlight { register, wgmma_line }.into());
            }
        }
        Ok(())
    }

    /// The chunks of an operand that a warp reads: their addresses, with row and place along k.
    fn chunks(shared: &InShared, k: usize) -> impl Iterator<Item = (u32, usize, usize)> + use<> {
        let InShared { descriptor, major, ty, rows: (first, count) } = *shared;
        let each = 16 / ty.bytes();
        let (outer, inner, from) = match major {
            Major::K => (count, k / each, first),
            Major::Row => (k, count / each, 0),
        };
        (0..outer).flat_map(move |line| {
            (0..inner).map(move |chunk| match major {
                Major::K => (descriptor.chunk(from + line, chunk, major), line, chunk * each),
                Major::Row => {
                    (descriptor.chunk(line, first / each + chunk, major), chunk * each, line)
                }
            })
        })
    }

    fn note_operand(&mut self, at: At, operand: &InShared, k: usize, author: Author) -> Run {
        let slot = self.slot(at, 0);
        let shared = &mut self.ctas[at.cta].shared;
        for (address, _, _) in Self::chunks(operand, k) {
            let offset = shared.offset(address, 16, 16)?;
            let by = Use { author, kind: Kind::ASYNC_READ, view: &self.clocks[slot] };
            shared.note_read(offset, 16, by)?;
            self.report.shared_read_bytes += 16;
        }
        Ok(())
    }

    /// An operand as rows of `k`.
    fn read_operand(&self, at: At, operand: &InShared, k: usize) -> Run<Vec<f64>> {
        let shared = &self.ctas[at.cta].shared;
        let bytes = operand.ty.bytes();
        let mut matrix = vec![0.0; operand.rows.1 * k];
        for (address, row, column) in Self::chunks(operand, k) {
            let offset = shared.offset(address, 16, 16)?;
            let chunk = shared.read_noted(offset, 16)?;
            for (index, element) in chunk.chunks_exact(bytes).enumerate() {
                let mut word = [0; 8];
                word[..bytes].copy_from_slice(element);
                let place = match operand.major {
                    Major::K => row * k + column + index,
                    Major::Row => (row + index) * k + column,
                };
                matrix[place] = number(u64::from_le_bytes(word), operand.ty);
            }
        }
        Ok(matrix)
    }

    fn finish_product(&mut self, at: At, product: Product) -> Run {
        let blame = |mut trap: crate::fault::Trap| {
            trap.line = Some(product.line);
            trap
        };
        let Product { n, k, to, .. } = product;
        let right = self.read_operand(at, &product.right, k).map_err(blame)?;
        let left = match product.left {
            Left::Registers(matrix) => matrix,
            Left::Shared(shared) => self.read_operand(at, &shared, k).map_err(blame)?,
        };
        for lane in 0..32 {
            let slot = self.slot(at, lane);
            self.clocks[slot].saw_wgmma(product.epoch);
        }
        let sign = if product.negates { -1.0 } else { 1.0 };
        let each = 32 / to.bits() as usize;
        for lane in 0..32 {
            for (index, register) in product.registers.iter().enumerate() {
                let register = Arg::Reg(*register);
                let old = if product.accumulates { self.value(at, lane, &register)? } else { 0 };
                let mut bits = 0;
                for nth in 0..each {
                    let shift = nth as u32 * to.bits();
                    let place = place_c(lane, index * each + nth, n);
                    let (a, b) = (&left[place / n * k..][..k], &right[place % n * k..][..k]);
                    let begin = if product.accumulates { number(old >> shift, to) } else { 0.0 };
                    let sum = a.iter().zip(b).fold(begin, |sum, (a, b)| sum + sign * a * b);
                    bits |= round(sum, to, product.saturates) << shift;
                }
                self.set(at, lane, &register, bits)?;
            }
        }
        let wgmma = &mut self.warp_mut(at).wgmma;
        for register in product.registers.iter().chain(&product.a_registers) {
            wgmma.in_flight[*register].0 -= 1;
        }
        Ok(())
    }
}

fn registers(arg: &Arg, count: usize) -> Run<Vec<RegId>> {
    let Arg::Vec(parts) = arg else { return operand("wgmma needs vectors of registers") };
    let registers: Option<Vec<RegId>> =
        parts.iter().map(|part| if let Arg::Reg(reg) = part { Some(*reg) } else { None }).collect();
    match registers {
        Some(registers) if registers.len() == count => Ok(registers),
        _ => operand(format!("a fragment of {} registers, not {count}", parts.len())),
    }
}

fn check_shape(inst: &Inst) -> Run<(usize, usize)> {
    let Some([64, n, k]) = inst.shape else { return operand("wgmma shapes are m64nNkK") };
    let fits = match inst.ty[..] {
        [Ty::F32 | Ty::F16, Ty::F16, Ty::F16] | [Ty::F32, Ty::Bf16, Ty::Bf16] => k == 16,
        [Ty::F32, Ty::Tf32, Ty::Tf32] => k == 8,
        [Ty::F32 | Ty::F16, Ty::E4m3 | Ty::E5m2, Ty::E4m3 | Ty::E5m2] => k == 32,
        [Ty::S32, Ty::S8 | Ty::U8, Ty::S8 | Ty::U8] => k == 32 && (n <= 24 || n % 16 == 0),
        _ => false,
    };
    if !fits || n % 8 != 0 || !(8..=256).contains(&n) {
        return operand("wgmma has no such shape and types");
    }
    Ok((n as usize, k as usize))
}
