//! Loads and stores, in all state spaces.

use super::operand::{LOCAL_WINDOW, PARAM_WINDOW, RANK_SHIFT, SHARED_WINDOW, WINDOW};
use super::warp::lanes;
use super::{At, Machine, Run};
use crate::fault::{Blame, FaultKind, operand};
use crate::mods::{Mod, Mods};
use crate::module::{Arg, Inst};
use crate::ops::Op;
use crate::shadow::Kind;
use crate::shared::Use;

/// A place in memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Global(u64),
    /// An address in the shared memory of a block of the cluster.
    Shared(usize, u32),
    Local(u64),
    Param(u64),
}

impl Place {
    /// The place that many bytes further.
    pub(super) fn after(self, bytes: u32) -> Place {
        let further = |address: u64| address.wrapping_add(bytes.into());
        match self {
            Place::Global(address) => Place::Global(further(address)),
            Place::Shared(cta, address) => Place::Shared(cta, address.wrapping_add(bytes)),
            Place::Local(address) => Place::Local(further(address)),
            Place::Param(address) => Place::Param(further(address)),
        }
    }
}

/// Whether an access is atomic or volatile.
fn is_strong(inst: &Inst) -> bool {
    let strong = [Mod::Volatile, Mod::Relaxed, Mod::Acquire, Mod::Release, Mod::AcqRel];
    matches!(inst.op, Op::Atom | Op::Red) || inst.mods.which(&strong).is_some()
}

impl<'a> Machine<'a> {
    /// Where an address points, by the state space of the instruction.
    pub(super) fn place(&self, at: At, address: u64, mods: Mods) -> Run<Place> {
        if mods.has(Mod::Global) {
            return Ok(Place::Global(address));
        }
        if mods.which(&[Mod::Shared, Mod::SharedCta, Mod::SharedCluster]).is_some() {
            return self.shared_place(at, address);
        }
        if mods.has(Mod::Local) {
            return Ok(Place::Local(address));
        }
        if mods.has(Mod::Param) || mods.has(Mod::ParamEntry) {
            return Ok(Place::Param(address));
        }
        match address {
            _ if mods.has(Mod::Const) => Ok(Place::Global(address)),
            SHARED_WINDOW.. => self.shared_place(at, address - SHARED_WINDOW),
            LOCAL_WINDOW.. => Ok(Place::Local(address - LOCAL_WINDOW)),
            PARAM_WINDOW.. => Ok(Place::Param(address - PARAM_WINDOW)),
            _ => Ok(Place::Global(address)),
        }
    }

    /// The block and the address in its shared memory.
    pub(super) fn shared_place(&self, at: At, address: u64) -> Run<Place> {
        let rank = (address >> RANK_SHIFT) as usize;
        let cta = if rank == 0 { at.cta } else { rank - 1 };
        if address >= WINDOW || cta >= self.ctas.len() {
            return Err(FaultKind::OutOfBounds { space: "shared", address, bytes: 1 }.into());
        }
        Ok(Place::Shared(cta, (address & ((1 << RANK_SHIFT) - 1)) as u32))
    }

    pub(super) fn load(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let (ty, size) = (inst.ty(), inst.ty().bytes());
        let single = std::slice::from_ref(self.arg(inst, 0)?);
        let targets = if let Arg::Vec(parts) = &inst.args[0] { &parts[..] } else { single };
        let bytes = size * targets.len();
        if !matches!(bytes, 1 | 2 | 4 | 8 | 16 | 32) {
            return operand(format!("a load of {bytes} bytes"));
        }
        let mut traffic = Traffic::default();
        for lane in lanes(mask) {
            let address = self.source(at, lane, inst, 1)?;
            let place = self.place(at, address, inst.mods).lane(lane)?;
            let mut data = [0; 32];
            self.read(at, lane, place, &mut data[..bytes], inst).lane(lane)?;
            traffic.add(place);
            for (index, target) in targets.iter().enumerate() {
                let mut word = [0; 8];
                word[..size].copy_from_slice(&data[index * size..][..size]);
                let value = u64::from_le_bytes(word);
                let value = if ty.is_signed() { ty.extend(value) as u64 } else { value };
                self.set(at, lane, target, value)?;
            }
            if is_strong(inst) {
                self.observe(at, lane, place, inst.has(Mod::Acquire));
            }
        }
        self.account(&traffic, bytes, false);
        Ok(())
    }

