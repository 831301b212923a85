//! Tiles of products of matrices in any layout, for `sm_80` and later.
//!
//! A block computes one tile. Its threads read units of a few neighbours along each operand's dense
//! axis into registers, a stage of k ahead, and write them to one of two places in shared memory
//! when the stage before has been multiplied: so operands of other types, of any strides and of any
//! alignment take the same way, and are converted on it. What lies outside of an operand is not
//! read, and is zero.
//!
//! - [`simt`]: f32, an output is one chain of fused multiply-adds over k from zero.
//! - [`mma`]: bf16 and f16 on the tensor cores, an output is one chain of sixteen-wide steps.

pub mod mma;
mod output;
mod reader;
pub mod simt;

pub use output::Output;
use reader::Reader;

use super::PANEL;
use crate::emit::{Barrier, Cmp, Elem, Emitter, Ty, Val};

/// Elements between neighbours along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// Known when the kernel is made.
    Const(i64),
    /// An i64.
    Value(Val),
}

impl Stride {
    /// `count · self` for an i32 `count`, as an i64.
    #[must_use]
    pub fn times(self, e: &Emitter, count: Val) -> Val {
        let count = e.cast(count, Elem::I64);
        match self {
            Stride::Const(0) => e.i64(0),
            Stride::Const(stride) => e.mul_const(count, stride),
            Stride::Value(stride) => e.mul(count, stride),
        }
    }
}

/// How an operand lies in memory. Its lines are rows of a left operand, columns of a right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Strides from line to line and along k.
    Strides([Stride; 2]),
    /// `[lines / 16][k][16]` of so many k.
    Panels(i64),
}

/// An operand.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Address of its first element.
    pub base: Val,
    /// Element: f32, bf16 or f16.
    pub elem: Elem,
    /// Layout.
    pub place: Place,
    /// Number of lines, i32; of panels, a multiple of sixteen.
    pub lines: Val,
    /// Eight neighbours along the dense axis begin at a multiple of their size, or of sixteen
    /// bytes, and are all inside or all outside of the operand.
    pub whole: bool,
}

/// The axis along which an operand is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dense {
    K,
    Lines,
    Panels,
}

impl Source {
    fn dense(&self) -> Dense {
        match self.place {
            Place::Panels(_) => Dense::Panels,
            Place::Strides([_, Stride::Const(1)]) => Dense::K,
            Place::Strides(_) => Dense::Lines,
        }
    }
}

/// What a block computes.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Left operand, `[rows, k]`.
    pub a: Source,
    /// Right operand, `[k, columns]`.
    pub b: Source,
    /// Length of the sums, i32.
    pub k: Val,
    /// First row and column of the tile, i32; the column a multiple of the tile's.
    pub first: [Val; 2],
}

/// A run of neighbouring sums in a row, which one thread holds.
pub struct Run<'a> {
    /// Number of the row among the thread's.
    pub line: usize,
    /// Of the result, i32.
    pub row: Val,
    /// The first one, of the result, i32.
    pub column: Val,
    /// Two or four.
    pub sums: &'a [Val],
    /// Of a gated product: what the activated sums are multiplied with.
    pub up: Option<&'a [Val]>,
}

