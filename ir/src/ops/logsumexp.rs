//! `logsumexp`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::one,
};

/// `log Σ exp(x)` over the last axis, by way of the maximum: `[.., N] -> [..]`.
pub(super) struct Logsumexp;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[] };

impl OpDef for Logsumexp {
    fn name(&self) -> &'static str {
        "logsumexp"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        if x.rank() == 0 {
            return Err(OpError::new("takes at least one axis"));
        }
        let shape = x.shape[..x.rank() - 1].iter().cloned();
        Ok(vec![Fact::of(TensorType::new(x.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, _, args| {
            let x = args[0].expect("operand");
            let max = b.reduce("reduce_max", x, &[-1], true)?;
            let e = b.sub(x, max)?;
            let e = b.exp(e)?;
            let sum = b.reduce("reduce_sum", e, &[-1], false)?;
            let log = b.unary("log", sum)?;
            let shape = b.ty(log).shape.to_vec();
            let max = b.reshape(max, shape)?;
            Ok(vec![b.add(log, max)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (x, y, dy) = (cx.arg(0), cx.results[0], cx.cotangent(0)?);
            let shape: Vec<_> = cx.b.ty(y).shape.iter().cloned().chain([Dim::from(1)]).collect();
            let [y, dy] = [cx.b.reshape(y, shape.clone())?, cx.b.reshape(dy, shape)?];
            let p = cx.b.sub(x, y)?;
            let p = cx.b.exp(p)?;
            Ok(vec![Some(cx.b.mul(p, dy)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 37], -9.0, 9.0));
        vec![Sample { attrs: Attrs::none(), args: vec![x] }]
    }
}
