//! GPU kernels of products: the tiles that a specification gets, and how they are launched.

pub(super) mod tiled;

use ir::{CudaArch, Dim, KernelSpec, Target};

use super::{
    LowerError,
    cx::{UNNAMED, named, refuse},
};
use crate::{
    cuda::{CudaKernel, CudaParam},
    emit::Param,
    kernels::gemm::{Draft, Gemm, Variant, tile},
    schedule::Tuning,
};

/// The kernels for a product, those for fewer rows first.
pub(super) fn kernels(
    spec: &KernelSpec,
    gemm: &Gemm,
    target: &Target,
    tuning: &Tuning,
) -> Result<Vec<CudaKernel>, LowerError> {
    let gpu = target.cuda.ok_or_else(|| refuse(spec, format!("{target} is no GPU")))?;
    gemm.check().map_err(|reason| refuse(spec, reason))?;
    if gemm.is_fp8() && gpu.arch == CudaArch::Sm80 {
        return Err(refuse(spec, "sm_80 multiplies no e4m3; compile for `cuda:sm_90a`"));
    }
    let tiles = tuning.tiles(target, &gpu, gemm).into_iter();
    let emit = |variant| kernel(spec, gemm, tile::emit(UNNAMED, gemm, variant, &gpu));
    let mut kernels: Vec<CudaKernel> = tiles.map(emit).collect();
    // A device takes no variant that needs more than it has.
    let most = gpu.arch.common_shared_bytes();
    if kernels.last().is_some_and(|kernel| kernel.shared_bytes > most) {
        let common = tile::common(gemm, &gpu);
        kernels.extend(common.map(|tile| emit(Variant { rows: None, tile })));
    }
    Ok(kernels)
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
