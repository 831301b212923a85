//! Bulk copies (`cp.async.bulk`, `cp.async.bulk.tensor`): to shared memory with an mbarrier, to
//! global memory with groups.
//!
//! They run in the asynchronous proxy: what they read from shared memory has to be fenced. Copies
//! to shared memory land as `mbarrier` says. Copies to global memory read shared memory when they
//! are waited for; until then it may not be written, and a block may not end before.

use std::collections::VecDeque;

use super::mbarrier::{Flight, Landing};
use super::memory::Place;
use super::warp::lanes;
use super::{At, Machine, Run};
use crate::clock::Gather;
use crate::fault::{Blame, FaultKind, operand};
use crate::mods::Mod;
use crate::module::{Arg, Inst, Symbol};
use crate::ops::Op;
use crate::shadow::{Author, Kind};
use crate::shared::Use;
use crate::tensor_map::{Boxes, Part};

/// A copy to global memory that was not waited for.
#[derive(Clone, Debug)]
struct Store {
    line: u32,
    /// Offsets in shared memory, addresses in global memory, and lengths.
    parts: Vec<(usize, u64, usize)>,
}

/// The copies to global memory of a thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Stores {
    open: Vec<Store>,
    groups: VecDeque<Vec<Store>>,
    /// By what others know that the copies have read, and how many there were.
    slot: Option<usize>,
    epoch: u32,
}

impl Stores {
    /// The line of a copy that was not waited for.
    pub(super) fn in_flight(&self) -> Option<u32> {
        self.groups.iter().flatten().chain(&self.open).map(|store| store.line).next()
    }
}

/// Where a copy gets its bytes from.
enum Source {
    Global(u64),
    Shared(usize),
}

impl<'a> Machine<'a> {
    pub(super) fn bulk(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        lanes(mask).try_for_each(|lane| {
            let result = match (inst.op, inst.has(Mod::BulkGroup)) {
                (Op::BulkTensor, false) => self.tensor_load(at, lane, inst),
                (Op::BulkTensor, true) => self.tensor_store(at, lane, inst),
                (_, false) => self.bulk_load(at, lane, inst),
                (_, true) => self.bulk_store(at, lane, inst),
            };
            result.lane(lane)
        })
    }

    fn bulk_load(&mut self, at: At, lane: u32, inst: &'a Inst) -> Run {
        let to = self.source(at, lane, inst, 0)?;
        let from = self.source(at, lane, inst, 1)?;
        let bytes = self.source(at, lane, inst, 2)? as u32 as usize;
        check_bulk(bytes, &[to, from])?;
        let source = if inst.has(Mod::Global) {
            Source::Global(from)
        } else {
            let Place::Shared(cta, address) = self.shared_place(at, from)? else {
                return operand("a bulk copy from shared memory");
            };
            if cta != at.cta {
                return operand("a bulk copy from another block's shared memory");
            }
            Source::Shared(self.ctas[cta].shared.offset(address, bytes, 16)?)
        };
        let data = match source {
            Source::Global(address) => {
                self.report.global_read_bytes += bytes as u64;
                self.may_touch(at, lane, address, false)?;
                self.global.read(address, bytes)?.to_vec()
            }
            Source::Shared(offset) => {
                self.report.shared_read_bytes += bytes as u64;
                let author = self.author(at, lane, inst);
                let by = Use { author, kind: Kind::ASYNC_READ, view: &self.clocks[author.slot] };
                self.ctas[at.cta].shared.read(offset, bytes, by)?.to_vec()
            }
        };
        self.land_later(at, lane, inst, &data, 16, 3)
    }

    fn tensor_load(&mut self, at: At, lane: u32, inst: &'a Inst) -> Run {
        let (boxes, corner) = self.tensor(at, lane, inst, 1)?;
        let mut data = vec![0; boxes.bytes()];
        boxes.fill(&mut data);
        for (row, part) in boxes.rows(&corner) {
            if let Some(Part { offset, address, bytes }) = part {
                let to = &mut data[row + offset..][..bytes];
                self.may_touch(at, lane, address, false)?;
                to.copy_from_slice(self.global.read(address, bytes)?);
                self.report.global_read_bytes += bytes as u64;
            }
        }
        let to = self.source(at, lane, inst, 0)? as u32;
        let mut permuted = data.clone();
        for (index, chunk) in data.chunks_exact(16).enumerate() {
            let place = boxes.map.swizzle.apply(to + index as u32 * 16).wrapping_sub(to) as usize;
            // Boxes whose swizzle would leave them are misaligned, which is a fault below.
            if let Some(room) = permuted.get_mut(place..place + 16) {
                room.copy_from_slice(chunk);
            }
        }
        self.land_later(at, lane, inst, &permuted, 128, 2)
    }

