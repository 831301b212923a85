//! What `topk`, `sort` and `argsort` have in common: the order of elements along an axis.

use std::cmp::Ordering;

use super::elementwise::spread;
use crate::{
    Attrs, DType, Dim, EvalCx, Sample, Tensor, TensorType,
    op::{AttrKind, AttrSpec, defaulted, normalize_axis},
};

/// Places of the first `k` elements in order along `axis`, counted in the operand's elements in
/// row-major order; themselves in row-major order of the result.
///
/// Equal elements stay in order of their index, ascending or descending. NaN is above every
/// number and equal to NaN, as in PyTorch; zeros of both signs are equal.
pub(super) fn places(x: &Tensor, axis: usize, k: usize, descending: bool) -> Vec<usize> {
    let n = x.shape()[axis];
    let outer: usize = x.shape()[..axis].iter().product();
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let ranks = ranks(x);
    let mut out = vec![0; outer * k * inner];
    for line in 0..outer * inner {
        let (o, i) = (line / inner, line % inner);
        let mut at: Vec<usize> = (0..n).map(|j| (o * n + j) * inner + i).collect();
        at.sort_by(|a, b| {
            let ascending = ranks.compare(*a, *b);
            if descending { ascending.reverse() } else { ascending }
        });
        for (j, place) in at.into_iter().take(k).enumerate() {
            out[(o * k + j) * inner + i] = place;
        }
    }
    out
}

enum Ranks {
    Floats(Vec<f64>),
    Ints(Vec<i64>),
}

fn ranks(x: &Tensor) -> Ranks {
    match x.dtype().is_float() {
        true => Ranks::Floats(x.to_f64s()),
        false => Ranks::Ints(x.to_i64s()),
    }
}

impl Ranks {
    fn compare(&self, a: usize, b: usize) -> Ordering {
        match self {
            Ranks::Ints(v) => v[a].cmp(&v[b]),
            Ranks::Floats(v) => {
                let nan = (v[a].is_nan()).cmp(&v[b].is_nan());
                v[a].partial_cmp(&v[b]).unwrap_or(nan)
            }
        }
    }
}

/// The elements of the first operand in order along `axis`, all of them, and their indices.
pub(super) fn in_order(cx: &EvalCx<'_>, args: &[Option<Tensor>]) -> [Tensor; 2] {
    let x = args[0].as_ref().expect("operand");
    let axis = normalize_axis(cx.attrs.int("axis"), x.rank()).expect("inferred");
    let shape = cx.shape(0);
    let places = places(x, axis, shape[axis], cx.attrs.bool("descending"));
    [values(x, &shape, &places), indices(x, axis, &shape, &places)]
}

/// What orders of a row cost, about.
pub(super) fn flops(args: &[Option<TensorType>]) -> Dim {
    args[0].as_ref().map_or(Dim::from(0), |x| x.elements() * Dim::from(16))
}

/// Orders of such a tensor.
pub(super) fn sample(dtype: DType, shape: &[usize], axis: i64, descending: bool) -> Sample {
    let attrs = Attrs::none().with("axis", axis).with("descending", descending);
    Sample { attrs, args: vec![Some(mixed(dtype, shape))] }
}

/// The elements at these places.
pub(super) fn values(x: &Tensor, shape: &[usize], places: &[usize]) -> Tensor {
    let (bytes, size) = (x.to_bytes(), x.dtype().size());
    let picked = places.iter().flat_map(|p| bytes[p * size..][..size].iter().copied());
    Tensor::from_bytes(x.dtype(), shape, picked.collect())
}

/// The indices along `axis` of these places.
pub(super) fn indices(x: &Tensor, axis: usize, shape: &[usize], places: &[usize]) -> Tensor {
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let n = x.shape()[axis];
    Tensor::from_i64s(DType::I64, shape, places.iter().map(|p| (p / inner % n) as i64))
}

/// The axis, the last by default.
pub(super) const AXIS: AttrSpec = defaulted("axis", AttrKind::Int, || (-1i64).into());

/// Whether the largest comes first.
pub(super) const DESCENDING: AttrSpec = defaulted("descending", AttrKind::Bool, || false.into());

/// Numbers in disorder, with repetitions, zeros of both signs and what is no finite number.
pub(super) fn mixed(dtype: DType, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let plain = spread(DType::F32, &[n], -9.0, 9.0).to_f64s();
    let odd = [f64::NAN, 0.0, f64::NEG_INFINITY, -0.0, f64::INFINITY, f64::NAN];
    let values = (0..n).map(|i| match (dtype.is_float(), i % 5) {
        (true, 3) => odd[i / 5 % odd.len()],
        (_, 1) => (i % 3) as f64,
        _ => plain[i * 7 % n].round() / if i % 2 == 0 { 1.0 } else { 8.0 },
    });
    Tensor::from_f64s(dtype, shape, values)
}
