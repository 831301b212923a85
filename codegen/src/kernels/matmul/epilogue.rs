//! From raw sums to y: bias, activation, gate, residual, rounding.
//!
//! Order: `activation(sum + bias) [* (up + bias)] + residual`, then one rounding to y's element.

use super::{Activation, Chunk, Cmp, Elem, Emitter, Gen, LANES, PANEL, SUMS, Val, size};
use crate::math;
use std::ops::Range;

/// Pointers that the epilogue uses, loaded once per call.
pub(super) struct Output {
    bias: Option<Val>,
    residual: Option<Val>,
    y: Val,
}

impl Output {
    pub(super) fn new(generator: &Gen<'_>) -> Self {
        let (e, spec) = (generator.e, generator.spec);
        if let Some([bias, residual, y]) = spec.positions {
            let bias = spec.bias.then(|| e.arg(bias));
            let residual = spec.residual.map(|_| e.arg(residual));
            return Self { bias, residual, y: e.arg(y) };
        }
        let mut indices = 2..;
        let mut next = || e.arg(indices.next().unwrap_or_default());
        let bias = spec.bias.then(&mut next);
        let residual = spec.residual.map(|_| next());
        Self { bias, residual, y: next() }
    }
}

impl Output {
    /// Of the rows from `row` on and the biases from `bias` on.
    pub(super) fn from(&self, generator: &Gen<'_>, row: Val, bias: Val) -> Self {
        let e = generator.e;
        Self {
            bias: self.bias.map(|base| e.at(base, Elem::F32, bias)),
            residual: None,
            y: self.row(generator, row),
        }
    }

    /// Address of a row of y.
    pub(super) fn row(&self, generator: &Gen<'_>, row: Val) -> Val {
        let (e, spec) = (generator.e, generator.spec);
        e.at(self.y, spec.output, e.mul_const(row, size(spec.y_stride)))
    }
}

/// A full panel's columns, or only those that `mask` names.
#[derive(Clone, Copy)]
struct Columns {
    mask: Option<Val>,
}

impl Columns {
    fn load(self, e: &Emitter, from: Val) -> Val {
        match self.mask {
            Some(mask) => e.load_masked(from, mask, e.zero(SUMS)),
            None => e.load(SUMS, from),
        }
    }

    fn store(self, e: &Emitter, value: Val, to: Val) {
        match self.mask {
            Some(mask) => e.store_masked(value, to, mask),
            None => e.store(value, to),
        }
    }
}

impl Gen<'_> {
    /// Writes y for the panels `panels.start..panels.end` and rows `rows.start..rows.end` of the
    /// chunk.
    pub(super) fn epilogue(
        &self,
        output: &Output,
        chunk: Chunk,
        panels: Range<Val>,
        rows: Range<Val>,
    ) {
        let e = self.e;
        let full = Columns { mask: None };
        let turn = self.spec.halves();
        e.for_each(panels.start, panels.end, size(turn), |panel| {
            let index = e.div_unsigned(e.add(chunk.first_panel, panel), e.i64(size(turn)));
            let column = e.mul_const(index, size(PANEL));
            let tail = self.spec.n % PANEL;
            let write = |columns| self.write(output, chunk, panel, &rows, column, columns);
            if tail == 0 {
                write(full);
                return;
            }
            let is_last = e.cmp(Cmp::Eq, column, e.i64(size(self.spec.n - tail)));
            let last = || write(Columns { mask: Some(e.mask_below(e.i64(size(tail)), LANES)) });
            e.either(is_last, last, || write(full));
        });
    }

    fn write(
        &self,
        output: &Output,
        chunk: Chunk,
        panel: Val,
        rows: &Range<Val>,
        column: Val,
        columns: Columns,
    ) {
        let (e, spec) = (self.e, self.spec);
        let bias = |half: u64| {
            let column = e.add_const(column, size(half * spec.n));
            output.bias.map(|bias| columns.load(e, e.at(bias, Elem::F32, column)))
        };
        let biases = [bias(0), if spec.gated { bias(1) } else { None }];
        e.for_each(rows.start, rows.end, 1, |row| {
            let sum = |half: usize| {
                let panel = e.add_const(panel, half as i64);
                let sum = e.load(SUMS, self.sum_row(chunk, panel, row));
                biases[half].map_or(sum, |bias| e.add(sum, bias))
            };
            let mut value = activate(e, spec.activation, sum(0));
            if spec.gated {
                value = e.mul(value, sum(1));
            }
            let row = e.add(chunk.first_row, row);
            let at = |base: Val, elem: Elem, stride: u64| {
                e.at(base, elem, e.add(e.mul_const(row, size(stride)), column))
            };
            if let (Some(residual), Some(stride)) = (output.residual, spec.residual) {
                value = e.add(value, columns.load(e, at(residual, Elem::F32, stride)));
            }
            let place = at(output.y, spec.output, spec.y_stride);
            columns.store(e, e.cast(value, spec.output), place);
        });
    }
}

fn activate(e: &Emitter, activation: Activation, x: Val) -> Val {
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
