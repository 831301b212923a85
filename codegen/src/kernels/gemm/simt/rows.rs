//! Few rows: a lane for each of 32 columns, which come through a ring of stages in shared memory,
//! sixteen bytes a copy, so that many are in flight; rows of `a` are read by all lanes at once.

use super::{
    super::{
        Draft, Form, Gemm, Matrix, PANEL,
        sm80::{Copier, Dense},
        tiled::Run,
    },
    output,
};
use crate::emit::{Barrier, Cmp, Elem, Emitter, Ty, Val};

/// Steps over k of a stage.
const K: i64 = 64;
/// Columns of a block.
const COLUMNS: i64 = 32;
/// Stages of the ring.
const STAGES: i64 = 4;
/// Bytes of the weight's part of a stage.
const WEIGHT_BYTES: i64 = K * COLUMNS * 4;

/// Whether the weight's rows can be copied.
pub(super) fn supports(spec: &Gemm) -> bool {
    let f32s = spec.a.elem == Elem::F32 && spec.w_elem == Elem::F32;
    f32s && !matches!(spec.form, Form::Columns(_))
}

/// Emits the kernel `symbol` for at most so many rows, 1, 4 or 16.
pub(super) fn emit(symbol: &str, spec: &Gemm, rows: i64) -> Draft {
    let each = rows.min(4);
    let warps = rows / each;
    let e = Emitter::cuda(symbol, u32::try_from(32 * warps).expect("few warps"));
    let thread = e.thread();
    let generator = Gen {
        e: &e,
        spec,
        rows,
        each,
        column: e.mul_const(e.block('y'), COLUMNS),
        thread,
        lane: e.and(thread, e.i32(31)),
        first: e.mul_const(e.shr(thread, 5), each),
        shared: e.shared(),
    };
    let stage = generator.stage_bytes();
    generator.emit();
    Draft {
        e,
        tile: [rows, COLUMNS],
        blocks: None,
        shared_bytes: u32::try_from(STAGES * stage).expect("small"),
        maps: Vec::new(),
        max_rows: None,
        early: Vec::new(),
    }
}

/// Emission state.
struct Gen<'a> {
    e: &'a Emitter,
    spec: &'a Gemm,
    /// Rows of a block, and of a warp.
    rows: i64,
    each: i64,
    /// The block's first column.
    column: Val,
    thread: Val,
    lane: Val,
    /// The warp's first row.
    first: Val,
    shared: Val,
}

