//! `y[M, N] = epilogue(x[M, K] · W[K, N])`, every M in one kernel.
//!
//! W is packed in column panels of 16, `[ceil(N/16)][K][16]`, the last one padded with zeros.
//! **Every output is one chain of fused multiply-adds over k = 0, 1, .., K-1 that starts at 0.0**,
//! whatever M, the tiles, the blocking or the vector width: blocks over K store and reload the f32
//! partial sums. So a row's result does not depend on the batch that it is part of, bit for bit.
//!
//! M is known at run time only, and the kernel takes one of two ways:
//! - up to 48 rows (`direct`): several panels at once straight from packed W, with prefetch. One
//!   row is bound by memory bandwidth.
//! - more rows (`blocked`): as in Goto & van de Geijn 2008 (doi:10.1145/1356052.1356053), with K
//!   blocks of W widened to f32 in L1 and blocks of x in L2. Rows are split evenly over the
//!   register tiles, so tails are never much narrower than the rest.
//!
//! Both leave raw sums in scratch, and one epilogue (`epilogue`) writes y from them.
//!
//! Quantised operands (`quantized`) have a way of their own for every M: integers within a block,
//! then one fused multiply-add a block, in order.
//!
//! Of several weights (`grouped`), each has a range of the rows that is known at run time only. A
//! tile has all rows of its columns, so how they are spread over the weights does not matter to the
//! balance between threads.
//!
//! Arguments: `x, w, [bias], [residual], y`; size 0 is M.

mod blocked;
mod direct;
mod epilogue;
mod grouped;
mod quantized;
mod tiles;

use crate::emit::{Cmp, Elem, Emitter, Ty, Val};
use crate::schedule::{Family, Schedule};
use crate::{Isa, Kernel};

/// Columns of a weight panel.
pub const PANEL: u64 = 16;

const LANES: u32 = 16;

/// Function applied to every output after the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the field's own; see `math`")]
pub enum Activation {
    None,
    Relu,
    GeluErf,
    GeluTanh,
    Silu,
    Tanh,
    Sigmoid,
}

/// A matrix product with constant weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matmul {
    /// Name of the kernel.
    pub symbol: String,
    /// Columns of y.
    pub n: u64,
    /// Columns of x.
    pub k: u64,
    /// Element of W: f32, bf16 or f16; i8 where it is quantised.
    pub weight: Elem,
    /// Bits of the integers of a quantised W and x, as `ir`'s `quantize_weight` and
    /// `quantize_rows` lay them out: 4 or 8.
    pub bits: Option<u32>,
    /// Elements between the rows of x, at least `k`; bytes where it is quantised.
    pub x_stride: u64,
    /// Elements between the rows of y, at least `n`.
    pub y_stride: u64,
    /// Element of y: f32, bf16 or f16.
    pub output: Elem,
    /// Whether an f32 vector `[N]` is added before the activation; `[2, N]` (gate, up) when gated.
    pub bias: bool,
    /// The activation.
    pub activation: Activation,
    /// Elements between the rows of the f32 `[M, N]` that is added after the activation, if any. It
    /// may be the memory of y, where y is f32 and the strides agree.
    pub residual: Option<u64>,
    /// `y = activation(x · G) * (x · U)`: W holds panels of G and U by turns,
    /// `[ceil(N/16)][2][K][16]`.
    pub gated: bool,
    /// Panels in a tile, the unit of work of a thread; even when gated.
    pub panels_per_tile: u64,
    /// Whether a tile is a block of [`Matmul::row_block`] rows of a group of panels, and not all
    /// rows of the group. The groups of a block are one behind the other.
    pub split_rows: bool,
    /// The most rows that a call has: blocks and scratch need be no larger.
    pub max_rows: u64,
    /// Numbers of the arguments bias, residual and y, where they do not just follow `x, w`.
    pub positions: Option<[u32; 3]>,
    /// How it is tiled and blocked; results do not depend on it.
    pub schedule: Schedule,
    /// Where there are several weights, one behind the other, each with its own rows and bias.
    pub groups: Option<Groups>,
}

