//! The gradient by both sides: a block computes a tile of `dx`, walking the vocabulary, or of `dw`,
//! walking the tokens.
//!
//! There is no memory for logits: each block computes those of its rows again, a tile at a time,
//! makes gradients of them in shared memory, and multiplies those with its columns of the other
//! side. So logits are computed as often as there are tiles of columns; a training step computes
//! them once, by `linear_cross_entropy_dlogits` and `linear_grad`.

use ir::{Dim, KernelSpec};

use super::{CrossEntropy, engine};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Val},
    kernels::gemm::tiled::{Engine, Run, Task},
    lower::{
        cx::Cx,
        gemm::tiled::{output, source},
        view::View,
    },
    math,
};

/// Emits the kernel.
pub(super) fn kernel(spec: &KernelSpec) -> Result<CudaKernel, String> {
    let width = CrossEntropy::width(spec)?;
    let engine = engine(spec)?;
    let cx = Cx::cuda(spec, engine.threads());
    let e = &cx.e;
    let [m, n] = engine.tile();
    let across = (width + n - 1) / n;
    let gradient = Gradient { cx: &cx, engine: &*engine, width };
    let tiles = [0, 1].map(|side| {
        let rows: &Dim = &cx.operand(side).shape[0];
        rows.ceil_div(m) * Dim::from(across)
    });
    let block = e.block('x');
    let count = e.cast(cx.size(&tiles[0]), Elem::I32);
    let tile = |side: usize, index: Val| {
        let row = e.mul_const(e.div_unsigned(index, e.i32(across)), m);
        let column = e.mul_const(e.rem_unsigned(index, e.i32(across)), n);
        gradient.emit(side, [row, column]);
    };
    e.either(e.cmp(Cmp::Lt, block, count), || tile(0, block), || tile(1, e.sub(block, count)));
    let [tokens, words] = tiles;
    let units = [0, 1].map(|side| source(&cx, &cx.operand(side), 0, 1).whole);
    let results = [0, 1].map(|side| output(&cx, &cx.result(side)).lanes > 1);
    let aligned = move |arg: u32| match arg {
        0 | 1 => units[arg as usize],
        5 | 6 => results[arg as usize - 5],
        _ => false,
    };
    let shared = engine.shared_bytes() + engine.held_bytes(n);
    Ok(cx.finish_cuda([tokens + words, 1.into(), 1.into()], shared, &[], aligned))
}

/// Emission state.
struct Gradient<'c> {
    cx: &'c Cx<'c>,
    engine: &'c dyn Engine,
    width: i64,
}

/// What is known of a token.
#[derive(Clone, Copy)]
struct Token {
    lse: Val,
    dloss: Val,
    target: Val,
    counts: Val,
}

impl Gradient<'_> {
    /// The tile of `dx` (side 0) or `dw` (side 1) from a row and a column on.
    fn emit(&self, side: usize, origin: [Val; 2]) {
        let (cx, e, engine) = (self.cx, &self.cx.e, self.engine);
        let [own, other] = [cx.operand(side), cx.operand(1 - side)];
        let n = engine.tile()[1];
        let limit = e.cast(cx.size(&other.shape[0]), Elem::I32);
        let held = e.add_const(e.shared(), engine.shared_bytes().into());
        let zeros = vec![e.f32(0.0); engine.count()];
        let chunks = e.div_ceil_const(limit, n);
        let sums = e.for_loop(e.i32(0), chunks, 1, &zeros, |chunk, sums| {
            let first = e.mul_const(chunk, n);
            let task = Task {
                a: source(cx, &own, 0, 1),
                b: source(cx, &other, 0, 1),
                k: e.i32(self.width),
                first: [origin[0], first],
            };
            let logits = engine.sums(e, &task);
            engine.each(e, task.first, &logits, false, &mut |run| {
                let values = self.gradients(side, run, limit);
                let (row, k) = (e.sub(run.row, origin[0]), e.sub(run.column, first));
                engine.hold(e, held, row, k, &values);
            });
            e.barrier(Barrier::Block);
            let offset = cx.scale(e.cast(first, Elem::I64), &other.strides[0]);
            let rest = View { base: other.at(cx, offset).base, ..other.clone() };
            let task = Task {
                b: source(cx, &rest, 1, 0),
                k: e.min(e.i32(n), e.sub(limit, first)),
                first: origin,
                ..task
            };
            engine.more(e, held, &task, sums)
        });
        let output = output(cx, &cx.result(side));
        engine.each(e, origin, &sums, false, &mut |run| output.store(e, run));
    }

    /// Gradients of a run of logits, zero outside of them.
    fn gradients(&self, side: usize, run: &Run<'_>, limit: Val) -> Vec<Val> {
        let e = &self.cx.e;
        let row = (side == 0).then(|| self.token(run.row));
        let gradient = |(i, logit): (i64, &Val)| {
            let column = e.add_const(run.column, i);
            let (token, word) = match row {
                Some(token) => (token, column),
                None => (self.token(column), run.row),
            };
            let weight = math::exp(e, e.sub(*logit, token.lse));
            let hit = e.cmp(Cmp::Eq, word, token.target);
            let rest = e.select(hit, e.sub(weight, e.f32(1.0)), weight);
            let inside = e.and(token.counts, e.cmp(Cmp::Lt, column, limit));
            e.select(inside, e.mul(rest, token.dloss), e.f32(0.0))
        };
        (0..).zip(run.sums).map(gradient).collect()
    }

    /// A token, or the last one.
    fn token(&self, token: Val) -> Token {
        let (cx, e) = (self.cx, &self.cx.e);
        let [tokens, words] =
            [0, 1].map(|side| e.cast(cx.size(&cx.operand(side).shape[0]), Elem::I32));
        let token = e.cast(e.min(token, e.add_const(tokens, -1)), Elem::I64);
        let number = |i: usize| {
            let view = cx.operand(i);
            view.load(cx, cx.scale(token, &view.strides[0]))
        };
        let target = number(2);
        let above = e.cmp(Cmp::Ge, target, e.i32(0));
        let counts = e.and(above, e.cmp(Cmp::Lt, target, words));
        Token { lse: number(3), dloss: number(4), target, counts }
    }
}
