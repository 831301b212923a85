//! From sums to the result: bias, activation, gate, residual, rounding.

use super::{Run, Stride};
use crate::{
    emit::{Cmp, Elem, Emitter, Ty, Val},
    kernels::{gemm::epilogue::activate, matmul::Activation},
};

/// A result, and what becomes of sums on their way to it.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Address of its first element.
    pub base: Val,
    /// Element: f32, bf16 or f16.
    pub elem: Elem,
    /// Of rows and columns.
    pub strides: [Stride; 2],
    /// Number of rows and columns, i32.
    pub limits: [Val; 2],
    /// So many columns, 1, 2 or 4, are written at once: they begin at a multiple of their size, and
    /// are all inside or all outside of the result, of the bias and of the residual.
    pub lanes: u32,
    /// Applied to the sum.
    pub activation: Activation,
    /// By column: address and element.
    pub bias: Option<(Val, Elem)>,
    /// A matrix of dense rows that is added: address, element, elements between rows.
    pub residual: Option<(Val, Elem, Stride)>,
}

impl Output {
    /// Of sums as they are.
    #[must_use]
    pub const fn plain(
        base: Val,
        elem: Elem,
        strides: [Stride; 2],
        limits: [Val; 2],
        lanes: u32,
    ) -> Output {
        let activation = Activation::None;
        Output { base, elem, strides, limits, lanes, activation, bias: None, residual: None }
    }

    /// Writes a run, as far as it lies inside.
    pub fn store(&self, e: &Emitter, run: &Run<'_>) {
        self.pieces(e, run, |first, lanes, column, row| {
            let residual = self
                .residual
                .map(|(base, elem, stride)| (e.at(base, elem, stride.times(e, run.row)), elem));
            let pick = |sums: &[Val]| join(e, &sums[first..][..lanes]);
            let value = self.value(e, column, pick(run.sums), run.up.map(pick), residual);
            let to = e.at(row, self.elem, self.strides[1].times(e, column));
            e.store_whole(e.cast(value, self.elem), to);
        });
    }

    /// Replaces the elements of a run, as far as they lie inside, by `new(column, element)` in f32.
    pub fn update(&self, e: &Emitter, run: &Run<'_>, new: impl Fn(Val, Val) -> Val) {
        self.pieces(e, run, |_, lanes, column, row| {
            let at = e.at(row, self.elem, self.strides[1].times(e, column));
            let lanes = u32::try_from(lanes).expect("few lanes");
            let old = e.cast(e.load_whole(Ty::of(self.elem, lanes), at), Elem::F32);
            let values: Vec<Val> =
                (0..lanes).map(|i| new(e.add_const(column, i.into()), e.extract(old, i))).collect();
            e.store_whole(e.cast(join(e, &values), self.elem), at);
        });
    }

    /// Calls `body` for what is written at once: number of the first sum and how many, the column,
    /// and the address of the row.
    fn pieces(&self, e: &Emitter, run: &Run<'_>, body: impl Fn(usize, usize, Val, Val)) {
        e.if_then(e.cmp(Cmp::Lt, run.row, self.limits[0]), || {
            let row = e.at(self.base, self.elem, self.strides[0].times(e, run.row));
            let lanes = if self.strides[1] == Stride::Const(1) { self.lanes } else { 1 };
            let lanes = usize::try_from(lanes).expect("few lanes").min(run.sums.len());
            for first in (0..run.sums.len()).step_by(lanes) {
                let column = e.add_const(run.column, i64::try_from(first).expect("few sums"));
                let inside = e.cmp(Cmp::Lt, column, self.limits[1]);
                e.if_then(inside, || body(first, lanes, column, row));
            }
        });
    }

    fn value(
        &self,
        e: &Emitter,
        column: Val,
        sum: Val,
        up: Option<Val>,
        residual: Option<(Val, Elem)>,
    ) -> Val {
        let place = e.cast(column, Elem::I64);
        let load = |(base, elem): (Val, Elem)| {
            let from = e.at(base, elem, place);
            e.cast(e.load_whole(Ty::of(elem, sum.lanes()), from), Elem::F32)
        };
        let mut value = sum;
        if let Some(bias) = self.bias {
            value = e.add(value, load(bias));
        }
        value = activate(e, self.activation, value);
        if let Some(up) = up {
            value = e.mul(value, up);
        }
        match residual {
            Some(residual) => e.add(value, load(residual)),
            None => value,
        }
    }
}

/// Scalars as a vector, or the only one.
fn join(e: &Emitter, values: &[Val]) -> Val {
    let [first, ..] = values else { unreachable!("a run has sums") };
    if values.len() == 1 {
        return *first;
    }
    let lanes = u32::try_from(values.len()).expect("few lanes");
    let vector = e.zero(Ty::of(first.elem(), lanes));
    (0..).zip(values).fold(vector, |vector, (lane, value)| e.insert(*value, vector, lane))
}