    pub(super) fn store(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let size = inst.ty().bytes();
        let single = std::slice::from_ref(self.arg(inst, 1)?);
        let sources = if let Arg::Vec(parts) = &inst.args[1] { &parts[..] } else { single };
        let bytes = size * sources.len();
        if !matches!(bytes, 1 | 2 | 4 | 8 | 16 | 32) {
            return operand(format!("a store of {bytes} bytes"));
        }
        let mut traffic = Traffic::default();
        for lane in lanes(mask) {
            let address = self.source(at, lane, inst, 0)?;
            let place = self.place(at, address, inst.mods).lane(lane)?;
            let mut data = [0; 32];
            for (index, source) in sources.iter().enumerate() {
                let word = self.value(at, lane, source)?.to_le_bytes();
                data[index * size..][..size].copy_from_slice(&word[..size]);
            }
            if is_strong(inst) {
                self.publish(at, lane, place, inst.has(Mod::Release));
            }
            self.write(at, lane, place, &data[..bytes], inst).lane(lane)?;
            traffic.add(place);
        }
        self.account(&traffic, bytes, true);
        Ok(())
    }

    /// Reads for a thread, with all checks.
    pub(super) fn read(
        &mut self,
        at: At,
        lane: u32,
        place: Place,
        data: &mut [u8],
        inst: &Inst,
    ) -> Run {
        let bytes = data.len();
        match place {
            Place::Global(address) => {
                aligned("global", address, bytes)?;
                self.may_touch(at, lane, address, false)?;
                data.copy_from_slice(self.global.read(address, bytes)?);
            }
            Place::Shared(cta, address) => {
                let author = self.author(at, lane, inst);
                let kind = Kind::READ.strong(is_strong(inst));
                let view = &self.clocks[author.slot];
                let shared = &mut self.ctas[cta].shared;
                let offset = shared.offset(address, bytes, bytes)?;
                data.copy_from_slice(shared.read(offset, bytes, Use { author, kind, view })?);
            }
            Place::Local(address) => {
                self.local(address, bytes)?;
                let local = &self.warp(at).local[lane as usize];
                for (index, byte) in data.iter_mut().enumerate() {
                    let found = local.get(address as usize + index).copied().flatten();
                    let address = address + index as u64;
                    *byte = found.ok_or(FaultKind::Uninitialised { space: "local", address })?;
                }
            }
            Place::Param(address) => {
                aligned("param", address, bytes)?;
                let end = (address as usize).saturating_add(bytes);
                let found = self.params.get(address as usize..end);
                let bytes = bytes as u64;
                let fault = FaultKind::OutOfBounds { space: "param", address, bytes };
                data.copy_from_slice(found.ok_or(fault)?);
            }
        }
        Ok(())
    }

    /// Writes for a thread, with all checks.
    pub(super) fn write(
        &mut self,
        at: At,
        lane: u32,
        place: Place,
        data: &[u8],
        inst: &Inst,
    ) -> Run {
        let bytes = data.len();
        match place {
            Place::Global(address) => {
                aligned("global", address, bytes)?;
                self.may_touch(at, lane, address, true)?;
                self.global.store(address, data)?;
            }
            Place::Shared(cta, address) => {
                let author = self.author(at, lane, inst);
                let kind = Kind::WRITE.strong(is_strong(inst));
                let view = &self.clocks[author.slot];
                let shared = &mut self.ctas[cta].shared;
                let offset = shared.offset(address, bytes, bytes)?;
                shared.write(offset, data, Use { author, kind, view })?;
            }
            Place::Local(address) => {
                self.local(address, bytes)?;
                let size = self.kernel.local_bytes as usize;
                let local = &mut self.warp_mut(at).local[lane as usize];
                local.resize(size, None);
                for (slot, byte) in local[address as usize..].iter_mut().zip(data) {
                    *slot = Some(*byte);
                }
            }
            Place::Param(_) => return operand("parameters cannot be written"),
        }
        Ok(())
    }

