//! `topk`.

use super::adjoint::add_elements;
use super::order::{AXIS, indices, mixed, places, values};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, normalize_axis, one, required},
};

/// The `k` largest (or smallest) elements along an axis and their indices, in order.
///
/// Of equal elements the one with the lower index comes first. NaN is larger than every number, as
/// in PyTorch; zeros of both signs are equal. `sorted = false` lets a kernel give another order;
/// the interpreter keeps this one. `k` is one size, which may be symbolic.
/// # Shapes
/// `x: [.., N, ..]` → `values: [.., k, ..]`, `indices: [.., k, ..]` i64.
/// # Errors
/// Where it is not certain that `k` is in `0..=N`.
pub(super) struct Topk;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[
        required("k", AttrKind::Dims),
        AXIS,
        defaulted("largest", AttrKind::Bool, || true.into()),
        defaulted("sorted", AttrKind::Bool, || true.into()),
    ],
};

impl OpDef for Topk {
    fn name(&self) -> &'static str {
        "topk"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        let axis = cx.axis("axis", x.rank())?;
        let [k] = cx.attrs.dims("k") else {
            return Err(OpError::attr("k", "is one size"));
        };
        let n = &x.shape[axis];
        let rest = (n.clone() - k.clone()).bounds(cx.symbols);
        if rest.hi < 0 || k.bounds(cx.symbols).lo < 0 {
            return Err(OpError::attr("k", format_args!("is {k}, of {n} elements")));
        }
        if rest.lo < 0 {
            let why = format!("cannot decide whether {k} is at most {n}");
            return Err(OpError::attr("k", why));
        }
        let mut shape = x.shape.to_vec();
        shape[axis] = k.clone();
        let types = [x.dtype, DType::I64].map(|dtype| TensorType::new(dtype, shape.clone()));
        Ok(types.map(Fact::of).to_vec())
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let axis = normalize_axis(cx.attrs.int("axis"), x.rank()).expect("inferred");
            let shape = cx.shape(0);
            let places = places(x, axis, shape[axis], cx.attrs.bool("largest"));
            vec![values(x, &shape, &places), indices(x, axis, &shape, &places)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        args[0].as_ref().map_or(Dim::from(0), TensorType::elements)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, ty) = (cx.cotangent(0)?, cx.ty(0));
            let axis = normalize_axis(cx.attrs.int("axis"), ty.rank()).expect("inferred");
            Ok(vec![Some(add_elements(cx.b, dy, cx.results[1], axis, &ty.shape)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |dtype: DType, shape: &[usize], axis: i64, k: i64, largest: bool| Sample {
            attrs: Attrs::none()
                .with("k", vec![Dim::from(k)])
                .with("axis", axis)
                .with("largest", largest),
            args: vec![Some(mixed(dtype, shape))],
        };
        vec![
            make(DType::F32, &[3, 67], -1, 5, true),
            make(DType::F32, &[3, 67], -1, 67, false),
            make(DType::Bf16, &[2, 41, 3], 1, 7, false),
            make(DType::I64, &[5, 19], 0, 3, true),
            make(DType::F64, &[2, 701], 1, 3, true),
            make(DType::F32, &[4, 3], 1, 0, true),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;

    #[test]
    fn more_than_there_is_and_what_cannot_be_decided_are_refused() {
        let mut module = Module::new("m");
        module.symbol("N", 4, 9);
        let mut b = module.builder("f");
        let x = b.param("x", TensorType::new(DType::F32, [Dim::symbol("N")])).unwrap();
        let mut why = |k: i64| {
            let attrs = Attrs::none().with("k", vec![Dim::from(k)]);
            b.op("topk", attrs, &[Some(x)]).map(|_| ()).unwrap_err().to_string()
        };
        assert_eq!(why(10), "topk: attribute `k` is 10, of N elements");
        assert_eq!(why(-1), "topk: attribute `k` is -1, of N elements");
        assert_eq!(why(5), "topk: attribute `k` cannot decide whether 5 is at most N");
        let attrs = Attrs::none().with("k", vec![Dim::from(4)]);
        assert_eq!(b.op("topk", attrs, &[Some(x)]).unwrap().len(), 2);
    }
}
