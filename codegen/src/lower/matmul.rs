//! Batched products of two run-time matrices, in any layout.
//!
//! A tile is a few panels of sixteen columns and a block of rows of one matrix of the batch. For
//! more than a few rows both are packed as they are read, a block of k at a time (Goto & van de
//! Geijn 2008, doi:10.1145/1356052.1356053): rows for all panels of the tile, panels for all rows
//! of up to [`RUN`] tiles of the same columns, where a thread has those.
//! Every output is one chain of fused multiply-adds over k from zero, as in
//! [`crate::kernels::matmul`].

mod block;
mod cuda;
mod packing;

use ir::{CudaArch, DType, Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    gemm::{
        self,
        tiled::{self, Kind},
    },
    space::{Space, broadcast_strides},
    view::{View, check_f32s},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
    schedule::Tuning,
};

pub(super) use block::{Block, Lhs};
pub(super) use cuda::{matrix, product};

/// The family.
pub(super) struct Matmul;

/// Rows of a tile.
const ROW_BLOCK: i64 = 96;
/// Steps of k in a block.
const K_BLOCK: i64 = 256;
/// Rows for which nothing is worth packing. Read in place, lines are as far apart as rows of the
/// matrix, and with a power of two between them few stay in the first cache.
const FEW_ROWS: i64 = 12;
/// Tiles, one below the other, that are computed together.
const RUN: i64 = 4;
/// Panels of a tile, at most: rows are packed once for all of them.
const PANELS_PER_TILE: i64 = 16;
/// The same where their number is known at run time only.
const PANELS_OF_MANY: i64 = 8;
/// Tiles of a product that threads can share, at least, where it has so many columns.
const LEAST_TILES: i64 = 16;
/// Columns of a panel.
const PANEL: i64 = 16;
/// Rows of the widest register tile.
const TILE_ROWS: i64 = 6;

const VECTOR: Ty = Ty::Vector(Elem::F32, 16);

impl Lower for Matmul {
    fn ops(&self) -> &'static [&'static str] {
        &["matmul", "linear_grad"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1, 2])?;
        match (spec.op, spec.operands.as_slice()) {
            ("linear_grad", [Some(_), Some(_), Some(_)]) => Ok(()),
            ("matmul", [Some(a), Some(b)]) if a.ty.rank() >= 2 && b.ty.rank() >= 2 => Ok(()),
            _ => Err("takes two matrices".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let operands = match spec.op {
            "linear_grad" => {
                let [dy, x, w] = [0, 1, 2].map(|i| cx.operand(i));
                let turned = exchanged(&dy);
                let by_x = Operands { a: dy, b: w, y: cx.result(0) };
                vec![by_x, Operands { a: turned, b: x, y: cx.result(1) }]
            }
            _ => vec![Operands { a: cx.operand(0), b: cx.operand(1), y: cx.result(0) }],
        };
        let (mut tiles, mut scratch) = (Dim::from(0), 0);
        for operands in &operands {
            let product = Product::new(&cx, operands);
            product.tiles(&tiles);
            scratch = scratch.max(product.scratch_bytes());
            tiles = tiles + product.count();
        }
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let dtypes: Vec<DType> = spec.operands.iter().flatten().map(|l| l.ty.dtype).collect();
        if spec.op == "linear_grad" {
            // Gradients of weights first: they are few tiles, of long sums.
            return tiled::kernels(spec, target, Kind::of(dtypes[2]), &|cx| {
                let [dy, x, w] = [0, 1, 2].map(|i| cx.operand(i));
                let by_w = tiled::Product { a: exchanged(&dy), b: x, y: cx.result(1) };
                vec![by_w, tiled::Product { a: dy, b: w, y: cx.result(0) }]
            });
        }
        if let Ok(product) = cuda::product(spec) {
            // Tables are of packed weights.
            return gemm::kernels(spec, &product, target, &Tuning::default());
        }
        if let Some(gpu) = target.cuda.filter(|gpu| gpu.arch == CudaArch::Sm90a)
            && let Ok(outer) = cuda::outer(spec)
        {
            return Ok(vec![cuda::outer_kernel(spec, &outer, gpu.multiprocessors)]);
        }
        let kind = if dtypes[0] == dtypes[1] { Kind::of(dtypes[0]) } else { Kind::F32 };
        tiled::kernels(spec, target, kind, &|cx| {
            vec![tiled::Product { a: cx.operand(0), b: cx.operand(1), y: cx.result(0) }]
        })
    }
}