    fn local(&self, address: u64, bytes: usize) -> Run {
        aligned("local", address, bytes)?;
        if address.saturating_add(bytes as u64) > self.kernel.local_bytes {
            let bytes = bytes as u64;
            return Err(FaultKind::OutOfBounds { space: "local", address, bytes }.into());
        }
        Ok(())
    }

    pub(super) fn account(&mut self, traffic: &Traffic, bytes: usize, write: bool) {
        let (global, shared) = (traffic.global.len() * bytes, traffic.shared.len() * bytes);
        let report = &mut *self.report;
        if write {
            report.global_write_bytes += global as u64;
            report.shared_write_bytes += shared as u64;
        } else {
            report.global_read_bytes += global as u64;
            report.shared_read_bytes += shared as u64;
        }
        report.global_sectors += traffic.sectors(bytes);
        report.bank_conflicts += bank_conflicts(&traffic.shared, bytes);
    }
}

fn aligned(space: &'static str, address: u64, bytes: usize) -> Result<(), FaultKind> {
    let align = bytes as u64;
    if address.is_multiple_of(align) {
        return Ok(());
    }
    Err(FaultKind::Misaligned { space, address, align })
}

/// The addresses that the lanes of an instruction access.
#[derive(Default)]
pub(super) struct Traffic {
    global: Vec<u64>,
    shared: Vec<u32>,
}

impl Traffic {
    pub(super) fn add(&mut self, place: Place) {
        match place {
            Place::Global(address) => self.global.push(address),
            Place::Shared(_, address) => self.shared.push(address),
            Place::Local(_) | Place::Param(_) => {}
        }
    }

    fn sectors(&self, bytes: usize) -> u64 {
        let range = |address: &u64| address / 32..=(address + bytes as u64 - 1) / 32;
        let mut sectors: Vec<u64> = self.global.iter().flat_map(range).collect();
        sectors.sort_unstable();
        sectors.dedup();
        sectors.len() as u64
    }
}

/// How many passes over the banks an access takes beyond what its size needs: 128 bytes a pass,
/// each of the 32 banks giving one word of four bytes.
pub(super) fn bank_conflicts(addresses: &[u32], bytes: usize) -> u64 {
    let mut conflicts = 0;
    for pass in addresses.chunks((128 / bytes.max(4)).max(1)) {
        let words = |address: &u32| address / 4..(address + bytes as u32).div_ceil(4);
        let mut touched: Vec<u32> = pass.iter().flat_map(words).collect();
        touched.sort_unstable();
        touched.dedup();
        let mut banks = [0u64; 32];
        touched.iter().for_each(|word| banks[(word % 32) as usize] += 1);
        conflicts += banks.iter().max().map_or(0, |most| most.saturating_sub(1));
    }
    conflicts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bank_conflicts_are_counted_by_pass() {
        let stride = |step: u32| -> Vec<u32> { (0..32).map(|lane| lane * step).collect() };
        assert_eq!(bank_conflicts(&stride(4), 4), 0);
        assert_eq!(bank_conflicts(&stride(8), 4), 1);
        assert_eq!(bank_conflicts(&stride(128), 4), 31);
        assert_eq!(bank_conflicts(&[0; 32], 4), 0);
        assert_eq!(bank_conflicts(&stride(16), 16), 0);
        assert_eq!(bank_conflicts(&stride(80), 16), 0);
        assert_eq!(bank_conflicts(&stride(64), 16), 4 * 3);
    }
}
