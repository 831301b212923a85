//! GPU kernels of products: which tiles a specification gets, and how they are launched.

pub(super) mod tiled;

use ir::{CudaArch, Dim, KernelSpec, Target};

use super::{
    LowerError,
    cx::{UNNAMED, named, refuse},
};
use crate::{
    cuda::{CudaKernel, CudaParam},
    emit::{Elem, Param},
    kernels::gemm::{Draft, Gemm, fp8, quantized, simt, sm80, sm90a},
};

/// The kernels for a product, those for fewer rows first.
pub(super) fn kernels(
    spec: &KernelSpec,
    gemm: &Gemm,
    target: &Target,
) -> Result<Vec<CudaKernel>, LowerError> {
    let gpu = target.cuda.ok_or_else(|| refuse(spec, format!("{target} is no GPU")))?;
    gemm.check().map_err(|reason| refuse(spec, reason))?;
    let drafts = match gpu.arch {
        CudaArch::Sm80 if gemm.is_fp8() => {
            return Err(refuse(spec, "sm_80 multiplies no e4m3; compile for `cuda:sm_90a`"));
        }
        CudaArch::Sm90a if gemm.is_fp8() => fp8::variants(UNNAMED, gemm, gpu.multiprocessors),
        arch if gemm.bits.is_some() => {
            let begins_early = arch == CudaArch::Sm90a;
            quantized::variants(UNNAMED, gemm, gpu.multiprocessors, begins_early)
        }
        _ if gemm.w_elem == Elem::F32 => simt::variants(UNNAMED, gemm, gpu.multiprocessors),
        CudaArch::Sm80 => sm80::variants(UNNAMED, gemm, gpu.multiprocessors),
        CudaArch::Sm90a => sm90a::variants(UNNAMED, gemm, gpu.multiprocessors),
    };
    Ok(drafts.into_iter().map(|draft| kernel(spec, gemm, draft)).collect())
}

fn kernel(spec: &KernelSpec, gemm: &Gemm, draft: Draft) -> CudaKernel {
    let param = |param: Param| match param {
        Param::Pointer(arg) => CudaParam::Pointer { arg, align: 16 },
        Param::Map(index) => CudaParam::Map(draft.maps[index as usize].clone()),
        Param::Size(_) => CudaParam::Size(gemm.rows.clone()),
    };
    let params = draft.e.params().into_iter().map(param).collect();
    let block = draft.e.threads();
    let text = draft.e.finish();
    let named = named(spec.op, &text, UNNAMED, Vec::new(), Dim::from(1), 0);
    let [m, n] = draft.tile;
    let tiles = gemm.rows.ceil_div(m) * Dim::from((gemm.columns() + n - 1) / n);
    let grid = match draft.blocks {
        Some(blocks) => [tiles.minimum(&Dim::from(blocks)), 1.into(), 1.into()],
        None => {
            let columns = Dim::from((gemm.columns() + n - 1) / n);
            [gemm.rows.ceil_div(m), columns, 1.into()]
        }
    };
    CudaKernel {
        symbol: named.symbol,
        mlir: named.mlir,
        params,
        grid,
        block,
        cluster: 1,
        shared_bytes: draft.shared_bytes,
        limit: draft.max_rows.map(|most| (gemm.rows.clone(), most)),
        early: draft.early,
    }
}
