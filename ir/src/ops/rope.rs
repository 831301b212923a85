//! `rope`: rotary position embedding.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature,
    Tensor, TensorType, Value, Vjp,
    op::{AttrKind, defaulted, one, same_dtype},
};

/// Rotates pairs of the last axis by angles given as cosines and sines.
///
/// Su et al. 2021, arXiv:2104.09864. `half` pairs element `i` with `i + R/2` (GPT-NeoX, Hugging
/// Face), `interleaved` pairs `2i` with `2i + 1` (the paper). Elements from R on pass through.
/// # Shapes
/// `x: [T, H, D]`, `cos, sin: [T, R/2]` with R ≤ D → `[T, H, D]`.
pub(super) struct Rope;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("cos"), one("sin")],
    attrs: &[defaulted("style", AttrKind::Str, || Attr::from("half"))],
};

impl OpDef for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (x, cos, sin) = (cx.ty(0), cx.ty(1), cx.ty(2));
        same_dtype(x.dtype, cos.dtype)?;
        if cos.equal(sin, cx.symbols) != Some(true) {
            return Err(OpError::new(format!("cos is {cos} but sin is {sin}")));
        }
        let ([t, _, d], [t2, r]) = (x.shape.as_slice(), cos.shape.as_slice()) else {
            return Err(OpError::new(format!("takes [T, H, D] and [T, R/2], got {x} and {cos}")));
        };
        cx.same("tokens", t, t2)?;
        match (d.as_const(), r.as_const()) {
            (Some(d), Some(r)) if 2 * r <= d => {}
            _ => return Err(OpError::new(format!("cannot rotate 2·{r} of {d} elements"))),
        }
        if !matches!(cx.attrs.str("style"), "half" | "interleaved") {
            return Err(OpError::attr("style", "must be `half` or `interleaved`"));
        }
        Ok(vec![Fact::of(x.clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [x, cos, sin] = [0, 1, 2].map(|i| args[i].expect("operand"));
            let dim = |b: &Builder<'_>, v: Value, i: usize| b.ty(v).shape[i].clone();
            let (t, h, d) = (dim(b, x, 0), dim(b, x, 1), dim(b, x, 2));
            let half = dim(b, cos, 1);
            let r = half.clone() * Dim::from(2i64);
            let angles = vec![t.clone(), Dim::from(1i64), half.clone()];
            let [cos, sin] = [b.reshape(cos, angles.clone())?, b.reshape(sin, angles)?];
            let rotated = b.slice(x, 2, 0i64, r.clone())?;
            let interleaved = attrs.str("style") == "interleaved";
            let pairs = if interleaved { [half.clone(), 2i64.into()] } else { [2i64.into(), half] };
            let axis = if interleaved { 3 } else { 2 };
            let pairs = b.reshape(rotated, [&[t.clone(), h.clone()][..], &pairs].concat())?;
            let drop = |b: &mut Builder<'_>, i: i64| {
                let s = b.slice(pairs, axis, i, i + 1)?;
                let (t, h, half) = (dim(b, cos, 0), h.clone(), dim(b, cos, 2));
                b.reshape(s, vec![t, h, half])
            };
            let (first, second) = (drop(b, 0)?, drop(b, 1)?);
            let (fc, ss) = (b.mul(first, cos)?, b.mul(second, sin)?);
            let (sc, fs) = (b.mul(second, cos)?, b.mul(first, sin)?);
            let (y1, y2) = (b.sub(fc, ss)?, b.add(sc, fs)?);
            let shape = |b: &Builder<'_>, y: Value| {
                let mut s = b.ty(y).shape.to_vec();
                s.insert(if interleaved { 3 } else { 2 }, Dim::from(1i64));
                s
            };
            let s = shape(b, y1);
            let (y1, y2) = (b.reshape(y1, s.clone())?, b.reshape(y2, s)?);
            let y = b.concat(&[y1, y2], axis)?;
            let y = b.reshape(y, vec![t, h, r.clone()])?;
            if r == d {
                return Ok(vec![y]);
            }
            let rest = b.slice(x, 2, r, d)?;
            Ok(vec![b.concat(&[y, rest], 2)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, [x, cos, sin]) = (cx.cotangent(0)?, [0, 1, 2].map(|i| cx.arg(i)));
            // The rotation back.
            let by_x = cx.when(0, |cx| {
                let sin = cx.b.neg(sin)?;
                cx.b.op1("rope", cx.attrs.clone(), &[dy, cos, sin])
            })?;
            if !cx.needs(1) && !cx.needs(2) {
                return Ok(vec![by_x]);
            }
            let half = cx.ty(1).shape[1].clone();
            let style = cx.attrs.str("style");
            let [x, dy] = [halves(cx.b, x, &half, style)?, halves(cx.b, dy, &half, style)?];
            let mut turned = |[a, b]: [Value; 2], [da, db]: [Value; 2], minus: bool| {
                let (p, q) = (cx.b.mul(a, da)?, cx.b.mul(b, db)?);
                let sum = if minus { cx.b.sub(p, q)? } else { cx.b.add(p, q)? };
                cx.b.reduce("reduce_sum", sum, &[1], false)
            };
            let by_cos = turned(x, dy, false)?;
            let by_sin = turned(x, [dy[1], dy[0]], true)?;
            Ok(vec![by_x, Some(by_cos), Some(by_sin)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let angles = spread(DType::F32, &[5, 4], -3.0, 3.0).to_f64s();
        let table = |f: fn(f64) -> f64| {
            Some(Tensor::from_f64s(DType::F32, &[5, 4], angles.iter().map(|a| f(*a))))
        };
        let make = |d: usize, style: &str| Sample {
            attrs: Attrs::none().with("style", style),
            args: vec![
                Some(spread(DType::F32, &[5, 3, d], -2.0, 2.0)),
                table(f64::cos),
                table(f64::sin),
            ],
        };
        vec![make(8, "half"), make(8, "interleaved"), make(11, "half")]
    }
}

/// The two elements of every pair: `[T, H, D]` → `[T, H, R/2]` each.
fn halves(b: &mut Builder<'_>, x: Value, half: &Dim, style: &str) -> Result<[Value; 2], OpError> {
    if style == "half" {
        let end = half.clone() * Dim::from(2);
        return Ok([b.slice(x, 2, 0i64, half.clone())?, b.slice(x, 2, half.clone(), end)?]);
    }
    let rotated = b.slice(x, 2, 0i64, half.clone() * Dim::from(2))?;
    let shape = [&b.ty(x).shape[..2], std::slice::from_ref(half)].concat();
    let pairs = b.reshape(rotated, [&shape[..], &[Dim::from(2)]].concat())?;
    let mut pick = |i: i64| {
        let one = b.slice(pairs, 3, i, i + 1)?;
        b.reshape(one, shape.clone())
    };
    Ok([pick(0)?, pick(1)?])
}
