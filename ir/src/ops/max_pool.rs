//! `max_pool`.

use super::window::{DILATIONS, PADS, STRIDES, Window, each_place, flat, infer_pool, sample};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    op::{AttrKind, defaulted, one, required},
    tensor::for_each_index,
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
    attrs: &[
        required("kernel", AttrKind::Ints),
        STRIDES,
        PADS,
        DILATIONS,
        defaulted("ceil", AttrKind::Bool, || false.into()),
    ],
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
            let x = args[0].as_ref().expect("operand");
            let windows = Window::all(cx.attrs, cx.attrs.ints("kernel")).expect("inferred");
            let (shape, values) = (x.shape(), x.to_f64s());
            let mut y = Vec::new();
            for_each_index(&cx.shape(0), |at| {
                let mut most = f64::NEG_INFINITY;
                each_place(&windows, &at[2..], &shape[2..], |_, place| {
                    let place = at[..2].iter().chain(place).copied();
                    let value = values[flat(shape, place)];
                    most = if most.is_nan() || value.is_nan() { f64::NAN } else { most.max(value) };
                });
                y.push(most);
            });
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), y)]
        })
    }
    fn flops(&self, attrs: &Attrs, _: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        results[0].elements() * Dim::from(attrs.ints("kernel").iter().product::<i64>())
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
