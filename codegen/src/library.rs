//! Products that cuBLASLt computes: what a launch of one is.
//!
//! No kernel is generated for `cublaslt_linear`. It is taken only by a generator that was told to,
//! and costs what a table of `brolly tune` says, or is not chosen.

use ir::{CudaArch, CudaMatmul, CudaMatrix, DType, Dim, KernelSpec, Layout, Target, TensorType};

use crate::{lower::LowerError, schedule::Family};

/// The operator.
pub(crate) const OP: &str = "cublaslt_linear";
/// What its launches are of, for people.
pub(crate) const SYMBOL: &str = "cublasLtMatmul";
/// Columns must be a multiple of this: what is not aligned so, the library computes slowly or not.
const ALIGN: i64 = 8;

/// A product for the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryProduct {
    /// What its weight is made of.
    pub family: Family,
    /// Columns of y.
    pub n: u64,
    /// Columns of x.
    pub k: u64,
}

/// Bytes of memory that the library may use: what NVIDIA advises for Hopper, and for others.
pub(crate) fn workspace_bytes(gpus: &[Target]) -> u64 {
    let is_hopper = |gpu: &Target| gpu.cuda.is_some_and(|gpu| gpu.arch == CudaArch::Sm90a);
    if gpus.iter().any(is_hopper) { 32 << 20 } else { 4 << 20 }
}

/// The product that a specification is, if it is one for the library.
#[must_use]
pub fn product(spec: &KernelSpec) -> Option<LibraryProduct> {
    let [Some(x), Some(w), ..] = spec.operands.as_slice() else { return None };
    let ([n, k], true) = (&*w.ty.shape, spec.op == OP) else { return None };
    let family = match x.ty.dtype {
        DType::F16 => Family::F16,
        _ => Family::Bf16,
    };
    let size = |dim: &Dim| u64::try_from(dim.as_const()?).ok();
    Some(LibraryProduct { family, n: size(n)?, k: size(k)? })
}

/// Rows of a product's first operand.
pub(crate) fn rows(x: &TensorType) -> Dim {
    let lead = x.shape.iter().take(x.rank().saturating_sub(1));
    lead.fold(Dim::from(1), |n, d| n * d.clone())
}

/// What the library is asked for on these GPUs.
///
/// # Errors
/// A sentence that says what it is not asked for: a layout, a type, or sizes.
pub(crate) fn matmul(spec: &KernelSpec, gpus: &[Target]) -> Result<CudaMatmul, LowerError> {
    let refuse = |reason: String| LowerError { op: spec.op.into(), reason };
    let ([Some(x), Some(w), rest @ ..], [y]) = (spec.operands.as_slice(), spec.results.as_slice())
    else {
        return Err(refuse("takes x and w".into()));
    };
    let optional = |i: usize| rest.get(i).and_then(Option::as_ref);
    let (bias, residual) = (optional(0), optional(1));
    let [n, k] = &*w.ty.shape else { return Err(refuse(format!("a weight {}", w.ty))) };
    let (factors, results) = (x.ty.dtype, y.ty.dtype);
    let is_half = matches!(factors, DType::Bf16 | DType::F16) && w.ty.dtype == factors;
    let added = [bias, residual];
    let are_alike = added.iter().flatten().all(|added| added.ty.dtype == results);
    if !is_half || !are_alike || (results != DType::F32 && results != factors) {
        return Err(refuse(format!("no product of {factors} in {results}")));
    }
    for size in [n, k] {
        if size.as_const().is_none_or(|size| size < ALIGN || size % ALIGN != 0) {
            return Err(refuse(format!("{size} columns are no multiple of {ALIGN}")));
        }
    }
    if let Some(bias) = bias.filter(|bias| !bias.is_contiguous()) {
        return Err(refuse(format!("a bias {bias}")));
    }
    let arg = |i: usize| u32::try_from(i).expect("few operands");
    let matrix = |i: usize, layout: &Layout| match stride(layout) {
        Some(stride) => Ok(CudaMatrix { arg: arg(i), stride }),
        None => Err(refuse(format!("rows of {layout} are not dense"))),
    };
    let operands = spec.operands.len();
    Ok(CudaMatmul {
        m: rows(&x.ty),
        n: n.clone(),
        k: k.clone(),
        factors,
        results,
        transposed: true,
        x: matrix(0, x)?,
        w: matrix(1, w)?,
        bias: bias.map(|_| 2),
        residual: residual.map(|residual| matrix(3, residual)).transpose()?,
        y: matrix(operands, y)?,
        workspace: arg(operands + 1),
        workspace_bytes: workspace_bytes(gpus),
    })
}

