//! Attention with `mma.sync` and `wgmma`, keys and values in bf16 or f16.

mod cluster;
mod pass;
mod wide;

use ir::{CudaArch, DType, Dim, KernelSpec, Target};

use super::{
    CHUNK, STRANDS, Sizes, WARPS,
    chunk::{Chunks, chunk_bytes, padded, stage_bytes},
    numbering, required, result_of,
    tile::{Numbering, Tiles, aligned},
    walk::Walk,
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Emitter, Val},
    lower::{attention::dense, cx::Cx},
};
use pass::{Form, Pass};

/// Rows of a large tile, sixteen a warp.
const LARGE: i64 = 64;
/// Rows of a small one.
const SMALL: i64 = 16;

/// Checks what the kernels need beyond what the operators' family does.
pub(super) fn check(spec: &KernelSpec, sizes: Sizes, target: &Target) -> Result<(), String> {
    let (q, k, v) = (required(spec, 0)?, required(spec, 1)?, required(spec, 2)?);
    let codes = codes(spec);
    let fits = codes || matches!(k.ty.dtype, DType::Bf16 | DType::F16);
    if !fits || k.ty.dtype != v.ty.dtype {
        return Err(format!("tensor cores take bf16, f16, i8 and f8e4m3, not {k} and {v}"));
    }
    let head = |n: i64| n % 8 == 0 && (8..=256).contains(&n);
    if !head(sizes.key) || !head(sizes.value) {
        return Err(format!("heads of {} and {}", sizes.key, sizes.value));
    }
    if numbering(spec) == Numbering::Batched && spec.operands.get(4).is_some_and(Option::is_some) {
        return Err("tensor cores take no bias".into());
    }
    let least = |form: Form| stage_bytes(sizes, codes) + others_bytes(sizes, form, codes);
    if [Form::Small, Form::Large].into_iter().any(|form| least(form) > shared(target)[1]) {
        return Err(format!("heads of {} and {} do not fit", sizes.key, sizes.value));
    }
    dense(q, q.ty.rank() - 1)?;
    if numbering(spec) != Numbering::Paged {
        dense(k, k.ty.rank() - 1)?;
    }
    let unit = if codes { 16 } else { 8 };
    for (layout, unit) in [(q, 8), (k, unit), (v, unit), (&spec.results[0], 8)] {
        if !aligned(layout, unit) {
            return Err(format!("{layout}: strides must be multiples of {unit}"));
        }
    }
    if codes {
        if sizes.value % 16 != 0 {
            return Err(format!("values of {} bytes", sizes.value));
        }
        for scales in [required(spec, 6)?, required(spec, 7)?] {
            if scales.ty.dtype != DType::F32 || !aligned(scales, 4) {
                return Err(format!("scales {scales}"));
            }
        }
    }
    Ok(())
}

/// Whether keys and values are codes of eight bits, with scales.
fn codes(spec: &KernelSpec) -> bool {
    let dtype = spec.operands[1].as_ref().map(|k| k.ty.dtype);
    matches!(dtype, Some(DType::I8 | DType::F8E4M3))
}

/// How the rows of a launch are divided.
#[derive(Clone, Copy)]
struct Variant {
    /// Rows of a tile.
    rows: i64,
    /// Blocks that share a tile, a strand each.
    cluster: i64,
    /// Launches with so many tokens at most.
    limit: Option<i64>,
}

/// What a tile has in shared memory besides the ring, and before the operands that codes become.
fn area_bytes(sizes: Sizes, form: Form, codes: bool) -> i64 {
    let queries = 2 * padded(sizes.key);
    match form {
        // Queries, and the strands' totals.
        Form::Large | Form::Wide => {
            let part = (padded(sizes.value) / 16 + parts(sizes) - 1) / parts(sizes) * 16;
            LARGE * queries + 4 * LARGE * parts(sizes) * part
        }
        // Queries, weights, of codes twice, and largest scores.
        Form::Small => {
            let weights = 2 * CHUNK * (1 + i64::from(codes));
            SMALL * (queries + weights) + 4 * WARPS * SMALL
        }
    }
}

/// The same, with those operands, where they are not made in registers.
fn others_bytes(sizes: Sizes, form: Form, codes: bool) -> i64 {
    let in_memory = codes && form != Form::Small;
    area_bytes(sizes, form, codes) + chunk_bytes(sizes) * i64::from(in_memory)
}

/// Bytes of shared memory of a block where a multiprocessor has two of them, and at most.
fn shared(target: &Target) -> [i64; 2] {
    if target.cpu == "sm_90a" { [113 << 10, 227 << 10] } else { [81 << 10, 163 << 10] }
}

/// Stages of the ring of a form: as many as there is memory for in two blocks of a multiprocessor,
/// at most three; or, if that is none, in one block, and fewer. Of codes there are fewer too.
fn stages(sizes: Sizes, form: Form, codes: bool, target: &Target) -> i64 {
    let [half, whole] = shared(target);
    let others = others_bytes(sizes, form, codes);
    let fit = |bytes: i64| (bytes - others) / stage_bytes(sizes, codes);
    let most = match form {
        // Where heads are that large, or codes, registers are few.
        Form::Large | Form::Wide => 1,
        Form::Small => 2,
    };
    let stages = if fit(half) > 0 { fit(half) } else { fit(whole).min(most) };
    stages.clamp(1, if codes { most } else { 3 })
}

/// Groups of warps that share the rows of a large tile, each with its part of the values' elements.
const fn parts(sizes: Sizes) -> i64 {
    if sizes.value > 128 { 2 } else { 1 }
}

