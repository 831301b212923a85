//! `quantize_rows`: activations as blocks of a scale and integers; for GPUs that have it, of e4m3.

use ir::{
    CudaArch, DType, Dim, E4M3_BLOCK, KernelSpec, QUANT_BLOCK, Target, quant_row_bytes,
    quant_row_limit,
};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, LANES, refuse},
    e4m3::LARGEST,
    elementwise::maximum,
    flat,
    space::Space,
    view::{View, strides},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Emitter, Ty, Val},
};

/// The family.
pub(super) struct QuantizeRows;

/// 32 values are two vectors.
const HALVES: i64 = QUANT_BLOCK as i64 / LANES as i64;

impl Lower for QuantizeRows {
    fn ops(&self) -> &'static [&'static str] {
        &["quantize_rows"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        let Some(Some(x)) = spec.operands.first() else { return Err("takes x".into()) };
        if is_e4m3(spec) {
            return Err("CPUs have no e4m3; compile for `cuda:sm_90a`".into());
        }
        if x.ty.dtype != DType::F32 {
            return Err(format!("{x}: takes f32"));
        }
        rows(spec)
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let (x, y) = (cx.operand(0), cx.result(0));
        let (k, lead) = x.shape.split_last().expect("supported");
        let k = k.as_const().expect("supported");
        let blocks = k.div_euclid(QUANT_BLOCK as i64);
        let bits = if spec.attrs.int("weight_bits") == 8 { 8 } else { 4 };
        let row_bytes =
            Dim::from(quant_row_bytes(bits)) * Dim::from(k).ceil_div(QUANT_BLOCK as i64);
        let outer = Space::new(lead, &[x.strides[..lead.len()].to_vec()]).merged();
        let tiles = cx.share_rows(&outer.points(), &Dim::from(k), |row| {
            let e = &cx.e;
            let from = x.at(&cx, outer.offsets(&cx, row)[0]);
            let to = y.at(&cx, cx.scale(row, &row_bytes));
            e.for_each(e.i64(0), e.i64(blocks), 1, |block| {
                let start = e.mul_const(block, QUANT_BLOCK as i64);
                write_block(&cx, &to, block, bits, |half| {
                    from.load_strip(&cx, e.add_const(start, half * 16), &Dim::from(1), LANES)
                });
            });
            let rest = k % QUANT_BLOCK as i64;
            if rest > 0 {
                write_block(&cx, &to, e.i64(blocks), bits, |half| {
                    let count = (rest - half * 16).clamp(0, 16);
                    let mask = e.mask_below(e.i64(count), LANES);
                    let at =
                        e.at_const(from.base, Elem::F32, blocks * QUANT_BLOCK as i64 + half * 16);
                    e.load_masked(at, mask, e.zero(Emitter::f32s(LANES)))
                });
            }
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        if !is_e4m3(spec) {
            self.supports(spec).map_err(|reason| refuse(spec, reason))?;
            return Ok(vec![warps(spec)]);
        }
        let arch = target.cuda.map(|gpu| gpu.arch);
        if arch != Some(CudaArch::Sm90a) {
            let reason = format!("{} has no e4m3; compile for `cuda:sm_90a`", target.cpu);
            return Err(refuse(spec, reason));
        }
        rows(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![e4m3(spec)])
    }
}

fn is_e4m3(spec: &KernelSpec) -> bool {
    spec.attrs.str("format") == "e4m3"
}

/// Checks that rows are floats and dense.
fn rows(spec: &KernelSpec) -> Result<(), String> {
    let Some(Some(x)) = spec.operands.first() else { return Err("takes x".into()) };
    let (last, y) = (x.ty.rank().wrapping_sub(1), &spec.results[0]);
    let is_float = matches!(x.ty.dtype, DType::F32 | DType::Bf16 | DType::F16);
    if !is_float || x.ty.shape.last().and_then(Dim::as_const).is_none() {
        return Err(format!("{x}: takes floats with a constant last axis"));
    }
    if !strides(x)[last].is(1) && !x.ty.shape[last].is(1) {
        return Err(format!("{x}: the last axis must be dense"));
    }
    if y.is_contiguous() { Ok(()) } else { Err(format!("{y} must be contiguous")) }
}

/// A warp has a block of 128, a lane four of its values.
fn e4m3(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let (x, y) = (cx.operand(0), cx.result(0));
    let (k, lead) = x.shape.split_last().expect("supported");
    let (size, width) = (k.as_const().expect("supported"), E4M3_BLOCK as i64);
    let blocks = (size + width - 1) / width;
    let slots = (blocks + 3) / 4 * 4;
    let row_bytes = blocks * width + 4 * slots;
    let outer = Space::new(lead, &[x.strides[..lead.len()].to_vec()]).merged();
    let steps: Vec<&Dim> = outer.strides[0].iter().collect();
    let whole = Cx::in_strips(k, &steps, 4);
    let count = outer.points() * Dim::from(32 * blocks);
    let grid = cx.each_thread(&count, |point| {
        let lane = e.rem_unsigned(point, e.i64(32));
        let block = e.div_unsigned(point, e.i64(32));
        let row = e.div_unsigned(block, e.i64(blocks));
        let block = e.rem_unsigned(block, e.i64(blocks));
        let column = e.add(e.mul_const(block, width), e.mul_const(lane, 4));
        let from = x.at(&cx, outer.offsets(&cx, row)[0]);
        let inside = |at: i64| e.cmp(Cmp::Lt, e.add_const(column, at), e.i64(size));
        let (zero, f32s) = (e.f32(0.0), Ty::Scalar(Elem::F32));
        let x: Vec<Val> = if whole {
            let load = || {
                let four = from.load_strip(&cx, column, &Dim::from(1), 4);
                (0..4).map(|i| e.extract(four, i)).collect()
            };
            e.if_else(inside(0), &[f32s; 4], load, || vec![zero; 4])
        } else {
            let load = |at: i64| vec![from.load(&cx, e.add_const(column, at))];
            let one = |at| e.if_else(inside(at), &[f32s], || load(at), || vec![zero])[0];
            (0..4).map(one).collect()
        };
        let larger = |a, b| maximum(e, a, b);
        let most = x.iter().map(|x| e.abs(*x)).reduce(larger).expect("four");
        let most = cx.fold_warp(most, larger);
        let inverse = inverse(e, e.f32(LARGEST), most);
        let scaled: Vec<Val> = x.iter().map(|x| e.mul(*x, inverse)).collect();
        // Of a pair, the first operand becomes the upper half.
        let text = "{\n.reg .b16 low, high;\ncvt.rn.satfinite.e4m3x2.f32 low, $2, \
                    $1;\ncvt.rn.satfinite.e4m3x2.f32 high, $4, $3;\nmov.b32 $0, {low, high};\n}";
        let word = e.ptx_pure(text, &[Ty::Scalar(Elem::I32)], &scaled)[0];
        let to = y.at(&cx, e.mul_const(row, row_bytes)).base;
        e.store_whole(word, e.at(to, Elem::I8, column));
        // The last warp of a row has the zeros behind the scales too.
        let pads = e.cmp(Cmp::Lt, e.add(block, lane), e.i64(slots));
        let last = e.cmp(Cmp::Eq, block, e.i64(blocks - 1));
        let first = e.cmp(Cmp::Eq, lane, e.i64(0));
        e.if_then(e.or(first, e.and(last, pads)), || {
            let scale = e.select(first, e.div(most, e.f32(LARGEST)), zero);
            let at = e.add(e.i64(blocks * width), e.shl(e.add(block, lane), 2));
            e.store_whole(scale, e.at(to, Elem::I8, at));
        });
    });
    cx.finish_cuda(grid, 0, &[], |arg| whole || arg == 1)
}

/// On a GPU a warp has a block, a lane for each number.
fn warps(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let (x, y) = (cx.operand(0), cx.result(0));
    let (k, lead) = x.shape.split_last().expect("supported");
    let blocks = k.ceil_div(QUANT_BLOCK as i64);
    let bits = if spec.attrs.int("weight_bits") == 8 { 8 } else { 4 };
    let outer = Space::new(lead, &[x.strides[..lead.len()].to_vec()]).merged();
    let count = outer.points() * blocks.clone() * Dim::from(QUANT_BLOCK);
    let grid = cx.each_thread(&count, |point| {
        let lane = e.rem_unsigned(point, e.i64(QUANT_BLOCK as i64));
        let block = e.div_unsigned(point, e.i64(QUANT_BLOCK as i64));
        let row = e.div_unsigned(block, cx.size(&blocks));
        let column = e.rem_unsigned(block, cx.size(&blocks));
        let column = e.add(e.mul_const(column, QUANT_BLOCK as i64), lane);
        let (zero, ty) = (e.f32(0.0), Ty::Scalar(Elem::F32));
        let x = e.if_else(
            e.cmp(Cmp::Lt, column, cx.size(k)),
            &[ty],
            || vec![x.load(&cx, e.add(outer.offsets(&cx, row)[0], column))],
            || vec![zero],
        )[0];
        let most = cx.fold_warp(e.abs(x), |a, b| maximum(e, a, b));
        let limit = e.f32(f32::from(quant_row_limit(bits)));
        let v = e.round_even(e.mul(x, inverse(e, limit, most)));
        let q = e.cast(e.select(e.cmp(Cmp::Eq, v, v), v, zero), Elem::I32);
        let to = y.at(&cx, e.mul_const(block, quant_row_bytes(bits) as i64)).base;
        let first = e.cmp(Cmp::Eq, lane, e.i64(0));
        e.if_then(first, || e.store(e.div(most, limit), to));
        if bits == 8 {
            let values = e.at_const(to, Elem::I8, 4);
            e.store_at(e.cast(q, Elem::I16), values, lane);
        } else {
            let sum = cx.fold_warp(q, |a, b| e.add(a, b));
            e.if_then(first, || e.store(sum, e.at_const(to, Elem::I8, 4)));
            e.store_at(e.cast(q, Elem::I8), e.at_const(to, Elem::I8, 8), lane);
        }
    });
    cx.finish_cuda(grid, 0, &[], |_| false)
}

fn write_block(cx: &Cx<'_>, to: &View, block: Val, bits: usize, load: impl Fn(i64) -> Val) {
    let e = &cx.e;
    let x: Vec<Val> = (0..HALVES).map(load).collect();
    let most = x.iter().map(|x| e.abs(*x)).reduce(|a, b| maximum(e, a, b)).expect("two halves");
    let most = lanes_max(e, most);
    let limit = e.f32(f32::from(quant_row_limit(bits)));
    let inverse = inverse(e, limit, most);
    let to = to.at(cx, e.mul_const(block, quant_row_bytes(bits) as i64));
    e.store(e.div(most, limit), to.base);
    let mut sum = e.zero(Ty::Vector(Elem::I32, LANES));
    for (half, x) in (0..).zip(x) {
        let v = e.round_even(e.mul(x, e.splat(inverse, LANES)));
        // Zero where a NaN or an infinity made the scale not finite.
        let v = e.select(e.cmp(Cmp::Eq, v, v), v, e.zero(v.ty()));
        let q = e.cast(v, Elem::I32);
        if bits == 8 {
            e.store(e.cast(q, Elem::I16), e.at_const(to.base, Elem::I8, 4 + half * 32));
        } else {
            sum = e.add(sum, q);
            e.store(e.cast(q, Elem::I8), e.at_const(to.base, Elem::I8, 8 + half * 16));
        }
    }
    if bits == 4 {
        e.store(e.reduce_add(sum), e.at_const(to.base, Elem::I8, 4));
    }
}

/// `limit / most`; zero where that is not finite: of zeros, NaN, and numbers that are too small for
/// their scale.
pub(super) fn inverse(e: &Emitter, limit: Val, most: Val) -> Val {
    let inverse = e.div(limit, most);
    e.select(e.cmp(Cmp::Lt, inverse, e.f32(f32::INFINITY)), inverse, e.f32(0.0))
}

/// The largest lane; NaN if any is.
pub(super) fn lanes_max(e: &Emitter, v: Val) -> Val {
    let mut v = v;
    while v.lanes() > 1 {
        let half = v.lanes() / 2;
        v = maximum(e, e.slice(v, 0, half), e.slice(v, half, half));
    }
    v
}
