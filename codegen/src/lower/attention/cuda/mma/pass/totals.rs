//! Strands to one sum. A large tile has the totals of its values in shared memory: there are
//! registers for one set of sums.

use super::{
    super::super::{
        chunk::padded,
        softmax::{join, joining},
    },
    Form, LARGE, Pass,
};
use crate::emit::{Elem, Ty, Val};

impl Pass<'_> {
    /// At the end of a strand, its sums join the total, and the next one begins with nothing.
    pub(super) fn fold(&self, ends: Val, state: &[Val], sums: usize) -> Vec<Val> {
        let e = &self.cx.e;
        let types: Vec<Ty> = state.iter().map(|v| v.ty()).collect();
        e.if_else(ends, &types, || self.joined(state, sums), || state.to_vec())
    }

    /// The state when a strand has joined the total, and the next one has not begun.
    pub(in super::super) fn joined(&self, state: &[Val], sums: usize) -> Vec<Val> {
        let e = &self.cx.e;
        let (strand, total) = state.split_at(2 + sums);
        let apart = self.apart(sums);
        let ways = [0, 1].map(|row| joining(e, total[row], strand[row]));
        let join = |total: &[Val], strand: &[Val]| -> Vec<Val> {
            let pairs = total.iter().zip(strand).enumerate();
            pairs.map(|(i, (t, s))| join(e, *t, *s, ways[i / 2 % 2].1)).collect()
        };
        for (i, four) in (0..).zip(strand[2..2 + apart].chunks_exact(4)) {
            let total = self.load_total(i);
            self.store_total(i, &join(&total, four));
        }
        let mut next = vec![e.f32(f32::NEG_INFINITY); 2];
        next.extend(vec![e.f32(0.0); sums]);
        next.extend(ways.map(|way| way.0));
        next.extend(join(&total[2..], &strand[2 + apart..]));
        next
    }

    /// Of so many sums, those whose totals are in shared memory: there are registers for one set.
    pub(in super::super) fn apart(&self, sums: usize) -> usize {
        if self.form == Form::Small { 0 } else { sums - 4 }
    }

    /// Where four of the thread's totals are.
    fn total_at(&self, four: i64) -> Val {
        let e = &self.cx.e;
        if self.form == Form::Wide {
            let at = e.add(self.warp_area(), e.shl(self.lane, 4));
            return e.add_const(at, 16 * 32 * four);
        }
        let first = LARGE * 2 * padded(self.tiles.sizes.key);
        let at = e.add_const(self.area, first + 16 * four * i64::from(e.threads()));
        e.add(at, e.shl(self.thread, 4))
    }

    fn load_total(&self, four: i64) -> Vec<Val> {
        let text = "ld.shared.v4.f32 {$0, $1, $2, $3}, [$4];";
        self.cx.e.ptx_values(text, &[Ty::Scalar(Elem::F32); 4], &[self.total_at(four)])
    }

    fn store_total(&self, four: i64, values: &[Val]) {
        let mut operands = vec![self.total_at(four)];
        operands.extend(values);
        self.cx.e.ptx("st.shared.v4.f32 [$0], {$1, $2, $3, $4};", &operands);
    }

    pub(in super::super) fn clear_total(&self, count: usize) {
        let zero = self.cx.e.f32(0.0);
        (0..).zip(0..count / 4).for_each(|(i, _)| self.store_total(i, &[zero; 4]));
    }

    pub(in super::super) fn total(&self, count: usize) -> Vec<Val> {
        (0..).zip(0..count / 4).flat_map(|(i, _)| self.load_total(i)).collect()
    }
}
