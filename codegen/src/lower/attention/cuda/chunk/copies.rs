//! Copies of keys and values to the ring.

use super::{
    super::{CHUNK, tile::Tile},
    Chunks, GROUP, GROUPS, Memory, Place, padded, place,
};
use crate::{
    emit::{Cmp, Elem, Val},
    lower::view::View,
};

impl Chunks<'_> {
    /// Copies sixteen bytes, or zeros.
    pub(super) fn copy(&self, to: Val, from: Val, inside: Val) {
        let e = &self.cx.e;
        let bytes = e.select(inside, e.i32(16), e.i32(0));
        e.ptx("cp.async.cg.shared.global [$0], [$1], 16, $2;", &[to, from, bytes]);
    }

    /// The blocks that hold a chunk's groups of keys, of which the last to be read is `keys - 1`;
    /// nothing where keys are not in blocks.
    pub(in super::super) fn entries(&self, tile: Tile, chunk: Val, keys: Val) -> Vec<Val> {
        let (cx, e) = (self.cx, &self.cx.e);
        let Memory::Paged { k, tables, block, .. } = &self.memory else { return Vec::new() };
        let table = tables.at(cx, cx.scale(tile.segment, &tables.strides[0]));
        let first = e.mul_const(chunk, CHUNK);
        let last = e.max(e.add_const(keys, -1), e.i32(0));
        // Whatever the table says, the block is one of the memory's.
        let most = e.cast(e.add_const(cx.size(&k.shape[0]), -1), Elem::I32);
        let entry = |group: i64| {
            let key = e.min(e.add_const(first, group * GROUP), last);
            let at = e.cast(e.div_unsigned(key, e.i32(*block)), Elem::I64);
            let entry = table.load(cx, cx.scale(at, &tables.strides[1]));
            e.max(e.min(entry, most), e.i32(0))
        };
        (0..GROUPS).map(entry).collect()
    }

    /// The block that a group of keys is in.
    pub(super) fn pick(&self, entries: &[Val], place: Place) -> Val {
        let e = &self.cx.e;
        if let Some(group) = place.known {
            return entries[group];
        }
        let group = place.group;
        let rest = (1..).zip(&entries[1..]);
        rest.fold(entries[0], |found, (i, entry)| {
            e.select(e.cmp(Cmp::Eq, group, e.i32(i)), *entry, found)
        })
    }

    /// Begins the copy of a chunk's keys to the stage at byte `stage`: those before `keys`.
    pub(in super::super) fn fetch_keys(
        &self,
        tile: Tile,
        chunk: Val,
        keys: Val,
        entries: &[Val],
        stage: Val,
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let to = e.add(self.shared, stage);
        match &self.memory {
            Memory::Dense { k, .. } => self.rows(k, self.sizes.key, tile, chunk, keys, to),
            Memory::Paged { k, block, .. } => {
                let first = e.mul_const(chunk, CHUNK);
                let (size, rows) = (self.sizes.key, padded(self.sizes.key));
                let begin = cx.scale(tile.head, &k.strides[1]);
                if self.quantized.is_some() {
                    self.code_keys(tile, first, keys, entries, to);
                    return;
                }
                let split = |index: Val| (e.shr(index, 1), e.and(index, e.i32(1)));
                self.share(2 * rows, |index, place_of| {
                    let Place { group, within, .. } = place_of;
                    let (_, half, to_byte) =
                        self.steps(index, (2, 32), split, |row, half| place(e, row, half, 2));
                    let row = e.shr(within, 1);
                    let key = e.add(first, e.mul_const(group, GROUP));
                    let slot = e.add(e.rem_unsigned(key, e.i32(*block)), e.shl(half, 3));
                    let key = e.add(key, e.shl(half, 3));
                    let mut inside = e.cmp(Cmp::Lt, key, keys);
                    let mut from = row;
                    if rows > size {
                        inside = e.and(inside, e.cmp(Cmp::Lt, row, e.i32(size)));
                        from = e.min(row, e.i32(size - 1));
                    }
                    let entry = e.cast(self.pick(entries, place_of), Elem::I64);
                    let at = cx.offset(begin, entry, &k.strides[0]);
                    let at = cx.offset(at, e.cast(from, Elem::I64), &k.strides[2]);
                    let from = e.at(k.base, self.elem(), e.add(at, e.cast(slot, Elem::I64)));
                    self.copy(e.add(to, to_byte), from, inside);
                });
            }
        }
    }

    /// As [`Self::fetch_keys`], of values.
    pub(in super::super) fn fetch_values(
        &self,
        tile: Tile,
        chunk: Val,
        keys: Val,
        entries: &[Val],
        stage: Val,
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let to = e.add_const(e.add(self.shared, stage), self.values_of_stage());
        match &self.memory {
            Memory::Dense { v, .. } => self.rows(v, self.sizes.value, tile, chunk, keys, to),
            Memory::Paged { v, block, .. } => {
                let first = e.mul_const(chunk, CHUNK);
                let begin = cx.scale(tile.head, &v.strides[1]);
                self.units(self.sizes.value, to, |row, column, place_of| {
                    let key = e.add(first, row);
                    let entry = e.cast(self.pick(entries, place_of), Elem::I64);
                    let slot = e.cast(e.rem_unsigned(key, e.i32(*block)), Elem::I64);
                    let at = cx.offset(begin, entry, &v.strides[0]);
                    let at = cx.offset(at, slot, &v.strides[2]);
                    (e.at(v.base, self.elem(), e.add(at, column)), e.cmp(Cmp::Lt, key, keys))
                });
            }
        }
    }

    /// Rows of tokens, one for each key of a chunk.
    fn rows(&self, view: &View, size: i64, tile: Tile, chunk: Val, keys: Val, to: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let batched = view.shape.len() == 4;
        let [by_token, by_head] = if batched { [2, 1] } else { [0, 1] };
        let begin = cx.scale(tile.head, &view.strides[by_head]);
        let begin = if batched {
            cx.offset(begin, tile.segment, &view.strides[0])
        } else {
            cx.offset(begin, tile.start, &view.strides[by_token])
        };
        let first = e.mul_const(chunk, CHUNK);
        // The last key stands in for those that are not read.
        let last = e.add_const(keys, -1);
        self.units(size, to, |row, column, _| {
            let key = e.add(first, row);
            let token = e.cast(e.min(key, last), Elem::I64);
            let at = cx.offset(begin, token, &view.strides[by_token]);
            (e.at(view.base, self.elem(), e.add(at, column)), e.cmp(Cmp::Lt, key, keys))
        });
    }

    /// Copies the units of a row for each key: `address(row, column)` says from where, and whether
    /// to. Codes are not permuted: they are read as they are written.
    fn units(&self, size: i64, to: Val, address: impl Fn(Val, Val, Place) -> (Val, Val)) {
        let e = &self.cx.e;
        let each: i64 = if self.quantized.is_some() { 16 } else { 8 };
        let (units, there) = (padded(size) / each, size / each);
        let split =
            |index: Val| (e.div_unsigned(index, e.i32(units)), e.rem_unsigned(index, e.i32(units)));
        self.share(GROUP * units, |index, place_of| {
            let shape = (units, self.pitch(units));
            let (row, unit, at) = self.steps(index, shape, split, |row, unit| {
                if self.quantized.is_some() {
                    e.shl(e.add(e.mul_const(row, units), unit), 4)
                } else {
                    self.place(row, unit, units)
                }
            });
            let column = e.mul_const(e.min(unit, e.i32(there - 1)), each);
            let (from, mut inside) = address(row, e.cast(column, Elem::I64), place_of);
            if there < units {
                inside = e.and(inside, e.cmp(Cmp::Lt, unit, e.i32(there)));
            }
            self.copy(e.add(to, at), from, inside);
        });
    }

    /// The row, unit and byte of a thread's unit number `index`, counted in rows of `units` that
    /// are `pitch` bytes apart; where each of its units is a multiple of eight rows behind the one
    /// before, from the first one's.
    fn steps(
        &self,
        (thread, behind): (Val, i64),
        (units, pitch): (i64, i64),
        split: impl Fn(Val) -> (Val, Val),
        byte: impl Fn(Val, Val) -> Val,
    ) -> (Val, Val, Val) {
        let e = &self.cx.e;
        if behind % (units * 8) == 0 {
            let (row, unit) = split(thread);
            let at = e.add_const(byte(row, unit), behind / units * pitch);
            return (e.add_const(row, behind / units), unit, at);
        }
        let (row, unit) = split(e.add_const(thread, behind));
        (row, unit, byte(row, unit))
    }

    /// Calls `body((thread, behind), place)` for this thread's share of `GROUPS` groups of `each`:
    /// number `thread + behind`, whose group is known if all threads are in one.
    pub(super) fn share(&self, each: i64, body: impl Fn((Val, i64), Place)) {
        let (e, (thread, threads)) = (&self.cx.e, self.threads);
        let count = GROUPS * each;
        for i in 0..(count + threads - 1) / threads {
            let behind = i * threads;
            let index = e.add_const(thread, behind);
            let place = if each % threads == 0 {
                let group = i * threads / each;
                let within = e.add_const(index, -group * each);
                Place { group: e.i32(group), within, known: usize::try_from(group).ok() }
            } else {
                let group = e.div_unsigned(index, e.i32(each));
                Place { group, within: e.rem_unsigned(index, e.i32(each)), known: None }
            };
            if (i + 1) * threads > count {
                let exists = e.cmp(Cmp::Lt, index, e.i32(count));
                e.if_then(exists, || body((thread, behind), place));
            } else {
                body((thread, behind), place);
            }
        }
    }
}