/// Several weights in one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Groups {
    /// How many.
    pub count: u64,
    /// Number of the argument i32 `[count + 1]`: group `g` has the rows from its element `g` up to
    /// the next, which do not fall. Rows outside all groups become zero.
    pub offsets: u32,
}

/// A specification that has no kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("matmul `{symbol}`: {reason}")]
pub struct SpecError {
    symbol: String,
    reason: String,
}

impl Matmul {
    /// A plain f32-to-f32 product with dense rows.
    #[must_use]
    pub fn new(symbol: &str, n: u64, k: u64, weight: Elem) -> Self {
        Self {
            symbol: symbol.to_owned(),
            n,
            k,
            weight,
            bits: None,
            x_stride: k,
            y_stride: n,
            output: Elem::F32,
            bias: false,
            activation: Activation::None,
            residual: None,
            gated: false,
            panels_per_tile: 4,
            split_rows: false,
            max_rows: u64::MAX,
            positions: None,
            schedule: Schedule::default(),
            groups: None,
        }
    }

    /// A product of quantised rows with a weight of 4- or 8-bit integers.
    #[must_use]
    pub fn quantized(symbol: &str, n: u64, k: u64, bits: u32) -> Self {
        let product = Self { bits: Some(bits), ..Self::new(symbol, n, k, Elem::I8) };
        Self { x_stride: product.blocks() * quantized::row_bytes(bits), ..product }
    }

    /// Blocks of a quantised row or column.
    const fn blocks(&self) -> u64 {
        self.k.div_ceil(quantized::BLOCK)
    }

    /// Bytes of a panel of W.
    const fn panel_bytes(&self) -> u64 {
        match self.bits {
            Some(bits) => self.blocks() * quantized::weight_bytes(bits),
            None => self.k * PANEL * self.weight.bytes(),
        }
    }

    /// Panels of packed W.
    #[must_use]
    pub const fn panels(&self) -> u64 {
        self.n.div_ceil(PANEL) * self.halves()
    }

    /// Weight matrices: gate and up, or only one.
    const fn halves(&self) -> u64 {
        if self.gated { 2 } else { 1 }
    }

    /// Bytes of packed W.
    #[must_use]
    pub const fn weight_bytes(&self) -> u64 {
        self.panels() * self.panel_bytes()
    }

    /// Number of tiles, of each block of rows where those are split.
    #[must_use]
    pub const fn tiles(&self) -> u64 {
        self.panels().div_ceil(self.panels_per_tile)
    }

    /// The most rows of a block.
    #[must_use]
    pub fn row_block(&self, isa: &Isa) -> u64 {
        Plan::new(self, isa).row_block
    }

    fn check(&self, isa: &Isa) -> Result<(), SpecError> {
        let fail = |reason: &str| {
            Err(SpecError { symbol: self.symbol.clone(), reason: reason.to_owned() })
        };
        let float = |elem| matches!(elem, Elem::F32 | Elem::Bf16 | Elem::F16);
        let limit = 1 << 40;
        let weights = self.groups.map_or(1, |groups| groups.count.max(1));
        if self.n == 0 || self.k == 0 {
            fail("n and k must be positive")
        } else if self.groups.is_some() && (self.residual.is_some() || self.bits.is_some()) {
            fail("several weights with a residual, or quantised")
        } else if self.groups.is_some() && self.split_rows {
            fail("the rows of several weights are not split")
        } else if self.weight_bytes().saturating_mul(weights) >= limit
            || self.x_stride.max(self.y_stride) >= limit
        {
            fail("sizes beyond 2^40")
        } else if !float(self.output) || (self.bits.is_none() && !float(self.weight)) {
            fail("weights and outputs must be f32, bf16 or f16")
        } else if self.bits.is_some_and(|bits| !matches!(bits, 4 | 8)) {
            fail("quantised weights have 4 or 8 bits")
        } else if self.bits.is_some_and(|b| self.x_stride < self.blocks() * quantized::row_bytes(b))
            || (self.bits.is_none() && self.x_stride < self.k)
            || self.y_stride < self.n
        {
            fail("a row stride is shorter than its row")
        } else if self.residual.is_some_and(|stride| stride < self.n) {
            fail("the residual's row stride is shorter than its row")
        } else if self.panels_per_tile == 0
            || (self.gated && !self.panels_per_tile.is_multiple_of(2))
        {
            fail("panels_per_tile must be positive, and even when gated")
        } else if let Err(reason) = self.schedule.check(Family::of(self), isa) {
            fail(&format!("schedule: {reason}"))
        } else {
            Ok(())
        }
    }
}

