//! Sizes as tensors: one launch writes a handful of integers.

use ir::{Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    view::{computable, register_elem},
};
use crate::cuda::CudaKernel;

/// The family.
pub(super) struct SizeVector;

/// The sizes that the tensor holds.
fn sizes(spec: &KernelSpec) -> Result<Vec<Dim>, String> {
    if spec.op == "size_vector" {
        return Ok(spec.attrs.dims("sizes").to_vec());
    }
    let Some(Some(x)) = spec.operands.first() else { return Err("takes an operand".into()) };
    let rank = i64::try_from(x.ty.rank()).unwrap_or(i64::MAX);
    let clamp = |v: i64| {
        let v = if v < 0 { v.saturating_add(rank) } else { v };
        usize::try_from(v.clamp(0, rank)).unwrap_or_default()
    };
    let (start, end) = (clamp(spec.attrs.int("start")), clamp(spec.attrs.int("end")));
    Ok(x.ty.shape[start..end.max(start)].to_vec())
}

impl Lower for SizeVector {
    fn ops(&self) -> &'static [&'static str] {
        &["size_vector", "shape_of"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        let dtype = spec.results[0].ty.dtype;
        if !computable(dtype) || dtype.is_float() {
            return Err(format!("sizes as {dtype}"));
        }
        sizes(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let sizes = sizes(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        cx.e.for_each(cx.e.tile_begin(), cx.e.tile_end(), 1, |_| write(&cx, &sizes));
        Ok(cx.finish(Dim::from(1), 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let sizes = sizes(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::cuda(spec, 32);
        let one = Dim::from(1);
        let _ = cx.each_thread(&one, |_| write(&cx, &sizes));
        Ok(vec![cx.finish_flat(&one)])
    }
}

fn write(cx: &Cx<'_>, sizes: &[Dim]) {
    let (e, y) = (&cx.e, cx.result(0));
    let step = y.strides.first().cloned().unwrap_or_default();
    for (i, size) in (0..).zip(sizes) {
        let value = e.cast(cx.size(size), register_elem(y.dtype));
        y.store(cx, value, cx.scale(e.i64(i), &step));
    }
}
