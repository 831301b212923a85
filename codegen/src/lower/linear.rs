//! `linear`, `gated_linear`, `quantized_linear` and those of groups: products with packed weights,
//! by [`crate::kernels::matmul`].

pub(super) mod cuda;

use ir::{Dim, KernelSpec, Layout, PANEL, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{named, refuse},
    gemm, grouped,
    space::flatten,
    view::{memory_elem, strides},
};
use crate::{
    Isa,
    cuda::CudaKernel,
    kernels::matmul::{Activation, Matmul, matmul},
    schedule::Tuning,
};

/// The families of products with packed weights.
pub(super) struct Linear {
    ops: &'static [&'static str],
    /// The product that a specification is, and its number of rows.
    product: fn(&KernelSpec) -> Result<(Matmul, Dim), String>,
}

impl Linear {
    /// Products with one weight.
    pub(super) const ONE: Linear =
        Linear { ops: &["linear", "gated_linear", "quantized_linear"], product };
    /// Products with the weights of several experts.
    pub(super) const GROUPED: Linear =
        Linear { ops: &["grouped_linear", "grouped_gated_linear"], product: grouped::product };
}

/// Panels of a tile, at most: enough to keep its sums in registers while weights stream.
const PANELS_PER_TILE: u64 = 4;

impl Lower for Linear {
    fn ops(&self) -> &'static [&'static str] {
        self.ops
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        (self.product)(spec).map(|_| ())
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
        let product = (self.product)(spec).map_err(|reason| refuse(spec, reason))?;
        emit_product(spec, product, target, tuning)
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.emit_cuda_tuned(spec, target, Tuning::builtin())
    }

    fn emit_cuda_tuned(
        &self,
        spec: &KernelSpec,
        target: &Target,
        tuning: &Tuning,
    ) -> Result<Vec<CudaKernel>, LowerError> {
        if spec.op.starts_with("grouped") {
            return grouped::kernels(spec, target);
        }
        let product = cuda::product(spec).map_err(|reason| refuse(spec, reason))?;
        gemm::kernels(spec, &product, target, tuning)
    }
}

/// The kernel of a product with so many rows.
fn emit_product(
    spec: &KernelSpec,
    (mut product, rows): (Matmul, Dim),
    target: &Target,
    tuning: &Tuning,
) -> Result<Emitted, LowerError> {
    product.schedule = tuning.find(target, &product);
    let isa = Isa::of(target);
    let kernel = matmul(&product, &isa).map_err(|e| refuse(spec, e.to_string()))?;
    let mut tiles = Dim::from(i64::try_from(product.tiles()).unwrap_or(i64::MAX));
    if product.split_rows {
        let block = i64::try_from(product.row_block(&isa)).unwrap_or(i64::MAX);
        tiles = tiles * rows.ceil_div(block);
    }
    let (text, scratch) = (&kernel.mlir, kernel.scratch_bytes);
    Ok(named(spec.op, text, &product.symbol, vec![rows], tiles, scratch))
}