/// Sizes that the target decides: register tile and cache blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Most rows of a register tile.
    tile_rows: u64,
    /// Panels of a register tile in the blocked way.
    tile_panels: u64,
    /// Vector registers for sums.
    accumulators: u64,
    /// Vector registers of a panel's row.
    panel_registers: u64,
    /// Steps of k in a block.
    k_block: u64,
    /// Rows in a block.
    row_block: u64,
    /// Panels whose sums are in scratch at once.
    panel_chunk: u64,
    /// Steps of k in an iteration of the blocked way.
    unroll: u64,
    /// Bytes of W in flight over all streams of the direct and the quantised way.
    prefetch_bytes: u64,
}

impl Plan {
    fn new(spec: &Matmul, isa: &Isa) -> Self {
        let panel_registers = isa.panel_registers();
        let schedule = &spec.schedule;
        if spec.bits.is_some() {
            return quantized::plan(spec, panel_registers);
        }
        let accumulators = if isa.vector_registers >= 32 { 24 } else { 12 };
        let (tile_rows, tile_panels) = isa.register_tile();
        let tile_rows = schedule.tile_rows.unwrap_or(tile_rows);
        let tile_panels = schedule.tile_panels.unwrap_or(tile_panels);
        let longest = (isa.l1_bytes * 3 / 4 / (4 * PANEL * tile_panels)).max(64);
        let longest = schedule.k_block.unwrap_or(longest);
        let k_block = spec.k.div_ceil(spec.k.div_ceil(longest)).next_multiple_of(16);
        let row_block = (isa.l2_bytes / (4 * k_block)).clamp(48, 384);
        let row_block = schedule.row_block.unwrap_or(row_block).min(spec.max_rows);
        let row_block = row_block.max(1).next_multiple_of(tile_rows);
        let panel_chunk = if k_block >= spec.k { 2 } else { 32 };
        Self {
            tile_rows,
            tile_panels,
            accumulators,
            panel_registers,
            k_block,
            row_block,
            panel_chunk,
            unroll: schedule.unroll.unwrap_or(blocked::UNROLL),
            prefetch_bytes: schedule.prefetch_bytes.unwrap_or(direct::PREFETCH_BYTES),
        }
    }

    /// Panels whose sums are in scratch at once in the direct way, for a single tile of rows.
    const DIRECT_CHUNK: u64 = 32;

    /// Rows up to which the direct way is taken: widening W once does not pay yet.
    const DIRECT_ROWS: u64 = 48;

    /// Fewest rows of a tile when more than `DIRECT_ROWS` are split evenly.
    fn least_tile_rows(&self) -> u64 {
        let first = Self::DIRECT_ROWS + 1;
        let shortest = |rows: u64| rows / rows.div_ceil(self.tile_rows);
        (first..=first + self.tile_rows).map(shortest).min().expect("some rows")
    }

    fn sums_bytes(&self) -> u64 {
        let blocked = self.panel_chunk * self.row_block;
        let direct = (Self::DIRECT_CHUNK * self.tile_rows).max(2 * Self::DIRECT_ROWS);
        blocked.max(direct) * PANEL * 4
    }

    fn weights_bytes(&self) -> u64 {
        self.tile_panels * self.k_block * PANEL * 4
    }

    /// Elements between rows of x's copy: a cache line more than a block, against aliasing.
    const fn copy_stride(&self) -> u64 {
        self.k_block + 16
    }

    fn scratch_bytes(&self) -> u64 {
        self.sums_bytes() + self.weights_bytes() + self.row_block * self.copy_stride() * 4
    }
}

/// Emission state of one kernel.
struct Gen<'a> {
    e: &'a Emitter,
    spec: &'a Matmul,
    plan: Plan,
    x: Val,
    w: Val,
    /// Rows of x.
    m: Val,
    /// f32 `[panel][row][16]`, the raw sums of a chunk.
    sums: Val,
    /// f32 `[tile panel][k][16]`, a block of W.
    widened: Val,
    /// f32 `[row][copy_stride]`, a block of x.
    copied: Val,
}

