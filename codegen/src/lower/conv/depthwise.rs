//! Convolutions in which every output channel has one input channel.

use ir::Dim;

use super::Shape;
use crate::{
    emit::Val,
    lower::{
        cx::Cx,
        window::{Fold, Slide},
    },
};

/// Emits the kernel; returns the number of tiles, or on a GPU of threads.
pub(super) fn emit(cx: &Cx<'_>, shape: &Shape) -> Dim {
    let e = &cx.e;
    let (x, w, bias, y) = (cx.operand(0), cx.operand(1), cx.optional(2), cx.result(0));
    let slide = Slide { cx, windows: &shape.windows, x, y, multiplier: shape.outputs };
    slide.rows(|row| {
        let w = w.at(cx, e.mul_const(row.channel, shape.taps));
        let bias = bias.as_ref().map(|b| b.load(cx, cx.scale(row.channel, &b.strides[0])));
        row.fold(&Fold {
            start: 0.0,
            step: |sum: Val, tap, x| e.fma(e.splat(w.load(cx, tap), sum.lanes()), x, sum),
            finish: |sum: Val, _: &[Val], _| match bias {
                Some(bias) => e.add(sum, e.splat(bias, sum.lanes())),
                None => sum,
            },
        });
    })
}
