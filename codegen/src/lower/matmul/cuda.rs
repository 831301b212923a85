//! `matmul` on GPUs where the right matrix is one for all rows, by [`crate::kernels::gemm`]; what
//! that refuses is left to [`crate::kernels::gemm::tiled`].

use ir::{KernelSpec, Layout};

use crate::{
    kernels::{
        gemm::{Form, Gemm, Matrix},
        matmul::Activation,
    },
    lower::{
        space::flatten,
        view::{memory_elem, strides},
    },
};

/// The product that a specification asks for.
///
/// # Errors
/// What those kernels do not support: batches of right matrices, sizes of those known only at run
/// time, columns that are dense in neither direction.
pub(super) fn product(spec: &KernelSpec) -> Result<Gemm, String> {
    let [Some(a), Some(b)] = spec.operands.as_slice() else {
        return Err("takes two matrices".into());
    };
    let rank = b.ty.rank();
    if b.ty.shape[..rank - 2].iter().any(|d| !d.is(1)) {
        return Err(format!("a batch of right matrices: {b}"));
    }
    let size = |i: usize| {
        let size = b.ty.shape[rank - 2 + i].as_const().filter(|size| *size > 0);
        size.ok_or_else(|| format!("{b}: sizes must be positive constants"))
    };
    let (k, n) = (size(0)?, size(1)?);
    let steps = strides(b)[rank - 2..].iter().map(ir::Dim::as_const).collect::<Vec<_>>();
    let form = match steps.as_slice() {
        [Some(stride), Some(1)] => Form::Rows(*stride),
        [Some(1), Some(stride)] => Form::Columns(*stride),
        _ => return Err(format!("{b}: rows or columns must be dense")),
    };
    let (rows, left) = matrix(0, a)?;
    Ok(Gemm {
        rows,
        n,
        k,
        a: left,
        w: 1,
        w_elem: memory_elem(b.ty.dtype),
        bits: None,
        form,
        gated: false,
        activation: Activation::None,
        bias: None,
        residual: None,
        y: matrix(2, &spec.results[0])?.1,
    })
}

/// An operand as one matrix of dense rows, and the number of those.
fn matrix(arg: u32, layout: &Layout) -> Result<(ir::Dim, Matrix), String> {
    let all = strides(layout);
    let (inner, lead) = all.split_last().ok_or("a scalar")?;
    if !inner.is(1) {
        return Err(format!("{layout}: the last axis must be dense"));
    }
    let flat = flatten(&layout.ty.shape[..lead.len()], lead);
    let (rows, stride) = flat.ok_or_else(|| format!("{layout}: rows must have one stride"))?;
    let stride = if rows.is(1) { Some(0) } else { stride.as_const() };
    let stride = stride.ok_or_else(|| format!("{layout}: the row stride must be constant"))?;
    Ok((rows, Matrix { arg, elem: memory_elem(layout.ty.dtype), stride }))
}