    /// Begins a copy to shared memory of one or, by multicast, several blocks. `after` is the
    /// operand of the mbarrier.
    fn land_later(
        &mut self,
        at: At,
        lane: u32,
        inst: &'a Inst,
        data: &[u8],
        align: usize,
        after: usize,
    ) -> Run {
        let to = self.source(at, lane, inst, 0)?;
        let Place::Shared(own, address) = self.shared_place(at, to)? else {
            return operand("a bulk copy to shared memory");
        };
        let (barrier, offset) = self.mbarrier_at(at, lane, inst, after)?;
        if barrier != own {
            return operand("the mbarrier is not in the block of the copy's destination");
        }
        let targets = if inst.has(Mod::Multicast) {
            self.source(at, lane, inst, after + 1)? as u32 & 0xffff
        } else {
            1 << own
        };
        if targets == 0 || targets >> self.ctas.len() != 0 {
            return operand(format!("a multicast to blocks {targets:#x}"));
        }
        let author = self.author(at, lane, inst);
        for cta in lanes(targets) {
            let cta = cta as usize;
            self.use_mbarrier(cta, offset, author, true)?;
            let shared = &mut self.ctas[cta].shared;
            let place = shared.offset(address, data.len(), align)?;
            let by = Use { author, kind: Kind::ASYNC_WRITE, view: &self.clocks[author.slot] };
            shared.begin_copy(place, data.len(), by)?;
            self.report.shared_write_bytes += data.len() as u64;
            let landing = Landing { offset: place, data: data.to_vec(), author };
            let bytes = data.len() as u64;
            let landings = vec![landing];
            let flight = Flight { bytes, arrives: false, line: inst.line, landings };
            self.mbarrier(cta, offset)?.queue.push(flight);
        }
        Ok(())
    }

    fn bulk_store(&mut self, at: At, lane: u32, inst: &'a Inst) -> Run {
        let to = self.source(at, lane, inst, 0)?;
        let from = self.source(at, lane, inst, 1)?;
        let bytes = self.source(at, lane, inst, 2)? as u32 as usize;
        check_bulk(bytes, &[to, from])?;
        self.may_touch(at, lane, to, true)?;
        self.global.check(to, bytes)?;
        let offset = self.own_offset(at, from, bytes, 16)?;
        self.note_store(at, lane, inst, offset, bytes, vec![(offset, to, bytes)])
    }

    fn tensor_store(&mut self, at: At, lane: u32, inst: &'a Inst) -> Run {
        let (boxes, corner) = self.tensor(at, lane, inst, 0)?;
        let from = self.source(at, lane, inst, 1)?;
        let offset = self.own_offset(at, from, boxes.bytes(), 128)?;
        let base = self.ctas[at.cta].shared.base;
        let size = boxes.map.elem.bytes();
        let mut parts = Vec::new();
        for (row, part) in boxes.rows(&corner) {
            let Some(Part { offset: skipped, address, bytes }) = part else { continue };
            self.may_touch(at, lane, address, true)?;
            self.global.check(address, bytes)?;
            for element in (0..bytes).step_by(size) {
                let place = base + (offset + row + skipped + element) as u32;
                let place = (boxes.map.swizzle.apply(place) - base) as usize;
                match parts.last_mut() {
                    Some((last, to, length))
                        if *last + *length == place
                            && *to + *length as u64 == address + element as u64 =>
                    {
                        *length += size;
                    }
                    _ => parts.push((place, address + element as u64, size)),
                }
            }
        }
        self.note_store(at, lane, inst, offset, boxes.bytes(), parts)
    }

    fn own_offset(&self, at: At, address: u64, bytes: usize, align: usize) -> Run<usize> {
        match self.shared_place(at, address)? {
            Place::Shared(cta, address) if cta == at.cta => {
                Ok(self.ctas[cta].shared.offset(address, bytes, align)?)
            }
            _ => operand("a bulk copy from another block's shared memory"),
        }
    }

