//! How a product is divided among blocks and warps, as data: for each number of rows a tile, and
//! the kind of kernel that computes it.
//!
//! All tiles of an architecture give the same bits, so they are chosen by time alone: by a table of
//! [`crate::schedule`], or as [`defaults`] has it.

use ir::{CudaArch, CudaTarget};
use serde::{Deserialize, Serialize};

use super::{Draft, Form, Gemm, Order, fp8, quantized, simt, sm80, sm90a, tiled};
use crate::emit::Elem;

/// A block's share of a product, and the kind of kernel that computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kernel", rename_all = "lowercase")]
pub enum Tile {
    /// [`sm80`]: `mma.sync`, from a ring of `cp.async` stages.
    Mma(sm80::Tile),
    /// [`sm90a`]: `wgmma`, from a ring that the copy engine fills.
    Wgmma(sm90a::Tile),
    /// [`quantized`], few rows.
    Stream(quantized::Stream),
    /// [`quantized`], any number of rows.
    Lanes(quantized::Tile),
    /// [`fp8`].
    Fp8(fp8::Tile),
    /// [`simt`], few rows.
    Rows(simt::Rows),
    /// [`simt`], any number of rows, by fused multiply-adds.
    Fma(tiled::simt::Tile),
}

/// A tile, and the numbers of rows that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Variant {
    /// At most so many; `None`: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<i64>,
    /// What they are computed by.
    #[serde(flatten)]
    pub tile: Tile,
}

/// The tiles that follow from a GPU's number of multiprocessors, those for fewer rows first.
#[must_use]
pub fn defaults(spec: &Gemm, gpu: &CudaTarget) -> Vec<Variant> {
    let processors = i64::from(gpu.multiprocessors);
    match gpu.arch {
        _ if spec.is_fp8() => fp8::defaults(spec, processors),
        _ if spec.bits.is_some() => quantized::defaults(spec, gpu),
        _ if spec.w_elem == Elem::F32 => simt::defaults(spec, processors),
        CudaArch::Sm90a if sm90a::can_copy(spec) => sm90a::defaults(spec, processors),
        _ => sm80::defaults(spec, processors),
    }
}

/// A tile for any number of rows in shared memory that all GPUs of an architecture have, where the
/// last of others needs more.
#[must_use]
pub fn common(spec: &Gemm, gpu: &CudaTarget) -> Option<Tile> {
    let shared = gpu.arch.common_shared_bytes();
    if spec.bits.is_some() {
        return quantized::smallest(spec, shared);
    }
    let gpu = CudaTarget { shared_bytes: shared, ..*gpu };
    let last = defaults(spec, &gpu).pop()?;
    last.tile.fitted(spec, &gpu)
}

/// Numbers of rows up to which a tile is chosen.
const LIMITS: [Option<i64>; 4] = [Some(128), Some(256), Some(512), None];
/// What stands for any number of rows.
const MANY: i64 = 8192;

/// The best tile for each limit of rows, neighbours that agree taken together.
pub(super) fn by_rows<T: PartialEq>(best: impl Fn(i64) -> T) -> Vec<(T, Option<i64>)> {
    let mut out: Vec<(T, Option<i64>)> = Vec::new();
    for limit in LIMITS {
        let tile = best(limit.unwrap_or(MANY));
        match out.last_mut() {
            Some((last, most)) if *last == tile => *most = limit,
            _ => out.push((tile, limit)),
        }
    }
    out
}

/// Emits the kernel `symbol`.
#[must_use]
pub fn emit(symbol: &str, spec: &Gemm, variant: Variant, gpu: &CudaTarget) -> Draft {
    let is_hopper = gpu.arch == CudaArch::Sm90a;
    let mut draft = match variant.tile {
        Tile::Mma(tile) if is_hopper && sm90a::can_copy(spec) => {
            sm80::emit_early(symbol, spec, tile, spec.order())
        }
        Tile::Mma(tile) => sm80::emit(symbol, spec, tile, Order::Plain),
        Tile::Wgmma(tile) => sm90a::emit(symbol, spec, tile, i64::from(gpu.multiprocessors)),
        Tile::Stream(stream) => quantized::emit_stream(symbol, spec, stream, is_hopper),
        Tile::Lanes(tile) => quantized::emit(symbol, spec, tile),
        Tile::Fp8(tile) => fp8::emit(symbol, spec, tile, gpu.multiprocessors),
        Tile::Rows(rows) => simt::emit_rows(symbol, spec, rows),
        Tile::Fma(tile) => simt::emit(symbol, spec, tile),
    };
    draft.max_rows = variant.rows;
    draft
}

impl Tile {
    /// Most rows that the kernel computes; `None`: any number.
    #[must_use]
    pub const fn most_rows(self) -> Option<i64> {
        match self {
            Tile::Stream(stream) => Some(stream.m),
            Tile::Rows(rows) => Some(rows.m),
            _ => None,
        }
    }

    /// The tile for this product, with fewer stages where f32 rows leave no room for all; `None`
    /// where the kernel does not compute the product.
    #[must_use]
    pub fn fitted(self, spec: &Gemm, gpu: &CudaTarget) -> Option<Tile> {
        let is_half = matches!(spec.w_elem, Elem::Bf16 | Elem::F16) && spec.bits.is_none();
        let gate = |n: i64, warps: i64| !spec.gated || n % (32 * warps) == 0;
        match self {
            Tile::Mma(tile) => {
                let bytes = spec.a.elem.bytes().cast_signed();
                let stage = tile.m * tile.k * bytes + tile.n * tile.k * 2;
                let stages = tile.stages.min(i64::from(gpu.shared_bytes) / stage);
                let fits = is_half && gate(tile.n, tile.warps[1]) && stages >= 2;
                // Threads that copy have whole rows of sixteen-byte units.
                let threads = 32 * if tile.copiers > 0 { tile.copiers } else { tile.multiply() };
                let rows = !matches!(spec.form, Form::Rows(_)) || threads % (tile.n / 8) == 0;
                let whole = rows && threads % (tile.k * bytes / 16) == 0;
                (fits && whole).then_some(Tile::Mma(sm80::Tile { stages, ..tile }))
            }
            Tile::Wgmma(tile) => {
                let hopper = gpu.arch == CudaArch::Sm90a && sm90a::can_copy(spec);
                let columns = !matches!(spec.form, Form::Rows(_)) || tile.n % 64 == 0;
                (is_half && hopper && columns).then_some(self)
            }
            Tile::Stream(_) => (spec.bits.is_some() && quantized::can_load(spec)).then_some(self),
            Tile::Lanes(tile) => {
                let fits = spec.bits.is_some() && gate(tile.n, tile.warps[1]);
                let fitted = fits.then(|| quantized::fitted(spec, tile, gpu.shared_bytes));
                fitted.flatten().map(Tile::Lanes)
            }
            Tile::Fp8(_) => spec.is_fp8().then_some(self),
            Tile::Rows(_) => simt::reads_rows(spec).then_some(self),
            Tile::Fma(_) => (spec.w_elem == Elem::F32).then_some(self),
        }
    }
}
