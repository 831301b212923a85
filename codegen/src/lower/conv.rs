//! `conv` and `conv_transpose`: products of the weight with patches that are gathered on the way
//! (implicit GEMM: Chetlur et al. 2014, arXiv:1410.0759).
//!
//! A tile is 64 output positions times a block of output channels. Patches of sixteen positions
//! become a panel `[k][16]` in scratch, which the weight, read as it lies, is multiplied with by
//! the register tile of [`super::matmul`]; every output is one chain of fused multiply-adds from
//! zero. k runs over (channel, window) in a convolution, over (window, channel) in a transposed
//! one.
//!
//! A transposed convolution of stride s is s convolutions of stride 1 by axis, one for each phase
//! of the output (Shi et al. 2016, arXiv:1609.05158), so that no zeros are multiplied. Convolutions
//! that join no channels slide windows instead (`depthwise`).

mod axes;
mod cuda;
mod depthwise;
mod patches;

use ir::{Dim, KernelSpec, Target, Window};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    flat,
    matmul::{Block, Lhs},
    view::{View, check_f32s},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
};
use axes::{Axis, Phase};
use patches::Patches;

/// The family.
pub(super) struct Conv;

/// Output channels of a tile.
const ROW_BLOCK: i64 = 96;
/// Panels of a tile.
const PANELS: i64 = 4;
/// Output positions of a panel.
const PANEL: i64 = 16;
/// Steps of k in a block, about.
const K_BLOCK: i64 = 256;
/// Output channels of one input channel, up to which windows slide.
const DEPTHWISE: i64 = 8;

const VECTOR: Ty = Ty::Vector(Elem::F32, 16);

impl Lower for Conv {
    fn ops(&self) -> &'static [&'static str] {
        &["conv", "conv_transpose"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1, 2])?;
        let [Some(x), Some(w), ..] = &*spec.operands else { return Err("takes x and w".into()) };
        if !w.is_contiguous() {
            return Err("the weight must be contiguous".into());
        }
        let axes = x.ty.shape.iter().zip(&x.strides).skip(2);
        let reach = axes.fold(Dim::from(0), |sum, (n, s)| sum + n.clone() * s.clone());
        let reach = reach.bounds(&spec.symbols);
        if reach.lo < -patches::REACH || reach.hi > patches::REACH {
            return Err(format!("a channel of {x} may be too large: bound it"));
        }
        Shape::of(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let shape = Shape::of(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        if shape.slides() {
            let tiles = depthwise::emit(&cx, &shape);
            return Ok(cx.finish(tiles, 0));
        }
        let conv = Product::new(&cx, shape);
        let tiles = conv.emit();
        let scratch = conv.scratch_bytes();
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let shape = Shape::of(spec).map_err(|reason| refuse(spec, reason))?;
        if !shape.slides() {
            return Ok(vec![cuda::kernel(spec, &shape)]);
        }
        let cx = Cx::cuda(spec, flat::THREADS);
        let points = depthwise::emit(&cx, &shape);
        Ok(vec![cx.finish_flat(&points)])
    }
}

/// Constant sizes of a convolution.
struct Shape {
    windows: Vec<Window>,
    transposed: bool,
    groups: i64,
    /// Channels of a group.
    inputs: i64,
    outputs: i64,
    /// Elements of a window.
    taps: i64,
}

impl Shape {
    fn of(spec: &KernelSpec) -> Result<Shape, String> {
        let Some(Some(w)) = spec.operands.get(1) else { return Err("takes a weight".into()) };
        let sizes: Option<Vec<i64>> = w.ty.shape.iter().map(Dim::as_const).collect();
        let sizes = sizes.ok_or_else(|| format!("the weight must be constant, got {}", w.ty))?;
        let [first, second, kernel @ ..] = &*sizes else {
            return Err(format!("takes a weight [M, C, ..], got {}", w.ty));
        };
        let windows = Window::all(&spec.attrs, kernel).map_err(|e| e.to_string())?;
        let transposed = spec.op == "conv_transpose";
        let groups = spec.attrs.int("group").max(1);
        let (inputs, outputs) =
            if transposed { (first / groups, *second) } else { (*second, first / groups) };
        let taps = kernel.iter().product();
        Ok(Shape { windows, transposed, groups, inputs, outputs, taps })
    }

    /// Whether channels are not joined, so that windows slide.
    fn slides(&self) -> bool {
        !self.transposed && self.inputs == 1 && self.outputs <= DEPTHWISE
    }

