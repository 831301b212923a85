//! Batched products of two run-time matrices, in any layout.
//!
//! A tile is a panel of sixteen columns and a block of rows of one matrix of the batch. The panel's
//! rows are read in place where columns are dense, and otherwise packed block by block; every
//! output is one chain of fused multiply-adds over k from zero, as in [`crate::kernels::matmul`].

mod cuda;

use ir::{Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    gemm,
    pack::{Rows, pack_rows},
    space::{Space, broadcast_strides},
    view::{View, check_f32s, memory_elem},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
};

/// The family.
pub(super) struct Matmul;

/// Rows of a tile.
const ROW_BLOCK: i64 = 96;
/// Steps of k in a block.
const K_BLOCK: i64 = 256;
/// Rows for which a panel is not worth packing. Read in place, its lines are as far apart as rows
/// of the matrix, and with a power of two between them few stay in the first cache.
const FEW_ROWS: i64 = 12;
/// Columns of a panel.
const PANEL: i64 = 16;
/// Rows of the widest register tile.
const TILE_ROWS: i64 = 6;

const VECTOR: Ty = Ty::Vector(Elem::F32, 16);

impl Lower for Matmul {
    fn ops(&self) -> &'static [&'static str] {
        &["matmul"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1])?;
        match spec.operands.as_slice() {
            [Some(a), Some(b)] if a.ty.rank() >= 2 && b.ty.rank() >= 2 => Ok(()),
            _ => Err("takes two matrices".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (a, b, y) = (cx.operand(0), cx.operand(1), cx.result(0));
        let lead = y.shape.len() - 2;
        let (rows, columns) = (y.shape[lead].clone(), y.shape[lead + 1].clone());
        let k = a.shape[a.shape.len() - 1].clone();
        let spread = |v: &View| {
            let own = v.shape.len() - 2;
            broadcast_strides(&v.shape[..own], &v.strides[..own], lead)
        };
        let strides = [spread(&a), spread(&b), spread(&y)];
        let batch = Space::new(&y.shape[..lead], &strides).merged();
        let (panels, blocks) = (columns.ceil_div(PANEL), rows.ceil_div(ROW_BLOCK));
        let each = panels.clone() * blocks.clone();
        let tiles = batch.points() * each.clone();
        let product = Product {
            cx: &cx,
            k: cx.size(&k),
            sums: cx.scratch(0),
            packed: cx.scratch((4 * ROW_BLOCK * PANEL).cast_unsigned()),
        };
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let each = cx.size(&each);
            let at = batch.offsets(&cx, e.div_unsigned(tile, each));
            let rest = e.rem_unsigned(tile, each);
            let panel = e.div_unsigned(rest, cx.size(&blocks));
            let block = e.rem_unsigned(rest, cx.size(&blocks));
            let (row, column) = (e.mul_const(block, ROW_BLOCK), e.mul_const(panel, PANEL));
            let axes = |v: &View| {
                let n = v.strides.len();
                [v.strides[n - 2].clone(), v.strides[n - 1].clone()]
            };
            let part = Part {
                a: a.at(&cx, cx.offset(at[0], row, &axes(&a)[0])),
                a_axes: axes(&a),
                b: b.at(&cx, cx.offset(at[1], column, &axes(&b)[1])),
                b_axes: axes(&b),
                y: y.at(&cx, cx.offset(cx.offset(at[2], row, &axes(&y)[0]), column, &axes(&y)[1])),
                y_axes: axes(&y),
                rows: e.min(e.i64(ROW_BLOCK), e.sub(cx.size(&rows), row)),
                columns: e.min(e.i64(PANEL), e.sub(cx.size(&columns), column)),
            };
            product.emit(&part);
        });
        let scratch = 4 * (ROW_BLOCK + K_BLOCK) * PANEL;
        Ok(cx.finish(tiles, scratch.cast_unsigned()))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let product = cuda::product(spec).map_err(|reason| refuse(spec, reason))?;
        gemm::kernels(spec, &product, target)
    }
}

/// Emission state.
struct Product<'a> {
    cx: &'a Cx<'a>,
    k: Val,
    /// f32 `[ROW_BLOCK][16]`.
    sums: Val,
    /// f32 `[K_BLOCK][16]`.
    packed: Val,
}

/// Operands of one tile, from its first row and column.
struct Part {
    a: View,
    a_axes: [Dim; 2],
    b: View,
    b_axes: [Dim; 2],
    y: View,
    y_axes: [Dim; 2],
    rows: Val,
    columns: Val,
}

