//! `grouped_linear` and `grouped_gated_linear`: rows sorted by expert, by
//! [`crate::kernels::matmul`].

use ir::{DType, Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::refuse,
    linear::{activation, emit_product, rows},
    view::memory_elem,
};
use crate::{
    kernels::matmul::{Groups, Matmul},
    schedule::Tuning,
};

/// The family.
pub(super) struct Grouped;

/// Panels of a tile: experts are narrow, and threads many.
const PANELS_PER_TILE: u64 = 2;

impl Lower for Grouped {
    fn ops(&self) -> &'static [&'static str] {
        &["grouped_linear", "grouped_gated_linear"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        product(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, target: &Target) -> Result<Emitted, LowerError> {
        self.emit_tuned(spec, target, Tuning::builtin())
    }

    fn emit_tuned(
        &self,
        spec: &KernelSpec,
        target: &Target,
        tuning: &Tuning,
    ) -> Result<Emitted, LowerError> {
        let product = product(spec).map_err(|reason| refuse(spec, reason))?;
        emit_product(spec, product, target, tuning)
    }
}

/// The product and its number of rows.
fn product(spec: &KernelSpec) -> Result<(Matmul, Dim), String> {
    let operand = |i: usize| spec.operands.get(i).and_then(Option::as_ref);
    let (Some(x), Some(w), Some(offsets)) = (operand(0), operand(1), operand(2)) else {
        return Err("takes x, packed weights and offsets".into());
    };
    let y = &spec.results[0];
    let size = |dim: &Dim| dim.as_const().and_then(|v| u64::try_from(v).ok());
    let n = u64::try_from(spec.attrs.int("n")).map_err(|_| "n is negative")?;
    let k = x.ty.shape.last().and_then(size).ok_or("the inner dimension must be constant")?;
    let count = w.ty.shape.first().and_then(size).ok_or("the experts must be constant")?;
    if !w.is_contiguous() || !offsets.is_contiguous() {
        return Err("packed weights and offsets must be contiguous".into());
    }
    if x.ty.dtype != DType::F32 || offsets.ty.dtype != DType::I32 {
        return Err(format!("takes f32 and i32 offsets, got {} and {}", x.ty, offsets.ty));
    }
    let (x_rows, x_stride) = rows(x, k)?;
    let mut product = Matmul::new("product", n, k, memory_elem(w.ty.dtype));
    product.gated = spec.op == "grouped_gated_linear";
    product.activation = activation(spec.attrs.str("act"))?;
    product.x_stride = x_stride;
    product.y_stride = rows(y, n)?.1;
    product.output = memory_elem(y.ty.dtype);
    if let Some(bias) = operand(3) {
        if bias.ty.dtype != DType::F32 || !bias.is_contiguous() {
            return Err(format!("bias is {bias}, not contiguous f32"));
        }
        product.bias = true;
    }
    let y_position = u32::try_from(spec.operands.len()).unwrap_or(u32::MAX);
    product.positions = Some([3, 0, y_position]);
    product.groups = Some(Groups { count, offsets: 2 });
    product.panels_per_tile = PANELS_PER_TILE;
    product.max_rows = u64::try_from(x_rows.bounds(&spec.symbols).hi).unwrap_or(u64::MAX).max(1);
    Ok((product, x_rows))
}
