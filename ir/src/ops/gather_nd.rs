//! `gather_nd`.

use super::adjoint::{add_rows, from_front, inside, iota, size};
use super::elementwise::spread;
use super::gather_elements::outside;
use crate::tensor::for_each_index;
use crate::{
    Attr, Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature,
    Tensor, TensorType, Value, Vjp,
    op::{AttrKind, defaulted, normalize_axis, one},
};

/// Slices of `data` picked by the index tuples along the last axis of `indices`:
/// `[B.., I.., K]` and `[B.., N1, .., NK, R..]` → `[B.., I.., R..]`, with `batch_dims` axes `B`.
///
/// Negative indices count from the end; one out of range is the caller's fault and yields NaN or
/// zero.
pub(super) struct GatherNd;

static SIGNATURE: Signature = Signature {
    operands: &[one("data"), one("indices")],
    attrs: &[defaulted("batch_dims", AttrKind::Int, || Attr::Int(0))],
};

/// The number of batch axes and the length of the index tuples.
pub(super) fn tuples(
    batch: i64,
    data: &TensorType,
    indices: &TensorType,
) -> Result<(usize, usize), OpError> {
    let batch = usize::try_from(batch).ok().filter(|b| *b < indices.rank().min(data.rank()));
    let batch = batch.ok_or_else(|| {
        OpError::attr("batch_dims", format_args!("is out of range for {data} and {indices}"))
    })?;
    let last = indices.shape.last().and_then(|d| d.as_const());
    match last.and_then(|k| usize::try_from(k).ok()) {
        Some(k @ 1..) if k <= data.rank() - batch && indices.dtype.is_int() => Ok((batch, k)),
        _ => Err(OpError::new(format!("cannot index {data} by the last axis of {indices}"))),
    }
}

impl OpDef for GatherNd {
    fn name(&self) -> &'static str {
        "gather_nd"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (data, indices) = (cx.ty(0), cx.ty(1));
        let (batch, k) = tuples(cx.attrs.int("batch_dims"), data, indices)?;
        for (a, (x, y)) in data.shape.iter().zip(&indices.shape).take(batch).enumerate() {
            cx.same(&format!("batch axis {a}"), x, y)?;
        }
        let grid = &indices.shape[..indices.rank() - 1];
        let shape = grid.iter().chain(&data.shape[batch + k..]).cloned();
        Ok(vec![Fact::of(TensorType::new(data.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [data, indices] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let batch = usize::try_from(cx.attrs.int("batch_dims")).expect("inferred");
            let k = indices.shape()[indices.rank() - 1];
            let picked = indices.to_i64s();
            let run: usize = data.shape()[batch + k..].iter().product();
            let mut bytes = Vec::new();
            let mut next = 0;
            for_each_index(&indices.shape()[..indices.rank() - 1], |index| {
                let tuple = &picked[next..next + k];
                next += k;
                let slice = (0..batch + k).try_fold(data.clone(), |t, a| {
                    let i = match a.checked_sub(batch) {
                        None => index[a],
                        Some(j) => normalize_axis(tuple[j], data.shape()[a])?,
                    };
                    Some(t.slice(a, i, 1, 1))
                });
                match slice {
                    Some(s) => s.for_each_run(|run| bytes.extend_from_slice(run)),
                    None => bytes.extend(outside(data.dtype(), run)),
                }
            });
            vec![Tensor::from_bytes(data.dtype(), &cx.shape(0), bytes)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, ids, ty) = (cx.cotangent(0)?, cx.arg(1), cx.ty(0));
            let batch = usize::try_from(cx.attrs.int("batch_dims")).expect("inferred");
            let (place, rows) = places(cx.b, ids, batch, &ty.shape)?;
            let count = cx.b.ty(place).shape[0].clone();
            let named = batch + tuple_length(cx.b.ty(ids));
            let width = ty.shape[named..].iter().fold(Dim::from(1), |n, d| n * d.clone());
            let dy = cx.b.reshape(dy, vec![count, width])?;
            let sums = add_rows(cx.b, dy, place, &rows)?;
            Ok(vec![Some(cx.b.reshape(sums, ty.shape.to_vec())?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let data = Some(spread(DType::F32, &[2, 3, 20], -1.0, 1.0));
        let make = |batch: i64, shape: &[usize], indices: Vec<i64>| Sample {
            attrs: Attrs::none().with("batch_dims", batch),
            args: vec![data.clone(), Some(Tensor::from_i64s(DType::I64, shape, indices))],
        };
        vec![
            make(0, &[3, 2], vec![0, 2, 1, -1, 1, 0]),
            make(0, &[2, 3], vec![0, 2, 19, 1, -1, 4]),
            make(1, &[2, 1, 2], vec![0, 3, 2, -2]),
        ]
    }
}

/// The length of the tuples along the last axis of indices.
pub(super) fn tuple_length(indices: &TensorType) -> usize {
    let last = indices.shape.last().and_then(Dim::as_const);
    last.and_then(|k| usize::try_from(k).ok()).unwrap_or(0)
}

/// The place of every tuple in the named leading axes of `data`, in row-major order and -1 outside,
/// as one axis; and how many places there are.
fn places(
    b: &mut Builder<'_>,
    indices: Value,
    batch: usize,
    data: &[Dim],
) -> Result<(Value, Dim), OpError> {
    let ty = b.ty(indices).clone();
    let grid = ty.shape[..ty.rank() - 1].to_vec();
    let (mut place, mut fits) = (b.full(DType::I64, 0.0, &grid)?, None);
    let named = &data[..batch + tuple_length(&ty)];
    for (a, extent) in named.iter().enumerate() {
        let at = match a.checked_sub(batch) {
            None => iota(b, &grid, a, DType::I64)?,
            Some(j) => {
                let entry = b.slice(indices, -1, j, j + 1)?;
                let entry = b.reshape(entry, grid.clone())?;
                let entry = from_front(b, entry, extent)?;
                let own = inside(b, entry, extent)?;
                fits = Some(match fits {
                    None => own,
                    Some(others) => b.op1("and", Attrs::none(), &[others, own])?,
                });
                entry
            }
        };
        let extent = size(b, extent, DType::I64)?;
        place = b.mul(place, extent)?;
        place = b.add(place, at)?;
    }
    if let Some(fits) = fits {
        let none = b.scalar(DType::I64, -1.0)?;
        place = b.select(fits, place, none)?;
    }
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1), |n, d| n * d.clone());
    Ok((b.reshape(place, vec![product(&grid)])?, product(named)))
}
