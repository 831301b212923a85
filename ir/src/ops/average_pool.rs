//! `average_pool`.

use super::conv_adjoint::average_pool_rule;
use super::{
    max_pool::samples,
    window::{CEIL, DILATIONS, PADS, STRIDES, Window, infer_pool, pool, pool_flops},
};
use crate::{
    Attrs, Body, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, one, required},
};

/// The mean of each window over the axes behind batch and channels.
///
/// It is taken over the elements that are not padding, or with `include_pad` over padding too, as
/// zeros; what lies beyond the padding never counts, as in PyTorch. With `ceil` a last window that
/// reaches there counts, if it begins before the padding.
/// # Shapes
/// As `max_pool`.
pub(super) struct AveragePool;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[
        required("kernel", AttrKind::Ints),
        STRIDES,
        PADS,
        DILATIONS,
        CEIL,
        defaulted("include_pad", AttrKind::Bool, || false.into()),
    ],
};

impl OpDef for AveragePool {
    fn name(&self) -> &'static str {
        "average_pool"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::of(infer_pool(cx)?)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand").shape();
            let windows = Window::all(cx.attrs, cx.attrs.ints("kernel")).expect("inferred");
            pool(cx, args, |at, values| {
                let mut count = values.len() as f64;
                if cx.attrs.bool("include_pad") {
                    count = 1.0;
                    for ((w, o), n) in windows.iter().zip(at).zip(&x[2..]) {
                        let end = *n as i64 + w.pads[1];
                        let start = *o as i64 * w.stride - w.pads[0];
                        let inside = (0..w.kernel).filter(|k| start + k * w.dilation < end);
                        count *= inside.count() as f64;
                    }
                }
                values.iter().fold(0.0, |sum, v| sum + v) / count
            })
        })
    }
    fn flops(&self, attrs: &Attrs, _: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        pool_flops(attrs, results)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(average_pool_rule)
    }
    fn samples(&self) -> Vec<Sample> {
        let padded = samples().into_iter().map(|mut sample| {
            sample.attrs = sample.attrs.with("include_pad", true);
            sample
        });
        samples().into_iter().chain(padded).collect()
    }
}
