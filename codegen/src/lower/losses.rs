//! `cross_entropy`: losses of rows of logits, and the gradients of those.
//!
//! On the CPU the sum of exponentials is [`super::log_sum_exp`]'s, so that a loss has the bits of
//! `logsumexp` less the target's logit.

mod cuda;

use ir::{DType, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    block::CHUNK,
    cx::{Cx, refuse},
    log_sum_exp,
    view::{View, check_f32s, check_rank},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
    math,
};

/// The family.
pub(super) struct Losses;

impl Lower for Losses {
    fn ops(&self) -> &'static [&'static str] {
        &["cross_entropy"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 2])?;
        check_rank(spec, 0, 2)?;
        check_rank(spec, 1, 1)?;
        let targets = spec.operands[1].as_ref().ok_or("takes targets")?;
        if targets.ty.dtype != DType::I32 {
            return Err(format!("targets are {}, not i32", targets.ty.dtype));
        }
        Ok(())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let rows = Rows::of(&cx);
        let [count, width] = [0, 1].map(|axis| rows.logits.shape[axis].clone());
        let tiles = cx.share_rows(&count, &width, |index| rows.emit(index));
        Ok(cx.finish(tiles, 4 * CHUNK.cast_unsigned()))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }
}

/// Operands and results.
struct Rows<'c> {
    cx: &'c Cx<'c>,
    logits: View,
    targets: View,
    loss: View,
    /// The factor of the gradients, and these.
    gradient: Option<(View, View)>,
    /// Columns.
    n: Val,
}

/// What is known of a row.
struct Row {
    logits: View,
    /// Its gradient.
    dlogits: Option<View>,
    /// i64; column zero where it does not count.
    target: Val,
    /// Whether the target is a column.
    counts: Val,
    /// The target's logit.
    picked: Val,
}

impl<'c> Rows<'c> {
    fn of(cx: &'c Cx<'c>) -> Rows<'c> {
        let gradient = cx.optional(2).map(|dloss| (dloss, cx.result(1)));
        let [logits, targets] = [0, 1].map(|i| cx.operand(i));
        let n = cx.size(&logits.shape[1]);
        Rows { cx, logits, targets, loss: cx.result(0), gradient, n }
    }
}

impl Rows<'_> {
    fn row(&self, index: Val) -> Row {
        let (cx, e) = (self.cx, &self.cx.e);
        let of_row = |view: &View| view.at(cx, cx.scale(index, &view.strides[0]));
        let logits = of_row(&self.logits);
        let target = self.targets.load(cx, cx.scale(index, &self.targets.strides[0]));
        let target = e.cast(target, Elem::I64);
        let above = e.cmp(Cmp::Ge, target, e.i64(0));
        let counts = e.and(above, e.cmp(Cmp::Lt, target, self.n));
        let target = e.select(counts, target, e.i64(0));
        let picked = logits.load(cx, cx.scale(target, &self.logits.strides[1]));
        let dlogits = self.gradient.as_ref().map(|(_, dlogits)| of_row(dlogits));
        Row { logits, dlogits, target, counts, picked }
    }

    fn emit(&self, index: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let row = self.row(index);
        let step = &self.logits.strides[1];
        let lse = log_sum_exp::row(cx, &row.logits, self.n, step, cx.scratch(0));
        self.loss(index, &row, lse);
        let Some((dlogits, scale)) = row.dlogits.as_ref().zip(self.scale(index)) else { return };
        let to = &dlogits.strides[1];
        cx.strips(e.i64(0), self.n, |i, lanes| {
            let logits = row.logits.load_strip(cx, cx.scale(i, step), step, lanes);
            let value = self.gradient(&row, logits, lse, scale);
            dlogits.store_strip(cx, value, cx.scale(i, to), to);
        });
        e.if_then(row.counts, || {
            dlogits.store(cx, self.own(&row, lse, scale), cx.scale(row.target, to));
        });
    }

    fn loss(&self, index: Val, row: &Row, lse: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let loss = e.select(row.counts, e.sub(lse, row.picked), e.f32(0.0));
        self.loss.store(cx, loss, cx.scale(index, &self.loss.strides[0]));
    }

    fn scale(&self, index: Val) -> Option<Val> {
        let (dloss, _) = self.gradient.as_ref()?;
        Some(dloss.load(self.cx, self.cx.scale(index, &dloss.strides[0])))
    }

    /// The gradient of logits that are not the target's.
    fn gradient(&self, row: &Row, logits: Val, lse: Val, scale: Val) -> Val {
        let e = &self.cx.e;
        let splat = |v: Val| e.splat(v, logits.lanes());
        let weight = math::exp(e, e.sub(logits, splat(lse)));
        let gradient = e.mul(weight, splat(scale));
        e.select(row.counts, gradient, e.zero(Ty::of(Elem::F32, logits.lanes())))
    }

    /// That of the target's logit.
    fn own(&self, row: &Row, lse: Val, scale: Val) -> Val {
        let e = &self.cx.e;
        let weight = math::exp(e, e.sub(row.picked, lse));
        e.mul(e.sub(weight, e.f32(1.0)), scale)
    }
}
