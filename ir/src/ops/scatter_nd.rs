//! `scatter_nd`.

use super::adjoint::{compare, iota};
use super::elementwise::spread;
use super::gather_nd::{tuple_length, tuples};
use crate::tensor::{contiguous_strides, for_each_index};
use crate::{
    Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Value, Vjp,
    op::{normalize_axis, one, same_dtype},
};

/// `data` with the slices that the index tuples along the last axis of `indices` name replaced by
/// `updates`: `[N1, .., NK, R..]`, `[I.., K]` and `[I.., R..]` → the shape of `data`.
///
/// Where tuples repeat the last one counts; one out of range is the caller's fault and ignored.
pub(super) struct ScatterNd;

static SIGNATURE: Signature =
    Signature { operands: &[one("data"), one("indices"), one("updates")], attrs: &[] };

impl OpDef for ScatterNd {
    fn name(&self) -> &'static str {
        "scatter_nd"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (data, indices, updates) = (cx.ty(0), cx.ty(1), cx.ty(2));
        same_dtype(data.dtype, updates.dtype)?;
        let (_, k) = tuples(0, data, indices)?;
        let grid = &indices.shape[..indices.rank() - 1];
        let want = TensorType::new(data.dtype, grid.iter().chain(&data.shape[k..]).cloned());
        if want.rank() != updates.rank() {
            return Err(OpError::new(format!("takes updates {want}, got {updates}")));
        }
        for (a, (x, y)) in want.shape.iter().zip(&updates.shape).enumerate() {
            cx.same(&format!("axis {a} of the updates"), x, y)?;
        }
        Ok(vec![Fact::of(data.clone())])
    }
    fn body(&self) -> Body {
        Body::Primitive(|_, args| {
            let [data, indices, updates] = [0, 1, 2].map(|i| args[i].as_ref().expect("operand"));
            let k = indices.shape()[indices.rank() - 1];
            let strides = contiguous_strides(data.shape());
            let run = data.shape()[k..].iter().product::<usize>() * data.dtype().size();
            let (mut out, new) = (data.to_bytes(), updates.to_bytes());
            let picked = indices.to_i64s();
            let mut next = 0;
            for_each_index(&indices.shape()[..indices.rank() - 1], |_| {
                let tuple = picked[next * k..][..k].iter().enumerate();
                let at = tuple.map(|(a, i)| {
                    normalize_axis(*i, data.shape()[a]).map(|i| i * strides[a].unsigned_abs())
                });
                if let Some(at) = at.sum::<Option<usize>>() {
                    let at = at * data.dtype().size();
                    out[at..at + run].copy_from_slice(&new[next * run..][..run]);
                }
                next += 1;
            });
            vec![Tensor::from_bytes(data.dtype(), data.shape(), out)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (ids, dy, ty) = (cx.arg(1), cx.cotangent(0)?, cx.ty(2));
            let data = cx.when(0, |cx| {
                let zeros = cx.b.full(ty.dtype, 0.0, &ty.shape)?;
                cx.b.op1("scatter_nd", Attrs::none(), &[dy, ids, zeros])
            })?;
            let updates = cx.when(2, |cx| {
                let data = cx.ty(0).shape;
                let last = counts(cx.b, ids, &data, ty.rank())?;
                let picked = cx.b.op1("gather_nd", Attrs::none(), &[dy, ids])?;
                let zero = cx.b.scalar(ty.dtype, 0.0)?;
                cx.b.select(last, picked, zero)
            })?;
            Ok(vec![data, None, updates])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let data = Some(spread(DType::F32, &[3, 20], -1.0, 1.0));
        let make = |shape: &[usize], indices: Vec<i64>, updates: &[usize]| Sample {
            attrs: Attrs::none(),
            args: vec![
                data.clone(),
                Some(Tensor::from_i64s(DType::I64, shape, indices)),
                Some(spread(DType::F32, updates, 2.0, 3.0)),
            ],
        };
        vec![make(&[2, 1], vec![2, 0], &[2, 20]), make(&[2, 2], vec![1, -1, 0, 5], &[2])]
    }
}

/// Whether each tuple is the last that names its place, of `rank` axes.
fn counts(
    b: &mut Builder<'_>,
    indices: Value,
    data: &[Dim],
    rank: usize,
) -> Result<Value, OpError> {
    let ty = b.ty(indices).clone();
    let grid = ty.shape[..ty.rank() - 1].to_vec();
    let count = grid.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let number = iota(b, &[count], 0, DType::I64)?;
    let one = b.scalar(DType::I64, 1.0)?;
    let number = b.add(number, one)?;
    let number = b.reshape(number, grid.clone())?;
    let nobody = b.full(DType::I64, 0.0, &data[..tuple_length(&ty)])?;
    let last = b.op1("scatter_nd", Attrs::none(), &[nobody, indices, number])?;
    let last = b.op1("gather_nd", Attrs::none(), &[last, indices])?;
    let own = compare(b, "equal", last, number)?;
    let more = rank - grid.len();
    b.reshape(own, grid.into_iter().chain(vec![Dim::from(1); more]).collect())
}
