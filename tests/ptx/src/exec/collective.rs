//! `vote`, `match`, `shfl`, `redux`, `elect`: the lanes of a warp learn of each other's values.

use super::warp::lanes;
use super::{At, Machine, Run};
use crate::fault::{Blame, operand};
use crate::mods::Mod;
use crate::module::{Arg, Inst};
use crate::ops::Op;
use crate::ty::Ty;

impl<'a> Machine<'a> {
    pub(super) fn vote(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        match inst.op {
            Op::ActiveMask => {
                for lane in lanes(mask) {
                    self.set(at, lane, &inst.args[0], mask.into())?;
                }
                return Ok(());
            }
            Op::Elect => return self.elect(at, mask, inst),
            _ => {}
        }
        let mut values = [0; 32];
        for lane in lanes(mask) {
            values[lane as usize] = self.source(at, lane, inst, 1)?;
        }
        if inst.op == Op::Match {
            return self.match_lanes(at, mask, inst, &values);
        }
        let ballot = lanes(mask)
            .filter(|lane| values[*lane as usize] & 1 != 0)
            .fold(0u32, |ballot, lane| ballot | 1 << lane);
        let result = match inst.mods.which(&[Mod::All, Mod::Any, Mod::Uni, Mod::Ballot]) {
            Some(Mod::All) => u32::from(ballot == mask),
            Some(Mod::Any) => u32::from(ballot != 0),
            Some(Mod::Uni) => u32::from(ballot == mask || ballot == 0),
            Some(Mod::Ballot) => ballot,
            _ => return operand("vote without a mode"),
        };
        lanes(mask).try_for_each(|lane| self.set(at, lane, &inst.args[0], result.into()))
    }

    fn match_lanes(&mut self, at: At, mask: u32, inst: &'a Inst, values: &[u64; 32]) -> Run {
        let equal = |value: u64| {
            lanes(mask)
                .filter(|lane| values[*lane as usize] == value)
                .fold(0u32, |equal, lane| equal | 1 << lane)
        };
        for lane in lanes(mask) {
            let same = equal(values[lane as usize]);
            if inst.has(Mod::Any) {
                self.set(at, lane, &inst.args[0], same.into())?;
                continue;
            }
            let all = same == mask;
            let result = if all { mask } else { 0 };
            match &inst.args[0] {
                Arg::Pair(to, holds) => {
                    self.set(at, lane, to, result.into())?;
                    self.set(at, lane, holds, all.into())?;
                }
                to => self.set(at, lane, to, result.into())?,
            }
        }
        Ok(())
    }

    /// The leader is any lane, the same one for the same mask: the seed says which.
    fn elect(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let nth = (self.launch.seed % u64::from(mask.count_ones())) as usize;
        let leader = lanes(mask).nth(nth).unwrap_or(0);
        let Arg::Pair(to, is_leader) = &inst.args[0] else {
            return operand("elect.sync needs `d|p` as result");
        };
        for lane in lanes(mask) {
            self.set(at, lane, to, leader.into())?;
            self.set(at, lane, is_leader, (lane == leader).into())?;
        }
        Ok(())
    }

    pub(super) fn shuffle(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let mut values = [0; 32];
        for lane in lanes(mask) {
            values[lane as usize] = self.source(at, lane, inst, 1)?;
        }
        let modes = [Mod::Up, Mod::Down, Mod::Bfly, Mod::Idx];
        let Some(mode) = inst.mods.which(&modes) else { return operand("shfl without a mode") };
        for lane in lanes(mask) {
            let b = self.source(at, lane, inst, 2)? as u32 & 31;
            let c = self.source(at, lane, inst, 3)? as u32;
            let (from, holds) = shuffle_source(mode, lane, b, c);
            if mask >> from & 1 == 0 {
                return operand(format!("shfl reads lane {from}, which takes no part")).lane(lane);
            }
            let value = values[from as usize];
            match &inst.args[0] {
                Arg::Pair(to, in_range) => {
                    self.set(at, lane, to, value)?;
                    self.set(at, lane, in_range, holds.into())?;
                }
                to => self.set(at, lane, to, value)?,
            }
        }
        Ok(())
    }

    pub(super) fn reduce(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let ty: Ty = inst.ty();
        let mut values = Vec::new();
        for lane in lanes(mask) {
            values.push(ty.extend(self.source(at, lane, inst, 1)?));
        }
        let fold = |f: fn(i128, i128) -> i128| values.iter().copied().reduce(f).unwrap_or(0);
        let all = [Mod::Add, Mod::Min, Mod::Max, Mod::And, Mod::Or, Mod::Xor];
        let result = match inst.mods.which(&all) {
            Some(Mod::Add) => fold(|a, b| a + b),
            Some(Mod::Min) => fold(i128::min),
            Some(Mod::Max) => fold(i128::max),
            Some(Mod::And) => fold(|a, b| a & b),
            Some(Mod::Or) => fold(|a, b| a | b),
            _ => fold(|a, b| a ^ b),
        };
        lanes(mask).try_for_each(|lane| self.set(at, lane, &inst.args[0], result as u64))
    }
}

/// The lane that `shfl` reads, and whether the one asked for was in range.
fn shuffle_source(mode: Mod, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (clamp, segment) = (c & 31, c >> 8 & 31);
    let largest = lane & segment | clamp & !segment;
    let (from, holds) = match mode {
        Mod::Up => (lane.wrapping_sub(b), i64::from(lane) - i64::from(b) >= largest.into()),
        Mod::Down => (lane + b, lane + b <= largest),
        Mod::Bfly => (lane ^ b, lane ^ b <= largest),
        _ => {
            let from = lane & segment | b & !segment;
            (from, from <= largest)
        }
    };
    if holds { (from, true) } else { (lane, false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_stay_in_their_segment() {
        assert_eq!(shuffle_source(Mod::Bfly, 5, 16, 31), (21, true));
        assert_eq!(shuffle_source(Mod::Down, 30, 4, 31), (30, false));
        assert_eq!(shuffle_source(Mod::Up, 3, 2, 0), (1, true));
        assert_eq!(shuffle_source(Mod::Up, 1, 2, 0), (1, false));
        // Segments of eight lanes: the mask is 0b11000.
        assert_eq!(shuffle_source(Mod::Idx, 13, 2, 0x181f), (10, true));
        assert_eq!(shuffle_source(Mod::Down, 14, 1, 0x181f), (15, true));
        assert_eq!(shuffle_source(Mod::Down, 15, 1, 0x181f), (15, false));
        assert_eq!(shuffle_source(Mod::Up, 9, 2, 0x1800), (9, false));
    }
}
