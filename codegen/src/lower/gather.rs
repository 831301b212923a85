//! `gather`: blocks of memory picked by indices, moved as bits.

use ir::{DType, Dim, KernelSpec, Target, normalize_axis};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse, stored_bytes},
    space::Space,
    view::View,
};
use crate::emit::{Cmp, Elem, Emitter, Val};

/// The family.
pub(super) struct Gather;

impl Lower for Gather {
    fn ops(&self) -> &'static [&'static str] {
        &["gather"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        let [Some(data), Some(indices)] = spec.operands.as_slice() else {
            return Err("takes data and indices".into());
        };
        if !matches!(indices.ty.dtype, DType::I32 | DType::I64) {
            return Err(format!("indices are {}, not i32 or i64", indices.ty.dtype));
        }
        match normalize_axis(spec.attrs.int("axis"), data.ty.rank()) {
            Some(_) => Ok(()),
            None => Err("axis out of range".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (data, indices, y) = (cx.operand(0), cx.operand(1), cx.result(0));
        let axis = normalize_axis(spec.attrs.int("axis"), data.shape.len()).unwrap_or_default();
        let picked = indices.shape.len();
        let nowhere = |n: usize| vec![Dim::from(0); n];
        // Every axis of the result, and where it leads in data, indices and result.
        let inner = data.shape.len() - axis - 1;
        let in_data = [&data.strides[..axis], &nowhere(picked), &data.strides[axis + 1..]].concat();
        let in_indices = [nowhere(axis), indices.strides.clone(), nowhere(inner)].concat();
        let strides = [in_data, in_indices, y.strides.clone()];
        // Axes before the block are walked one by one, the block as far as it is in one piece.
        let split = y.shape.len() - inner;
        let part = |from: usize, to: usize| {
            let strides = strides.each_ref().map(|s| s[from..to].to_vec());
            Space::new(&y.shape[from..to], &strides)
        };
        let (block, n, steps) = part(split, y.shape.len()).merged().split_inner();
        let mut outer = part(0, split);
        outer.extents.extend(block.extents);
        for (outer, block) in outer.strides.iter_mut().zip(block.strides) {
            outer.extend(block);
        }
        let outer = outer.merged();
        let missing = missing(e, data.dtype);
        let (data, bits) = (data.bits(), y.bits());
        let tiles = cx.share_rows(&outer.points(), &n, |point| {
            let at = outer.offsets(&cx, point);
            let index = e.cast(indices.load(&cx, at[1]), Elem::I64);
            let extent = cx.size(&data.shape[axis]);
            let below = e.cmp(Cmp::Lt, index, e.i64(0));
            let index = e.select(below, e.add(index, extent), index);
            let inside = e.and(e.cmp(Cmp::Ge, index, e.i64(0)), e.cmp(Cmp::Lt, index, extent));
            let to = bits.at(&cx, at[2]);
            let fill = |value: &dyn Fn(Val, u32) -> Val| {
                cx.strips(e.i64(0), cx.size(&n), |i, lanes| {
                    to.store_strip(&cx, value(i, lanes), cx.scale(i, &steps[2]), &steps[2]);
                });
            };
            e.either(
                inside,
                || {
                    let from = data.at(&cx, cx.offset(at[0], index, &data.strides[axis]));
                    let load = |from: &View, i: Val, lanes: u32| {
                        from.load_strip(&cx, cx.scale(i, &steps[0]), &steps[0], lanes)
                    };
                    fill(&|i, lanes| load(&from, i, lanes));
                },
                || fill(&|_, lanes| e.splat(missing, lanes)),
            );
        });
        Ok(cx.finish(tiles, 0))
    }

    fn bytes(&self, spec: &KernelSpec) -> Dim {
        let indices = spec.operands[1].as_ref().map_or(Dim::from(0), stored_bytes);
        stored_bytes(&spec.results[0]) * Dim::from(2) + indices
    }
}

/// The register bits of what an index out of range yields: NaN, or zero for integers.
fn missing(e: &Emitter, dtype: DType) -> Val {
    use crate::emit::Ty::Scalar;
    match dtype {
        DType::F64 => e.int(Scalar(Elem::I64), f64::NAN.to_bits().cast_signed()),
        DType::F32 => e.int(Scalar(Elem::I32), f32::NAN.to_bits().cast_signed().into()),
        DType::Bf16 => e.int(Scalar(Elem::I32), 0x7fc0),
        DType::F16 => e.int(Scalar(Elem::I32), 0x7e00),
        DType::F8E4M3 | DType::F8E5M2 => e.int(Scalar(Elem::I32), 0x7f),
        DType::I64 => e.i64(0),
        _ => e.int(Scalar(Elem::I32), 0),
    }
}
