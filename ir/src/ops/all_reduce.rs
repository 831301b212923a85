//! `all_reduce`.

use super::collective::{self, AXIS, RANKS};
use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp, op::one,
};

/// The sum over the ranks of an axis, on each of them, added in the order of the ranks; bf16 and
/// f16 in f32, rounded once.
///
/// The result is the same on all of them, and so is its cotangent, which is that of every rank's
/// operand: [`vary`](super::vary) is the other way.
///
/// # Shapes
/// `x`, any shape → the same.
pub(super) struct AllReduce;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[AXIS, RANKS] };

impl OpDef for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        collective::ranks(cx)?;
        collective::check_sum(cx.ty(0).dtype)?;
        Ok(vec![Fact::of(cx.ty(0).clone())])
    }
    fn body(&self) -> Body {
        Body::Collective(|cx, args| {
            let sum = collective::sum(cx.results[0].dtype, &collective::of_ranks(args));
            args.iter().map(|_| vec![sum.clone()]).collect()
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| Ok(vec![Some(cx.cotangent(0)?)]))
    }
    fn samples(&self) -> Vec<Sample> {
        collective::samples(|attrs, shape| (attrs, shape.into()))
    }
}