/// The product and its number of rows.
pub(super) fn product(spec: &KernelSpec) -> Result<(Matmul, Dim), String> {
    let operand = |i: usize| spec.operands.get(i).and_then(Option::as_ref);
    let (Some(x), Some(w), Some(y)) = (operand(0), operand(1), spec.results.first()) else {
        return Err("takes x and a packed weight".into());
    };
    let size = |dim: &Dim| dim.as_const().and_then(|v| u64::try_from(v).ok());
    let constant = || "the inner dimension must be constant".to_owned();
    let n = u64::try_from(spec.attrs.int("n")).map_err(|_| "n is negative")?;
    if !w.is_contiguous() {
        return Err("the packed weight must be contiguous".into());
    }
    let quantized = spec.op == "quantized_linear";
    let (mut product, (x_rows, x_stride)) = if quantized {
        let [blocks, bytes] = &w.ty.shape[1..] else { return Err("takes a packed weight".into()) };
        if bytes.is(ir::E4M3_PANEL_BYTES as i64) {
            return Err("CPUs multiply no e4m3; compile for `cuda:sm_90a`".into());
        }
        let bits = ir::quant_bits(bytes).ok_or("the weight is not quantised")?;
        let k = size(blocks).ok_or_else(constant)? * ir::QUANT_BLOCK as u64;
        let bits = u32::try_from(bits).unwrap_or_default();
        (Matmul::quantized("product", n, k, bits), rows(&joined(x)?, quantized_bytes(x)?)?)
    } else {
        let k = x.ty.shape.last().and_then(size).ok_or_else(constant)?;
        (Matmul::new("product", n, k, memory_elem(w.ty.dtype)), rows(x, k)?)
    };
    let (_, y_stride) = rows(y, n)?;
    product.gated = spec.op == "gated_linear" || (quantized && spec.attrs.bool("gated"));
    product.activation = activation(spec.attrs.str("act"))?;
    product.x_stride = x_stride;
    product.y_stride = y_stride;
    product.output = memory_elem(y.ty.dtype);
    let wanted = if quantized { ir::DType::U8 } else { ir::DType::F32 };
    if x.ty.dtype != wanted {
        return Err(format!("x is {}, not {wanted}", x.ty.dtype));
    }
    if let Some(bias) = operand(2) {
        if bias.ty.dtype != ir::DType::F32 || !bias.is_contiguous() {
            return Err(format!("bias is {bias}, not contiguous f32"));
        }
        product.bias = true;
    }
    if let Some(residual) = operand(3) {
        if residual.ty.dtype != ir::DType::F32 {
            return Err(format!("residual is {}, not f32", residual.ty.dtype));
        }
        product.residual = Some(rows(residual, n)?.1);
    }
    let y_position = u32::try_from(spec.operands.len()).unwrap_or(u32::MAX);
    product.positions = Some([2, 3, y_position]);
    debug_assert_eq!(crate::kernels::matmul::PANEL, PANEL as u64, "one panel width");
    product.panels_per_tile = PANELS_PER_TILE;
    product.split_rows = !quantized;
    product.max_rows = u64::try_from(x_rows.bounds(&spec.symbols).hi).unwrap_or(u64::MAX).max(1);
    Ok((product, x_rows))
}

/// A quantised row's blocks as one axis.
fn joined(x: &Layout) -> Result<Layout, String> {
    let [.., blocks, bytes] = &*x.ty.shape else { return Err(format!("{x} has no blocks")) };
    let rank = x.ty.rank();
    if !(x.strides[rank - 1].is(1) && (x.strides[rank - 2] == *bytes || blocks.is(1))) {
        return Err(format!("{x}: blocks must be dense"));
    }
    let mut joined = x.clone();
    joined.ty.shape.truncate(rank - 2);
    joined.ty.shape.push(blocks.clone() * bytes.clone());
    joined.strides.remove(rank - 2);
    Ok(joined)
}

fn quantized_bytes(x: &Layout) -> Result<u64, String> {
    let bytes = x.ty.shape.iter().rev().take(2).fold(Dim::from(1), |n, d| n * d.clone());
    let bytes = bytes.as_const().and_then(|v| u64::try_from(v).ok());
    bytes.ok_or_else(|| "the inner dimension must be constant".to_owned())
}

/// Leading axes as one, and the distance between rows of `width` dense elements.
pub(super) fn rows(layout: &Layout, width: u64) -> Result<(Dim, u64), String> {
    let all = strides(layout);
    let (inner, lead) = all.split_last().ok_or_else(|| format!("{layout} has no axis"))?;
    if !(inner.is(1) || width == 1) {
        return Err(format!("{layout}: the last axis must be dense"));
    }
    let extents = &layout.ty.shape[..lead.len()];
    let (rows, stride) = flatten(extents, lead)
        .ok_or_else(|| format!("{layout}: leading axes must have one row stride"))?;
    // The stride of a single row does not matter.
    let stride = if rows.is(1) { Some(width) } else { None }
        .or_else(|| stride.as_const().and_then(|s| u64::try_from(s).ok()))
        .filter(|s| *s >= width)
        .ok_or_else(|| {
            format!("{layout}: the row stride must be a constant of at least {width}")
        })?;
    Ok((rows, stride))
}

/// The activation of that name.
pub(super) fn activation(name: &str) -> Result<Activation, String> {
    Ok(match name {
        "none" => Activation::None,
        "relu" => Activation::Relu,
        "gelu" => Activation::GeluErf,
        "gelu_tanh" => Activation::GeluTanh,
        "silu" => Activation::Silu,
        "tanh" => Activation::Tanh,
        "sigmoid" => Activation::Sigmoid,
        other => return Err(format!("activation `{other}`")),
    })
}
