//! Products of rows sorted by expert on GPUs, by [`crate::kernels::gemm::tiled`].
//!
//! How many tiles an expert's rows make is data. There are blocks for as many as there can be; each
//! finds its own by counting tiles up to it, 32 experts at a time. Rows of no expert are two groups
//! more, whose tiles are zero.

use ir::{DType, Dim, KernelSpec, Target};

use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
    kernels::{
        gemm::{
            PANEL,
            tiled::{Engine, Place, Run, Source, Task},
        },
        matmul::Activation,
    },
    lower::{
        LowerError,
        cx::{Cx, refuse},
        gemm::tiled::{self, Kind},
        linear::activation,
        view::memory_elem,
    },
};

/// Rows for each expert up to which kernels for few rows, and for more, are used.
const FEW: [i64; 2] = [24, 96];

/// What a specification asks for.
struct Experts {
    count: i64,
    k: i64,
    n: i64,
    gated: bool,
    activation: Activation,
}

impl Experts {
    fn of(spec: &KernelSpec) -> Result<Experts, String> {
        let operand = |i: usize| spec.operands.get(i).and_then(Option::as_ref);
        let (Some(x), Some(w), Some(offsets)) = (operand(0), operand(1), operand(2)) else {
            return Err("takes x, packed weights and offsets".into());
        };
        let size = |dim: &Dim| dim.as_const().filter(|size| *size > 0);
        let float = |dtype| matches!(dtype, DType::F32 | DType::Bf16 | DType::F16);
        if !w.is_contiguous() || !offsets.is_contiguous() || offsets.ty.dtype != DType::I32 {
            return Err("packed weights and offsets must be contiguous".into());
        }
        if operand(3).is_some_and(|bias| !bias.is_contiguous()) {
            return Err("the bias must be contiguous".into());
        }
        let narrow = w.ty.dtype != DType::F32 && x.ty.dtype != DType::F32;
        if !float(x.ty.dtype) || !float(w.ty.dtype) || (narrow && x.ty.dtype != w.ty.dtype) {
            return Err(format!("{} times {}", x.ty, w.ty));
        }
        Ok(Experts {
            count: size(&w.ty.shape[0]).ok_or("the experts must be constant")?,
            k: size(&x.ty.shape[1]).ok_or("the inner dimension must be constant")?,
            n: spec.attrs.int("n"),
            gated: spec.op == "grouped_gated_linear",
            activation: activation(spec.attrs.str("act"))?,
        })
    }

    /// Columns of a weight in whole panels.
    fn columns(&self) -> i64 {
        (self.n + PANEL - 1) / PANEL * PANEL * if self.gated { 2 } else { 1 }
    }
}

pub(in crate::lower) fn kernels(
    spec: &KernelSpec,
    target: &Target,
) -> Result<Vec<CudaKernel>, LowerError> {
    if target.cuda.is_none() {
        return Err(refuse(spec, format!("{target} is no GPU")));
    }
    let experts = Experts::of(spec).map_err(|reason| refuse(spec, reason))?;
    let weight = spec.operands[1].as_ref().expect("checked");
    let engines = Kind::of(weight.ty.dtype).engines();
    let rows = &spec.results[0].ty.shape[0];
    let limits = [Some(FEW[0]), Some(FEW[1]), None];
    let kernel = |(engine, each): (Box<dyn Engine>, Option<i64>)| {
        let mut kernel = kernel(spec, &experts, &*engine);
        kernel.limit = each.map(|each| (rows.clone(), each * experts.count));
        kernel
    };
    Ok(engines.into_iter().zip(limits).map(kernel).collect())
}

fn kernel(spec: &KernelSpec, experts: &Experts, engine: &dyn Engine) -> CudaKernel {
    let cx = Cx::cuda(spec, engine.threads()).with_blocks(engine.resident());
    let e = &cx.e;
    let [m, n] = engine.tile();
    let across = (experts.columns() + n - 1) / n;
    let block = e.block('x');
    let slot = e.div_unsigned(block, e.i32(across));
    let column = e.mul_const(e.rem_unsigned(block, e.i32(across)), n);
    let found = find(&cx, experts, slot, m);
    e.if_then(found.exists, || tile(&cx, experts, engine, &found, column));
    // Each group's last tile may have a single row.
    let slots = spec.results[0].ty.shape[0].ceil_div(m) + Dim::from(experts.count + 2);
    let grid = [slots * Dim::from(across), 1.into(), 1.into()];
    cx.finish_cuda(grid, engine.shared_bytes(), &[], |arg| arg != 2)
}

