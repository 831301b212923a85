//! `reduce_scatter`.

use super::collective::{self, AXIS, RANKS, Shard};
use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp, op::one,
};

/// Each rank's [`Shard`] of the sum over the ranks of an axis, which is that of
/// [`all_reduce`](super::all_reduce) bit for bit.
///
/// # Shapes
/// `x`, any constant shape → `[len]` of the shard.
pub(super) struct ReduceScatter;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[AXIS, RANKS] };

impl OpDef for ReduceScatter {
    fn name(&self) -> &'static str {
        "reduce_scatter"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let ranks = collective::ranks(cx)?;
        let x = cx.ty(0);
        collective::check_sum(x.dtype)?;
        let shard = Shard::of(collective::elements(&x.shape)?, cx.attrs.str("axis"), ranks);
        Ok(vec![Fact::of(TensorType::new(x.dtype, [shard.len]))])
    }
    fn body(&self) -> Body {
        Body::Collective(|cx, args| {
            let sum = collective::sum(cx.results[0].dtype, &collective::of_ranks(args));
            let parts = collective::parts(sum.len(), cx).into_iter();
            parts.map(|(start, len)| vec![collective::part(&sum, start, len)]).collect()
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let attrs = cx.attrs.clone().with("shape", cx.ty(0).shape.to_vec());
            let dy = cx.cotangent(0)?;
            Ok(vec![Some(cx.b.op1("all_gather", attrs, &[dy])?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        collective::samples(|attrs, shape| (attrs, shape.into()))
    }
}
