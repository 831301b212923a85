//! From sums in registers to y: bias, activation, gate, residual, rounding.
//!
//! Both tensor core instructions leave the same two columns of rows `g` and `g + 8` of each block
//! of 16 x 8 sums in a lane: columns `2t` and `2t + 1` for lane `4g + t`.

use super::{Gemm, Matrix, PANEL};
use crate::{
    emit::{Cmp, Elem, Emitter, Ty, Val},
    kernels::matmul::Activation,
    math,
};

/// A strip of eight rows, every fourth pair of columns: what a lane holds of it.
pub(super) struct Strip<'a> {
    /// The lane's row of y, i32.
    pub(super) row: Val,
    /// The lane's first column in the stored weight, i32.
    pub(super) column: Val,
    /// Two sums for every eight columns.
    pub(super) sums: &'a [[Val; 2]],
}

/// Writes strips of y.
pub(super) struct Epilogue<'a> {
    pub(super) e: &'a Emitter,
    pub(super) spec: &'a Gemm,
    /// Number of rows, i32.
    pub(super) rows: Val,
    /// Whether every column of a tile is a column of y.
    pub(super) whole: bool,
}

impl Epilogue<'_> {
    /// Writes a strip where its row is one of y.
    pub(super) fn store(&self, strip: &Strip<'_>) {
        let e = self.e;
        self.row(strip.row, |y, residual| {
            if self.spec.gated {
                self.gated(strip, y, residual);
            } else {
                for (j, sums) in (0..).zip(strip.sums) {
                    let column = e.add_const(strip.column, 8 * j);
                    self.pair(column, *sums, None, y, residual);
                }
            }
        });
    }

    /// Writes what a lane has of a row: two neighbours of every panel, those of y at `column` and
    /// sixteen columns on.
    pub(super) fn store_panels(&self, row: Val, column: Val, sums: &[[Val; 2]]) {
        self.row(row, |y, residual| {
            let panels = if self.spec.gated { 2 } else { 1 };
            for (j, sums) in (0..).zip(sums.chunks(panels)) {
                let column = self.e.add_const(column, PANEL * j);
                self.pair(column, sums[0], sums.get(1).copied(), y, residual);
            }
        });
    }

    /// Calls `body` with the addresses of a row of y and of the residual, if there is such a row.
    fn row(&self, row: Val, body: impl FnOnce(Val, Option<Val>)) {
        let e = self.e;
        e.if_then(e.cmp(Cmp::Lt, row, self.rows), || {
            let row = e.cast(row, Elem::I64);
            let place = |m: &Matrix| e.at(e.arg(m.arg), m.elem, e.mul_const(row, m.stride));
            body(place(&self.spec.y), self.spec.residual.as_ref().map(place));
        });
    }

    /// Of four blocks of eight columns, the first two are the gate's.
    fn gated(&self, strip: &Strip<'_>, y: Val, residual: Option<Val>) {
        let e = self.e;
        // The lane's place within eight columns is not halved.
        let within = e.rem_unsigned(strip.column, e.i32(2 * PANEL));
        let first = e.add(e.shr(e.sub(strip.column, within), 1), within);
        for (pair, sums) in (0..).zip(strip.sums.chunks_exact(4)) {
            for half in 0..2 {
                let column = e.add_const(first, pair * PANEL + 8 * half);
                let half = usize::try_from(half).expect("0 or 1");
                self.pair(column, sums[half], Some(sums[2 + half]), y, residual);
            }
        }
    }

    fn pair(
        &self,
        column: Val,
        sums: [Val; 2],
        up: Option<[Val; 2]>,
        y: Val,
        residual: Option<Val>,
    ) {
        let (e, spec) = (self.e, self.spec);
        let even = |m: &Matrix| m.stride % 2 == 0;
        let vector = spec.n % 2 == 0 && even(&spec.y) && spec.residual.as_ref().is_none_or(even);
        let write = |lanes: u32, first: usize| {
            let place = e.cast(e.add_const(column, first as i64), Elem::I64);
            let load = |base: Val, elem: Elem| {
                let from = e.at(base, elem, place);
                e.cast(e.load_whole(Ty::of(elem, lanes), from), Elem::F32)
            };
            let gather = |values: [Val; 2]| match lanes {
                1 => values[first],
                _ => {
                    let zero = e.zero(Emitter::f32s(2));
                    e.insert(values[1], e.insert(values[0], zero, 0), 1)
                }
            };
            let mut value = gather(sums);
            if let Some((bias, elem)) = spec.bias {
                value = e.add(value, load(e.arg(bias), elem));
            }
            value = activate(e, spec.activation, value);
            if let Some(up) = up {
                value = e.mul(value, gather(up));
            }
            if let (Some(base), Some(matrix)) = (residual, &spec.residual) {
                value = e.add(value, load(base, matrix.elem));
            }
            let to = e.at(y, spec.y.elem, place);
            e.store_whole(e.cast(value, spec.y.elem), to);
        };
        let guarded = |lanes: u32, first: usize| {
            let last = e.add_const(column, first as i64);
            let inside = e.cmp(Cmp::Lt, last, e.i32(spec.n));
            e.if_then(inside, || write(lanes, first));
        };
        match (vector, self.whole) {
            (true, true) => write(2, 0),
            (true, false) => guarded(2, 0),
            (false, true) => [0, 1].into_iter().for_each(|i| write(1, i)),
            (false, false) => [0, 1].into_iter().for_each(|i| guarded(1, i)),
        }
    }
}

/// The activation of f32.
pub(super) fn activate(e: &Emitter, activation: Activation, x: Val) -> Val {
    match activation {
        Activation::None => x,
        Activation::Relu => math::relu(e, x),
        Activation::GeluErf => math::gelu_erf(e, x),
        Activation::GeluTanh => math::gelu_tanh(e, x),
        Activation::Silu => math::silu(e, x),
        Activation::Tanh => math::tanh(e, x),
        Activation::Sigmoid => math::sigmoid(e, x),
    }
}
