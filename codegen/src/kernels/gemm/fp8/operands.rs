//! What a stage has: rows of `a` and columns of the weight, each 128 bytes of k, permuted over 1024
//! bytes, and the columns' scales.
//!
//! PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout". Stages of both sides come
//! first, for they begin at multiples of 1024 bytes, then the scales of all stages.

use ir::{DType, Dim, E4M3_PANEL_BYTES};

use super::{
    super::{Gemm, PANEL, ring::Turn, sm90a::bulk},
    BLOCK, Tile,
};
use crate::{
    cuda::{Swizzle, TensorMap},
    emit::{Elem, Emitter, Val},
};

/// Bytes of a panel's block of k: values, then scales.
const PANEL_BYTES: i64 = E4M3_PANEL_BYTES as i64;
/// Bytes of its scales.
const SCALES: i64 = 4 * PANEL;

/// A descriptor but for the address: rows of 128 bytes in groups of eight.
const DESCRIPTOR: i64 = 1 << 16 | (1024 >> 4) << 32 | 1 << 62;

/// The operands of a product in shared memory.
pub(super) struct Operands<'a> {
    pub(super) spec: &'a Gemm,
    pub(super) tile: Tile,
}

impl Operands<'_> {
    fn a_bytes(&self) -> i64 {
        self.tile.m() * BLOCK
    }

    /// Bytes of both sides of a stage, without the scales.
    fn sides(&self) -> i64 {
        self.a_bytes() + self.tile.n * BLOCK
    }

    /// Bytes that the copies of a stage write.
    pub(super) fn stage_bytes(&self) -> i64 {
        self.sides() + 4 * self.tile.n
    }

    /// Bytes of all stages.
    pub(super) fn bytes(&self) -> i64 {
        self.stage_bytes() * self.tile.stages
    }

    fn panels(&self) -> i64 {
        self.spec.columns() / PANEL
    }

    fn steps(&self) -> i64 {
        self.spec.k / BLOCK
    }

    /// The maps of the weight's values, panel by panel, and of `a`.
    pub(super) fn maps(&self) -> Vec<TensorMap> {
        let (spec, tile) = (self.spec, self.tile);
        let size = |n: i64| u32::try_from(n).expect("a small box");
        let map = |arg, extents: Vec<Dim>, strides: &[i64], boxes: &[i64]| TensorMap {
            arg,
            dtype: DType::U8,
            extents,
            strides: strides.iter().map(|s| Dim::from(*s)).collect(),
            boxes: boxes.iter().map(|n| size(*n)).collect(),
            swizzle: Swizzle::Bytes128,
        };
        let w = map(
            spec.w,
            [BLOCK, PANEL, self.steps(), self.panels()].map(Dim::from).to_vec(),
            &[BLOCK, PANEL_BYTES, PANEL_BYTES * self.steps()],
            &[BLOCK, PANEL, 1, tile.n / PANEL],
        );
        let rows = vec![Dim::from(spec.k), spec.rows.clone()];
        vec![w, map(spec.a.arg, rows, &[spec.a.stride], &[BLOCK, tile.m()])]
    }

    fn stage(&self, e: &Emitter, shared: Val, turn: Turn) -> Val {
        e.add(shared, e.mul_const(turn.stage, self.sides()))
    }

    fn stage_scales(&self, e: &Emitter, shared: Val, turn: Turn) -> Val {
        let first = e.add_const(shared, self.sides() * self.tile.stages);
        e.add(first, e.mul_const(turn.stage, 4 * self.tile.n))
    }

    /// Starts the copies of a stage: the tile at row and column of `first`, and the step over k.
    pub(super) fn copy(&self, e: &Emitter, first: [Val; 3], shared: Val, turn: Turn, full: Val) {
        let [row, column, step] = first;
        let to = self.stage(e, shared, turn);
        bulk(e, 1, &[e.mul_const(step, BLOCK), row], to, full);
        let panel = e.div_unsigned(column, e.i32(PANEL));
        let zero = e.i32(0);
        bulk(e, 0, &[zero, zero, step, panel], e.add_const(to, self.a_bytes()), full);
        let to = self.stage_scales(e, shared, turn);
        let last = e.i32(self.panels() - 1);
        let step = e.cast(step, Elem::I64);
        for i in 0..self.tile.n / PANEL {
            // Scales of panels that are not there meet zeros.
            let panel = e.cast(e.min(e.add_const(panel, i), last), Elem::I64);
            let block = e.add(e.mul_const(panel, self.steps()), step);
            let offset = e.add_const(e.mul_const(block, PANEL_BYTES), PANEL_BYTES - SCALES);
            let from = e.at(e.arg(self.spec.w), Elem::I8, offset);
            let text = format!(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0+{}], [$1], \
                 {SCALES}, [$2];",
                SCALES * i
            );
            e.ptx(&text, &[to, from, full]);
        }
    }

    /// Descriptors of both sides of a stage, of `a` for the rows of a warpgroup.
    pub(super) fn descriptors(&self, e: &Emitter, shared: Val, turn: Turn, group: Val) -> [Val; 2] {
        let from = self.stage(e, shared, turn);
        let a = e.add(from, e.mul_const(group, 64 * BLOCK));
        let w = e.add_const(from, self.a_bytes());
        [a, w].map(|from| {
            let start = e.and(e.shr(from, 4), e.i32(0x3fff));
            e.or(e.extend_unsigned(start, Elem::I64), e.i64(DESCRIPTOR))
        })
    }

    /// The scales of a lane's two columns of every eight.
    pub(super) fn scales(&self, e: &Emitter, shared: Val, turn: Turn, lane: Val) -> Vec<[Val; 2]> {
        let from = self.stage_scales(e, shared, turn);
        let from = e.add(from, e.shl(e.and(lane, e.i32(3)), 3));
        let pair = |i: i64| {
            let text = format!("ld.shared.v2.f32 {{$0, $1}}, [$2+{}];", 32 * i);
            let pair = e.ptx_values(&text, &[Emitter::f32s(1); 2], &[from]);
            [pair[0], pair[1]]
        };
        (0..self.tile.n / 8).map(pair).collect()
    }
}