    fn note_store(
        &mut self,
        at: At,
        lane: u32,
        inst: &Inst,
        offset: usize,
        bytes: usize,
        parts: Vec<(usize, u64, usize)>,
    ) -> Run {
        let next = self.next_slot;
        let stores = &mut self.ctas[at.cta].warps[at.warp].stores[lane as usize];
        if stores.slot.is_none() {
            self.next_slot += 1;
        }
        let slot = *stores.slot.get_or_insert(next);
        stores.epoch += 1;
        let author = Author { slot, epoch: stores.epoch, line: inst.line };
        stores.open.push(Store { line: inst.line, parts });
        let view = &self.clocks[self.slot(at, lane)];
        let by = Use { author, kind: Kind::ASYNC_READ, view };
        self.ctas[at.cta].shared.note_read(offset, bytes, by)?;
        self.report.shared_read_bytes += bytes as u64;
        Ok(())
    }

    pub(super) fn bulk_commit(&mut self, at: At, mask: u32) -> Run {
        let warp = self.warp_mut(at);
        for lane in lanes(mask) {
            let stores = &mut warp.stores[lane as usize];
            let group = std::mem::take(&mut stores.open);
            stores.groups.push_back(group);
        }
        Ok(())
    }

    /// What was waited for has read shared memory, and is written to global memory.
    pub(super) fn bulk_wait(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let keep = self.uniform(at, mask, inst, 0)? as usize;
        for lane in lanes(mask) {
            let thread = self.slot(at, lane);
            let stores = &mut self.ctas[at.cta].warps[at.warp].stores[lane as usize];
            let mut landed = Vec::new();
            while stores.groups.len() > keep {
                landed.extend(stores.groups.pop_front().into_iter().flatten());
            }
            let kept = stores.groups.iter().flatten().count() + stores.open.len();
            let read = stores.epoch - kept as u32;
            if let Some(slot) = stores.slot {
                let mut gather = Gather::default();
                gather.raise(slot, read);
                self.clocks[thread].acquire(&gather.take(), &mut self.memo);
            }
            for store in landed {
                for (offset, address, bytes) in store.parts {
                    let data = self.ctas[at.cta].shared.read_noted(offset, bytes).lane(lane)?;
                    self.global.store(address, data).lane(lane)?;
                    self.report.global_write_bytes += bytes as u64;
                }
            }
        }
        Ok(())
    }

    /// The map and coordinates that operand `index` names.
    fn tensor(&mut self, at: At, lane: u32, inst: &Inst, index: usize) -> Run<(Boxes, Vec<i32>)> {
        let Arg::Tensor(map, coordinates) = self.arg(inst, index)? else {
            return operand("a bulk tensor copy needs `[map, {coordinates}]`");
        };
        let address = self.value(at, lane, map)?;
        let place = match **map {
            Arg::Sym(Symbol::Param(_), _) => Place::Param(address),
            _ => self.place(at, address, Default::default())?,
        };
        if !address.is_multiple_of(64) {
            return Err(FaultKind::Misaligned { space: "tensor map", address, align: 64 }.into());
        }
        let mut bytes = [0; 128];
        let (first, second) = bytes.split_at_mut(64);
        self.read(at, lane, place, first, inst)?;
        self.read(at, lane, place.after(64), second, inst)?;
        let boxes = Boxes::decode(&bytes)?;
        let ranks = [Mod::D1, Mod::D2, Mod::D3, Mod::D4, Mod::D5];
        let rank = ranks.iter().position(|rank| inst.has(*rank)).map_or(0, |rank| rank + 1);
        let found = boxes.map.dims.len();
        if coordinates.len() != rank || found != rank {
            let given = coordinates.len();
            return operand(format!("{given} coordinates of a {rank}d copy, the map is {found}d"));
        }
        let mut corner = Vec::new();
        for coordinate in coordinates {
            corner.push(self.value(at, lane, coordinate)? as i32);
        }
        Ok((boxes, corner))
    }
}

fn check_bulk(bytes: usize, addresses: &[u64]) -> Run {
    if !bytes.is_multiple_of(16) {
        return operand(format!("a bulk copy of {bytes} bytes, no multiple of 16"));
    }
    match addresses.iter().find(|address| !address.is_multiple_of(16)) {
        Some(address) => {
            let (space, address) = ("bulk copy", *address);
            Err(FaultKind::Misaligned { space, address, align: 16 }.into())
        }
        None => Ok(()),
    }
}