/// Elements from a row to the next, where rows are dense and as far from each other.
fn stride(layout: &Layout) -> Option<Dim> {
    let columns = layout.ty.shape.last()?.clone();
    if layout.is_contiguous() {
        return Some(columns);
    }
    let [row, column] = layout.strides.as_slice() else { return None };
    let stride = row.as_const().filter(|row| row % ALIGN == 0 && *row > 0)?;
    let is_wide = columns.as_const().is_some_and(|columns| columns <= stride);
    (column.is(1) && is_wide).then(|| row.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ir::Attrs;

    use super::*;

    fn spec(results: DType, columns: i64) -> KernelSpec {
        let dense =
            |dtype, shape: Vec<Dim>| Some(Layout::contiguous(&TensorType::new(dtype, shape)));
        let t = Dim::symbol("T");
        KernelSpec {
            op: OP,
            attrs: Attrs::none().with("dtype", results),
            operands: vec![
                dense(DType::Bf16, vec![Dim::from(2), t.clone(), Dim::from(32)]),
                dense(DType::Bf16, vec![Dim::from(columns), Dim::from(32)]),
                None,
                dense(DType::F32, vec![Dim::from(2), t.clone(), Dim::from(columns)]),
            ],
            results: vec![dense(results, vec![Dim::from(2), t, Dim::from(columns)]).unwrap()],
            body: None,
            symbols: Arc::default(),
        }
    }

    #[test]
    fn a_launch_says_what_lies_where() {
        let found = matmul(&spec(DType::F32, 24), &[Target::sm_80()]).unwrap();
        assert_eq!(found.m, Dim::symbol("T") * Dim::from(2));
        assert_eq!([&found.n, &found.k], [&Dim::from(24), &Dim::from(32)]);
        assert_eq!((found.x.arg, found.w.arg, found.bias), (0, 1, None));
        assert_eq!(found.residual.as_ref().unwrap().arg, 3);
        assert_eq!((found.y.arg, found.workspace), (4, 5));
        assert_eq!(found.workspace_bytes, 4 << 20);
        let both = [Target::sm_80(), Target::sm_90a()];
        assert_eq!(matmul(&spec(DType::F32, 24), &both).unwrap().workspace_bytes, 32 << 20);
    }

    #[test]
    fn padded_rows_are_read_and_others_are_not() {
        let mut padded = spec(DType::F32, 24);
        let ty = TensorType::new(DType::Bf16, [Dim::symbol("T"), Dim::from(32)]);
        let rows = |stride: i64, column: i64| {
            Some(Layout { ty: ty.clone(), strides: vec![stride.into(), column.into()] })
        };
        padded.operands[0] = rows(40, 1);
        padded.operands[3] = None;
        let found = matmul(&padded, &[Target::sm_90a()]).unwrap();
        assert_eq!(found.x.stride, Dim::from(40));
        for (stride, column) in [(36, 1), (24, 1), (1, 8)] {
            padded.operands[0] = rows(stride, column);
            let why = matmul(&padded, &[Target::sm_90a()]).unwrap_err().to_string();
            assert!(why.contains("are not dense"), "{why}");
        }
    }

    #[test]
    fn what_the_library_is_not_asked_for() {
        let refused = |spec| matmul(&spec, &[Target::sm_90a()]).unwrap_err().reason;
        // A residual of another type than the result.
        assert!(refused(spec(DType::Bf16, 24)).contains("bf16 in bf16"));
        assert!(refused(spec(DType::F32, 20)).contains("no multiple of 8"));
    }
}
