//! Chunks of keys and values in shared memory: copies, and fragments for `mma.sync.m16n8k16`.
//!
//! Sixteen-byte units are permuted as in [`crate::kernels::gemm::sm80`]. Of keys a chunk is a row
//! of elements for each key, or a row of keys for each element, as they lie in memory.

use ir::DType;

use super::{Piece, ROWS, Sizes, WARPS, WORD};
use crate::{
    emit::{Cmp, Elem, Emitter, Val},
    lower::{cx::Cx, view::View},
};

/// Where keys and values lie.
pub(super) enum Memory {
    /// `[T, H, D]`.
    Dense { k: View, v: View },
    /// `[NB, H, D, BS]` and `[NB, H, BS, Dv]`, by block tables `[S, MB]`.
    Paged { k: View, v: View, tables: View, block: i64 },
}

impl Memory {
    pub(super) fn of(cx: &Cx<'_>, _: Sizes) -> Memory {
        let (k, v) = (cx.operand(1), cx.operand(2));
        if cx.spec.op == "attention" {
            return Memory::Dense { k, v };
        }
        let block = k.shape[3].as_const().expect("`supports` checked the block size");
        Memory::Paged { k, v, tables: cx.operand(3), block }
    }

    fn dtype(&self) -> DType {
        match self {
            Memory::Dense { k, .. } | Memory::Paged { k, .. } => k.dtype,
        }
    }
}

/// The ring of two chunks, and the queries.
pub(super) struct Chunks<'a> {
    pub(super) cx: &'a Cx<'a>,
    pub(super) sizes: Sizes,
    pub(super) memory: Memory,
    pub(super) shared: Val,
}

/// Byte of unit `unit` of row `row`, of rows of `units`.
pub(super) fn place(e: &Emitter, row: Val, unit: Val, units: i64) -> Val {
    let turn = match units {
        _ if units % 8 == 0 => e.and(row, e.i32(7)),
        _ if units % 4 == 0 => e.and(e.shr(row, 1), e.i32(3)),
        _ => e.and(e.shr(row, 2), e.i32(1)),
    };
    e.shl(e.add(e.mul_const(row, units), e.xor(unit, turn)), 4)
}

