//! `linear`, `gated_linear` and `quantized_linear` on GPUs, by [`crate::kernels::gemm`].
//!
//! Activations may be f32, bf16 or f16; f32 is rounded to the weight's type on the way into the
//! product, to bf16 where the weight is of integers. The packed weight is read as it is. Where it
//! is e4m3, activations are so too.

use ir::{DType, KernelSpec, Layout};

use super::{activation, rows};
use crate::{
    emit::Elem,
    kernels::gemm::{Form, Gemm, Matrix},
    lower::view::memory_elem,
};

/// The product that a specification asks for.
///
/// # Errors
/// What GPU kernels do not support.
pub(in crate::lower) fn product(spec: &KernelSpec) -> Result<Gemm, String> {
    let operand = |i: usize| spec.operands.get(i).and_then(Option::as_ref);
    let (Some(x), Some(w), Some(y)) = (operand(0), operand(1), spec.results.first()) else {
        return Err("takes x and a packed weight".into());
    };
    let width = x.ty.shape.last().and_then(|k| k.as_const());
    let width = width.filter(|k| *k > 0).ok_or("the inner dimension must be constant")?;
    let is_fp8 = w.ty.shape.last().is_some_and(|bytes| bytes.is(ir::E4M3_PANEL_BYTES as i64));
    let blocks = w.ty.shape.get(1).and_then(|blocks| blocks.as_const());
    let k = match (is_fp8, blocks) {
        (false, _) => width,
        (true, Some(blocks)) => blocks * ir::E4M3_BLOCK as i64,
        (true, None) => return Err("the inner dimension must be constant".into()),
    };
    let n = spec.attrs.int("n");
    if !w.is_contiguous() {
        return Err("the packed weight must be contiguous".into());
    }
    let (w_elem, bits) = if is_fp8 && spec.op == "quantized_linear" {
        (Elem::I8, None)
    } else if spec.op == "quantized_linear" {
        let bits = w.ty.shape.last().and_then(ir::quant_lane_bits);
        let bits = bits.ok_or_else(|| format!("{w}: GPUs take quantised weights in lanes"))?;
        let half = if x.ty.dtype == DType::F16 { Elem::F16 } else { Elem::Bf16 };
        (half, Some(if bits == 8 { 8 } else { 4 }))
    } else {
        (memory_elem(w.ty.dtype), None)
    };
    let (count, a) = matrix(0, x, width)?;
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
        w_elem,
        bits,
        form: Form::Panels,
        gated: spec.op == "gated_linear"
            || (spec.op == "quantized_linear" && spec.attrs.bool("gated")),
        activation: activation(spec.attrs.str("act"))?,
        bias,
        residual: operand(3).map(|r| matrix(3, r, n)).transpose()?.map(|(_, r)| r),
        y: matrix(y_arg, y, n)?.1,
        map: None,
    })
}

/// An operand as a matrix of so many columns, and its number of rows.
fn matrix(arg: u32, layout: &Layout, columns: i64) -> Result<(ir::Dim, Matrix), String> {
    let width = u64::try_from(columns).map_err(|_| "negative size")?;
    let (count, stride) = rows(layout, width)?;
    let stride = i64::try_from(stride).map_err(|_| "a stride too large")?;
    Ok((count, Matrix { arg, elem: memory_elem(layout.ty.dtype), stride }))
}
