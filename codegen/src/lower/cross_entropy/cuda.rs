//! Losses of a language model's head on GPUs, by [`crate::kernels::gemm::tiled`].
//!
//! A block has 64 rows and walks the vocabulary, a tile of columns at a time, whose logits stay in
//! registers. A thread keeps the greatest logit and the sum of exponentials of its own columns of
//! each of its rows; lanes and then warps put theirs together when all columns are done, in one
//! order: a row's bits depend on nothing but the row. Milakov & Gimelshein 2018, arXiv:1805.02867.
//!
//! Gradients of logits are made in a second pass over the result, where each thread finds the
//! logits that it has written itself.

mod grad;

use ir::{Dim, KernelSpec};

use super::CrossEntropy;
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Emitter, Val},
    kernels::gemm::tiled::{Engine, Output, Source, Task, mma, simt},
    lower::{
        cx::Cx,
        gemm::tiled::{Kind, output, source},
    },
    math,
};

/// Numbers of a row and a thread: greatest logit, sum of exponentials, the target's logit.
const STATS: usize = 3;

/// By the type of w, one for all numbers of rows.
fn engine(spec: &KernelSpec) -> Result<Box<dyn Engine>, String> {
    let weight = spec.operands[1].as_ref().ok_or("takes x, w and targets")?;
    Ok(match Kind::of(weight.ty.dtype) {
        Kind::F32 => Box::new(simt::Tile::WIDE),
        Kind::Half(elem) => Box::new(mma::Tile::wide(elem)),
    })
}

/// Emits the kernel of a loss, or of its gradient.
pub(super) fn kernel(spec: &KernelSpec) -> Result<CudaKernel, String> {
    if spec.op == "linear_cross_entropy_grad" {
        return grad::kernel(spec);
    }
    let width = CrossEntropy::width(spec)?;
    let engine = engine(spec)?;
    let cx = Cx::cuda(spec, engine.threads()).with_blocks(engine.resident());
    let e = &cx.e;
    let [x, w] = [0, 1].map(|i| cx.operand(i));
    let int = |dim: &Dim| e.cast(cx.size(dim), Elem::I32);
    let [m, n] = engine.tile();
    let head = Head {
        cx: &cx,
        engine: &*engine,
        a: source(&cx, &x, 0, 1),
        b: source(&cx, &w, 0, 1),
        k: e.i32(width),
        first: e.mul_const(e.block('x'), m),
        tokens: int(&x.shape[0]),
        words: int(&w.shape[0]),
        chunks: int(&w.shape[0].ceil_div(n)),
    };
    head.emit();
    let [along, across] = engine.warps();
    let stats = 4 * STATS * head.rows_of_warp() * usize::try_from(along * across).expect("few");
    let shared = engine.shared_bytes() + u32::try_from(stats).expect("small");
    let dlogits = has_dlogits(spec).then(|| (spec.operands.len() + 1, head.dlogits().lanes > 1));
    let units = [(0, head.a.whole), (1, head.b.whole)].into_iter().chain(dlogits);
    let units: Vec<usize> = units.filter(|(_, units)| *units).map(|(arg, _)| arg).collect();
    let grid = [x.shape[0].ceil_div(m), 1.into(), 1.into()];
    Ok(cx.finish_cuda(grid, shared, &[], |arg| units.contains(&(arg as usize))))
}

/// Whether the second result is gradients of logits, not logarithms.
fn has_dlogits(spec: &KernelSpec) -> bool {
    spec.op == "linear_cross_entropy_dlogits"
}

/// Emission state.
struct Head<'c> {
    cx: &'c Cx<'c>,
    engine: &'c dyn Engine,
    a: Source,
    b: Source,
    k: Val,
    /// The block's first row.
    first: Val,
    /// Numbers of rows, of columns and of tiles of columns, i32.
    tokens: Val,
    words: Val,
    chunks: Val,
}

/// What is known of a row of a thread.
#[derive(Clone, Copy)]
struct Row {
    /// i32.
    index: Val,
    /// i32, and whether it is a word.
    target: Val,
    counts: Val,
}

