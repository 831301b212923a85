//! `gather_elements`.

use super::adjoint::add_elements;
use super::elementwise::spread;
use crate::tensor::for_each_index;
use crate::{
    Attr, Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, defaulted, normalize_axis, one},
};

/// `y[.., i, ..] = data[.., indices[.., i, ..], ..]` along `axis`, of the shape of `indices`, which
/// is nowhere larger than `data` off the axis. Negative indices count from the end; one out of
/// range is the caller's fault and yields NaN or zero.
pub(super) struct GatherElements;

static SIGNATURE: Signature = Signature {
    operands: &[one("data"), one("indices")],
    attrs: &[defaulted("axis", AttrKind::Int, || Attr::Int(0))],
};

impl OpDef for GatherElements {
    fn name(&self) -> &'static str {
        "gather_elements"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (data, indices) = (cx.ty(0), cx.ty(1));
        if !indices.dtype.is_int() || indices.rank() != data.rank() {
            return Err(OpError::new(format!(
                "takes indices alike in rank to {data}, got {indices}"
            )));
        }
        let axis = cx.axis("axis", data.rank())?;
        for (a, (n, i)) in data.shape.iter().zip(&indices.shape).enumerate() {
            let room = (n.clone() - i.clone()).bounds(cx.symbols);
            if a != axis && room.lo < 0 {
                return Err(OpError::new(match room.hi < 0 {
                    true => format!("axis {a}: indices of {i} leave data of {n}"),
                    false => format!("axis {a}: cannot decide whether indices of {i} fit {n}"),
                }));
            }
        }
        let shape = indices.shape.iter().cloned();
        Ok(vec![Fact::of(TensorType::new(data.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [data, indices] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let axis = normalize_axis(cx.attrs.int("axis"), data.rank()).expect("inferred");
            let picked = indices.to_i64s();
            let mut bytes = Vec::new();
            let mut next = 0;
            for_each_index(indices.shape(), |index| {
                let i = normalize_axis(picked[next], data.shape()[axis]);
                next += 1;
                let at = |a: usize| if a == axis { i } else { Some(index[a]) };
                match element(data, at) {
                    Some(e) => e.for_each_run(|run| bytes.extend_from_slice(run)),
                    None => bytes.extend(outside(data.dtype(), 1)),
                }
            });
            vec![Tensor::from_bytes(data.dtype(), &cx.shape(0), bytes)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, ids, ty) = (cx.cotangent(0)?, cx.arg(1), cx.ty(0));
            let axis = normalize_axis(cx.attrs.int("axis"), ty.rank()).expect("inferred");
            Ok(vec![Some(add_elements(cx.b, dy, ids, axis, &ty.shape)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let data = spread(DType::F32, &[4, 20], -1.0, 1.0);
        let make = |axis: i64, shape: &[usize], indices: Vec<i64>| Sample {
            attrs: Attrs::none().with("axis", axis),
            args: vec![Some(data.clone()), Some(Tensor::from_i64s(DType::I64, shape, indices))],
        };
        vec![
            make(0, &[2, 3], vec![3, 0, -1, 2, 2, 1]),
            make(1, &[4, 2], vec![19, 0, 1, 1, -1, 5, 7, 9]),
        ]
    }
}

/// A view of one element, where every coordinate lies within the tensor.
fn element(data: &Tensor, at: impl Fn(usize) -> Option<usize>) -> Option<Tensor> {
    (0..data.rank()).try_fold(data.clone(), |t, a| {
        let i = at(a).filter(|i| *i < data.shape()[a])?;
        Some(t.slice(a, i, 1, 1))
    })
}

/// What stands for elements that lie outside: NaN, or zero for integers.
pub(super) fn outside(dtype: DType, count: usize) -> Vec<u8> {
    let fill = if dtype.is_float() { f64::NAN } else { 0.0 };
    Tensor::from_f64s(dtype, &[count], vec![fill; count]).to_bytes()
}

#[cfg(test)]
mod tests {
    use crate::{Attrs, DType, Dim, Module, TensorType};

    #[test]
    fn undecided_extents_off_the_axis_are_refused() {
        let mut module = Module::new("m");
        module.symbol("N", 1, 8);
        module.symbol("M", 1, 8);
        let mut b = module.builder("f");
        let ty = |dtype, n: &str| TensorType::new(dtype, [Dim::symbol(n), 8.into()]);
        let data = b.param("data", ty(DType::F32, "N")).unwrap();
        let [same, other] = ["N", "M"].map(|n| b.param(n, ty(DType::I64, n)).unwrap());
        let attrs = || Attrs::none().with("axis", 1i64);
        assert!(b.op1("gather_elements", attrs(), &[data, same]).is_ok());
        let why = b.op1("gather_elements", attrs(), &[data, other]).unwrap_err().to_string();
        assert!(why.contains("cannot decide whether indices of M fit N"), "{why}");
    }
}
