//! `accumulate`.

use super::{elementwise::spread, update::in_f32};
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType, Vjp,
    op::one,
};

/// A running sum, in place: `sum ← keep·sum + x`. What `sum` held does not count where `keep` is 0,
/// not even if it is not finite. Computed in f32.
///
/// With `keep = 1` it adds up the gradients of micro-steps; with `keep < 1` it is momentum.
/// # Shapes
/// `sum`, `x`: one shape, any floats; `keep`: f32 `[]` → `sum`.
pub(super) struct Accumulate;

static SIGNATURE: Signature =
    Signature { operands: &[one("sum"), one("x"), one("keep")], attrs: &[] };

impl OpDef for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        super::update::infer_update(cx, 0)
    }
    fn body(&self) -> Body {
        Body::Composite(|b, _, args| {
            in_f32(b, args, |b, args| {
                let [sum, x, keep] = *args else { unreachable!("inferred") };
                let kept = b.mul(sum, keep)?;
                let added = b.add(kept, x)?;
                let zero = b.scalar(DType::F32, 0.0)?;
                let is_new = b.op1("equal", Attrs::none(), &[keep, zero])?;
                Ok(vec![b.op1("select", Attrs::none(), &[is_new, x, added])?])
            })
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("updates a sum in place; losses are differentiated, steps are not")
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |(shape, keep): (&[usize], f64)| {
            let [sum, x] =
                [(-1.0, 1.0), (2.0, -3.0)].map(|(lo, hi)| spread(DType::F32, shape, lo, hi));
            let keep = Tensor::from_f64s(DType::F32, &[], [keep]);
            Sample { attrs: Attrs::none(), args: [sum, x, keep].map(Some).into() }
        };
        let shapes: [(&[usize], f64); 4] =
            [(&[3, 37], 1.0), (&[7], 0.0), (&[2, 9], 0.9), (&[0, 4], 1.0)];
        shapes.map(sample).into()
    }
}