impl Head<'_> {
    fn rows_of_warp(&self) -> usize {
        8 * self.engine.lines()
    }

    fn emit(&self) {
        let e = &self.cx.e;
        let dlogits = has_dlogits(self.cx.spec).then(|| self.dlogits());
        let rows = self.rows();
        let start = [e.f32(f32::NEG_INFINITY), e.f32(0.0), e.f32(0.0)];
        let init = start.repeat(rows.len());
        let stats = e.for_loop(e.i32(0), self.chunks, 1, &init, |chunk, stats| {
            let origin = self.origin(chunk);
            let task = Task { a: self.a, b: self.b, k: self.k, first: origin };
            let sums = self.engine.sums(e, &task);
            if let Some(dlogits) = &dlogits {
                self.engine.each(e, origin, &sums, false, &mut |run| dlogits.store(e, run));
            }
            self.fold(&rows, origin, &sums, stats)
        });
        let totals = self.totals(&rows, &stats);
        self.losses(&rows, &totals, dlogits.is_none());
        if let Some(dlogits) = dlogits {
            self.gradients(&rows, &totals, &dlogits);
        }
    }

    fn dlogits(&self) -> Output {
        output(self.cx, &self.cx.result(1))
    }

    fn origin(&self, chunk: Val) -> [Val; 2] {
        [self.first, self.cx.e.mul_const(chunk, self.engine.tile()[1])]
    }

    /// The thread's rows.
    fn rows(&self) -> Vec<Row> {
        let e = &self.cx.e;
        let targets = self.cx.operand(2);
        let zeros = vec![e.f32(0.0); self.engine.count()];
        let mut rows: Vec<Row> = Vec::new();
        self.engine.each(e, [self.first, e.i32(0)], &zeros, false, &mut |run| {
            if run.line == rows.len() {
                let last = e.add_const(self.tokens, -1);
                let at = e.cast(e.min(run.row, last), Elem::I64);
                let target = targets.load(self.cx, self.cx.scale(at, &targets.strides[0]));
                let above = e.cmp(Cmp::Ge, target, e.i32(0));
                let counts = e.and(above, e.cmp(Cmp::Lt, target, self.words));
                rows.push(Row { index: run.row, target, counts });
            }
        });
        rows
    }

    /// Takes a tile's logits to the statistics.
    fn fold(&self, rows: &[Row], origin: [Val; 2], sums: &[Val], stats: &[Val]) -> Vec<Val> {
        let e = &self.cx.e;
        let lowest = e.f32(f32::NEG_INFINITY);
        let mut logits: Vec<Vec<(Val, Val)>> = vec![Vec::new(); rows.len()];
        self.engine.each(e, origin, sums, false, &mut |run| {
            for (i, sum) in (0..).zip(run.sums) {
                let column = e.add_const(run.column, i);
                let inside = e.cmp(Cmp::Lt, column, self.words);
                logits[run.line].push((column, e.select(inside, *sum, lowest)));
            }
        });
        let mut next = Vec::new();
        for ((row, logits), stats) in rows.iter().zip(&logits).zip(stats.chunks_exact(STATS)) {
            let [before, sum, picked] = *stats else { unreachable!("three of a row") };
            let max = logits.iter().fold(before, |max, (_, logit)| e.max(max, *logit));
            let some = e.cmp(Cmp::Gt, max, lowest);
            let shift = e.select(some, max, e.f32(0.0));
            let kept = e.mul(sum, math::exp(e, e.sub(before, shift)));
            let power = |logit: Val| math::exp(e, e.sub(logit, shift));
            let own = logits.iter().map(|(_, logit)| power(*logit));
            let own = own.reduce(|sum, power| e.add(sum, power)).expect("a row has columns");
            let pick = |picked: Val, (column, logit): &(Val, Val)| {
                e.select(e.cmp(Cmp::Eq, *column, row.target), *logit, picked)
            };
            next.extend([max, e.add(kept, own), logits.iter().fold(picked, pick)]);
        }
        next
    }

    /// Two parts of a row's statistics as one.
    fn join(&self, [one, two]: [[Val; STATS]; 2]) -> [Val; STATS] {
        let e = &self.cx.e;
        let max = e.max(one[0], two[0]);
        let shift = e.select(e.cmp(Cmp::Gt, max, e.f32(f32::NEG_INFINITY)), max, e.f32(0.0));
        let part = |part: &[Val]| e.mul(part[1], math::exp(e, e.sub(part[0], shift)));
        // The target's logit is in one of them; the others have zero.
        [max, e.add(part(&one), part(&two)), e.add(one[2], two[2])]
    }

    /// Logarithm of the sum of exponentials, and the target's logit, of each of the thread's rows.
    fn totals(&self, rows: &[Row], stats: &[Val]) -> Vec<[Val; 2]> {
        let e = &self.cx.e;
        let [along, across] = self.engine.warps();
        let lane = e.and(e.thread(), e.i32(31));
        let warp = e.shr(e.thread(), 5);
        let leads = e.cmp(Cmp::Eq, e.and(lane, e.i32(3)), e.i32(0));
        let each = i64::try_from(4 * STATS * self.rows_of_warp()).expect("small");
        let base = e.add_const(e.shared(), self.engine.shared_bytes().into());
        let own = e.mul_const(e.shr(lane, 2), i64::try_from(4 * STATS).expect("small"));
        let line = |i: usize| i64::try_from(4 * STATS * 8 * i).expect("small");
        for (i, part) in stats.chunks_exact(STATS).enumerate() {
            let mut part: [Val; STATS] = part.try_into().expect("three of a row");
            for mask in [1, 2] {
                part = self.join([part, part.map(|value| e.shuffle_xor(value, mask))]);
            }
            let at = e.add(base, e.add(e.mul_const(warp, each), own));
            e.if_then(leads, || {
                for (j, value) in (0..).zip(part) {
                    e.ptx(&format!("st.shared.f32 [$0+{}], $1;", line(i) + 4 * j), &[at, value]);
                }
            });
        }
        e.barrier(Barrier::Block);
        let first = e.rem_unsigned(warp, e.i32(along));
        let at = e.add(base, e.add(e.mul_const(first, each), own));
        let total = |i: usize| {
            let part = |warp: i64| {
                let load = |j: i64| {
                    let offset = warp * along * each + line(i) + 4 * j;
                    let text = format!("ld.shared.f32 $0, [$1+{offset}];");
                    e.ptx_values(&text, &[Emitter::f32s(1)], &[at])[0]
                };
                [load(0), load(1), load(2)]
            };
            let [max, sum, picked] =
                (1..across).fold(part(0), |so_far, warp| self.join([so_far, part(warp)]));
            [e.add(math::log(e, sum), max), picked]
        };
        (0..rows.len()).map(total).collect()
    }

    /// Writes losses and, where they are a result, logarithms.
    fn losses(&self, rows: &[Row], totals: &[[Val; 2]], with_lse: bool) {
        let (cx, e) = (self.cx, &self.cx.e);
        let lane = e.and(e.thread(), e.i32(3));
        let across = e.div_unsigned(e.shr(e.thread(), 5), e.i32(self.engine.warps()[0]));
        let leads = e.cmp(Cmp::Eq, e.or(lane, across), e.i32(0));
        for (row, [lse, picked]) in rows.iter().zip(totals) {
            let inside = e.cmp(Cmp::Lt, row.index, self.tokens);
            e.if_then(e.and(leads, inside), || {
                let at = e.cast(row.index, Elem::I64);
                let write = |i: usize, value: Val| {
                    let to = cx.result(i);
                    to.store(cx, value, cx.scale(at, &to.strides[0]));
                };
                let loss = e.select(row.counts, e.sub(*lse, *picked), e.f32(0.0));
                write(0, loss);
                if with_lse {
                    write(1, *lse);
                }
            });
        }
    }

    /// From logits in the result to their gradients.
    fn gradients(&self, rows: &[Row], totals: &[[Val; 2]], dlogits: &Output) {
        let (cx, e) = (self.cx, &self.cx.e);
        let dloss = cx.operand(3);
        let scale = |row: &Row| {
            let last = e.add_const(self.tokens, -1);
            let at = e.cast(e.min(row.index, last), Elem::I64);
            dloss.load(cx, cx.scale(at, &dloss.strides[0]))
        };
        let scales: Vec<Val> = rows.iter().map(scale).collect();
        let zeros = vec![e.f32(0.0); self.engine.count()];
        e.for_each(e.i32(0), self.chunks, 1, |chunk| {
            self.engine.each(e, self.origin(chunk), &zeros, false, &mut |run| {
                let (row, [lse, picked]) = (&rows[run.line], totals[run.line]);
                let scale = scales[run.line];
                let gradient = |column: Val, logit: Val| {
                    let weight = math::exp(e, e.sub(logit, lse));
                    let hit = e.cmp(Cmp::Eq, column, row.target);
                    let own = e.sub(math::exp(e, e.sub(picked, lse)), e.f32(1.0));
                    let gradient = e.mul(e.select(hit, own, weight), scale);
                    e.select(row.counts, gradient, e.f32(0.0))
                };
                dlogits.update(e, run, gradient);
            });
        });
    }
}
