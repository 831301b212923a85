//! `concat`.

use super::elementwise::spread;
use crate::tensor::for_each_index;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, normalize_axis, required, same_dtype, variadic},
};

/// Operands joined along an axis; all other axes are equal.
pub(super) struct Concat;

static SIGNATURE: Signature =
    Signature { operands: &[variadic("operands")], attrs: &[required("axis", AttrKind::Int)] };

impl OpDef for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn onnx(&self) -> &'static [&'static str] {
        &["Concat"]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        if cx.args.is_empty() {
            return Err(OpError::new("takes at least one operand"));
        }
        let first = cx.ty(0);
        let axis = cx.axis("axis", first.rank())?;
        let mut ty = first.clone();
        for i in 1..cx.args.len() {
            let t = cx.ty(i);
            same_dtype(first.dtype, t.dtype)?;
            if t.rank() != first.rank() {
                return Err(OpError::new(format!("operand {i} is {t}, the first {first}")));
            }
            for (a, (x, y)) in first.shape.iter().zip(&t.shape).enumerate() {
                if a != axis {
                    cx.same(&format!("axis {a} of operand {i}"), x, y)?;
                }
            }
            ty.shape[axis] = ty.shape[axis].clone() + t.shape[axis].clone();
        }
        let dims: Option<Vec<_>> = (0..cx.args.len()).map(|i| cx.arg(i).dims.clone()).collect();
        Ok(vec![match dims {
            Some(d) if ty.rank() == 1 => Fact::symbolic(ty, d.concat()),
            _ => Fact::of(ty),
        }])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let args: Vec<_> = args.iter().map(|a| a.as_ref().expect("operand")).collect();
            let shape = cx.shape(0);
            let axis = normalize_axis(cx.attrs.int("axis"), shape.len()).expect("inferred");
            let mut bytes = Vec::with_capacity(shape.iter().product::<usize>());
            for_each_index(&shape[..axis], |index| {
                for a in &args {
                    let row = index.iter().enumerate();
                    let row = row.fold((*a).clone(), |t, (x, i)| t.slice(x, *i, 1, 1));
                    row.for_each_run(|run| bytes.extend_from_slice(run));
                }
            });
            vec![Tensor::from_bytes(args[0].dtype(), &shape, bytes)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let dy = cx.cotangent(0)?;
            let axis = normalize_axis(cx.attrs.int("axis"), cx.ty(0).rank()).expect("inferred");
            let mut start = Dim::from(0);
            let mut out = Vec::new();
            for i in 0..cx.args.len() {
                let end = start.clone() + cx.ty(i).shape[axis].clone();
                let range = (start, end.clone());
                out.push(cx.when(i, |cx| cx.b.slice(dy, axis as i64, range.0, range.1))?);
                start = end;
            }
            Ok(out)
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let [a, b] = [3, 5].map(|n| Some(spread(DType::F32, &[2, n, 4], -1.0, 1.0)));
        vec![Sample { attrs: Attrs::none().with("axis", 1i64), args: vec![a, b] }]
    }
}