/// A block's group and rows.
struct Found {
    exists: Val,
    /// The expert, plus one; zero, or one more than there are experts, for rows of none.
    group: Val,
    /// First row, and the end of the group's.
    first: Val,
    end: Val,
}

/// The group and rows of tile `slot`.
fn find(cx: &Cx<'_>, experts: &Experts, slot: Val, m: i64) -> Found {
    let e = &cx.e;
    let lane = e.and(e.thread(), e.i32(31));
    let rows = e.cast(cx.size(&cx.spec.results[0].ty.shape[0]), Elem::I32);
    let offsets = e.arg(2);
    let bound = |group: Val| {
        let index = e.max(e.i32(0), e.min(e.add_const(group, -1), e.i32(experts.count)));
        let offset = e.load_at(Ty::Scalar(Elem::I32), offsets, e.cast(index, Elem::I64));
        let inner = e.max(e.i32(0), e.min(offset, rows));
        let inner = e.select(e.cmp(Cmp::Gt, group, e.i32(0)), inner, e.i32(0));
        e.select(e.cmp(Cmp::Gt, group, e.i32(experts.count + 1)), rows, inner)
    };
    let (mut before, mut own) = (e.i32(0), [e.i32(0); 3]);
    for chunk in (0..experts.count + 2).step_by(32) {
        let group = e.add_const(lane, chunk);
        let (first, end) = (bound(group), bound(e.add_const(group, 1)));
        let count = e.max(e.i32(0), e.sub(end, first));
        let tiles = e.div_ceil_const(count, m);
        let up = |value: Val, by: i64| {
            let text = format!("shfl.sync.up.b32 $0, $1, {by}, 0, -1;");
            let below = e.ptx_values(&text, &[value.ty()], &[value])[0];
            let below = e.select(e.cmp(Cmp::Ge, lane, e.i32(by)), below, e.i32(0));
            e.add(value, below)
        };
        let until = [1, 2, 4, 8, 16].into_iter().fold(tiles, up);
        let until = e.add(before, until);
        let from = e.sub(until, tiles);
        let hit = e.and(e.cmp(Cmp::Ge, slot, from), e.cmp(Cmp::Lt, slot, until));
        let first = e.add(first, e.mul_const(e.sub(slot, from), m));
        own = [(own[0], group), (own[1], first), (own[2], end)]
            .map(|(old, new)| e.select(hit, new, old));
        let text = "shfl.sync.idx.b32 $0, $1, 31, 31, -1;";
        before = e.ptx_values(text, &[until.ty()], &[until])[0];
    }
    // One lane has it, the others have zeros.
    let [group, first, end] = own.map(|value| {
        [16, 8, 4, 2, 1].into_iter().fold(value, |v, mask| e.or(v, e.shuffle_xor(v, mask)))
    });
    Found { exists: e.cmp(Cmp::Lt, slot, before), group, first, end }
}

fn tile(cx: &Cx<'_>, experts: &Experts, engine: &dyn Engine, found: &Found, column: Val) {
    let e = &cx.e;
    let (x, w) = (cx.operand(0), cx.operand(1));
    let Found { group, first, end, .. } = *found;
    let expert = e.add_const(group, -1);
    let inside =
        e.and(e.cmp(Cmp::Ge, expert, e.i32(0)), e.cmp(Cmp::Lt, expert, e.i32(experts.count)));
    let mut output = tiled::output(cx, &cx.result(0));
    output.limits[0] = end;
    let origin = [first, column];
    let product = || {
        let wide = e.cast(expert, Elem::I64);
        let elem = memory_elem(w.dtype);
        let mut a = tiled::source(cx, &x, 0, 1);
        a.lines = end;
        let b = Source {
            base: e.at(w.base, elem, e.mul_const(wide, experts.columns() * experts.k)),
            elem,
            place: Place::Panels(experts.k),
            lines: e.i32(experts.columns()),
            whole: true,
        };
        let sums = engine.sums(e, &Task { a, b, k: e.i32(experts.k), first: origin });
        let mut output = output;
        output.activation = experts.activation;
        output.bias = cx.optional(3).map(|bias| {
            let elem = memory_elem(bias.dtype);
            (e.at(bias.base, elem, e.mul_const(wide, experts.n)), elem)
        });
        engine.each(e, origin, &sums, experts.gated, &mut |run| output.store(e, run));
    };
    let nothing = || {
        let zeros = vec![e.f32(0.0); engine.count()];
        engine.each(e, origin, &zeros, experts.gated, &mut |run| {
            // What the activation makes of zero need not be zero.
            output.store(e, &Run { up: None, ..*run });
        });
    };
    e.either(inside, product, nothing);
}