impl Gen<'_> {
    fn stage_bytes(&self) -> i64 {
        WEIGHT_BYTES + self.rows * K * 4
    }

    fn emit(&self) {
        let e = self.e;
        let (stage, ring) = (self.stage_bytes(), self.stage_bytes() * STAGES);
        let steps = (self.spec.k + K - 1) / K;
        for s in 0..STAGES - 1 {
            if s < steps {
                self.fetch(e.i32(s), e.add_const(self.shared, s * stage));
            }
            e.ptx("cp.async.commit_group;", &[]);
        }
        let zeros = vec![e.f32(0.0); usize::try_from(self.each).expect("few rows")];
        let init = [vec![e.i32(0), e.i32((STAGES - 1) * stage)], zeros].concat();
        let done = e.for_loop(e.i32(0), e.i32(steps), 1, &init, |step, carried| {
            // Two steps as one piece of code want more registers than there are.
            e.keep_rolled();
            let [reads, writes, ref sums @ ..] = *carried else { unreachable!("a ring and sums") };
            e.ptx(&format!("cp.async.wait_group {};", STAGES - 2), &[]);
            e.barrier(Barrier::Block);
            let next = e.add_const(step, STAGES - 1);
            e.if_then(e.cmp(Cmp::Lt, next, e.i32(steps)), || {
                self.fetch(next, e.add(self.shared, writes));
            });
            e.ptx("cp.async.commit_group;", &[]);
            let sums = self.multiply(e.add(self.shared, reads), step, sums);
            let turn = |at: Val| {
                let next = e.add_const(at, stage);
                e.select(e.cmp(Cmp::Eq, next, e.i32(ring)), e.i32(0), next)
            };
            [turn(reads), turn(writes)].into_iter().chain(sums).collect::<Vec<Val>>()
        });
        self.store(&done[2..]);
    }

    /// Begins the copies of step `step` to the stage at `to`.
    fn fetch(&self, step: Val, to: Val) {
        let (e, spec) = (self.e, self.spec);
        let k = e.mul_const(step, K);
        let copier = Copier { e, thread: self.thread, threads: e.threads().into() };
        // Halves of odd rows change places, so that copies of half a row do not meet in a bank.
        let place = |row: Val, unit: Val| {
            let unit = e.xor(unit, e.shl(e.and(row, e.i32(1)), 2));
            e.shl(e.add(e.shl(row, 3), unit), 4)
        };
        let a = Dense {
            matrix: spec.a,
            first: [e.i32(0), k],
            limits: [e.cast(e.dim(0), Elem::I32), e.i32(spec.k)],
            columns_whole: spec.k % K == 0,
            extent: [self.rows, K],
        };
        copier.dense(&a, e.add_const(to, WEIGHT_BYTES), |row, unit| {
            e.shl(e.add(e.mul_const(row, K / 4), unit), 4)
        });
        if let Form::Rows(stride) = spec.form {
            let w = Dense {
                matrix: Matrix { arg: spec.w, elem: spec.w_elem, stride },
                first: [k, self.column],
                limits: [e.i32(spec.k), e.i32(spec.n)],
                columns_whole: spec.n % COLUMNS == 0,
                extent: [K, COLUMNS],
            };
            copier.dense(&w, to, place);
            return;
        }
        let base = e.arg(spec.w);
        let first = e.shr(self.column, 4);
        copier.share(K * COLUMNS / 4, |_, unit| {
            let (within, row) = (e.and(unit, e.i32(3)), e.shr(unit, 2));
            let (panel, row) = (e.div_unsigned(row, e.i32(K)), e.rem_unsigned(row, e.i32(K)));
            let to = e.add(to, place(row, e.add(e.shl(panel, 2), within)));
            let (panel, row) = (e.add(first, panel), e.add(k, row));
            let start = e.mul_const(e.cast(panel, Elem::I64), spec.k * PANEL);
            let from = e.add(e.shl(row, 4), e.shl(within, 2));
            let from = e.at(base, Elem::F32, e.add(start, e.cast(from, Elem::I64)));
            let inside = e.cmp(Cmp::Lt, e.shl(panel, 4), e.i32(spec.columns()));
            let inside = e.and(inside, e.cmp(Cmp::Lt, row, e.i32(spec.k)));
            let bytes = e.select(inside, e.i32(16), e.i32(0));
            e.ptx("cp.async.cg.shared.global [$0], [$1], 16, $2;", &[to, from, bytes]);
        });
    }

    /// Adds the products of step `step`, whose stage is at `from`.
    fn multiply(&self, from: Val, step: Val, sums: &[Val]) -> Vec<Val> {
        let (e, k) = (self.e, self.spec.k);
        let all = || self.whole(from, sums);
        match k % K {
            0 => all(),
            _ if k < K => self.part(from, k, sums),
            rest => {
                let types: Vec<Ty> = sums.iter().map(|sum| sum.ty()).collect();
                let whole = e.cmp(Cmp::Lt, step, e.i32(k / K));
                e.if_else(whole, &types, all, || self.part(from, rest, sums))
            }
        }
    }

    /// The column of the lane in a stage's odd or even steps.
    fn column(&self, from: Val, turn: Val) -> Val {
        self.e.add(from, self.e.shl(self.e.xor(self.lane, turn), 2))
    }

    /// The warp's rows in a stage.
    fn row(&self, from: Val) -> Val {
        self.e.add(from, self.e.mul_const(self.first, K * 4))
    }

    /// Bytes from there to the row of number `i`.
    fn line(i: usize) -> i64 {
        i64::try_from(i).expect("few rows") * K * 4 + WEIGHT_BYTES
    }

    /// Adds the products of the first `count` steps over k of a stage.
    fn part(&self, from: Val, count: i64, sums: &[Val]) -> Vec<Val> {
        let (e, f32s) = (self.e, Emitter::f32s(1));
        let row = self.row(from);
        e.for_loop(e.i32(0), e.i32(count), 1, sums, |k, sums| {
            let column = self.column(from, e.shl(e.and(k, e.i32(1)), 4));
            let at = e.add(column, e.mul_const(k, COLUMNS * 4));
            let w = e.ptx_values("ld.shared.f32 $0, [$1];", &[f32s], &[at])[0];
            let at = e.add(row, e.shl(k, 2));
            let add = |(i, sum): (usize, &Val)| {
                let text = format!("ld.shared.f32 $0, [$1+{}];", Self::line(i));
                e.fma(e.ptx_values(&text, &[f32s], &[at])[0], w, *sum)
            };
            sums.iter().enumerate().map(add).collect()
        })
    }

    /// Adds the products of a whole stage.
    fn whole(&self, from: Val, sums: &[Val]) -> Vec<Val> {
        let (e, f32s) = (self.e, Emitter::f32s(1));
        let columns = [0, 16].map(|turn| self.column(from, e.i32(turn)));
        let row = self.row(from);
        let mut sums = sums.to_vec();
        for k in (0..K).step_by(4) {
            let weight = |k: i64| {
                let text = format!("ld.shared.f32 $0, [$1+{}];", COLUMNS * 4 * k);
                let column = columns[usize::from(k % 2 == 1)];
                e.ptx_values(&text, &[f32s], &[column])[0]
            };
            let weights: Vec<Val> = (k..k + 4).map(weight).collect();
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = Self::line(i) + 4 * k;
                let text = format!("ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{at}];");
                let x = e.ptx_values(&text, &[f32s; 4], &[row]);
                *sum = x.iter().zip(&weights).fold(*sum, |sum, (x, w)| e.fma(*x, *w, sum));
            }
        }
        sums
    }

    fn store(&self, sums: &[Val]) {
        let (e, gated) = (self.e, self.spec.gated);
        let output = output(e, self.spec);
        let column = if gated { e.shr(self.column, 1) } else { self.column };
        let column = e.add(column, self.lane);
        // The other sixteen lanes have what the first ones are multiplied with.
        let ups = sums.iter().map(|sum| gated.then(|| e.shuffle_xor(*sum, 16)));
        let ups: Vec<Option<Val>> = ups.collect();
        let write = || {
            for (line, (sum, up)) in sums.iter().zip(&ups).enumerate() {
                let row = i64::try_from(line).expect("few rows");
                let row = e.add_const(self.first, row);
                let up = up.as_ref().map(std::slice::from_ref);
                output.store(e, &Run { line, row, column, sums: std::slice::from_ref(sum), up });
            }
        };
        if gated {
            e.if_then(e.cmp(Cmp::Lt, self.lane, e.i32(16)), write);
        } else {
            write();
        }
    }
}
