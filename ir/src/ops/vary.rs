//! `vary`.

use super::collective::{self, AXIS, RANKS};
use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp, op::one,
};

/// The operand, which is the same on all ranks of an axis, for uses that differ from rank to rank:
/// its cotangent is the sum of theirs.
///
/// The `f` of Shoeybi et al. 2019, arXiv:1909.08053, whose `g` is
/// [`all_reduce`](super::all_reduce): one is the other's derivative.
///
/// # Shapes
/// `x`, any shape → the same.
pub(super) struct Vary;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[AXIS, RANKS] };

impl OpDef for Vary {
    fn name(&self) -> &'static str {
        "vary"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_view(&self) -> bool {
        true
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        collective::ranks(cx)?;
        collective::check_sum(cx.ty(0).dtype)?;
        Ok(vec![cx.arg(0).clone()])
    }
    fn body(&self) -> Body {
        Body::Composite(|_, _, args| Ok(args.iter().flatten().copied().collect()))
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let dy = cx.cotangent(0)?;
            Ok(vec![Some(cx.b.op1("all_reduce", cx.attrs.clone(), &[dy])?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        collective::samples(|attrs, shape| (attrs, shape.into()))
    }
}