/// Panels of a tile: fewer where that would leave few tiles.
fn panels_per_tile(columns: &Dim, most_rows: i64) -> i64 {
    let Some(panels) = columns.ceil_div(PANEL).as_const() else { return PANELS_OF_MANY };
    let ceil = |n: i64, of: i64| (n - 1) / of + 1;
    let blocks = ceil(most_rows.max(1), ROW_BLOCK);
    let groups = ceil(LEAST_TILES, blocks).max(ceil(panels, PANELS_PER_TILE));
    ceil(panels, groups).max(1)
}

/// Two matrices, or batches of them, and their product.
struct Operands {
    a: View,
    b: View,
    y: View,
}

/// The last two axes exchanged.
fn exchanged(view: &View) -> View {
    let (mut view, n) = (view.clone(), view.shape.len());
    view.shape.swap(n - 2, n - 1);
    view.strides.swap(n - 2, n - 1);
    view
}

/// Strides of the last two axes.
fn axes(view: &View) -> [Dim; 2] {
    let n = view.strides.len();
    [view.strides[n - 2].clone(), view.strides[n - 1].clone()]
}

/// Emission state.
struct Product<'a> {
    cx: &'a Cx<'a>,
    operands: &'a Operands,
    batch: Space,
    /// Of the result.
    shape: [Dim; 2],
    k: Val,
    /// Panels of a tile.
    group: i64,
    /// Blocks of rows that are computed together, at most.
    run: i64,
    /// f32 `[panels][K_BLOCK][16]`.
    panels: Val,
    /// f32 `[ROW_BLOCK / TILE_ROWS][K_BLOCK · TILE_ROWS]`, rows of a register tile by k, or k by
    /// rows.
    lhs: Val,
    /// f32 `[panels][run · ROW_BLOCK][16]`.
    sums: Val,
}

/// Operands of a few tiles, one below the other, from their first row and column.
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

/// A block of k.
#[derive(Clone, Copy)]
struct Steps {
    first: Val,
    count: Val,
}

