//! f32 products for `sm_80` and later, without tensor cores, which would round operands.
//!
//! Every output is one chain of fused multiply-adds over k from zero, in every variant, as in
//! [`crate::kernels::matmul`]: sums have the bits that a CPU's have.
//!
//! - `rows`: at most sixteen rows; what takes time is to read the weight, once.
//! - [`super::tiled`]: any number of rows, in tiles of three sizes.

mod rows;

use serde::{Deserialize, Serialize};

use super::{
    Draft, Form, Gemm, Variant,
    tile::Tile as Kind,
    tiled::{Engine, Output, Place, Source, Stride, Task, simt::Tile},
};
use crate::emit::{Elem, Emitter};

/// What a block has for few rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// Rows of y, at most: 1, 4 or 16.
    pub m: i64,
}

/// The tiles of a product for a GPU with so many multiprocessors, those for fewer rows first.
pub(super) fn defaults(spec: &Gemm, multiprocessors: i64) -> Vec<Variant> {
    let sizes = [1, 4, 16].into_iter().filter(|_| reads_rows(spec));
    let sizes = sizes.map(|m| Variant { rows: Some(m), tile: Kind::Rows(Rows { m }) });
    let across = (spec.columns() + 127) / 128;
    // Rows for which large tiles are as many as multiprocessors.
    let few = 128 * (multiprocessors / across).max(1);
    let tiles = [(Tile::SMALL, Some(32)), (Tile::MEDIUM, Some(few)), (Tile::LARGE, None)];
    let tiles = tiles.map(|(tile, rows)| Variant { rows, tile: Kind::Fma(tile) });
    sizes.chain(tiles).collect()
}

/// Whether [`Rows`] can read a product's weight.
pub(super) fn reads_rows(spec: &Gemm) -> bool {
    rows::supports(spec)
}

/// Emits the kernel `symbol` for few rows.
#[must_use]
pub fn emit_rows(symbol: &str, spec: &Gemm, rows: Rows) -> Draft {
    rows::emit(symbol, spec, rows.m)
}

/// Emits the kernel `symbol` of tiles of one size.
#[must_use]
pub fn emit(symbol: &str, spec: &Gemm, tile: Tile) -> Draft {
    let e = Emitter::cuda(symbol, tile.threads()).with_blocks(tile.resident());
    let [m, n] = tile.tile();
    let task = Task {
        a: left(&e, spec),
        b: right(&e, spec),
        k: e.i32(spec.k),
        first: [e.mul_const(e.block('x'), m), e.mul_const(e.block('y'), n)],
    };
    let sums = tile.sums(&e, &task);
    let output = output(&e, spec);
    tile.each(&e, task.first, &sums, spec.gated, &mut |run| output.store(&e, run));
    Draft {
        e,
        tile: [m, n],
        blocks: None,
        shared_bytes: tile.shared_bytes(),
        maps: Vec::new(),
        max_rows: None,
        early: Vec::new(),
    }
}

fn left(e: &Emitter, spec: &Gemm) -> Source {
    Source {
        base: e.arg(spec.a.arg),
        elem: spec.a.elem,
        place: Place::Strides([Stride::Const(spec.a.stride), Stride::Const(1)]),
        lines: e.cast(e.dim(0), Elem::I32),
        whole: spec.k % 8 == 0 && spec.a.stride % 8 == 0,
    }
}

fn right(e: &Emitter, spec: &Gemm) -> Source {
    let (place, whole) = match spec.form {
        Form::Panels => (Place::Panels(spec.k), true),
        Form::Columns(stride) => (
            Place::Strides([Stride::Const(stride), Stride::Const(1)]),
            spec.k % 8 == 0 && stride % 8 == 0,
        ),
        Form::Rows(stride) => (
            Place::Strides([Stride::Const(1), Stride::Const(stride)]),
            spec.n % 8 == 0 && stride % 8 == 0,
        ),
    };
    Source { base: e.arg(spec.w), elem: spec.w_elem, place, lines: e.i32(spec.columns()), whole }
}

fn output(e: &Emitter, spec: &Gemm) -> Output {
    let even = |lanes: i64| {
        let residual = spec.residual.is_none_or(|r| r.stride % lanes == 0);
        spec.n % lanes == 0 && spec.y.stride % lanes == 0 && residual
    };
    Output {
        base: e.arg(spec.y.arg),
        elem: spec.y.elem,
        strides: [Stride::Const(spec.y.stride), Stride::Const(1)],
        limits: [e.cast(e.dim(0), Elem::I32), e.i32(spec.n)],
        lanes: [4, 2].into_iter().find(|lanes| even((*lanes).into())).unwrap_or(1),
        activation: spec.activation,
        bias: spec.bias.map(|(arg, elem)| (e.arg(arg), elem)),
        residual: spec.residual.map(|r| (e.arg(r.arg), r.elem, Stride::Const(r.stride))),
    }
}
