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
use crate::emit::{Barrier, Cmp, Elem, Emitter, Val};

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
    /// Writes what has been read of both operands to the stage at an address.
    fn write(&self, readers: &[Reader<'_>; 2], raw: &[Vec<Vec<Val>>; 2], to: Val);
    /// Adds the products of the stage at an address, of which `count` (i32) steps count.
    fn multiply(&self, from: Val, count: Val, sums: &[Val]) -> Vec<Val>;
}

/// Sums over all of k, which start from zero.
fn pipeline(
    e: &Emitter,
    readers: &[Reader<'_>; 2],
    k: Val,
    stages: &impl Stages,
    count: usize,
) -> Vec<Val> {
    let shared = e.shared();
    let load = |step: Val| readers.each_ref().map(|reader| reader.load(step));
    stages.write(readers, &load(e.i32(0)), shared);
    e.barrier(Barrier::Block);
    let steps = e.div_ceil_const(k, stages.depth());
    let place = |step: Val| {
        let odd = e.and(step, e.i32(1));
        e.add(shared, e.mul_const(odd, stages.bytes()))
    };
    let zeros = vec![e.f32(0.0); count];
    e.for_loop(e.i32(0), steps, 1, &zeros, |step, sums| {
        let next = e.add_const(step, 1);
        let raw = load(next);
        let left = e.sub(k, e.mul_const(step, stages.depth()));
        let sums = stages.multiply(place(step), left, sums);
        stages.write(readers, &raw, place(next));
        e.barrier(Barrier::Block);
        sums
    })
}

/// Whether a value lies below a limit and `inside` holds.
fn within(e: &Emitter, inside: Val, value: Val, limit: Val) -> Val {
    e.and(inside, e.cmp(Cmp::Lt, value, limit))
}
