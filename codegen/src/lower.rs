//! From kernel specifications to MLIR: one file a family, one table.
//!
//! A family takes a [`KernelSpec`], in which every operand has its layout and sizes may be
//! symbolic, and emits the kernel that reads and writes exactly these layouts. Constant sizes and
//! strides are folded into the code; symbolic ones are [`Emitted::dims`], which the kernel reads
//! when it runs.
//!
//! What all families keep to: arithmetic in f32 (narrower floats are widened when read and rounded
//! when stored), results that do not depend on how tiles are split among threads, and reductions in
//! one order for each row whatever else is in the launch.

mod attention;
mod block;
mod conv;
mod cross_entropy;
mod cx;
mod e4m3;
mod elementwise;
mod embedding_grad;
mod flat;
mod fused;
mod gather;
mod gemm;
mod group_norm;
mod grouped;
mod kv_write;
mod linear;
mod log_sum_exp;
mod losses;
mod matmul;
mod moe;
mod norm_grad;
mod order;
mod pack;
mod pack_weight;
mod pool;
mod quantize;
mod quantize_heads;
mod reduce;
mod rope;
mod rowwise;
mod segment;
mod size_vector;
mod space;
mod team;
mod update;
mod view;
mod window;

use ir::{Dim, KernelSpec, Target};

use crate::{
    cuda::CudaKernel,
    kernels::{gemm::Gemm, matmul::Matmul},
    schedule::Tuning,
};

/// A kernel as text, and what a launch of it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Name of its function, unique to the text: `k_<op>_<hash>`.
    pub symbol: String,
    /// The MLIR module.
    pub mlir: String,
    /// Sizes that it reads from its array of sizes, in order.
    pub dims: Vec<Dim>,
    /// Number of tiles.
    pub tiles: Dim,
    /// Scratch memory of a thread.
    pub scratch_bytes: u64,
}

/// A specification that no kernel can be generated for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct LowerError {
    /// The operator.
    pub op: String,
    /// What is not supported.
    pub reason: String,
}

/// A kernel family.
pub trait Lower: Sync {
    /// The operators that it computes, by their names in the table; besides those, `copy` is the
    /// identity of one operand, of any element type, between any two layouts.
    fn ops(&self) -> &'static [&'static str];

    /// Whether [`Lower::emit`] takes this specification.
    ///
    /// # Errors
    /// A sentence that says what is not supported.
    fn supports(&self, spec: &KernelSpec) -> Result<(), String>;

    /// Generates the kernel.
    ///
    /// # Errors
    /// As [`Lower::supports`].
    fn emit(&self, spec: &KernelSpec, target: &Target) -> Result<Emitted, LowerError>;

    /// As [`Lower::emit`], with schedules from `tuning` where the family has any.
    ///
    /// # Errors
    /// As [`Lower::supports`].
    fn emit_tuned(
        &self,
        spec: &KernelSpec,
        target: &Target,
        _tuning: &Tuning,
    ) -> Result<Emitted, LowerError> {
        self.emit(spec, target)
    }

    /// Generates the kernels for a GPU: of several, a launch takes the first whose limit holds.
    ///
    /// # Errors
    /// Where the family, or this specification, has no GPU kernel.
    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        Err(cx::refuse(spec, format!("no kernel for {}", target.cpu)))
    }

    /// As [`Lower::emit_cuda`], with tiles from `tuning` where the family has any.
    ///
    /// # Errors
    /// As [`Lower::emit_cuda`].
    fn emit_cuda_tuned(
        &self,
        spec: &KernelSpec,
        target: &Target,
        _tuning: &Tuning,
    ) -> Result<Vec<CudaKernel>, LowerError> {
        self.emit_cuda(spec, target)
    }

    /// Whether [`Lower::emit_cuda`] takes this specification.
    ///
    /// # Errors
    /// A sentence that says what is not supported.
    fn supports_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<(), String> {
        self.emit_cuda(spec, target).map(drop).map_err(|e| e.reason)
    }

    /// Bytes that a launch must read and write: by default every operand and result once.
    fn bytes(&self, spec: &KernelSpec) -> Dim {
        let operands = spec.operands.iter().flatten().chain(&spec.results);
        operands.fold(Dim::from(0), |sum, layout| sum + cx::stored_bytes(layout))
    }

    /// Floating point operations of a launch.
    fn flops(&self, spec: &KernelSpec) -> Dim {
        cx::table_flops(spec)
    }
}

/// Every family.
pub static LOWERINGS: &[&dyn Lower] = &[
    &attention::Attention,
    &attention::AttentionGrad,
    &attention::PagedAttention,
    &conv::Conv,
    &cross_entropy::CrossEntropy,
    &embedding_grad::EmbeddingGrad,
    &fused::Fused::LOOPS,
    &fused::Fused::SINGLE,
    &gather::Gather,
    &gather::ScatterNd,
    &group_norm::GroupNorm,
    &linear::Linear::GROUPED,
    &kv_write::KvWrite,
    &linear::Linear::ONE,
    &losses::Losses,
    &matmul::Matmul,
    &moe::Combine,
    &moe::Permute,
    &norm_grad::NormGrad,
    &order::Order,
    &pack_weight::PackWeight,
    &pool::Pool,
    &quantize::QuantizeRows,
    &quantize_heads::QuantizeHeads,
    &reduce::Cumsum,
    &reduce::Reduce,
    &rope::Rope,
    &rope::RopeKvWrite,
    &rowwise::Rowwise,
    &segment::Segment,
    &size_vector::SizeVector,
    &update::Update,
];

/// Floating point operations and bytes of what the table alone knows.
pub(crate) fn table_work(spec: &KernelSpec) -> (Dim, Dim) {
    let operands = spec.operands.iter().flatten().chain(&spec.results);
    let bytes = operands.fold(Dim::from(0), |sum, layout| sum + cx::stored_bytes(layout));
    (cx::table_flops(spec), bytes)
}

/// The family that computes an operator.
pub fn lowering(op: &str) -> Option<&'static dyn Lower> {
    LOWERINGS.iter().copied().find(|family| family.ops().contains(&op))
}

/// The product that a specification of the family of products is.
pub fn product(spec: &KernelSpec) -> Option<Matmul> {
    let is_product = linear::Linear::ONE.ops().contains(&spec.op);
    is_product.then(|| linear::product(spec).ok()).flatten().map(|(product, _)| product)
}

/// As [`product`], on a GPU.
pub fn gemm(spec: &KernelSpec) -> Option<Gemm> {
    let is_product = linear::Linear::ONE.ops().contains(&spec.op);
    is_product.then(|| linear::cuda::product(spec).ok()).flatten()
}

#[cfg(test)]
mod tests;