/// The part of y that is computed at a time.
#[derive(Clone, Copy)]
struct Chunk {
    /// Whether it is the first of its block of rows in this call.
    is_first: Val,
    first_panel: Val,
    panels: Val,
    first_row: Val,
    rows: Val,
}

/// Generates the kernel.
///
/// # Errors
/// [`SpecError`] where the specification contradicts itself.
pub fn matmul(spec: &Matmul, isa: &Isa) -> Result<Kernel, SpecError> {
    spec.check(isa)?;
    let plan = Plan::new(spec, isa);
    let emitter = Emitter::new(&spec.symbol);
    let e = &emitter;
    let mut args = vec!["x", "w"];
    if spec.bias {
        args.push("bias");
    }
    if spec.residual.is_some() {
        args.push("residual");
    }
    args.push("y");

    let bytes = |count: u64| e.at_const(e.scratch(), Elem::I8, size(count));
    let generator = Gen {
        e,
        spec,
        plan,
        x: e.arg(0),
        w: e.arg(1),
        m: e.dim(0),
        sums: e.scratch(),
        widened: bytes(plan.sums_bytes()),
        copied: bytes(plan.sums_bytes() + plan.weights_bytes()),
    };
    let output = epilogue::Output::new(&generator);
    match spec.groups {
        Some(groups) => generator.groups(&output, groups),
        None => generator.product(&output),
    }
    Ok(Kernel {
        symbol: spec.symbol.clone(),
        mlir: emitter.finish(),
        scratch_bytes: plan.scratch_bytes(),
        args,
        dims: vec!["m"],
    })
}

impl Gen<'_> {
    /// The product of all rows.
    fn product(&self, output: &epilogue::Output) {
        let e = self.e;
        self.chunks(|chunk| {
            if let Some(bits) = self.spec.bits {
                self.quantized(output, chunk, bits);
                return;
            }
            let few = e.cmp(Cmp::Le, chunk.rows, e.i64(size(Plan::DIRECT_ROWS)));
            e.either(few, || self.direct(output, chunk), || self.blocked(output, chunk));
        });
    }

    /// Start of a panel of packed W.
    fn panel(&self, index: Val) -> Val {
        let elem = self.spec.weight;
        let start = self.e.mul_const(index, size(self.spec.panel_bytes() / elem.bytes()));
        self.e.at(self.w, elem, start)
    }

    /// Start of a row of x.
    fn x_row(&self, row: Val) -> Val {
        let elem = if self.spec.bits.is_some() { Elem::I8 } else { Elem::F32 };
        self.e.at(self.x, elem, self.e.mul_const(row, size(self.spec.x_stride)))
    }

    /// Start of a row of a panel's sums.
    fn sum_row(&self, chunk: Chunk, panel: Val, row: Val) -> Val {
        let e = self.e;
        let line = e.add(e.mul(panel, chunk.rows), row);
        e.at(self.sums, Elem::F32, e.mul_const(line, size(PANEL)))
    }

    /// One step of k, `sums[p][r] += x[r][k] * w[p]`: each x is broadcast once and used at once, so
    /// that one register is enough for all of them.
    fn step(&self, x: &[Val], k: Val, w: &[Val], sums: &[Val]) -> Vec<Val> {
        let e = self.e;
        let mut next = sums.to_vec();
        for (row, &x) in x.iter().enumerate() {
            let x = e.splat(e.load_at(Ty::Scalar(Elem::F32), x, k), LANES);
            for (sum, &w) in next.iter_mut().skip(row).step_by(sums.len() / w.len()).zip(w) {
                *sum = e.fma(x, w, *sum);
            }
        }
        next
    }
}

/// 16 f32.
const SUMS: Ty = Ty::Vector(Elem::F32, LANES);

/// A size as the emitter's i64; sizes are checked to be far below the limit.
fn size(value: u64) -> i64 {
    i64::try_from(value).expect("sizes are below 2^63")
}

#[cfg(test)]
mod tests;
