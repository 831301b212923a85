//! `gather`.

use super::elementwise::spread;
use crate::tensor::for_each_index;
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, normalize_axis, one},
};

/// `data` with axis `axis` replaced by the entries that `indices` name. Negative indices count from
/// the end; one out of range is the caller's fault and yields NaN or zero.
pub(super) struct Gather;

static SIGNATURE: Signature = Signature {
    operands: &[one("data"), one("indices")],
    attrs: &[defaulted("axis", AttrKind::Int, || Attr::Int(0))],
};

impl OpDef for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (data, indices) = (cx.ty(0), cx.ty(1));
        if !indices.dtype.is_int() {
            return Err(OpError::new(format!("indices are {}, not integers", indices.dtype)));
        }
        let axis = cx.axis("axis", data.rank())?;
        let mut shape = data.shape[..axis].to_vec();
        shape.extend(indices.shape.iter().cloned());
        shape.extend(data.shape[axis + 1..].iter().cloned());
        let ty = TensorType::new(data.dtype, shape);
        if let (Some(dims), Some(at), true) = (&cx.arg(0).dims, &cx.arg(1).dims, ty.rank() <= 1) {
            let pick = |i: &Dim| dims.get(normalize_axis(i.as_const()?, dims.len())?).cloned();
            if let Some(dims) = at.iter().map(pick).collect() {
                return Ok(vec![Fact::symbolic(ty, dims)]);
            }
        }
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [data, indices] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let axis = normalize_axis(cx.attrs.int("axis"), data.rank()).expect("inferred");
            let indices = indices.to_i64s();
            let mut bytes = Vec::new();
            for_each_index(&data.shape()[..axis], |outer| {
                let rows = outer.iter().enumerate();
                let rows = rows.fold(data.clone(), |t, (x, i)| t.slice(x, *i, 1, 1));
                let gap = data.shape()[axis + 1..].iter().product();
                for i in &indices {
                    match normalize_axis(*i, data.shape()[axis]) {
                        Some(i) => rows
                            .slice(axis, i, 1, 1)
                            .for_each_run(|run| bytes.extend_from_slice(run)),
                        None => bytes.extend(
                            Tensor::from_f64s(data.dtype(), &[gap], vec![f64::NAN; gap]).to_bytes(),
                        ),
                    }
                }
            });
            vec![Tensor::from_bytes(data.dtype(), &cx.shape(0), bytes)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, ids, ty) = (cx.cotangent(0)?, cx.arg(1), cx.ty(0));
            let axis = normalize_axis(cx.attrs.int("axis"), ty.rank()).expect("inferred");
            let picked = cx.ty(1);
            let around = ty.shape[..axis].iter().chain(&ty.shape[axis + 1..]);
            let around: Vec<Dim> = around.cloned().collect();
            let (count, width) = (picked.elements(), TensorType::new(ty.dtype, around.clone()));
            // Picked axes to the front, and the table's back to its place.
            let (lead, rank) = (axis as i64, (ty.rank() - 1) as i64);
            let picks = picked.rank() as i64;
            let front = (lead..lead + picks).chain(0..lead).chain(lead + picks..rank + picks);
            let dy = cx.b.transpose(dy, &front.collect::<Vec<_>>())?;
            let dy = cx.b.reshape(dy, vec![count.clone(), width.elements()])?;
            let mut ids = cx.b.reshape(ids, vec![count])?;
            if !matches!(picked.dtype, DType::I32 | DType::I64) {
                ids = cx.b.cast(ids, DType::I64)?;
            }
            let rows = Attrs::none().with("rows", vec![ty.shape[axis].clone()]);
            let sums = cx.b.op1("embedding_grad", rows, &[dy, ids])?;
            let shape = [ty.shape[axis].clone()].into_iter().chain(around);
            let sums = cx.b.reshape(sums, shape.collect())?;
            let back = (1..=lead).chain([0]).chain(lead + 1..=rank);
            Ok(vec![Some(cx.b.transpose(sums, &back.collect::<Vec<_>>())?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let data = spread(DType::F32, &[7, 20], -1.0, 1.0);
        let rows = Tensor::from_i64s(DType::I32, &[2, 3], [0, 6, 3, 3, -1, 2]);
        let make = |axis: i64| Sample {
            attrs: Attrs::none().with("axis", axis),
            args: vec![Some(data.clone()), Some(rows.clone())],
        };
        vec![make(0), make(1)]
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Env, Interpreter, Module, Precision, Tensor, TensorType};

    #[test]
    fn nothing_is_gathered_from_an_empty_axis() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let data = b.param("data", TensorType::new(DType::F32, [0i64, 3])).unwrap();
        let at = b.param("at", TensorType::new(DType::I64, [2i64])).unwrap();
        let y = b.gather(data, at, 0).unwrap();
        b.output("y", y);
        let graph = b.finish();
        let none = indexmap::IndexMap::new();
        let args = [Tensor::from_f32s(&[0, 3], &[]), Tensor::from_i64s(DType::I64, &[2], [0, 1])];
        let run = Interpreter::new(&module, &none, Precision::F32);
        let y = run.eval(&graph, &args, &Env::new()).unwrap();
        assert_eq!(y[0].shape(), [2, 3]);
        assert!(y[0].to_f64s().iter().all(|v| v.is_nan()));
    }
}
