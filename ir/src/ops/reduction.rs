//! What the reductions have in common.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, DType, EvalCx, Fact, InferCx, OpError, Sample, Signature, Tensor, TensorType,
    op::{AttrKind, defaulted, one, required},
    tensor::for_each_index,
};

pub(super) static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[
        required("axes", AttrKind::Ints),
        defaulted("keep", AttrKind::Bool, || Attr::Bool(false)),
    ],
};

pub(super) fn infer(cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
    let x = cx.ty(0);
    let axes = cx.axes("axes", x.rank())?;
    let keep = cx.attrs.bool("keep");
    let shape = x.shape.iter().enumerate().filter_map(|(i, d)| match axes.contains(&i) {
        true => keep.then(|| 1i64.into()),
        false => Some(d.clone()),
    });
    Ok(vec![Fact::of(TensorType::new(x.dtype, shape))])
}

/// Folds each group of elements, first to last in row-major order, from `init`.
pub(super) fn eval(
    cx: &EvalCx<'_>,
    args: &[Option<Tensor>],
    init: f64,
    fold: fn(f64, f64) -> f64,
) -> Vec<Tensor> {
    let x = args[0].as_ref().expect("operand");
    let rank = x.rank();
    let axes: Vec<usize> = cx
        .attrs
        .ints("axes")
        .iter()
        .map(|a| crate::op::normalize_axis(*a, rank).expect("inferred"))
        .collect();
    let kept: Vec<usize> =
        x.shape().iter().enumerate().map(|(i, d)| if axes.contains(&i) { 1 } else { *d }).collect();
    let mut out = vec![init; kept.iter().product()];
    let values = x.to_f64s();
    let mut next = 0;
    for_each_index(x.shape(), |index| {
        let at = index.iter().zip(&kept).fold(0, |n, (i, d)| n * d + if *d == 1 { 0 } else { *i });
        out[at] = fold(out[at], values[next]);
        next += 1;
    });
    vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), out)]
}

pub(super) fn samples() -> Vec<Sample> {
    let make = |shape: &[usize], axes: &[i64], keep: bool| Sample {
        attrs: Attrs::none().with("axes", axes.to_vec()).with("keep", keep),
        args: vec![Some(spread(DType::F32, shape, -1.5, 1.5))],
    };
    vec![
        make(&[3, 37], &[-1], true),
        make(&[3, 4, 5], &[1], false),
        make(&[3, 4, 5], &[0, 2], false),
        make(&[6], &[0], false),
    ]
}

/// Declares a reducing primitive: type, name, ONNX operator, start value, fold.
macro_rules! reduction {
    ($(#[$doc:meta])* $ty:ident, $name:literal, $init:expr, $fold:expr) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::reduction::SIGNATURE
            }
            fn infer(&self, cx: &crate::InferCx<'_>) -> Result<Vec<crate::Fact>, crate::OpError> {
                super::reduction::infer(cx)
            }
            fn body(&self) -> crate::Body {
                crate::Body::Primitive(|cx, args| {
                    super::reduction::eval(cx, args, $init, $fold)
                })
            }
            fn samples(&self) -> Vec<crate::Sample> {
                super::reduction::samples()
            }
        }
    };
}
pub(super) use reduction;
