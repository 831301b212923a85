//! `interleave`: two packed weights, panel by panel.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, op::one,
};

/// Panels of `a` and `b` in turn: `out[2p] = a[p]`, `out[2p + 1] = b[p]`.
/// # Shapes
/// `a, b: [P, K, 16]` → `[2P, K, 16]`.
pub(super) struct Interleave;

static SIGNATURE: Signature = Signature { operands: &[one("a"), one("b")], attrs: &[] };

impl OpDef for Interleave {
    fn name(&self) -> &'static str {
        "interleave"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (a, b) = (cx.ty(0), cx.ty(1));
        if a != b || a.rank() != 3 {
            return Err(OpError::new(format!("takes two packed weights alike, got {a} and {b}")));
        }
        let mut ty = a.clone();
        ty.shape[0] = ty.shape[0].clone() * Dim::from(2i64);
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [a, b] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let mut out = Vec::with_capacity(2 * a.len() * a.dtype().size());
            for p in 0..a.shape()[0] {
                for t in [a, b] {
                    t.slice(0, p, 1, 1).for_each_run(|run| out.extend_from_slice(run));
                }
            }
            vec![Tensor::from_bytes(a.dtype(), &cx.shape(0), out)]
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let args = [[-2.0, 2.0], [2.0, -2.0]].map(|[l, h]| spread(DType::F32, &[2, 5, 16], l, h));
        vec![Sample { attrs: Attrs::none(), args: args.map(Some).to_vec() }]
    }
}
