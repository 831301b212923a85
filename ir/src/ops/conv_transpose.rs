//! `conv_transpose`.

use super::conv_adjoint::conv_transpose_rule;
use super::{
    conv::{GROUP, check_bias, group, product},
    window::{
        DILATIONS, PADS, STRIDES, Window, by_axis, constants, each_place, entries, flat, sample,
    },
};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{one, optional},
    tensor::for_each_index,
};

/// Transposed convolution over the one to three axes behind batch and channels, as ONNX defines
/// `ConvTranspose`: every input element adds its multiple of the weight to a window of the output.
///
/// Dumoulin & Visin 2016, arXiv:1603.07285. `pads` are taken off the output, `output_padding` is
/// added at its ends.
/// # Shapes
/// `x: [N, C, S..]`, `w: [C, M / group, K..]`, `bias: [M]` →
/// `[N, M, (S - 1) · stride - pads + (K - 1) · dilation + 1 + output_padding, ..]`.
/// # Errors
/// As `conv`; and where nothing may be left of an axis.
pub(super) struct ConvTranspose;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), optional("bias")],
    attrs: &[STRIDES, PADS, DILATIONS, by_axis("output_padding"), GROUP],
};

impl OpDef for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv_transpose"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (cx.ty(0), cx.ty(1));
        let ([batch, channels, space @ ..], [c, each, kernel @ ..]) = (&*x.shape, &*w.shape) else {
            return Err(OpError::new(format!("takes [N, C, ..] and [C, M, ..], got {x} and {w}")));
        };
        if space.len() != kernel.len() || !x.dtype.is_float() || !w.dtype.is_float() {
            return Err(OpError::new(format!("takes floats of as many axes, got {x} and {w}")));
        }
        let windows = Window::all(cx.attrs, &constants("the weight", kernel)?)?;
        let more = entries(cx.attrs, "output_padding", windows.len(), 0)?;
        let group = group(cx, c, each)?;
        cx.same("channels", channels, c)?;
        let m = each.clone() * Dim::from(group);
        check_bias(cx, x.dtype, &m)?;
        let mut shape = vec![batch.clone(), m];
        for ((w, n), more) in windows.iter().zip(space).zip(more) {
            let added = w.extent() + more - w.pads[0] - w.pads[1] - w.stride;
            let size = n.clone() * Dim::from(w.stride) + Dim::from(added);
            if n.bounds(cx.symbols).lo < 1 || size.bounds(cx.symbols).lo < 1 {
                return Err(OpError::new(format!("nothing may be left of an axis of {n}")));
            }
            shape.push(size);
        }
        Ok(vec![Fact::of(TensorType::new(x.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [x, w] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let (xs, ws, shape) = (x.shape(), w.shape(), cx.shape(0));
            let kernel: Vec<i64> = ws[2..].iter().map(|k| *k as i64).collect();
            let windows = Window::all(cx.attrs, &kernel).expect("inferred");
            let group = usize::try_from(cx.attrs.int("group")).expect("inferred");
            let (x, w) = (x.to_f64s(), w.to_f64s());
            let mut y = vec![0.0; shape.iter().product()];
            // The window over the output at each place of the input.
            for_each_index(xs, |at| {
                let first = at[1] / (ws[0] / group) * ws[1];
                for m in 0..ws[1] {
                    each_place(&windows, &at[2..], &shape[2..], |tap, place| {
                        let tap = [at[1], m].into_iter().chain(tap.iter().copied());
                        let place = [at[0], first + m].into_iter().chain(place.iter().copied());
                        let from = flat(xs, at.iter().copied());
                        y[flat(&shape, place)] += w[flat(ws, tap)] * x[from];
                    });
                }
            });
            if let Some(bias) = args.get(2).and_then(Option::as_ref).map(Tensor::to_f64s) {
                let each: usize = shape[2..].iter().product();
                for (i, y) in y.iter_mut().enumerate() {
                    *y += bias[i / each % shape[1]];
                }
            }
            vec![Tensor::from_f64s(cx.results[0].dtype, &shape, y)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        let [x, w] = [0, 1].map(|i| args[i].as_ref());
        let w = w.map_or(Dim::from(0), |w| product(&w.shape[1..]));
        x.map_or(Dim::from(0), TensorType::elements) * w * Dim::from(2)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(conv_transpose_rule)
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |x: &[usize], w: &[usize], bias: usize, attrs: Attrs| Sample {
            attrs,
            args: vec![
                sample(DType::F32, x),
                sample(DType::F32, w),
                (bias > 0).then(|| sample(DType::F32, &[bias])).flatten(),
            ],
        };
        let ints = |name: &str, v: &[i64]| Attrs::none().with(name, v.to_vec());
        let odd = ints("strides", &[2, 3]).with("pads", vec![1, 0, 0, 2]);
        vec![
            make(&[2, 3, 11], &[3, 5, 4], 5, ints("strides", &[2])),
            make(&[1, 4, 5, 6], &[4, 7, 3, 3], 0, odd.clone().with("output_padding", vec![1, 2])),
            make(&[1, 4, 5, 6], &[4, 2, 3, 2], 4, odd.with("group", 2i64)),
            make(&[1, 2, 3, 4], &[2, 3, 2, 3], 0, {
                ints("strides", &[4, 2]).with("dilations", vec![6, 3])
            }),
            make(&[1, 2, 2, 3, 3], &[2, 3, 2, 1, 2], 3, ints("strides", &[1, 2, 2])),
        ]
    }
}
