//! `gather` and its relatives: blocks of memory picked by indices, moved as bits.
//!
//! Every one of them is a [`Pick`]: for each point of an outer space, an index tuple names the
//! block.

mod cuda;
mod scatter;

use ir::{DType, Dim, KernelSpec, Target, normalize_axis};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse, stored_bytes},
    space::Space,
    view::{View, computable},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Emitter, Ty::Scalar, Val},
};

/// `gather`, `gather_elements` and `gather_nd`.
pub(super) struct Gather;

/// `scatter_nd`.
pub(super) struct ScatterNd;

/// Which block of `data` belongs to a point.
struct Pick {
    /// Points, and where they lead in data, indices and the moved operand.
    outer: Space,
    /// Extent of the block, and the steps along it in the same three.
    n: Dim,
    steps: Vec<Dim>,
    /// Axes of data that the tuple names: offset of the index within the tuple, extent, stride.
    tuple: Vec<(Dim, Dim, Dim)>,
}

impl Pick {
    /// `extents` of the moved operand, of which the last `inner` axes may be part of the block.
    fn new(
        extents: &[Dim],
        inner: usize,
        strides: &[Vec<Dim>; 3],
        tuple: Vec<(Dim, Dim, Dim)>,
    ) -> Pick {
        let split = extents.len() - inner;
        let part = |from: usize, to: usize| {
            let strides = strides.each_ref().map(|s| s[from..to].to_vec());
            Space::new(&extents[from..to], &strides)
        };
        // The block as far as it is in one piece; what is left of it is walked like other points.
        let (block, n, steps) = part(split, extents.len()).merged().split_inner();
        let mut outer = part(0, split);
        outer.extents.extend(block.extents);
        for (outer, block) in outer.strides.iter_mut().zip(block.strides) {
            outer.extend(block);
        }
        Pick { outer: outer.merged(), n, steps, tuple }
    }

    /// The pick of a gather, by its operator.
    fn of(spec: &KernelSpec, data: &View, indices: &View, moved: &View) -> Result<Pick, String> {
        let nowhere = |n: usize| vec![Dim::from(0); n];
        let axis = || {
            let axis = normalize_axis(spec.attrs.int("axis"), data.shape.len());
            axis.ok_or_else(|| "axis out of range".to_owned())
        };
        let entry = |offset: Dim, axis: usize| {
            (offset, data.shape[axis].clone(), data.strides[axis].clone())
        };
        Ok(match spec.op {
            "gather" => {
                let axis = axis()?;
                let (before, after) = (&data.strides[..axis], &data.strides[axis + 1..]);
                let in_data = [before, &nowhere(indices.shape.len()), after].concat();
                let in_indices =
                    [nowhere(axis), indices.strides.clone(), nowhere(after.len())].concat();
                let strides = [in_data, in_indices, moved.strides.clone()];
                let tuple = vec![entry(Dim::from(0), axis)];
                Pick::new(&moved.shape, after.len(), &strides, tuple)
            }
            "gather_elements" => {
                let axis = axis()?;
                let mut in_data = data.strides.clone();
                in_data[axis] = Dim::from(0);
                let strides = [in_data, indices.strides.clone(), moved.strides.clone()];
                Pick::new(&moved.shape, 0, &strides, vec![entry(Dim::from(0), axis)])
            }
            _ => {
                let batch = match spec.op {
                    "gather_nd" => usize::try_from(spec.attrs.int("batch_dims")).unwrap_or(0),
                    _ => 0,
                };
                let grid = indices.shape.len() - 1;
                let length = indices.shape[grid].as_const().and_then(|k| usize::try_from(k).ok());
                let length = length.ok_or("the length of index tuples must be constant")?;
                let inner = data.shape.len() - batch - length;
                let in_data = [
                    &data.strides[..batch],
                    &nowhere(grid - batch),
                    &data.strides[batch + length..],
                ];
                let in_indices = [&indices.strides[..grid], &nowhere(inner)].concat();
                let strides = [in_data.concat(), in_indices, moved.strides.clone()];
                let step = &indices.strides[grid];
                let tuple =
                    (0..length).map(|j| entry(step.clone() * Dim::from(j), batch + j)).collect();
                Pick::new(&moved.shape, inner, &strides, tuple)
            }
        })
    }

    /// Where the block of a point begins: offset in data (zero if outside), whether it is inside,
    /// and offset in the moved operand.
    fn block(&self, cx: &Cx<'_>, indices: &View, point: Val) -> (Val, Val, Val) {
        let e = &cx.e;
        let at = self.outer.offsets(cx, point);
        let mut inside = e.int(Scalar(Elem::Bool), 1);
        let mut from = at[0];
        for (offset, extent, stride) in &self.tuple {
            let index = indices.load(cx, e.add(at[1], cx.size(offset)));
            let (index, extent) = (e.cast(index, Elem::I64), cx.size(extent));
            let below = e.cmp(Cmp::Lt, index, e.i64(0));
            let index = e.select(below, e.add(index, extent), index);
            let within = e.and(e.cmp(Cmp::Ge, index, e.i64(0)), e.cmp(Cmp::Lt, index, extent));
            inside = e.and(inside, within);
            from = cx.offset(from, index, stride);
        }
        (from, inside, at[2])
    }
}

