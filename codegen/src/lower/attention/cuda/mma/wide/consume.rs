//! A warpgroup's rows through the chunks of the ring.

use super::{
    super::super::{
        CHUNK, WORD,
        chunk::{PIECE, padded, place},
        walk::Walk,
    },
    stage_bytes, warp_bytes,
};
use crate::{
    cuda::Swizzle,
    emit::{Barrier, Cmp, Elem, Ty, Val},
    kernels::gemm::{
        ring::{Ring, Turn},
        sm90a::operands::{ALONG_K, Walk as Strides},
    },
    lower::attention::cuda::mma::pass::Pass,
};

const F32: Ty = Ty::Scalar(Elem::F32);

impl Pass<'_> {
    /// Where a warp has its queries, and then the totals of its rows.
    pub(in super::super) fn warp_area(&self) -> Val {
        let e = &self.cx.e;
        e.add(self.area, e.mul_const(self.warp, warp_bytes(self.tiles.sizes)))
    }

    /// Walks the chunks and stores the results; `both` says whether there are two warpgroups.
    pub(super) fn consume(&self, ring: &Ring, walk: Walk, both: Val) {
        let e = &self.cx.e;
        let queries = self.own_queries();
        let sums = usize::try_from(8 * self.all_blocks() + 4).expect("small");
        let count = walk.count(e);
        let none = e.cmp(Cmp::Eq, count, e.i32(0));
        let nothing = || {
            let mut nothing = vec![e.f32(f32::NEG_INFINITY); 2];
            nothing.extend(vec![e.f32(0.0); sums]);
            nothing
        };
        let some = || self.through(ring, walk, (count, sums), both, &queries);
        let all = e.if_else(none, &vec![F32; 2 + sums], nothing, some);
        self.store(&all[..2], &all[2..]);
    }

    /// The queries of the warp's rows as left operands.
    fn own_queries(&self) -> Vec<[Val; 4]> {
        let (e, size) = (&self.cx.e, self.tiles.sizes.key);
        let (units, area) = (size / 8, self.warp_area());
        for i in 0..units / 2 {
            let unit = e.add_const(self.lane, 32 * i);
            let row = e.div_unsigned(unit, e.i32(units));
            let unit = e.rem_unsigned(unit, e.i32(units));
            let to = e.add(area, place(e, row, unit, units));
            self.query(e.add(row, e.shl(self.warp, 4)), unit, to);
        }
        e.barrier(Barrier::Warp);
        let fragment =
            |step: i64| self.chunks.left_fragment(self.thread, area, e.i32(0), (units, step));
        let fragments = (0..size / 16).map(fragment).collect();
        e.barrier(Barrier::Warp);
        fragments
    }

    /// Largest scores and sums over all chunks, of which there is one at least.
    fn through(
        &self,
        ring: &Ring,
        walk: Walk,
        (count, sums): (Val, usize),
        both: Val,
        queries: &[[Val; 4]],
    ) -> Vec<Val> {
        let e = &self.cx.e;
        let (zero, lowest) = (e.f32(0.0), e.f32(f32::NEG_INFINITY));
        let apart = self.apart(sums);
        self.clear_total(apart);
        let leads = e.cmp(Cmp::Eq, self.lane, e.i32(0));
        let group = e.shr(self.warp, 2);
        let own = e.add_const(group, 1);
        let other = e.sub(e.i32(2), group);
        // The first warpgroup may issue at once.
        let second = e.cmp(Cmp::Eq, group, e.i32(1));
        e.if_then(e.and(both, second), || e.ptx("bar.arrive $0, 256;", &[other]));
        let (first, turn) = (walk.first(e), Turn::start(e));
        let next = walk.next(e, first);
        ring.wait_full(e, turn);
        let scores = self.issue_scores(turn, queries);
        let scores = e.ptx_update("wgmma.wait_group.sync.aligned 0;", &scores, &[]);
        let stage = e.i32(0);
        let (maxima, _, weights) = self.exponentials(first, stage, scores, &[lowest; 2]);
        let weights = self.rounded(&weights);
        let mut init = vec![turn.stage, turn.parity, first, next];
        init.extend(weights.iter().flatten());
        init.extend(maxima);
        init.extend(vec![zero; sums]);
        init.extend([lowest, lowest, zero, zero, zero, zero]);
        let words = usize::try_from(CHUNK / 4).expect("small");
        let parts = |carried: &[Val]| -> (Turn, [Val; 2], Vec<[Val; 4]>, Vec<Val>) {
            let (weights, state) = carried[4..].split_at(words);
            let weights = weights.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]);
            (Turn::of(carried), [carried[2], carried[3]], weights.collect(), state.to_vec())
        };
        let last = e.add_const(count, -1);
        let before_last = e.add_const(last, -1);
        e.if_then(e.cmp(Cmp::Gt, last, e.i32(0)), || ring.wait_full(e, ring.next(e, turn)));
        let done = e.for_loop(e.i32(0), last, 1, &init, |i, carried| {
            let (turn, [chunk, next], weights, state) = parts(carried);
            let (strand, total) = state.split_at(2 + sums);
            let after = ring.next(e, turn);
            e.if_then(both, || e.ptx("bar.sync $0, 256;", &[own]));
            let scores = self.issue_scores(after, queries);
            let (scores, added) = self.issue_values(turn, &weights, &scores, &strand[2..]);
            // None waits for the last turn.
            let waits = e.or(e.cmp(Cmp::Eq, group, e.i32(0)), e.cmp(Cmp::Lt, i, before_last));
            e.if_then(e.and(both, waits), || e.ptx("bar.arrive $0, 256;", &[other]));
            let ends = walk.ends(e, chunk, next);
            let before = [0, 1].map(|row| e.select(ends, lowest, strand[row]));
            let (maxima, factors, exponentials) = self.exponentials(next, stage, scores, &before);
            self.before_a_branch(&exponentials);
            e.if_then(e.cmp(Cmp::Lt, i, before_last), || {
                ring.wait_full(e, ring.next(e, after));
            });
            // Operands of the next products may not be made while these are in flight.
            let read: Vec<Val> = weights.into_iter().flatten().collect();
            let kept: Vec<Val> = added.into_iter().chain(exponentials).collect();
            let wait = "wgmma.wait_group.sync.aligned 0;";
            let mut added = e.ptx_update(wait, &kept, &read);
            let rounded = self.rounded(&added.split_off(sums));
            e.if_then(leads, || ring.release(e, turn));
            let joined = || {
                let mut state = strand[..2].to_vec();
                state.extend(&added);
                state.extend(total);
                self.joined(&state, sums).split_off(2)
            };
            let goes_on = || {
                let changed = e.cmp(Cmp::Ne, e.min(factors[0], factors[1]), e.f32(1.0));
                let changed = e.cmp(Cmp::Ne, e.ballot(changed), e.i32(0));
                let mut state = self.rescaled(changed, factors, &added);
                state.extend(total);
                state
            };
            let state = e.if_else(ends, &vec![F32; sums + total.len()], joined, goes_on);
            let mut carried = vec![after.stage, after.parity, next, walk.next(e, next)];
            carried.extend(rounded.iter().flatten());
            carried.extend(maxima);
            carried.extend(state);
            carried
        });
        let (turn, _, weights, state) = parts(&done);
        let (strand, total) = state.split_at(2 + sums);
        let (_, added) = self.issue_values(turn, &weights, &[], &strand[2..]);
        let mut state = strand[..2].to_vec();
        state.extend(added);
        state.extend(total);
        let state = self.joined(&state, sums);
        let total = &state[2 + sums..];
        let mut all = total[..2].to_vec();
        all.extend(self.total(apart));
        all.extend(&total[2..]);
        all
    }

    /// Keeps the assembler from moving exponentials behind the wait for the products that they are
    /// to overlap: something reads all of them. None is -0, nor are their bits so together.
    fn before_a_branch(&self, exponentials: &[Val]) {
        let e = &self.cx.e;
        let bits = exponentials.iter().map(|x| e.bitcast(*x, WORD));
        let bits = bits.reduce(|all, bits| e.or(all, bits)).expect("some");
        let never = "{\n.reg .pred never;\nsetp.eq.s32 never, $0, -2147483648;\n@never trap;\n}";
        e.ptx(never, &[bits]);
    }

    fn stage_at(&self, turn: Turn) -> Val {
        let e = &self.cx.e;
        e.add(self.chunks.shared, e.mul_const(turn.stage, stage_bytes(self.tiles.sizes)))
    }

    /// Issues the products of queries and the keys of a stage, as a group: four a block of eight
    /// keys.
    fn issue_scores(&self, turn: Turn, queries: &[[Val; 4]]) -> Vec<Val> {
        let (e, name) = (&self.cx.e, self.chunks.type_name());
        let count = usize::try_from(CHUNK / 2).expect("small");
        let paged = self.chunks.paged();
        let from = self.stage_at(turn);
        let in_blocks = Strides {
            leading: 32 * padded(self.tiles.sizes.key),
            stride: 256,
            swizzle: Swizzle::Bytes32,
            step: 512,
        };
        let list = numbers(0, count);
        let mut text = "wgmma.fence.sync.aligned;\n".to_owned();
        let mut operands = Vec::new();
        for (step, words) in (0..).zip(queries) {
            let at = count + operands.len();
            operands.extend(words);
            operands.push(if paged {
                in_blocks.at(e, from, step)
            } else {
                let piece = e.add_const(from, step / 4 * CHUNK * PIECE);
                ALONG_K.at(e, piece, step % 4)
            });
            text += &format!(
                "wgmma.mma_async.sync.aligned.m64n{CHUNK}k16.f32.{name}.{name} {{{list}}}, {{{}}}, \
                 ${}, {}, 1, 1, {};\n",
                numbers(at, 4),
                at + 4,
                i64::from(step > 0),
                i64::from(paged)
            );
        }
        text += "wgmma.commit_group.sync.aligned;";
        e.ptx_values(&text, &vec![F32; count], &operands)
    }

    /// Issues the products of weights and the values of a stage, as a group, and waits for the
    /// scores of the group before, or, if there are none, for this one.
    fn issue_values(
        &self,
        turn: Turn,
        weights: &[[Val; 4]],
        scores: &[Val],
        sums: &[Val],
    ) -> (Vec<Val>, Vec<Val>) {
        let (e, name, sizes) = (&self.cx.e, self.chunks.type_name(), self.tiles.sizes);
        let from = e.add_const(self.stage_at(turn), 2 * CHUNK * padded(sizes.key));
        let walk = Strides {
            leading: CHUNK * PIECE,
            stride: 8 * PIECE,
            swizzle: Swizzle::Bytes128,
            step: 16 * PIECE,
        };
        let columns = sizes.value + 8;
        let list = numbers(scores.len(), sums.len());
        let inout: Vec<Val> = scores.iter().chain(sums).copied().collect();
        let mut text = "wgmma.fence.sync.aligned;\n".to_owned();
        let mut operands = Vec::new();
        for (step, words) in (0..).zip(weights) {
            let at = 2 * inout.len() + operands.len();
            operands.extend(words);
            operands.push(walk.at(e, from, step));
            text += &format!(
                "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{name}.{name} {{{list}}}, \
                 {{{}}}, ${}, 1, 1, 1, 1;\n",
                numbers(at, 4),
                at + 4
            );
        }
        let left = i64::from(!scores.is_empty());
        text += "wgmma.commit_group.sync.aligned;\n";
        text += &format!("wgmma.wait_group.sync.aligned {left};");
        let mut done = e.ptx_update(&text, &inout, &operands);
        let sums = done.split_off(scores.len());
        (done, sums)
    }
}

/// So many operands from a number on.
fn numbers(first: usize, count: usize) -> String {
    let all: Vec<String> = (first..first + count).map(|i| format!("${i}")).collect();
    all.join(", ")
}
