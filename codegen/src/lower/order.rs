//! `topk`, `sort` and `argsort`: stable radix sorts of keys whose integer order is that of the
//! elements.
//!
//! A row becomes (key, index) pairs in scratch, which are sorted byte by byte of the key, the
//! lowest first (LSD radix sort: Knuth, The Art of Computer Programming 3, 5.2.5): linear in the
//! row, and equal elements stay in order of their index. Descending order complements the keys.
//!
//! `topk` of a long row keeps a pool of candidates: sixty-four elements at a time are compared with
//! the worst that can still count, what may count joins the pool, and a full pool is sorted and cut
//! to `k`. So most of a row is only read and compared.

mod cuda;
mod keys;

use ir::{Dim, KernelSpec, Target, normalize_axis};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, LANES, refuse},
    space::Space,
    view::{View, computable},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
};
use keys::Keys;

/// The family.
pub(super) struct Order;

/// Values of a digit.
const DIGITS: i64 = 256;
/// Elements that are compared at once.
const BLOCK: i64 = 4 * LANES as i64;
/// Room of a pool at least.
const LEAST_POOL: i64 = 256;
/// Elements of a row at most: indices are 32 bits wide in scratch.
const LONGEST: i64 = 1 << 30;

impl Lower for Order {
    fn ops(&self) -> &'static [&'static str] {
        &["topk", "sort", "argsort"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        Plan::of(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        let plan = Plan::of(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let x = cx.operand(0);
        let indices = cx.result(spec.results.len() - 1);
        let values = (spec.results.len() > 1).then(|| cx.result(0).bits());
        let views: Vec<&View> = [&x, &indices].into_iter().chain(&values).collect();
        let mut strides: Vec<Vec<Dim>> = views.iter().map(|v| v.strides.clone()).collect();
        let steps: Vec<Dim> = strides.iter_mut().map(|s| s.remove(plan.axis)).collect();
        let mut extents = x.shape.clone();
        let n = extents.remove(plan.axis);
        let outer = Space::new(&extents, &strides).merged();
        let work = n.clone() * Dim::from(8);
        let keys = Keys::of(spec, x.dtype);
        let pool = Pool::new(&cx, &keys, &plan);
        let tiles = cx.share_rows(&outer.points(), &work, |point| {
            let at = outer.offsets(&cx, point);
            let (n, count) = (cx.size(&n), cx.size(&plan.count));
            let row = Row { cx: &cx, keys: &keys, x: x.at(&cx, at[0]), step: &steps[0] };
            row.select(&pool, n, count);
            let (from, indices) = (row.x.clone().bits(), indices.at(&cx, at[1]));
            let values = values.as_ref().map(|v| v.at(&cx, at[2]));
            e.for_each(e.i64(0), count, 1, |i| {
                let index = pool.index(i);
                indices.store(&cx, index, cx.scale(i, &steps[1]));
                if let Some(values) = &values {
                    let value = from.load(&cx, cx.scale(index, &steps[0]));
                    values.store(&cx, value, cx.scale(i, &steps[2]));
                }
            });
        });
        let scratch = pool.bytes();
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        cuda::kernel(spec).map(|kernel| vec![kernel])
    }
}

/// Sizes of a specification.
struct Plan {
    axis: usize,
    /// Elements of a row that the result has.
    count: Dim,
    /// Elements of a row, and of a row of the result, at most.
    longest: i64,
    most: i64,
    /// Pairs that there is room for.
    room: i64,
    /// Whether that is all of a row.
    whole: bool,
}

impl Plan {
    fn of(spec: &KernelSpec) -> Result<Plan, String> {
        let Some(Some(x)) = spec.operands.first() else { return Err("takes x".into()) };
        if !computable(x.ty.dtype) {
            return Err(format!("no order of {}", x.ty.dtype));
        }
        let axis = normalize_axis(spec.attrs.int("axis"), x.ty.rank());
        let axis = axis.ok_or("axis out of range")?;
        let most = |dim: &Dim| match dim.bounds(&spec.symbols).hi {
            hi if hi <= LONGEST => Ok(hi.max(1)),
            _ => Err(format!("{dim} elements of a row may be more than {LONGEST}: bound it")),
        };
        let (n, count) = (&x.ty.shape[axis], &spec.results[0].ty.shape[axis]);
        let (longest, most) = (most(n)?, most(count)?);
        let pool = (most * 4).max(LEAST_POOL) + BLOCK;
        let whole = spec.op != "topk" || longest <= pool;
        let room = if whole { longest } else { pool };
        // Wide keys behind narrow indices stay aligned.
        let room = (room + 1) / 2 * 2;
        Ok(Plan { axis, count: count.clone(), longest, most, room, whole })
    }
}

/// Pairs of key and index in scratch, twice, and the counts of digits.
struct Pool<'a> {
    cx: &'a Cx<'a>,
    keys: &'a Keys,
    room: i64,
    whole: bool,
    pairs: [(Val, Val); 2],
    counts: Val,
}

impl<'a> Pool<'a> {
    fn new(cx: &'a Cx<'a>, keys: &'a Keys, plan: &Plan) -> Pool<'a> {
        let key_bytes = keys.elem.bytes() * plan.room.cast_unsigned();
        let half = key_bytes + 4 * plan.room.cast_unsigned();
        let part = |i: u64| (cx.scratch(i * half), cx.scratch(i * half + key_bytes));
        let pairs = [part(0), part(1)];
        let counts = cx.scratch(2 * half);
        Pool { cx, keys, room: plan.room, whole: plan.whole, pairs, counts }
    }

    fn bytes(&self) -> u64 {
        let pair = self.keys.elem.bytes() + 4;
        2 * pair * self.room.cast_unsigned() + 4 * DIGITS.cast_unsigned()
    }

    fn put(&self, at: Val, key: Val, index: Val) {
        let e = &self.cx.e;
        e.store_at(key, self.pairs[0].0, at);
        e.store_at(e.cast(index, Elem::I32), self.pairs[0].1, at);
    }

    fn key(&self, at: Val) -> Val {
        self.cx.e.load_at(Ty::Scalar(self.keys.elem), self.pairs[0].0, at)
    }

    fn index(&self, at: Val) -> Val {
        let e = &self.cx.e;
        e.cast(e.load_at(Ty::Scalar(Elem::I32), self.pairs[0].1, at), Elem::I64)
    }

    /// Puts the first `count` pairs in order; an even number of passes ends where it began.
    fn sort(&self, count: Val) {
        let mut turn = 0;
        for shift in self.keys.digits.clone().step_by(8) {
            self.pass(count, shift, turn);
            turn = 1 - turn;
        }
        assert_eq!(turn, 0, "an even number of digits");
    }

    /// Moves pairs in order of one digit.
    fn pass(&self, count: Val, shift: u32, turn: usize) {
        let e = &self.cx.e;
        let word = Ty::Scalar(Elem::I32);
        let (from, to) = (self.pairs[turn], self.pairs[1 - turn]);
        let lines = Ty::Vector(Elem::I32, LANES);
        e.for_each(e.i64(0), e.i64(DIGITS), LANES.into(), |i| {
            e.store_at(e.zero(lines), self.counts, i);
        });
        let digit = |key: Val| {
            let digit = self.keys.digit(e, key, shift);
            e.at(self.counts, Elem::I32, digit)
        };
        let key = |i: Val| e.load_at(Ty::Scalar(self.keys.elem), from.0, i);
        e.for_each(e.i64(0), count, 1, |i| {
            let slot = digit(key(i));
            e.store(e.add_const(e.load(word, slot), 1), slot);
        });
        let zero = e.zero(word);
        let _ = e.for_loop(e.i64(0), e.i64(DIGITS), 1, &[zero], |i, sums| {
            let slot = e.at(self.counts, Elem::I32, i);
            let here = e.load(word, slot);
            e.store(sums[0], slot);
            vec![e.add(sums[0], here)]
        });
        e.for_each(e.i64(0), count, 1, |i| {
            let key = key(i);
            let slot = digit(key);
            let place = e.load(word, slot);
            e.store(e.add_const(place, 1), slot);
            let place = e.cast(place, Elem::I64);
            e.store_at(key, to.0, place);
            e.store_at(e.load_at(word, from.1, i), to.1, place);
        });
    }
}

/// One row of the operand.
struct Row<'a> {
    cx: &'a Cx<'a>,
    keys: &'a Keys,
    x: View,
    step: &'a Dim,
}

impl Row<'_> {
    fn key(&self, i: Val, lanes: u32) -> Val {
        let x = self.x.load_strip(self.cx, self.cx.scale(i, self.step), self.step, lanes);
        self.keys.key(&self.cx.e, x)
    }

    /// Leaves the first `count` of `n` elements in the pool, in order.
    fn select(&self, pool: &Pool<'_>, n: Val, count: Val) {
        let e = &self.cx.e;
        if pool.whole {
            e.for_each(e.i64(0), n, 1, |i| pool.put(i, self.key(i, 1), i));
            pool.sort(n);
            return;
        }
        let (ty, int) = (Ty::Scalar(self.keys.elem), Ty::Scalar(Elem::I64));
        let (least, most) = self.keys.range();
        let blocks = e.sub(n, e.rem_unsigned(n, e.i64(BLOCK)));
        let init = [e.i64(0), e.int(ty, most)];
        let state = e.for_loop(e.i64(0), blocks, BLOCK, &init, |i, state| {
            let strips = (0..BLOCK / i64::from(LANES))
                .map(|s| self.key(e.add_const(i, s * i64::from(LANES)), LANES));
            let best = strips.reduce(|a, b| e.min(a, b)).expect("several strips");
            let some = e.any(e.cmp(Cmp::Le, best, e.splat(state[1], LANES)));
            let held = e.if_else(
                some,
                &[int],
                || vec![self.join(pool, (i, e.add_const(i, BLOCK)), state[1], state[0])],
                || vec![state[0]],
            );
            let full = e.cmp(Cmp::Gt, held[0], e.i64(pool.room - BLOCK));
            e.if_else(
                full,
                &[int, ty],
                || {
                    pool.sort(held[0]);
                    // What comes later has to be better than the last that counts.
                    let last = pool.key(e.max(e.add_const(count, -1), e.i64(0)));
                    let limit = e.add_const(e.max(last, e.int(ty, least + 1)), -1);
                    vec![count, limit]
                },
                || vec![held[0], state[1]],
            )
        });
        let held = self.join(pool, (blocks, n), state[1], state[0]);
        pool.sort(held);
    }

    /// Adds those elements to the pool whose keys are not above the limit; returns how many it
    /// holds then.
    fn join(&self, pool: &Pool<'_>, range: (Val, Val), limit: Val, held: Val) -> Val {
        let e = &self.cx.e;
        let held = e.for_loop(range.0, range.1, 1, &[held], |i, held| {
            let key = self.key(i, 1);
            pool.put(held[0], key, i);
            let counts = e.cast(e.cmp(Cmp::Le, key, limit), Elem::I64);
            vec![e.add(held[0], counts)]
        });
        held[0]
    }
}
