//! `matmul` on GPUs where the right matrix is one for all rows, by [`crate::kernels::gemm`]; what
//! that refuses is left to [`crate::kernels::gemm::tiled`].

use ir::{KernelSpec, Layout};

use crate::{
    cuda::{CudaKernel, CudaParam},
    emit::Param,
    kernels::{
        gemm::{
            Form, Gemm, Matrix,
            sm90a::{self, outer::Outer},
        },
        matmul::Activation,
    },
    lower::{
        cx::{UNNAMED, named},
        space::flatten,
        view::{memory_elem, strides},
    },
};

/// The product that a specification asks for.
///
/// # Errors
/// What those kernels do not support: batches of right matrices, sizes of those known only at run
/// time, columns that are dense in neither direction.
pub(in crate::lower) fn product(spec: &KernelSpec) -> Result<Gemm, String> {
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
        map: None,
    })
}

/// The product as a sum of outer products: a left matrix whose columns are dense, as a transposed
/// one's are, and a right one of dense rows.
///
/// # Errors
/// What those kernels do not support.
pub(super) fn outer(spec: &KernelSpec) -> Result<Outer, String> {
    let [Some(a), Some(b)] = spec.operands.as_slice() else {
        return Err("takes two matrices".into());
    };
    let mut turned = a.clone();
    if a.ty.rank() != 2 || b.ty.rank() != 2 {
        return Err("takes no batches".into());
    }
    turned.ty.shape.swap(0, 1);
    turned.strides.swap(0, 1);
    let (k, left) = matrix(0, &turned)?;
    let size = |dim: &ir::Dim| dim.as_const().ok_or_else(|| format!("a size of {dim}"));
    let (m, n) = (size(&a.ty.shape[0])?, size(&b.ty.shape[1])?);
    let (right, y) = (matrix(1, b)?.1, matrix(2, &spec.results[0])?.1);
    let outer = Outer { k, m, n, a: left, b: right, y };
    outer.check().map(|()| outer)
}

/// The kernel of such a product.
pub(super) fn outer_kernel(spec: &KernelSpec, outer: &Outer, multiprocessors: u32) -> CudaKernel {
    let (draft, cluster) = sm90a::outer::emit(UNNAMED, outer, multiprocessors);
    let param = |param: Param| match param {
        Param::Pointer(arg) => CudaParam::Pointer { arg, align: 16 },
        Param::Map(index) => CudaParam::Map(draft.maps[index as usize].clone()),
        Param::Size(_) => CudaParam::Size(outer.k.clone()),
    };
    let params = draft.e.params().into_iter().map(param).collect();
    let block = draft.e.threads();
    let named = named(spec.op, &draft.e.finish(), UNNAMED, Vec::new(), ir::Dim::from(1), 0);
    let [m, n] = draft.tile;
    let tiles = (outer.m + m - 1) / m * ((outer.n + n - 1) / n);
    let blocks = draft.blocks.map_or(cluster * tiles, |blocks| blocks.min(tiles));
    CudaKernel {
        symbol: named.symbol,
        mlir: named.mlir,
        params,
        grid: [blocks.into(), 1.into(), 1.into()],
        block,
        cluster: u32::try_from(cluster).expect("few blocks"),
        shared_bytes: draft.shared_bytes,
        limit: None,
        early: draft.early,
    }
}

/// An operand as one matrix of dense rows, and the number of those.
pub(in crate::lower) fn matrix(arg: u32, layout: &Layout) -> Result<(ir::Dim, Matrix), String> {
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
