//! Chunks of keys and values in shared memory: copies, and fragments for `mma.sync.m16n8k16`.
//!
//! The ring has stages of a chunk's keys and its values, each copied by itself. Sixteen-byte units
//! are permuted as in [`crate::kernels::gemm::sm80`]. A chunk's keys are a row of elements for each
//! key or, of keys in blocks, a row of sixteen keys for each element, as they lie in memory. For
//! `wgmma` rows of elements are cut into pieces of 128 bytes, and all first pieces come first: then
//! the permutation is that of its descriptors, also of the 32 bytes of sixteen keys.

mod codes;
mod copies;

use ir::DType;

use super::{
    CHUNK, Sizes, WORD,
    tile::{Numbering, Tiles},
};
pub(super) use codes::Scales;

use crate::{
    emit::{Elem, Emitter, Val},
    lower::{
        cx::Cx,
        view::{View, memory_elem},
    },
};

/// Keys that are surely in one block of memory.
const GROUP: i64 = super::super::GROUP;
/// Bytes of a piece of a row.
pub(super) const PIECE: i64 = 128;
/// Groups of a chunk.
const GROUPS: i64 = CHUNK / GROUP;

/// Where keys and values lie.
enum Memory {
    /// Rows by token.
    Dense { k: View, v: View },
    /// `[NB, H, D, BS]` and `[NB, H, BS, Dv]`, by block tables `[S, MB]`.
    Paged { k: View, v: View, tables: View, block: i64 },
}

/// Keys and values that are codes: their scales, and where a chunk of them is in bf16.
struct Quantized {
    /// `[NB, H, BS]`, of keys and of values.
    scales: [View; 2],
    work: Val,
}

/// A unit's place among groups of keys.
#[derive(Clone, Copy)]
struct Place {
    group: Val,
    /// The number of the group, where it is the same for all threads.
    known: Option<usize>,
    within: Val,
}

/// Number of a block of sixteen elements of values.
#[derive(Clone, Copy)]
pub(super) enum Block {
    Known(i64),
    /// Behind a number that is a multiple of four.
    Behind(Val, i64),
    /// A multiple of four behind any number.
    Any(Val, i64),
}

impl Block {
    pub(super) fn number(self, e: &Emitter) -> Val {
        match self {
            Block::Known(block) => e.i32(block),
            Block::Behind(first, block) | Block::Any(first, block) => e.add_const(first, block),
        }
    }
}

/// The ring of chunks.
pub(super) struct Chunks<'a> {
    cx: &'a Cx<'a>,
    sizes: Sizes,
    memory: Memory,
    quantized: Option<Quantized>,
    /// Stages of the ring, which begins here.
    pub(super) stages: i64,
    pub(super) shared: Val,
    /// The number of the thread among those that copy, and how many there are.
    threads: (Val, i64),
    /// Whether rows are in pieces of 128 bytes.
    pieces: bool,
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

/// As [`place`], of unit `bit + 2 step`, for a bit: lanes' parts of the sum are few.
fn place_step(e: &Emitter, row: Val, (bit, step): (Val, i64), units: i64) -> Val {
    let (turn, among) = match units {
        _ if units % 8 == 0 => (e.and(row, e.i32(7)), 8),
        _ if units % 4 == 0 => (e.and(e.shr(row, 1), e.i32(3)), 4),
        _ => (e.and(e.shr(row, 2), e.i32(1)), 2),
    };
    let unit = e.xor(e.xor(bit, turn), e.i32(2 * step % among));
    let begin = e.shl(e.add(e.mul_const(row, units), unit), 4);
    e.add_const(begin, 2 * step / among * among * 16)
}

/// Bytes of a chunk in the type of tensor cores' operands.
pub(super) const fn chunk_bytes(sizes: Sizes) -> i64 {
    CHUNK * 2 * (padded(sizes.key) + padded(sizes.value))
}

/// Bytes of a stage; of codes, with scales behind them.
pub(super) const fn stage_bytes(sizes: Sizes, codes: bool) -> i64 {
    if codes { chunk_bytes(sizes) / 2 + 2 * 4 * CHUNK } else { chunk_bytes(sizes) }
}

/// Elements of a head with those that fill up the last step.
pub(super) const fn padded(size: i64) -> i64 {
    (size + 15) / 16 * 16
}

impl<'a> Chunks<'a> {
    /// Chunks in a ring of so many stages; codes become numbers at `work`.
    pub(super) fn new(cx: &'a Cx<'a>, tiles: &Tiles<'a>, stages: i64, work: Val) -> Chunks<'a> {
        let (k, v) = (cx.operand(1), cx.operand(2));
        let memory = if tiles.numbering == Numbering::Paged {
            let block = k.shape[3].as_const().expect("`supports` checked the block size");
            Memory::Paged { k, v, tables: cx.operand(3), block }
        } else {
            Memory::Dense { k, v }
        };
        let codes = matches!(cx.operand(1).dtype, DType::I8 | DType::F8E4M3);
        let quantized = codes.then(|| Quantized { scales: [6, 7].map(|i| cx.operand(i)), work });
        let threads = (cx.e.thread(), i64::from(cx.e.threads()));
        let (sizes, shared) = (tiles.sizes, cx.e.shared());
        Chunks { cx, sizes, memory, quantized, stages, shared, threads, pieces: false }
    }

    /// As `wgmma` reads them; so many threads copy, of which this one has that number.
    pub(super) fn in_pieces(self, thread: Val, count: i64) -> Chunks<'a> {
        Chunks { threads: (thread, count), pieces: true, ..self }
    }