impl Product<'_> {
    fn emit(&self, part: &Part) {
        let e = &self.cx.e;
        let line = |row: Val| e.at(self.sums, Elem::F32, e.mul_const(row, PANEL));
        e.for_each(e.i64(0), part.rows, 1, |row| e.store(e.zero(VECTOR), line(row)));
        e.for_each(e.i64(0), self.k, K_BLOCK, |first| {
            let steps = e.min(e.i64(K_BLOCK), e.sub(self.k, first));
            let in_place = part.b_axes[1].is(1) && part.b.dtype == ir::DType::F32;
            if in_place {
                let whole = e.cmp(Cmp::Eq, part.columns, e.i64(PANEL));
                let few = e.cmp(Cmp::Le, part.rows, e.i64(FEW_ROWS));
                e.either(
                    e.and(whole, few),
                    || {
                        let from = self.cx.offset(e.i64(0), first, &part.b_axes[0]);
                        let from = part.b.at(self.cx, from).base;
                        self.block(part, first, steps, from, &part.b_axes[0]);
                    },
                    || self.packed_block(part, first, steps),
                );
            } else {
                self.packed_block(part, first, steps);
            }
        });
        e.for_each(e.i64(0), part.rows, 1, |row| {
            let y = part.y.at(self.cx, self.cx.scale(row, &part.y_axes[0]));
            let step = &part.y_axes[1];
            e.either(
                e.cmp(Cmp::Eq, part.columns, e.i64(PANEL)),
                || y.store_strip(self.cx, e.load(VECTOR, line(row)), e.i64(0), step),
                || {
                    e.for_each(e.i64(0), part.columns, 1, |column| {
                        let sum = e.load_at(Ty::Scalar(Elem::F32), line(row), column);
                        y.store(self.cx, sum, self.cx.scale(column, step));
                    });
                },
            );
        });
    }

    fn packed_block(&self, part: &Part, first: Val, steps: Val) {
        let cx = self.cx;
        // Columns of b are the rows that are packed.
        let from = part.b.at(cx, cx.scale(first, &part.b_axes[0]));
        let rows = Rows {
            base: from.base,
            elem: memory_elem(part.b.dtype),
            row: &part.b_axes[1],
            column: &part.b_axes[0],
        };
        pack_rows(cx, &rows, part.columns, steps, self.packed);
        self.block(part, first, steps, self.packed, &Dim::from(PANEL));
    }

    /// Adds the products of a block of k, rows of the panel `step` apart.
    fn block(&self, part: &Part, first: Val, steps: Val, panel: Val, step: &Dim) {
        let cx = self.cx;
        let a = part.a.at(cx, cx.scale(first, &part.a_axes[1]));
        let block = Block { a: &a, a_axes: &part.a_axes, rows: part.rows, steps, panel, step };
        block.add(cx, self.sums);
    }
}

/// A block of k: `rows` rows of a matrix in any layout, times a panel of sixteen columns.
pub(super) struct Block<'a> {
    pub(super) a: &'a View,
    pub(super) a_axes: &'a [Dim; 2],
    pub(super) rows: Val,
    pub(super) steps: Val,
    /// f32 lines of sixteen, `step` elements apart.
    pub(super) panel: Val,
    pub(super) step: &'a Dim,
}

impl Block<'_> {
    /// Adds its products to f32 `[rows][16]`, each in order of k.
    pub(super) fn add(&self, cx: &Cx<'_>, sums: Val) {
        let e = &cx.e;
        let tile = |row: Val, height: i64| {
            let rows: Vec<Val> = (0..height).map(|r| e.add_const(row, r)).collect();
            let lines: Vec<Val> =
                rows.iter().map(|r| e.at(sums, Elem::F32, e.mul_const(*r, PANEL))).collect();
            let starts: Vec<View> =
                rows.iter().map(|r| self.a.at(cx, cx.scale(*r, &self.a_axes[0]))).collect();
            let init: Vec<Val> = lines.iter().map(|line| e.load(VECTOR, *line)).collect();
            let sums = e.for_loop(e.i64(0), self.steps, 1, &init, |k, sums| {
                let b = e.load_at(VECTOR, self.panel, cx.scale(k, self.step));
                let at = cx.scale(k, &self.a_axes[1]);
                let a: Vec<Val> =
                    starts.iter().map(|start| e.splat(start.load(cx, at), 16)).collect();
                a.iter().zip(sums).map(|(a, sum)| e.fma(*a, b, *sum)).collect()
            });
            for (sum, line) in sums.into_iter().zip(lines) {
                e.store(sum, line);
            }
        };
        let whole = e.sub(self.rows, e.rem_unsigned(self.rows, e.i64(TILE_ROWS)));
        e.for_each(e.i64(0), whole, TILE_ROWS, |row| tile(row, TILE_ROWS));
        let left = e.sub(self.rows, whole);
        let cases: Vec<i64> = (1..TILE_ROWS).collect();
        e.switch(left, &cases, |height| tile(whole, height));
    }
}