/// A way to multiply tiles.
pub trait Engine {
    /// Threads of a block.
    fn threads(&self) -> u32;
    /// Blocks for which a multiprocessor has registers: 128 a thread, so that one computes while
    /// another waits.
    fn resident(&self) -> u32 {
        512 / self.threads()
    }
    /// Rows and columns of a tile.
    fn tile(&self) -> [i64; 2];
    /// Rows that a thread has sums of; the lanes that differ in the lowest two bits of their number
    /// have sums of the same rows.
    fn lines(&self) -> usize;
    /// Warps along rows and columns; the number of one along rows counts first.
    fn warps(&self) -> [i64; 2];
    /// Sums of a thread.
    fn count(&self) -> usize {
        let [m, n] = self.tile();
        usize::try_from(m * n / i64::from(self.threads())).expect("few sums")
    }
    /// Bytes of shared memory, from its beginning on.
    fn shared_bytes(&self) -> u32;
    /// The block's sums, as [`Engine::each`] takes them. All threads come here; nobody reads or
    /// writes the shared memory behind it any more.
    fn sums(&self, e: &Emitter, task: &Task) -> Vec<Val>;
    /// Bytes of a left operand of so many steps over k, a multiple of 32, that [`Engine::more`]
    /// takes from shared memory.
    fn held_bytes(&self, k: i64) -> u32;
    /// Writes f32 neighbours along k, two or four from an even step (i32) on, of a row of the tile
    /// (i32) to such an operand at an address (i32).
    fn hold(&self, e: &Emitter, to: Val, row: Val, k: Val, values: &[Val]);
    /// `sums` and the products of a left operand that is held, behind [`Engine::shared_bytes`], and
    /// of the task's right one. What was held is seen by all, and may be written again behind it.
    fn more(&self, e: &Emitter, held: Val, task: &Task, sums: &[Val]) -> Vec<Val>;
    /// Calls `body` for each run of a thread's sums of the tile that begins at `first`. Of a
    /// `gated` product panels of two weights alternate, and the runs are those of the result.
    fn each(
        &self,
        e: &Emitter,
        first: [Val; 2],
        sums: &[Val],
        gated: bool,
        body: &mut dyn FnMut(&Run<'_>),
    );
}

/// A stage and how it is used: what engines differ in.
trait Stages {
    /// Steps over k of a stage.
    fn depth(&self) -> i64;
    /// Bytes of a stage.
    fn bytes(&self) -> i64;
    /// Bytes of the left operand's part of a stage, its first.
    fn left_bytes(&self) -> i64;
    /// Writes what has been read of an operand, 0 or 1, to the stage at an address.
    fn write(&self, side: usize, reader: &Reader<'_>, raw: &[Vec<Val>], to: Val);
    /// Adds the products of a stage, of which `count` (i32) steps count: of a left operand's part
    /// at one address, and of a right one's in the stage at another.
    fn multiply(&self, from: [Val; 2], count: Val, sums: &[Val]) -> Vec<Val>;
}

/// Adds the products over all of k: of two operands, or of one that lies in shared memory, stage
/// behind stage, and one more.
fn pipeline(
    e: &Emitter,
    readers: &[(usize, Reader<'_>)],
    held: Option<Val>,
    k: Val,
    stages: &impl Stages,
    sums: &[Val],
) -> Vec<Val> {
    let shared = e.shared();
    let load = |step: Val| readers.iter().map(|(_, reader)| reader.load(step)).collect::<Vec<_>>();
    let write = |raw: &[Vec<Vec<Val>>], to: Val| {
        for ((side, reader), raw) in readers.iter().zip(raw) {
            stages.write(*side, reader, raw, to);
        }
    };
    write(&load(e.i32(0)), shared);
    e.barrier(Barrier::Block);
    let steps = e.div_ceil_const(k, stages.depth());
    let place = |step: Val| {
        let odd = e.and(step, e.i32(1));
        e.add(shared, e.mul_const(odd, stages.bytes()))
    };
    e.for_loop(e.i32(0), steps, 1, sums, |step, sums| {
        let next = e.add_const(step, 1);
        let raw = load(next);
        let left = e.sub(k, e.mul_const(step, stages.depth()));
        let right = place(step);
        let held = held.map(|held| e.add(held, e.mul_const(step, stages.left_bytes())));
        let sums = stages.multiply([held.unwrap_or(right), right], left, sums);
        write(&raw, place(next));
        e.barrier(Barrier::Block);
        sums
    })
}

/// The thread's number, read again: nothing that follows from the first reading is kept in
/// registers while products are added up.
fn thread_again(e: &Emitter) -> Val {
    e.ptx_values("mov.u32 $0, %tid.x;", &[Ty::Scalar(Elem::I32)], &[])[0]
}

/// Whether a value lies below a limit and `inside` holds.
fn within(e: &Emitter, inside: Val, value: Val, limit: Val) -> Val {
    e.and(inside, e.cmp(Cmp::Lt, value, limit))
}