    /// Sizes of heads.
    pub(super) const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Whether keys are in blocks.
    pub(super) const fn paged(&self) -> bool {
        matches!(self.memory, Memory::Paged { .. })
    }

    /// Byte of unit `unit` of an element row `row`, of rows of `units`.
    fn place(&self, row: Val, unit: Val, units: i64) -> Val {
        let e = &self.cx.e;
        if !self.pieces {
            return place(e, row, unit, units);
        }
        let piece = e.mul_const(e.shr(unit, 3), CHUNK * PIECE);
        e.add(piece, place(e, row, e.and(unit, e.i32(7)), 8))
    }

    /// Bytes from an element row of `units` to the next.
    const fn pitch(&self, units: i64) -> i64 {
        if self.pieces { PIECE } else { 16 * units }
    }

    fn dtype(&self) -> DType {
        match &self.memory {
            Memory::Dense { k, .. } | Memory::Paged { k, .. } => k.dtype,
        }
    }

    /// The type of operands as PTX names it.
    pub(super) fn type_name(&self) -> &'static str {
        if self.dtype() == DType::F16 { "f16" } else { "bf16" }
    }

    /// Two ones of that type.
    pub(super) fn ones(&self) -> Val {
        let one = if self.dtype() == DType::F16 { 0x3c00 } else { 0x3f80 };
        self.cx.e.i32(one << 16 | one)
    }

    fn elem(&self) -> Elem {
        memory_elem(self.dtype())
    }

    /// Bytes of a chunk's keys as operands.
    const fn key_bytes(&self) -> i64 {
        CHUNK * 2 * padded(self.sizes.key)
    }

    /// Where the values of a stage begin.
    const fn values_of_stage(&self) -> i64 {
        if self.quantized.is_some() { self.key_bytes() / 2 } else { self.key_bytes() }
    }

    /// Where operands of the chunk in a stage are.
    fn operands(&self, stage: Val) -> Val {
        match &self.quantized {
            Some(quantized) => quantized.work,
            None => self.cx.e.add(self.shared, stage),
        }
    }

    /// Keys of group `group` (of sixteen) at step `step`, as two blocks of eight columns.
    pub(super) fn key_fragment(
        &self,
        thread: Val,
        stage: Val,
        group: Val,
        step: i64,
    ) -> [[Val; 2]; 2] {
        let e = &self.cx.e;
        let from = self.operands(stage);
        let [row8, low, high] = self.lane(thread);
        let size = padded(self.sizes.key);
        match self.memory {
            Memory::Dense { .. } => {
                let key = e.add(e.add(row8, e.shl(high, 3)), e.shl(group, 4));
                let at = place_step(e, key, (low, step), size / 8);
                pairs(self.ldmatrix("", e.add(from, at)))
            }
            Memory::Paged { .. } => {
                let row = e.add_const(e.add(row8, e.shl(low, 3)), 16 * step);
                let row = e.add(e.mul_const(group, size), row);
                pairs(self.ldmatrix(".trans", e.add(from, place(e, row, high, 2))))
            }
        }
    }

    /// A block of sixteen elements of values at sixteen keys, as two blocks of eight columns.
    pub(super) fn value_fragment(
        &self,
        thread: Val,
        stage: Val,
        block: Block,
        step: i64,
    ) -> [[Val; 2]; 2] {
        let e = &self.cx.e;
        let from = e.add_const(self.operands(stage), self.key_bytes());
        let [row8, low, high] = self.lane(thread);
        let row = e.add_const(e.add(row8, e.shl(low, 3)), 16 * step);
        let units = padded(self.sizes.value) / 8;
        let at = match block {
            Block::Known(block) => place_step(e, row, (high, block), units),
            Block::Behind(first, block) => {
                e.add(place_step(e, row, (high, block), units), e.shl(first, 5))
            }
            Block::Any(first, behind) => {
                let unit = e.add(e.shl(first, 1), high);
                e.add_const(place(e, row, unit, units), 32 * behind)
            }
        };
        pairs(self.ldmatrix(".trans", e.add(from, at)))
    }

    /// Sixteen rows from `row` on of an operand at `from`, rows of `units`, at step `step`.
    pub(super) fn left_fragment(
        &self,
        thread: Val,
        from: Val,
        row: Val,
        (units, step): (i64, i64),
    ) -> [Val; 4] {
        let e = &self.cx.e;
        let row = e.add(row, e.and(thread, e.i32(15)));
        let bit = e.and(e.shr(thread, 4), e.i32(1));
        self.ldmatrix("", e.add(from, place_step(e, row, (bit, step), units)))
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
