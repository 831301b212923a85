//! `interleave`: two packed weights, panel by panel.

use super::elementwise::spread;
use crate::{
    Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Value, Vjp, op::one, tensor::for_each_index,
};

/// Panels of `a` and `b` in turn: `out[.., 2p] = a[.., p]`, `out[.., 2p + 1] = b[.., p]`.
/// # Shapes
/// `a, b: [.., P, K, 16]` → `[.., 2P, K, 16]`.
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
        if a != b || a.rank() < 3 {
            return Err(OpError::new(format!("takes two packed weights alike, got {a} and {b}")));
        }
        let mut ty = a.clone();
        let panels = &mut ty.shape[a.rank() - 3];
        *panels = panels.clone() * Dim::from(2i64);
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [a, b] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let mut out = Vec::with_capacity(2 * a.len() * a.dtype().size());
            for_each_index(&a.shape()[..a.rank() - 2], |index| {
                for t in [a, b] {
                    let panel = index.iter().enumerate();
                    let panel = panel.fold(t.clone(), |t, (axis, i)| t.slice(axis, *i, 1, 1));
                    panel.for_each_run(|run| out.extend_from_slice(run));
                }
            });
            vec![Tensor::from_bytes(a.dtype(), &cx.shape(0), out)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let dy = cx.cotangent(0)?;
            Ok(separate(cx.b, dy)?.map(Some).to_vec())
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |shape: &[usize]| {
            let args = [[-2.0, 2.0], [2.0, -2.0]].map(|[l, h]| spread(DType::F32, shape, l, h));
            Sample { attrs: Attrs::none(), args: args.map(Some).to_vec() }
        };
        vec![make(&[2, 5, 16]), make(&[3, 2, 5, 16])]
    }
}

/// The two weights that were interleaved.
pub(super) fn separate(b: &mut Builder<'_>, w: Value) -> Result<[Value; 2], OpError> {
    let node = b.graph().node(w.node);
    if node.op.name() == "interleave" {
        return Ok([node.input(0), node.input(1)]);
    }
    let ty = b.ty(w).clone();
    let [lead @ .., panels, k, width] = &*ty.shape else {
        return Err(OpError::new(format!("takes an interleaved weight, got {ty}")));
    };
    let tail = [k.clone(), width.clone()];
    let half = lead.iter().cloned().chain([panels.floor_div(2)]);
    let pairs = half.clone().chain([Dim::from(2)]).chain(tail.clone());
    let pairs = b.reshape(w, pairs.collect())?;
    let mut pick = |i: i64| {
        let one = b.slice(pairs, -3, i, i + 1)?;
        b.reshape(one, half.clone().chain(tail.clone()).collect())
    };
    Ok([pick(0)?, pick(1)?])
}