    /// Input channels of a block of k.
    fn channels(&self) -> i64 {
        let most = if self.transposed { K_BLOCK } else { (K_BLOCK / self.taps).max(1) };
        most.min(self.inputs).max(1)
    }

    /// Lines of a panel.
    fn steps(&self) -> i64 {
        self.channels() * if self.transposed { 1 } else { self.taps }
    }
}

/// Emission state.
struct Product<'a> {
    cx: &'a Cx<'a>,
    shape: Shape,
    axes: Vec<Axis>,
    x: View,
    w: View,
    bias: Option<View>,
    y: View,
    patches: Patches<'a>,
    /// f32 `[PANELS][ROW_BLOCK][16]`.
    sums: Val,
}

/// What a tile works on.
struct Tile<'a> {
    /// The group's channels of x.
    x: View,
    /// The group's weight, from the tile's first output channel on.
    w: View,
    y: View,
    phase: &'a Phase,
    panels: Val,
    rows: Val,
}

impl<'a> Product<'a> {
    fn new(cx: &'a Cx<'a>, shape: Shape) -> Product<'a> {
        let (x, y) = (cx.operand(0), cx.result(0));
        let axes = Axis::all(&shape, &x, &y);
        let sums_bytes = (4 * PANELS * ROW_BLOCK * PANEL).cast_unsigned();
        let patches = Patches::new(cx, sums_bytes, axes.len(), shape.steps());
        Product {
            cx,
            shape,
            axes,
            x,
            w: cx.operand(1),
            bias: cx.optional(2),
            y,
            patches,
            sums: cx.scratch(0),
        }
    }

    fn scratch_bytes(&self) -> u64 {
        self.patches.end()
    }

    /// Emits all tiles; returns their number.
    fn emit(&self) -> Dim {
        let (cx, e, shape) = (self.cx, &self.cx.e, &self.shape);
        let positions = self.axes.iter().fold(Dim::from(1), |n, axis| n * axis.count.clone());
        let panels = positions.ceil_div(PANEL);
        let strips = panels.ceil_div(PANELS);
        let phases: i64 = self.axes.iter().map(|axis| axis.phases).product();
        let blocks = (shape.outputs + ROW_BLOCK - 1) / ROW_BLOCK;
        let each = [strips.clone(), blocks.into(), phases.into(), shape.groups.into()];
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let mut rest = tile;
            let [strip, block, phase, group] = each.each_ref().map(|count| {
                let count = cx.size(count);
                let index = e.rem_unsigned(rest, count);
                rest = e.div_unsigned(rest, count);
                index
            });
            let phase = Phase::new(cx, &self.axes, phase);
            let first_panel = e.mul_const(strip, PANELS);
            let first_row = e.mul_const(block, ROW_BLOCK);
            let panels = e.min(e.i64(PANELS), e.sub(cx.size(&panels), first_panel));
            let rows = e.min(e.i64(ROW_BLOCK), e.sub(e.i64(shape.outputs), first_row));
            let channel = e.add(e.mul_const(group, shape.outputs), first_row);
            let at = |view: &View, channel| {
                let offset = cx.scale(rest, &view.strides[0]);
                view.at(cx, cx.offset(offset, channel, &view.strides[1]))
            };
            let inputs = e.mul_const(group, shape.inputs);
            let weight = match shape.transposed {
                false => e.mul_const(channel, shape.inputs * shape.taps),
                true => {
                    let row = e.add(e.mul_const(inputs, shape.outputs), first_row);
                    e.mul_const(row, shape.taps)
                }
            };
            let tile = Tile {
                x: at(&self.x, inputs),
                w: self.w.at(cx, weight),
                y: at(&self.y, channel),
                phase: &phase,
                panels,
                rows,
            };
            self.patches.places(&self.axes, &phase, first_panel, panels);
            self.clear(&tile);
            if shape.transposed {
                self.transposed(&tile)
            } else {
                self.plain(&tile)
            }
            let left = e.sub(cx.size(&positions), e.mul_const(first_panel, PANEL));
            self.finish(&tile, channel, left);
        });
        let batch = self.y.shape[0].clone();
        each.into_iter().fold(batch, |n, count| n * count)
    }

    fn line(&self, panel: Val, row: Val) -> Val {
        let e = &self.cx.e;
        let line = e.add(e.mul_const(panel, ROW_BLOCK), row);
        e.at(self.sums, Elem::F32, e.mul_const(line, PANEL))
    }

    fn clear(&self, tile: &Tile<'_>) {
        let e = &self.cx.e;
        e.for_each(e.i64(0), tile.panels, 1, |panel| {
            e.for_each(e.i64(0), tile.rows, 1, |row| {
                e.store(e.zero(VECTOR), self.line(panel, row));
            });
        });
    }

    /// Block after block of (channel, window).
    fn plain(&self, tile: &Tile<'_>) {
        let (cx, e, shape) = (self.cx, &self.cx.e, &self.shape);
        let k_axes = [Dim::from(shape.inputs * shape.taps), Dim::from(1)];
        self.channels(|first, count| {
            let w = tile.w.at(cx, e.mul_const(first, shape.taps));
            let x = tile.x.at(cx, cx.scale(first, &self.x.strides[1]));
            e.for_each(e.i64(0), tile.panels, 1, |panel| {
                tile.phase.each_tap(cx, &self.axes, |tap, shifts| {
                    self.patches.gather(&self.axes, &x, panel, shifts, (tap, shape.taps), count);
                });
                self.multiply(tile, panel, &w, &k_axes, e.mul_const(count, shape.taps));
            });
        });
    }

    /// Block after block of channels for each element of the window.
    fn transposed(&self, tile: &Tile<'_>) {
        let (cx, e, shape) = (self.cx, &self.cx.e, &self.shape);
        let each = shape.outputs * shape.taps;
        let k_axes = [Dim::from(shape.taps), Dim::from(each)];
        tile.phase.each_tap(cx, &self.axes, |tap, shifts| {
            self.channels(|first, count| {
                let w = tile.w.at(cx, e.add(e.mul_const(first, each), tap));
                let x = tile.x.at(cx, cx.scale(first, &self.x.strides[1]));
                e.for_each(e.i64(0), tile.panels, 1, |panel| {
                    let lines = (e.i64(0), 1);
                    self.patches.gather(&self.axes, &x, panel, shifts, lines, count);
                    self.multiply(tile, panel, &w, &k_axes, count);
                });
            });
        });
    }

    /// `body(first, count)` for blocks of input channels.
    fn channels(&self, body: impl FnOnce(Val, Val)) {
        let e = &self.cx.e;
        let (all, step) = (e.i64(self.shape.inputs), self.shape.channels());
        e.for_each(e.i64(0), all, step, |first| {
            body(first, e.min(e.i64(step), e.sub(all, first)));
        });
    }

    fn multiply(&self, tile: &Tile<'_>, panel: Val, w: &View, k_axes: &[Dim; 2], steps: Val) {
        let block = Block {
            lhs: &Lhs::InPlace(w, k_axes),
            rows: tile.rows,
            steps,
            panel: self.patches.panel,
            step: &Dim::from(PANEL),
        };
        block.add(self.cx, self.line(panel, self.cx.e.i64(0)));
    }

    /// Adds the bias and writes y; `left` positions remain from the tile's first on.
    fn finish(&self, tile: &Tile<'_>, channel: Val, left: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let dense = !self.shape.transposed && axes::dense(&self.axes);
        e.for_each(e.i64(0), tile.panels, 1, |panel| {
            let first = e.mul_const(panel, PANEL);
            let columns = e.min(e.i64(PANEL), e.sub(left, first));
            e.for_each(e.i64(0), tile.rows, 1, |row| {
                let mut line = e.load(VECTOR, self.line(panel, row));
                if let Some(bias) = &self.bias {
                    let at = cx.scale(e.add(channel, row), &bias.strides[0]);
                    line = e.add(line, e.splat(bias.load(cx, at), 16));
                    e.store(line, self.line(panel, row));
                }
                let y = tile.y.at(cx, cx.scale(row, &self.y.strides[1]));
                let one_by_one = || {
                    e.for_each(e.i64(0), columns, 1, |column| {
                        let at = self.patches.place(panel, column);
                        e.if_then(e.cmp(Cmp::Ge, at, e.i64(0)), || {
                            let line = self.line(panel, row);
                            let value = e.load_at(Ty::Scalar(Elem::F32), line, column);
                            y.store(cx, value, at);
                        });
                    });
                };
                if dense {
                    let whole = e.cmp(Cmp::Eq, columns, e.i64(PANEL));
                    let at = self.patches.place(panel, e.i64(0));
                    e.either(whole, || y.store_strip(cx, line, at, &Dim::from(1)), one_by_one);
                } else {
                    one_by_one();
                }
            });
        });
    }
}
