//! `transpose`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, normalize_axis, one, required},
};

/// Axis `i` of the result is axis `perm[i]` of `x`.
pub(super) struct Transpose;

static SIGNATURE: Signature =
    Signature { operands: &[one("x")], attrs: &[required("perm", AttrKind::Ints)] };

impl OpDef for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_view(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        let perm = cx.attrs.ints("perm");
        if perm.len() != x.rank() || cx.axes("perm", x.rank())?.len() != perm.len() {
            let why = format!("{perm:?} is not a permutation of {} axes", x.rank());
            return Err(OpError::attr("perm", why));
        }
        let axis = |p: &i64| normalize_axis(*p, x.rank()).expect("checked");
        let shape = perm.iter().map(|p| x.shape[axis(p)].clone());
        Ok(vec![Fact::of(TensorType::new(x.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let axis = |p: &i64| normalize_axis(*p, x.rank()).expect("inferred");
            let perm: Vec<usize> = cx.attrs.ints("perm").iter().map(axis).collect();
            vec![x.transpose(&perm)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, rank) = (cx.cotangent(0)?, cx.ty(0).rank());
            let mut back = vec![0; rank];
            for (i, p) in cx.attrs.ints("perm").iter().enumerate() {
                back[normalize_axis(*p, rank).expect("inferred")] = i as i64;
            }
            Ok(vec![Some(cx.b.transpose(dy, &back)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 4, 5], -1.0, 1.0));
        vec![Sample { attrs: Attrs::none().with("perm", vec![2, 0, 1]), args: vec![x] }]
    }
}
