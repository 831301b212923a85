//! `conv`.

use super::conv_adjoint::conv_rule;
use super::window::{DILATIONS, PADS, STRIDES, Window, constants, each_place, flat, sample};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, AttrSpec, defaulted, one, optional, same_dtype},
    tensor::for_each_index,
};

/// Convolution over the one to three axes behind batch and channels, as ONNX defines `Conv`.
///
/// Padding is zero. Of `group` groups, each has its own input and output channels. The weight may
/// have another float type, and is read at its own precision. Every output sums its products over
/// the input channels and, within each, the window in row-major order, from zero on, one fused
/// multiply-add each; the bias is added last.
/// # Shapes
/// `x: [N, C, S..]`, `w: [M, C / group, K..]`, `bias: [M]` →
/// `[N, M, floor((S + pads - (K - 1) · dilation - 1) / stride) + 1, ..]`, dtype of `x`.
/// # Errors
/// Where channels do not divide into groups or are not constant, or an axis may be shorter than the
/// window.
pub(super) struct Conv;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), optional("bias")],
    attrs: &[STRIDES, PADS, DILATIONS, GROUP],
};

pub(super) const GROUP: AttrSpec = defaulted("group", AttrKind::Int, || 1i64.into());

impl OpDef for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (cx.ty(0), cx.ty(1));
        let ([batch, channels, space @ ..], [m, each, kernel @ ..]) = (&*x.shape, &*w.shape) else {
            return Err(OpError::new(format!("takes [N, C, ..] and [M, C, ..], got {x} and {w}")));
        };
        if space.len() != kernel.len() || !x.dtype.is_float() || !w.dtype.is_float() {
            return Err(OpError::new(format!("takes floats of as many axes, got {x} and {w}")));
        }
        let windows = Window::all(cx.attrs, &constants("the weight", kernel)?)?;
        let group = group(cx, m, each)?;
        cx.same("channels", channels, &(each.clone() * Dim::from(group)))?;
        check_bias(cx, x.dtype, m)?;
        let mut shape = vec![batch.clone(), m.clone()];
        for (w, n) in windows.iter().zip(space) {
            shape.push(w.count(n, false, cx)?);
        }
        Ok(vec![Fact::of(TensorType::new(x.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [x, w] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let bias = args.get(2).and_then(Option::as_ref).map(Tensor::to_f64s);
            let (xs, ws, shape) = (x.shape(), w.shape(), cx.shape(0));
            let kernel: Vec<i64> = ws[2..].iter().map(|k| *k as i64).collect();
            let windows = Window::all(cx.attrs, &kernel).expect("inferred");
            let group = usize::try_from(cx.attrs.int("group")).expect("inferred");
            let (x, w) = (x.to_f64s(), w.to_f64s());
            let mut y = Vec::new();
            for_each_index(&shape, |at| {
                let first = at[1] / (ws[0] / group) * ws[1];
                let mut sum = 0.0;
                for c in 0..ws[1] {
                    each_place(&windows, &at[2..], &xs[2..], |tap, place| {
                        let tap = [at[1], c].into_iter().chain(tap.iter().copied());
                        let place = [at[0], first + c].into_iter().chain(place.iter().copied());
                        sum += w[flat(ws, tap)] * x[flat(xs, place)];
                    });
                }
                y.push(sum + bias.as_ref().map_or(0.0, |b| b[at[1]]));
            });
            vec![Tensor::from_f64s(cx.results[0].dtype, &shape, y)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let w = args[1].as_ref().map_or(Dim::from(0), |w| product(&w.shape[1..]));
        results[0].elements() * w * Dim::from(2)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(conv_rule)
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |x: &[usize], w: &[usize], bias: bool, attrs: Attrs| Sample {
            attrs,
            args: vec![
                sample(DType::F32, x),
                sample(DType::F32, w),
                bias.then(|| sample(DType::F32, &w[..1])).flatten(),
            ],
        };
        let ints = |name: &str, v: &[i64]| Attrs::none().with(name, v.to_vec());
        let grouped = |group: i64| ints("pads", &[1, 2, 0, 1]).with("group", group);
        vec![
            make(&[2, 3, 23], &[5, 3, 4], true, ints("strides", &[2])),
            make(&[1, 4, 7, 9], &[7, 4, 3, 3], false, ints("pads", &[1, 1, 1, 1])),
            make(&[2, 4, 6, 8], &[6, 2, 3, 2], true, grouped(2)),
            make(&[1, 5, 7, 19], &[10, 1, 3, 3], true, grouped(5)),
            make(&[1, 2, 4, 5, 6], &[3, 2, 2, 3, 2], true, ints("dilations", &[2, 1, 3])),
        ]
    }
}

/// The number of groups that channels divide into.
pub(super) fn group(cx: &InferCx<'_>, m: &Dim, each: &Dim) -> Result<i64, OpError> {
    let group = cx.attrs.int("group");
    let [m, each] = constants("channels", &[m.clone(), each.clone()])?[..] else {
        unreachable!("as many as given")
    };
    if group < 1 || m < 1 || each < 1 || m % group != 0 {
        let why = format_args!("is {group}, for {m} channels of {each}");
        return Err(OpError::attr("group", why));
    }
    Ok(group)
}

/// Checks that a bias has one element for each of `m` channels.
pub(super) fn check_bias(cx: &InferCx<'_>, dtype: DType, m: &Dim) -> Result<(), OpError> {
    let Some(bias) = cx.args.get(2).copied().flatten() else { return Ok(()) };
    same_dtype(dtype, bias.ty.dtype)?;
    match &*bias.ty.shape {
        [n] => cx.same("bias", n, m),
        _ => Err(OpError::new(format!("bias is {}", bias.ty))),
    }
}

/// The product of sizes.
pub(super) fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1), |n, d| n * d.clone())
}