/// Checks the element type of the indices.
fn check(spec: &KernelSpec) -> Result<(), String> {
    match spec.operands.get(1) {
        Some(Some(l)) if l.ty.dtype.is_int() && computable(l.ty.dtype) => {}
        Some(Some(l)) => return Err(format!("indices are {}", l.ty.dtype)),
        _ => return Err("takes data and indices".into()),
    }
    match spec.operands.first() {
        Some(Some(_)) => Ok(()),
        _ => Err("takes data and indices".into()),
    }
}

impl Lower for Gather {
    fn ops(&self) -> &'static [&'static str] {
        &["gather", "gather_elements", "gather_nd"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check(spec)?;
        let cx = Cx::new(spec);
        Pick::of(spec, &cx.operand(0), &cx.operand(1), &cx.result(0)).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        check(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (data, indices, y) = (cx.operand(0), cx.operand(1), cx.result(0));
        let pick = Pick::of(spec, &data, &indices, &y).map_err(|reason| refuse(spec, reason))?;
        let missing = missing(e, data.dtype);
        let (data, y) = (data.bits(), y.bits());
        let tiles = cx.share_rows(&pick.outer.points(), &pick.n, |point| {
            let (from, inside, to) = pick.block(&cx, &indices, point);
            let to = y.at(&cx, to);
            let fill = |value: &dyn Fn(Val, u32) -> Val| {
                cx.strips(e.i64(0), cx.size(&pick.n), |i, lanes| {
                    let step = &pick.steps[2];
                    to.store_strip(&cx, value(i, lanes), cx.scale(i, step), step);
                });
            };
            let step = &pick.steps[0];
            e.either(
                inside,
                || {
                    let from = data.at(&cx, from);
                    fill(&|i, lanes| from.load_strip(&cx, cx.scale(i, step), step, lanes));
                },
                || fill(&|_, lanes| e.splat(missing, lanes)),
            );
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        check(spec).map_err(|reason| refuse(spec, reason))?;
        cuda::kernel(spec).map(|kernel| vec![kernel]).map_err(|reason| refuse(spec, reason))
    }

    fn bytes(&self, spec: &KernelSpec) -> Dim {
        let indices = spec.operands[1].as_ref().map_or(Dim::from(0), stored_bytes);
        stored_bytes(&spec.results[0]) * Dim::from(2) + indices
    }
}

impl Lower for ScatterNd {
    fn ops(&self) -> &'static [&'static str] {
        &["scatter_nd"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check(spec)?;
        let Some(Some(_)) = spec.operands.get(2) else { return Err("takes updates".into()) };
        let cx = Cx::new(spec);
        Pick::of(spec, &cx.result(0), &cx.operand(1), &cx.operand(2)).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (data, indices, y) = (cx.operand(0).bits(), cx.operand(1), cx.result(0).bits());
        let updates = cx.operand(2).bits();
        let pick = Pick::of(spec, &y, &indices, &updates).map_err(|reason| refuse(spec, reason))?;
        let all = Space::new(&y.shape, &[data.strides.clone(), y.strides.clone()]).merged();
        let (rows, n, steps) = all.split_inner();
        // One tile: of tuples that repeat, the last one counts.
        e.for_each(e.tile_begin(), e.tile_end(), 1, |_| {
            e.for_each(e.i64(0), cx.size(&rows.points()), 1, |row| {
                let at = rows.offsets(&cx, row);
                let (from, to) = (data.at(&cx, at[0]), y.at(&cx, at[1]));
                copy(&cx, (&from, &steps[0]), (&to, &steps[1]), &n);
            });
            e.for_each(e.i64(0), cx.size(&pick.outer.points()), 1, |point| {
                let (to, inside, from) = pick.block(&cx, &indices, point);
                e.if_then(inside, || {
                    let (from, to) = (updates.at(&cx, from), y.at(&cx, to));
                    copy(&cx, (&from, &pick.steps[2]), (&to, &pick.steps[0]), &pick.n);
                });
            });
        });
        Ok(cx.finish(Dim::from(1), 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        scatter::kernel(spec).map(|kernel| vec![kernel]).map_err(|reason| refuse(spec, reason))
    }
}

/// Copies `n` elements.
fn copy(cx: &Cx<'_>, from: (&View, &Dim), to: (&View, &Dim), n: &Dim) {
    cx.strips(cx.e.i64(0), cx.size(n), |i, lanes| {
        let value = from.0.load_strip(cx, cx.scale(i, from.1), from.1, lanes);
        to.0.store_strip(cx, value, cx.scale(i, to.1), to.1);
    });
}

/// The register bits of what an index out of range yields: NaN, or zero for integers.
fn missing(e: &Emitter, dtype: DType) -> Val {
    match dtype {
        DType::F64 => e.i64(f64::NAN.to_bits().cast_signed()),
        DType::I64 => e.i64(0),
        DType::F32 => e.int(Scalar(Elem::I32), f32::NAN.to_bits().cast_signed().into()),
        DType::Bf16 => e.int(Scalar(Elem::I32), 0x7fc0),
        DType::F16 => e.int(Scalar(Elem::I32), 0x7e00),
        DType::F8E4M3 | DType::F8E5M2 => e.int(Scalar(Elem::I32), 0x7f),
        _ => e.int(Scalar(Elem::I32), 0),
    }
}
