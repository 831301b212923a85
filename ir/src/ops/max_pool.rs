//! `max_pool`.

use super::conv_adjoint::max_pool_rule;
use super::window::{CEIL, DILATIONS, PADS, STRIDES, infer_pool, pool, pool_flops, sample};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, required},
};

/// The largest element of each window over the axes behind batch and channels; NaN if any is.
///
/// Padding counts nothing, and a window of nothing but padding is `-inf`. With `ceil` a last window
/// that reaches beyond the padding counts, if it begins before it.
/// # Shapes
/// `x: [N, C, S..]` → `[N, C, floor((S + pads - (kernel - 1) · dilation - 1) / stride) + 1, ..]`.
pub(super) struct MaxPool;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[required("kernel", AttrKind::Ints), STRIDES, PADS, DILATIONS, CEIL],
};

impl OpDef for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::of(infer_pool(cx)?)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            pool(cx, args, |_, values| {
                let larger = |most: f64, value: f64| match most.is_nan() || value.is_nan() {
                    true => f64::NAN,
                    false => most.max(value),
                };
                values.iter().copied().fold(f64::NEG_INFINITY, larger)
            })
        })
    }
    fn flops(&self, attrs: &Attrs, _: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        pool_flops(attrs, results)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(max_pool_rule)
    }
    fn samples(&self) -> Vec<Sample> {
        samples()
    }
}

/// Poolings of one to three axes.
pub(super) fn samples() -> Vec<Sample> {
    let make = |x: &[usize], attrs: Attrs| Sample { attrs, args: vec![sample(DType::F32, x)] };
    let kernel = |kernel: &[i64]| Attrs::none().with("kernel", kernel.to_vec());
    vec![
        make(&[2, 3, 41], kernel(&[3]).with("strides", vec![2]).with("ceil", true)),
        make(&[2, 3, 9, 37], kernel(&[3, 2]).with("pads", vec![1, 0, 2, 1])),
        make(&[1, 2, 9, 11], {
            let attrs = kernel(&[2, 3]).with("strides", vec![2, 2]).with("ceil", true);
            attrs.with("pads", vec![0, 1, 1, 1]).with("dilations", vec![3, 2])
        }),
        make(&[1, 2, 4, 5, 21], kernel(&[2, 3, 2])),
    ]
}