/// The kernels, those for fewer rows first.
pub(super) fn kernels(spec: &KernelSpec, sizes: Sizes, target: &Target) -> Vec<CudaKernel> {
    let large = Variant { rows: LARGE, cluster: 1, limit: None };
    if target.cpu != "sm_90a" {
        let mut kernels = vec![kernel(spec, sizes, target, large)];
        if kernels[0].shared_bytes > CudaArch::Sm80.common_shared_bytes() {
            kernels.push(kernel(spec, sizes, target, Variant { rows: SMALL, ..large }));
        }
        return kernels;
    }
    let multiprocessors = target.cuda.map_or(1, |cuda| i64::from(cuda.multiprocessors));
    let few = (multiprocessors / sizes.kv_heads).max(1);
    let small = Variant { rows: SMALL, cluster: STRANDS, limit: Some(few) };
    let mut kernels = vec![kernel(spec, sizes, target, small)];
    if wide::fits(spec, sizes, target) {
        let limit = Some(wide::fewest(sizes, multiprocessors));
        kernels.push(kernel(spec, sizes, target, Variant { limit, ..large }));
        kernels.push(wide::kernel(spec, sizes, target));
    } else {
        kernels.push(kernel(spec, sizes, target, large));
    }
    kernels
}

/// Tokens of a launch.
fn tokens(cx: &Cx<'_>) -> Dim {
    let shape = cx.operand(0).shape;
    if numbering(cx.spec) == Numbering::Batched {
        return shape[0].clone() * shape[2].clone();
    }
    shape[0].clone()
}

/// Which arguments have strides of sixteen bytes: all but tables, offsets and positions.
fn aligned_args(spec: &KernelSpec) -> impl Fn(u32) -> bool {
    let (result, codes) = (result_of(spec), codes(spec));
    move |arg| arg < 3 || arg == result || (codes && (arg == 6 || arg == 7))
}

fn kernel(spec: &KernelSpec, sizes: Sizes, target: &Target, variant: Variant) -> CudaKernel {
    let threads = u32::try_from(32 * WARPS * parts(sizes)).expect("few warps");
    let mut cx = Cx::cuda(spec, threads);
    let small = padded(sizes.key) <= 64 && padded(sizes.value) <= 64;
    if target.cpu == "sm_90a" && small && !codes(spec) {
        cx.e = cx.e.with_blocks(3);
    }
    let numbering = numbering(spec);
    let tiles = Tiles { cx: &cx, sizes, numbering, rows: variant.rows };
    let bytes = emit(&tiles, target, variant);
    let grid = [tiles.count() * Dim::from(variant.cluster), Dim::from(sizes.kv_heads), 1.into()];
    let tokens = tokens(&cx);
    let exchange = cluster::bytes(sizes) * i64::from(variant.cluster > 1);
    let shared = u32::try_from(bytes.max(exchange)).expect("chunks fit");
    let mut kernel = cx.finish_cuda(grid, shared, &[], aligned_args(spec));
    kernel.cluster = u32::try_from(variant.cluster).expect("few blocks");
    kernel.limit = variant.limit.map(|most| (tokens, most));
    kernel
}

/// Emits the kernel and returns how many bytes of shared memory it needs.
fn emit(tiles: &Tiles<'_>, target: &Target, variant: Variant) -> i64 {
    let cx = tiles.cx;
    let e = &cx.e;
    let (mut x, mut rank) = (e.block('x'), None);
    if variant.cluster > 1 {
        rank = Some(e.rem_unsigned(x, e.i32(variant.cluster)));
        x = e.div_unsigned(x, e.i32(variant.cluster));
    } else if cx.spec.attrs.str("mask") == "causal" {
        // Later tiles see more: they begin first.
        x = e.add_const(e.sub(e.special("nctaid.x"), x), -1);
    }
    let tile = tiles.find(x, e.block('y'));
    let codes = codes(cx.spec);
    let ring = |form: Form| {
        let stages = stages(tiles.sizes, form, codes, target);
        (stages, stages * stage_bytes(tiles.sizes, codes))
    };
    let attend = |form: Form, rank: Option<Val>| {
        let seen = tiles.seen(tile);
        let [from, to] = seen.any;
        let lo = e.div_unsigned(from, e.i32(CHUNK));
        let walk = Walk { lo, hi: e.div_ceil_const(to, CHUNK), only: rank };
        let (stages, bytes) = ring(form);
        let area = e.add_const(e.shared(), bytes);
        let work = e.add_const(area, area_bytes(tiles.sizes, form, codes));
        let chunks = Chunks::new(cx, tiles, stages, work);
        let pass = Pass::new(cx, tiles, &chunks, (tile, seen), (form, area));
        let (maxima, sums) = pass.run(walk);
        match rank {
            None => pass.store(&maxima, &sums),
            Some(rank) => pass.combine(rank, &maxima, &sums),
        }
    };
    e.if_then(e.cmp(Cmp::Gt, tile.rows, e.i32(0)), || {
        if variant.rows == SMALL {
            attend(Form::Small, rank);
            return;
        }
        let few = e.cmp(Cmp::Le, tile.rows, e.i32(SMALL));
        e.either(few, || attend(Form::Small, None), || attend(Form::Large, None));
    });
    let forms =
        if variant.rows == SMALL { &[Form::Small][..] } else { &[Form::Small, Form::Large] };
    let bytes = forms.iter().map(|form| ring(*form).1 + others_bytes(tiles.sizes, *form, codes));
    bytes.max().unwrap_or(0)
}

/// A column as an offset of elements.
fn column(e: &Emitter, index: Val) -> Val {
    e.cast(index, Elem::I64)
}
