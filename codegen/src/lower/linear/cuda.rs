//! `linear` and `gated_linear` on GPUs, by [`crate::kernels::gemm`].
//!
//! Activations may be f32, bf16 or f16; f32 is rounded to the weight's type on the way into the
//! product. The packed weight is read as it is.

use ir::{KernelSpec, Layout};

use super::{activation, rows};
use crate::{
    kernels::gemm::{Form, Gemm, Matrix},
    lower::view::memory_elem,
};

/// The product that a specification asks for.
///
/// # Errors
/// What GPU kernels do not support.
pub(super) fn product(spec: &KernelSpec) -> Result<Gemm, String> {
    let operand = |i: usize| spec.operands.get(i).and_then(Option::as_ref);
    let (Some(x), Some(w), Some(y)) = (operand(0), operand(1), spec.results.first()) else {
        return Err("takes x and a packed weight".into());
    };
    let k = x.ty.shape.last().and_then(|k| k.as_const());
    let k = k.filter(|k| *k > 0).ok_or("the inner dimension must be constant")?;
    let n = spec.attrs.int("n");
    if !w.is_contiguous() {
        return Err("the packed weight must be contiguous".into());
    }
    let (count, a) = matrix(0, x, k)?;
    let y_arg = u32::try_from(spec.operands.len()).map_err(|_| "too many operands")?;
    let bias = match operand(2) {
        Some(bias) if !bias.is_contiguous() => return Err(format!("bias is {bias}")),
        bias => bias.map(|bias| (2, memory_elem(bias.ty.dtype))),
    };
    Ok(Gemm {
        rows: count,
        n,
        k,
        a,
        w: 1,
        w_elem: memory_elem(w.ty.dtype),
        form: Form::Panels,
        gated: spec.op == "gated_linear",
        activation: activation(spec.attrs.str("act"))?,
        bias,
        residual: operand(3).map(|r| matrix(3, r, n)).transpose()?.map(|(_, r)| r),
        y: matrix(y_arg, y, n)?.1,
    })
}

/// An operand as a matrix of so many columns, and its number of rows.
fn matrix(arg: u32, layout: &Layout, columns: i64) -> Result<(ir::Dim, Matrix), String> {
    let width = u64::try_from(columns).map_err(|_| "negative size")?;
    let (count, stride) = rows(layout, width)?;
    let stride = i64::try_from(stride).map_err(|_| "a stride too large")?;
    Ok((count, Matrix { arg, elem: memory_elem(layout.ty.dtype), stride }))
}
