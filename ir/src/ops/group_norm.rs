//! `group_norm`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, required, same_dtype},
};

/// `(x - mean) / sqrt(var + eps) · weight + bias`, mean and variance over the channels of a group
/// and all axes behind them, weight and bias by channel.
///
/// Wu & He 2018, arXiv:1803.08494; with as many groups as channels it is the instance norm of
/// Ulyanov et al. 2016, arXiv:1607.08022.
/// # Shapes
/// `x: [N, C, S..]`, `weight: [C]`, `bias: [C]` → the shape of `x`.
/// # Errors
/// Where the channels are not constant, or `groups` does not divide them.
pub(super) struct GroupNorm;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("weight"), one("bias")],
    attrs: &[required("groups", AttrKind::Int), required("eps", AttrKind::Float)],
};

impl OpDef for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        let channels = match &*x.shape {
            [_, channels, ..] if x.dtype.is_float() => channels,
            _ => return Err(OpError::new(format!("takes floats [N, C, ..], got {x}"))),
        };
        let groups = cx.attrs.int("groups");
        match channels.as_const() {
            Some(c) if groups > 0 && c % groups == 0 => {}
            _ => {
                let why = format_args!("{groups} does not divide {channels} channels");
                return Err(OpError::attr("groups", why));
            }
        }
        for w in cx.args[1..].iter().flatten() {
            same_dtype(x.dtype, w.ty.dtype)?;
            match &*w.ty.shape {
                [n] => cx.same("weight or bias", channels, n)?,
                _ => return Err(OpError::new(format!("takes [C], got {}", w.ty))),
            }
        }
        Ok(vec![Fact::of(x.clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [x, weight, bias] = [0, 1, 2].map(|i| args[i].expect("operand"));
            let ty = b.ty(x).clone();
            let (channels, groups) = (ty.shape[1].as_const(), attrs.int("groups"));
            let each = channels.ok_or_else(|| OpError::new("channels are not constant"))? / groups;
            let each = ty.shape[2..].iter().fold(Dim::from(each), |n, d| n * d.clone());
            let v = b.reshape(x, vec![ty.shape[0].clone(), Dim::from(groups), each])?;
            let mean = b.reduce("reduce_mean", v, &[-1], true)?;
            let d = b.sub(v, mean)?;
            let square = b.mul(d, d)?;
            let var = b.reduce("reduce_mean", square, &[-1], true)?;
            let eps = b.scalar(ty.dtype, attrs.float("eps"))?;
            let var = b.add(var, eps)?;
            let std = b.unary("sqrt", var)?;
            let y = b.div(d, std)?;
            let y = b.reshape(y, ty.shape.to_vec())?;
            let mut along = vec![Dim::from(1); ty.rank() - 1];
            along[0] = ty.shape[1].clone();
            let [weight, bias] = [weight, bias].map(|w| b.reshape(w, along.clone()));
            let y = b.mul(y, weight?)?;
            Ok(vec![b.add(y, bias?)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Expansion
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |shape: &[usize], groups: i64| {
            let args = [shape, &shape[1..2], &shape[1..2]];
            Sample {
                attrs: Attrs::none().with("groups", groups).with("eps", 1e-5),
                args: args.map(|s| Some(spread(DType::F32, s, -2.0, 2.0))).to_vec(),
            }
        };
        vec![make(&[2, 6, 5, 7], 3), make(&[1, 4, 37], 4), make(&[3, 6], 1)]
    }
}