impl<'a> Product<'a> {
    fn new(cx: &'a Cx<'a>, operands: &'a Operands) -> Product<'a> {
        let Operands { a, b, y } = operands;
        let lead = y.shape.len() - 2;
        let shape = [y.shape[lead].clone(), y.shape[lead + 1].clone()];
        let spread = |v: &View| {
            let own = v.shape.len() - 2;
            broadcast_strides(&v.shape[..own], &v.strides[..own], lead)
        };
        let most_rows = shape[0].bounds(&cx.spec.symbols).hi;
        let group = panels_per_tile(&shape[1], most_rows);
        let [lhs, sums] = Product::places(group);
        Product {
            cx,
            operands,
            batch: Space::new(&y.shape[..lead], &[spread(a), spread(b), spread(y)]).merged(),
            shape,
            k: cx.size(&a.shape[a.shape.len() - 1]),
            group,
            run: RUN.min((most_rows.max(1) - 1) / ROW_BLOCK + 1),
            panels: cx.scratch(0),
            lhs: cx.scratch(lhs.cast_unsigned()),
            sums: cx.scratch(sums.cast_unsigned()),
        }
    }

    /// Where rows and sums begin in scratch.
    fn places(group: i64) -> [i64; 2] {
        let panels = 4 * K_BLOCK * group * PANEL;
        [panels, panels + 4 * K_BLOCK * ROW_BLOCK]
    }

    fn scratch_bytes(&self) -> u64 {
        let sums = 4 * self.group * self.run * ROW_BLOCK * PANEL;
        (Product::places(self.group)[1] + sums).cast_unsigned()
    }

    /// Groups of columns, of one matrix, and blocks of rows.
    fn parts(&self) -> [Dim; 2] {
        [self.shape[1].ceil_div(PANEL * self.group), self.shape[0].ceil_div(ROW_BLOCK)]
    }

    /// Number of tiles.
    fn count(&self) -> Dim {
        let [groups, blocks] = self.parts();
        self.batch.points() * groups * blocks
    }

    /// The call's part of the tiles, of which the first is number `first` of the kernel's. The
    /// blocks of a group of columns are one behind the other.
    fn tiles(&self, first: &Dim) {
        let (cx, e) = (self.cx, &self.cx.e);
        let [groups, blocks] = self.parts();
        let blocks = e.max(cx.size(&blocks), e.i64(1));
        let (mut begin, mut end) = (e.tile_begin(), e.tile_end());
        if !(first.is(0) && cx.spec.results.len() == 1) {
            let (first, count) = (cx.size(first), cx.size(&self.count()));
            let own = |tile: Val| e.max(e.min(e.sub(tile, first), count), e.i64(0));
            (begin, end) = (own(begin), own(end));
        }
        let behind = e.div_unsigned(e.add_const(e.add(end, blocks), -1), blocks);
        e.for_each(e.div_unsigned(begin, blocks), behind, 1, |at| {
            let before = e.mul(at, blocks);
            let first = e.max(e.sub(begin, before), e.i64(0));
            let last = e.min(e.sub(end, before), blocks);
            e.for_each(first, last, self.run, |block| {
                let count = e.min(e.i64(self.run), e.sub(last, block));
                let rows = [block, count].map(|n| e.mul_const(n, ROW_BLOCK));
                self.emit(&self.part(at, cx.size(&groups), rows));
            });
        });
    }

    /// So many rows, from the first on, of a group of columns.
    fn part(&self, at: Val, groups: Val, [row, count]: [Val; 2]) -> Part {
        let (cx, e) = (self.cx, &self.cx.e);
        let Operands { a, b, y } = self.operands;
        let offsets = self.batch.offsets(cx, e.div_unsigned(at, groups));
        let column = e.mul_const(e.rem_unsigned(at, groups), PANEL * self.group);
        let first = cx.offset(offsets[2], row, &axes(y)[0]);
        Part {
            a: a.at(cx, cx.offset(offsets[0], row, &axes(a)[0])),
            a_axes: axes(a),
            b: b.at(cx, cx.offset(offsets[1], column, &axes(b)[1])),
            b_axes: axes(b),
            y: y.at(cx, cx.offset(first, column, &axes(y)[1])),
            y_axes: axes(y),
            rows: e.min(count, e.sub(cx.size(&self.shape[0]), row)),
            columns: e.min(e.i64(PANEL * self.group), e.sub(cx.size(&self.shape[1]), column)),
        }
    }

    fn emit(&self, part: &Part) {
        let e = &self.cx.e;
        let panels = e.div_ceil_const(part.columns, PANEL);
        e.for_each(e.i64(0), panels, 1, |panel| {
            e.for_each(e.i64(0), part.rows, 1, |row| {
                e.store(e.zero(VECTOR), self.line(panel, row));
            });
        });
        e.for_each(e.i64(0), self.k, K_BLOCK, |first| {
            let steps = Steps { first, count: e.min(e.i64(K_BLOCK), e.sub(self.k, first)) };
            let few = e.cmp(Cmp::Le, part.rows, e.i64(FEW_ROWS));
            e.either(few, || self.few(part, steps, panels), || self.many(part, steps, panels));
        });
        e.for_each(e.i64(0), panels, 1, |panel| self.write(part, panel));
    }

    fn line(&self, panel: Val, row: Val) -> Val {
        let e = &self.cx.e;
        let panel = e.mul_const(panel, self.run * ROW_BLOCK * PANEL);
        let at = e.add(panel, e.mul_const(row, PANEL));
        e.at(self.sums, Elem::F32, at)
    }

    /// Columns of a panel.
    fn columns(&self, part: &Part, panel: Val) -> Val {
        let e = &self.cx.e;
        e.min(e.i64(PANEL), e.sub(part.columns, e.mul_const(panel, PANEL)))
    }

    /// A block of k of the rows in place.
    fn few(&self, part: &Part, steps: Steps, panels: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let a = part.a.at(cx, cx.scale(steps.first, &part.a_axes[1]));
        let lhs = Lhs::InPlace(&a, &part.a_axes);
        let all = (e.i64(0), part.rows);
        let packed = |panel: Val| {
            self.pack_panel(part, steps, panel);
            self.add(steps, panel, all, &lhs, (self.panel(panel), &Dim::from(PANEL)));
        };
        e.for_each(e.i64(0), panels, 1, |panel| {
            if !(part.b_axes[1].is(1) && part.b.dtype == ir::DType::F32) {
                packed(panel);
                return;
            }
            let whole = e.cmp(Cmp::Eq, self.columns(part, panel), e.i64(PANEL));
            let in_place = || {
                let from = e.mul_const(panel, PANEL);
                let from = part.b.at(cx, cx.offset(from, steps.first, &part.b_axes[0]));
                self.add(steps, panel, all, &lhs, (from.base, &part.b_axes[0]));
            };
            e.either(whole, in_place, || packed(panel));
        });
    }

    /// A block of k of the rows, packed.
    fn many(&self, part: &Part, steps: Steps, panels: Val) {
        let e = &self.cx.e;
        self.pack_panels(part, steps, panels);
        e.for_each(e.i64(0), part.rows, ROW_BLOCK, |row| {
            let rows = (row, e.min(e.i64(ROW_BLOCK), e.sub(part.rows, row)));
            let lhs = self.pack_lhs(part, rows, steps);
            e.for_each(e.i64(0), panels, 1, |panel| {
                let lines = (self.panel(panel), &Dim::from(PANEL));
                self.add(steps, panel, rows, &lhs, lines);
            });
        });
    }

    fn panel(&self, panel: Val) -> Val {
        let e = &self.cx.e;
        e.at(self.panels, Elem::F32, e.mul_const(panel, K_BLOCK * PANEL))
    }

    /// Adds the products of rows (the first, and how many) and a panel, whose lines are so many
    /// elements apart.
    fn add(
        &self,
        steps: Steps,
        panel: Val,
        (row, rows): (Val, Val),
        lhs: &Lhs<'_>,
        (lines, step): (Val, &Dim),
    ) {
        let sums = self.line(panel, row);
        Block { lhs, rows, steps: steps.count, panel: lines, step }.add(self.cx, sums);
    }

    fn write(&self, part: &Part, panel: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let columns = self.columns(part, panel);
        let [row_step, step] = &part.y_axes;
        let first = part.y.at(cx, cx.scale(e.mul_const(panel, PANEL), step));
        if row_step.is(1) && !step.is(1) {
            // Columns of the result are dense: they are written whole.
            let sums = self.line(panel, e.i64(0));
            e.for_each(e.i64(0), columns, 1, |column| {
                let to = first.at(cx, cx.scale(column, step));
                let from = e.at(sums, Elem::F32, column);
                let sums = View { base: from, dtype: ir::DType::F32, ..first.clone() };
                cx.strips(e.i64(0), part.rows, |row, lanes| {
                    let line = e.mul_const(row, PANEL);
                    let sums = sums.load_strip(cx, line, &Dim::from(PANEL), lanes);
                    to.store_strip(cx, sums, row, row_step);
                });
            });
            return;
        }
        e.for_each(e.i64(0), part.rows, 1, |row| {
            let y = first.at(cx, cx.scale(row, row_step));
            let line = self.line(panel, row);
            e.either(
                e.cmp(Cmp::Eq, columns, e.i64(PANEL)),
                || y.store_strip(cx, e.load(VECTOR, line), e.i64(0), step),
                || {
                    e.for_each(e.i64(0), columns, 1, |column| {
                        let sum = e.load_at(Ty::Scalar(Elem::F32), line, column);
                        y.store(cx, sum, cx.scale(column, step));
                    });
                },
            );
        });
    }
}
