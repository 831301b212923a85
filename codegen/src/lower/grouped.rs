//! `grouped_linear` and `grouped_gated_linear`: rows sorted by expert, by
//! [`crate::kernels::matmul`].

mod cuda;

use ir::{DType, Dim, KernelSpec};

use super::{
    linear::{activation, rows},
    view::memory_elem,
};
use crate::kernels::matmul::{Groups, Matmul};

pub(super) use cuda::kernels;

/// Panels of a tile: experts are narrow, and threads many.
const PANELS_PER_TILE: u64 = 2;

/// The product and its number of rows.
pub(super) fn product(spec: &KernelSpec) -> Result<(Matmul, Dim), String> {
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