impl Chunks<'_> {
    /// The type of keys and values as PTX names it.
    pub(super) fn type_name(&self) -> &'static str {
        if self.memory.dtype() == DType::F16 { "f16" } else { "bf16" }
    }

    fn elem(&self) -> Elem {
        if self.memory.dtype() == DType::F16 { Elem::F16 } else { Elem::Bf16 }
    }

    /// Keys of a chunk.
    pub(super) fn keys(&self) -> i64 {
        if self.sizes.value > 64 { 32 } else { 64 }
    }

    fn key_bytes(&self) -> i64 {
        self.keys() * self.sizes.key * 2
    }

    pub(super) fn stage_bytes(&self) -> i64 {
        self.key_bytes() + self.keys() * self.sizes.value * 2
    }

    /// Bytes of shared memory.
    pub(super) fn bytes(&self) -> i64 {
        2 * self.stage_bytes() + ROWS * self.sizes.key * 2
    }

    /// Where the queries are.
    pub(super) fn queries(&self) -> Val {
        self.cx.e.add_const(self.shared, 2 * self.stage_bytes())
    }

    /// Copies sixteen bytes, or zeros.
    fn copy(&self, to: Val, from: Val, inside: Val) {
        let e = &self.cx.e;
        let bytes = e.select(inside, e.i32(16), e.i32(0));
        e.ptx("cp.async.cg.shared.global [$0], [$1], 16, $2;", &[to, from, bytes]);
    }

    /// Begins the copies of a chunk of the piece's sequence, of which `keys` are to be read, to the
    /// stage at byte `stage`.
    pub(super) fn fetch(&self, piece: Piece, chunk: Val, keys: Val, stage: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let first = e.mul_const(chunk, self.keys());
        let to_keys = e.add(self.shared, stage);
        let to_values = e.add_const(to_keys, self.key_bytes());
        let head = e.cast(e.block('y'), Elem::I64);
        // The last key stands in for those that are not read.
        let last = e.add_const(keys, -1);
        let rows = |width: i64, to: Val, address: &dyn Fn(Val, Val) -> Val| {
            let units = width / 8;
            self.share(self.keys() * units, |index| {
                let row = e.div_unsigned(index, e.i32(units));
                let unit = e.rem_unsigned(index, e.i32(units));
                let key = e.add(first, row);
                let from = address(e.min(key, last), e.cast(e.shl(unit, 3), Elem::I64));
                let to = e.add(to, place(e, row, unit, units));
                self.copy(to, from, e.cmp(Cmp::Lt, key, keys));
            });
        };
        match &self.memory {
            Memory::Dense { k, v } => {
                for (view, width, to) in
                    [(k, self.sizes.key, to_keys), (v, self.sizes.value, to_values)]
                {
                    rows(width, to, &|key, column| {
                        let token = e.add(piece.start, e.cast(key, Elem::I64));
                        let row =
                            cx.offset(cx.scale(token, &view.strides[0]), head, &view.strides[1]);
                        e.at(view.base, self.elem(), e.add(row, column))
                    });
                }
            }
            Memory::Paged { k, v, tables, block } => {
                let table = tables.at(cx, cx.scale(piece.segment, &tables.strides[0]));
                let find = |key: Val| {
                    let entry = e.cast(e.div_unsigned(key, e.i32(*block)), Elem::I64);
                    let entry = table.load(cx, cx.scale(entry, &tables.strides[1]));
                    (e.cast(entry, Elem::I64), e.rem_unsigned(key, e.i32(*block)))
                };
                let units = self.keys() / 8;
                self.share(self.sizes.key * units, |index| {
                    let row = e.div_unsigned(index, e.i32(units));
                    let unit = e.rem_unsigned(index, e.i32(units));
                    let key = e.add(first, e.shl(unit, 3));
                    let inside = e.cmp(Cmp::Lt, key, keys);
                    let (entry, slot) = find(e.select(inside, key, e.i32(0)));
                    let at = cx.offset(cx.scale(entry, &k.strides[0]), head, &k.strides[1]);
                    let at = cx.offset(at, e.cast(row, Elem::I64), &k.strides[2]);
                    let from = e.at(k.base, self.elem(), e.add(at, e.cast(slot, Elem::I64)));
                    self.copy(e.add(to_keys, place(e, row, unit, units)), from, inside);
                });
                rows(self.sizes.value, to_values, &|key, column| {
                    let (entry, slot) = find(key);
                    let at = cx.offset(cx.scale(entry, &v.strides[0]), head, &v.strides[1]);
                    let at = cx.offset(at, e.cast(slot, Elem::I64), &v.strides[2]);
                    e.at(v.base, self.elem(), e.add(at, column))
                });
            }
        }
    }

    /// Calls `body(index)` for this thread's share of `0..count`, a multiple of the threads.
    fn share(&self, count: i64, body: impl Fn(Val)) {
        let (e, threads) = (&self.cx.e, i64::from(self.cx.e.threads()));
        let thread = e.thread();
        (0..count / threads).for_each(|i| body(e.add_const(thread, i * threads)));
    }

    /// The warp's rows of queries at sixteen-wide step `step`.
    pub(super) fn query_fragment(&self, thread: Val, step: i64) -> [Val; 4] {
        let e = &self.cx.e;
        let row =
            e.add(e.shl(e.and(e.shr(thread, 5), e.i32(WARPS - 1)), 4), e.and(thread, e.i32(15)));
        let unit = e.add_const(e.and(e.shr(thread, 4), e.i32(1)), 2 * step);
        let at = place(e, row, unit, self.sizes.key / 8);
        self.ldmatrix("", e.add(self.queries(), at))
    }

    /// Keys `16j..` at step `step`, as two blocks of eight columns.
    pub(super) fn key_fragment(&self, thread: Val, stage: Val, j: i64, step: i64) -> [[Val; 2]; 2] {
        let from = self.cx.e.add(self.shared, stage);
        match self.memory {
            Memory::Dense { .. } => {
                let [row8, low, high] = self.lane(thread);
                let e = &self.cx.e;
                let key = e.add_const(e.add(row8, e.shl(high, 3)), 16 * j);
                let unit = e.add_const(low, 2 * step);
                let at = place(e, key, unit, self.sizes.key / 8);
                pairs(self.ldmatrix("", e.add(from, at)))
            }
            Memory::Paged { .. } => {
                self.columns(thread, from, (self.cx.e.i32(0), j), step, self.keys())
            }
        }
    }

    /// Elements `16j..` of values at sixteen keys, as two blocks of eight columns.
    pub(super) fn value_fragment(
        &self,
        thread: Val,
        stage: Val,
        j: i64,
        step: i64,
    ) -> [[Val; 2]; 2] {
        let e = &self.cx.e;
        let from = e.add_const(e.add(self.shared, stage), self.key_bytes());
        let first = self.cx.e.mul_const(self.part(thread), self.sizes.value / 16);
        self.columns(thread, from, (first, j), step, self.sizes.value)
    }

    /// Columns `16j..`, from unit `first` on, of dense rows of `width`, of which a step is sixteen.
    fn columns(
        &self,
        thread: Val,
        from: Val,
        (first, j): (Val, i64),
        step: i64,
        width: i64,
    ) -> [[Val; 2]; 2] {
        let e = &self.cx.e;
        let [row8, low, high] = self.lane(thread);
        let row = e.add_const(e.add(row8, e.shl(low, 3)), 16 * step);
        let unit = e.add(first, e.add_const(high, 2 * j));
        let at = place(e, row, unit, width / 8);
        pairs(self.ldmatrix(".trans", e.add(from, at)))
    }

    /// The thread's part of the values' elements.
    pub(super) fn part(&self, thread: Val) -> Val {
        let e = &self.cx.e;
        if self.sizes.parts() == 1 {
            return e.i32(0);
        }
        e.shr(thread, 7)
    }

    /// The row of eight that a lane names for `ldmatrix`, and both bits of the matrix's number.
    fn lane(&self, thread: Val) -> [Val; 3] {
        let e = &self.cx.e;
        let bit = |n: u32| e.and(e.shr(thread, n), e.i32(1));
        [e.and(thread, e.i32(7)), bit(3), bit(4)]
    }

    fn ldmatrix(&self, trans: &str, at: Val) -> [Val; 4] {
        let text =
            format!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{$0, $1, $2, $3}}, [$4];");
        let words = self.cx.e.ptx_values(&text, &[WORD; 4], &[at]);
        [words[0], words[1], words[2], words[3]]
    }
}

fn pairs(words: [Val; 4]) -> [[Val; 2]; 2] {
    [[words[0], words[1]], [words[2], words[3]]]
}
