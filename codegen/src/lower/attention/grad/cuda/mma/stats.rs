//! Numbers of a query: the logarithm of its sum, and `dy · y`.

use super::{
    Block, Row, THREADS, Tile, Tiles, WORD,
    shared::{Matrix, Stage},
};
use crate::emit::{Cmp, Elem, Val};

impl Block<'_> {
    /// `dy · y` over a lane's units, those that are there, given the words of either.
    pub(super) fn dot(&self, units: &[(Val, [Vec<Val>; 2])]) -> Val {
        let e = &self.cx.e;
        let mut sum = e.f32(0.0);
        for (exists, [dy, y]) in units {
            for (dy, y) in dy.iter().zip(y) {
                for (dy, y) in self.floats(*dy).into_iter().zip(self.floats(*y)) {
                    sum = e.fma(e.select(*exists, dy, e.f32(0.0)), y, sum);
                }
            }
        }
        sum
    }

    /// Units of a row that one of `among` lanes sums: whether each is there, and its number.
    pub(super) fn share(&self, lane: Val, among: i64) -> Vec<(Val, Val)> {
        let e = &self.cx.e;
        let units = self.plan.sizes.value / 8;
        let each = (units + among - 1) / among;
        let one = |i: i64| {
            // Four times four units of 256 bytes: lanes go through theirs in other orders.
            let within = match (among, each) {
                (4, 4) => e.xor(e.and(lane, e.i32(2)), e.i32(i)),
                _ => e.i32(i),
            };
            let unit = e.add(e.mul_const(lane, each), within);
            (e.cmp(Cmp::Lt, unit, e.i32(units)), e.min(unit, e.i32(units - 1)))
        };
        (0..each).map(one).collect()
    }

    pub(super) fn over_lanes(&self, sum: Val, among: i64) -> Val {
        let e = &self.cx.e;
        let masks = [1, 2].into_iter().filter(|mask| i64::from(*mask) < among);
        masks.fold(sum, |sum, mask| e.add(sum, e.shuffle_xor(sum, mask)))
    }

    pub(super) fn words(&self, at: Val) -> Vec<Val> {
        self.cx.e.load_shared_four(Elem::I32, at, 0)
    }

    pub(super) fn log_sum(&self, lse: Val) -> Val {
        let e = &self.cx.e;
        e.mul(lse, e.f32(std::f32::consts::LOG2_E))
    }

    /// Logarithms and `dy · y` of a lane's own queries, which are there.
    pub(super) fn own_stats(
        &self,
        tiles: &Tiles<'_>,
        tile: Tile,
        rows: &[Row; 2],
    ) -> [[Val; 2]; 2] {
        let (cx, e) = (self.cx, &self.cx.e);
        let among = 4;
        let share = self.share(e.and(self.lane, e.i32(3)), among);
        [0, 1].map(|half| {
            let row = rows[half];
            let y = tiles.place(&cx.operand(3), tile, row);
            let behind = 8 * i64::try_from(half).expect("two");
            let line = e.add_const(e.add(self.first, e.shr(self.lane, 2)), behind);
            let unit = |(exists, unit): &(Val, Val)| {
                let dy = self.words(self.unit(self.own()[1], line, *unit));
                let column = e.cast(e.shl(*unit, 3), Elem::I64);
                let from = e.at(y.base, self.elem(), column);
                let text = "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];";
                (*exists, [dy, e.ptx_values(text, &[WORD; 4], &[from])])
            };
            let units: Vec<_> = share.iter().map(unit).collect();
            let mean = self.over_lanes(self.dot(&units), among);
            let lse = tiles.place(&cx.operand(4), tile, row).load(cx, e.i64(0));
            [self.log_sum(lse), mean]
        })
    }

    /// Numbers of a chunk's queries to shared memory.
    pub(super) fn chunk_stats(&self, stage: &Stage) {
        let e = &self.cx.e;
        let among = THREADS / self.plan.chunk;
        let row = e.div_unsigned(self.thread, e.i32(among));
        let lane = e.rem_unsigned(self.thread, e.i32(among));
        let unit = |(exists, unit): (Val, Val)| {
            let of = |matrix: Matrix| self.words(self.unit(matrix, row, unit));
            (exists, [of(stage.others[1]), of(stage.y)])
        };
        let units: Vec<_> = self.share(lane, among).into_iter().map(unit).collect();
        let mean = self.over_lanes(self.dot(&units), among);
        e.if_then(e.cmp(Cmp::Eq, lane, e.i32(0)), || {
            let lse = e.load_shared(Elem::F32, e.add(stage.lse, e.shl(row, 2)), 0);
            let at = e.add(self.stats(), e.shl(row, 3));
            e.store_shared(self.log_sum(lse), at, 0);
            e.store_shared(mean, at, 4);
        });
    }

    /// The numbers of a lane's columns.
    pub(super) fn load_stats(&self) -> Vec<[Val; 2]> {
        let e = &self.cx.e;
        let at = e.add(self.stats(), e.shl(e.and(self.lane, e.i32(3)), 4));
        let pair = |i: i64| {
            let four = e.load_shared_four(Elem::F32, at, 64 * i);
            [[four[0], four[1]], [four[2], four[3]]]
        };
        (0..self.plan.chunk / 8).flat_map(pair).collect()
    }
}
