//! Atomic operations and memory fences.
//!
//! A release publishes what its thread knows at the location; an acquire of that location learns
//! it. Relaxed operations do the same around fences.

use super::memory::{Place, Traffic};
use super::warp::lanes;
use super::{At, Machine, Run};
use crate::clock::Gather;
use crate::fault::{Blame, operand};
use crate::mods::{Mod, Mods};
use crate::module::{Arg, Inst};
use crate::numeric::{Rounding, narrow, to_odd, two_sum, widen};
use crate::ops::Op;
use crate::ty::Ty;

impl<'a> Machine<'a> {
    pub(super) fn atomic(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let is_red = inst.op == Op::Red;
        let first = usize::from(!is_red);
        let ty = inst.ty();
        let bytes = ty.bytes();
        let mut traffic = Traffic::default();
        for lane in lanes(mask) {
            let address = self.source(at, lane, inst, first)?;
            let place = self.place(at, address, inst.mods).lane(lane)?;
            let operand = self.source(at, lane, inst, first + 1)?;
            let swap = match inst.args.get(first + 2) {
                Some(arg) if inst.has(Mod::Cas) => self.value(at, lane, arg)?,
                _ => 0,
            };
            let acquires = inst.has(Mod::Acquire) || inst.has(Mod::AcqRel);
            let releases = inst.has(Mod::Release) || inst.has(Mod::AcqRel);
            let mut word = [0; 8];
            self.read(at, lane, place, &mut word[..bytes], inst).lane(lane)?;
            let old = u64::from_le_bytes(word);
            self.observe(at, lane, place, acquires);
            self.publish(at, lane, place, releases);
            let new = update(ty, inst.mods, old, operand, swap).lane(lane)?;
            self.write(at, lane, place, &new.to_le_bytes()[..bytes], inst).lane(lane)?;
            if !is_red {
                let target: &Arg = self.arg(inst, 0)?;
                self.set(at, lane, target, old)?;
            }
            traffic.add(place);
        }
        self.account(&traffic, bytes, true);
        Ok(())
    }

    pub(super) fn fence(&mut self, at: At, mask: u32) -> Run {
        for lane in lanes(mask) {
            let slot = self.slot(at, lane);
            let warp = &mut self.ctas[at.cta].warps[at.warp];
            warp.fenced |= 1 << lane;
            for clock in std::mem::take(&mut warp.observed[lane as usize]) {
                self.clocks[slot].acquire(&clock, &mut self.memo);
            }
        }
        Ok(())
    }

    /// A strong write: those who acquire the location learn what the thread knows.
    pub(super) fn publish(&mut self, at: At, lane: u32, place: Place, release: bool) {
        if !release && self.warp(at).fenced >> lane & 1 == 0 {
            return;
        }
        let slot = self.slot(at, lane);
        let mut gather = Gather::default();
        gather.add(&self.clocks[slot]);
        let published = self.published.entry(key(place)).or_default();
        gather.add_clock(published);
        *published = gather.take();
        self.clocks[slot].advance();
    }

    /// A strong read.
    pub(super) fn observe(&mut self, at: At, lane: u32, place: Place, acquire: bool) {
        let Some(clock) = self.published.get(&key(place)).cloned() else { return };
        let slot = self.slot(at, lane);
        if acquire {
            self.clocks[slot].acquire(&clock, &mut self.memo);
        } else {
            self.warp_mut(at).observed[lane as usize].push(clock);
        }
    }
}

fn key(place: Place) -> u64 {
    match place {
        Place::Global(address) | Place::Local(address) | Place::Param(address) => address,
        Place::Shared(cta, address) => 1 << 63 | (cta as u64) << 32 | u64::from(address),
    }
}

fn update(ty: Ty, mods: Mods, old: u64, operand: u64, swap: u64) -> Run<u64> {
    let all = [
        Mod::And,
        Mod::Or,
        Mod::Xor,
        Mod::Add,
        Mod::Min,
        Mod::Max,
        Mod::Inc,
        Mod::Dec,
        Mod::Cas,
        Mod::Exch,
    ];
    let Some(operation) = mods.which(&all) else {
        return self::operand("an atomic instruction without an operation");
    };
    if let Some(half) = ty.half() {
        let low = update(half, mods, half.truncate(old), operand, swap)?;
        let high = update(half, mods, half.truncate(old >> 16), operand >> 16, swap >> 16)?;
        return Ok(high << 16 | low);
    }
    let operand = ty.truncate(operand);
    if ty.is_float() {
        let (a, b) = (widen(old, ty), widen(operand, ty));
        let exact = match operation {
            Mod::Add => {
                let (sum, error) = two_sum(a, b);
                if ty == Ty::F64 { sum } else { to_odd(sum, error) }
            }
            Mod::Min => a.min(b),
            Mod::Max => a.max(b),
            Mod::Exch => return Ok(operand),
            _ => return self::operand("no atomic operation of floats"),
        };
        return Ok(narrow(exact, ty, Rounding::Nearest, false));
    }
    let (x, y) = (ty.extend(old), ty.extend(operand));
    Ok(match operation {
        Mod::And => old & operand,
        Mod::Or => old | operand,
        Mod::Xor => old ^ operand,
        Mod::Add => ty.truncate((x + y) as u64),
        Mod::Min => ty.truncate(x.min(y) as u64),
        Mod::Max => ty.truncate(x.max(y) as u64),
        Mod::Inc => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        Mod::Dec => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
        Mod::Cas => {
            if old == operand {
                ty.truncate(swap)
            } else {
                old
            }
        }
        _ => operand,
    })
}
