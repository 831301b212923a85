//! The order in which a block meets the chunks of keys: strand by strand.
//!
//! Spans of [`SPAN`] chunks, from the sequence's start on, belong to the strands in turn. A
//! strand's chunks come in the order of their keys.

use crate::emit::{Cmp, Emitter, Val};

/// Chunks of a span.
pub(super) const SPAN: i64 = 2;
/// Strands.
pub(super) const STRANDS: i64 = 8;

/// The chunks from `lo` up to `hi`, i32, of all strands or of one.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    pub(super) lo: Val,
    pub(super) hi: Val,
    /// The one strand, i32.
    pub(super) only: Option<Val>,
}

impl Walk {
    /// How many chunks there are.
    pub(super) fn count(&self, e: &Emitter) -> Val {
        let Some(strand) = self.only else {
            return e.max(e.sub(self.hi, self.lo), e.i32(0));
        };
        // Chunks of the strand before chunk `end`.
        let before = |end: Val| {
            let turn = e.i32(SPAN * STRANDS);
            let whole = e.mul_const(e.div_unsigned(end, turn), SPAN);
            let rest = e.sub(e.rem_unsigned(end, turn), e.mul_const(strand, SPAN));
            e.add(whole, e.max(e.min(rest, e.i32(SPAN)), e.i32(0)))
        };
        let hi = e.max(self.hi, self.lo);
        e.sub(before(hi), before(self.lo))
    }

    /// The strand of a chunk.
    pub(super) fn strand(e: &Emitter, chunk: Val) -> Val {
        e.and(e.div_unsigned(chunk, e.i32(SPAN)), e.i32(STRANDS - 1))
    }

    /// The first chunk of a strand that is not before `lo`.
    fn first_of(&self, e: &Emitter, strand: Val) -> Val {
        let span = e.div_unsigned(self.lo, e.i32(SPAN));
        let ahead = e.and(e.sub(strand, span), e.i32(STRANDS - 1));
        e.max(e.mul_const(e.add(span, ahead), SPAN), self.lo)
    }

    /// The first chunk, `hi` if there is none.
    pub(super) fn first(&self, e: &Emitter) -> Val {
        match self.only {
            Some(strand) => e.min(self.first_of(e, strand), self.hi),
            None => self.behind(e, e.i32(-1)),
        }
    }

    /// The first chunk of the strands behind one.
    fn behind(&self, e: &Emitter, strand: Val) -> Val {
        (0..STRANDS).rev().fold(self.hi, |found, other| {
            let other = e.i32(other);
            let first = self.first_of(e, other);
            let next = e.cmp(Cmp::Gt, other, strand);
            e.select(e.and(next, e.cmp(Cmp::Lt, first, self.hi)), first, found)
        })
    }

    /// The chunk after one, `hi` if it was the last, or none.
    pub(super) fn next(&self, e: &Emitter, chunk: Val) -> Val {
        let next = e.add_const(chunk, 1);
        let ends = e.cmp(Cmp::Eq, e.rem_unsigned(next, e.i32(SPAN)), e.i32(0));
        let skip = e.select(ends, e.i32(SPAN * (STRANDS - 1)), e.i32(0));
        let next = e.add(next, skip);
        if self.only.is_some() {
            return e.min(next, self.hi);
        }
        let last = e.cmp(Cmp::Ge, next, self.hi);
        let more = e.cmp(Cmp::Lt, chunk, self.hi);
        let otherwise = || vec![next];
        let found = e.if_else(
            last,
            &[next.ty()],
            || vec![e.select(more, self.behind(e, Walk::strand(e, chunk)), self.hi)],
            otherwise,
        );
        found[0]
    }

    /// Whether a chunk is the last of its strand, given the next one.
    pub(super) fn ends(&self, e: &Emitter, chunk: Val, next: Val) -> Val {
        let differ = e.cmp(Cmp::Ne, Walk::strand(e, chunk), Walk::strand(e, next));
        let none = e.cmp(Cmp::Ge, next, self.hi);
        e.or(differ, none)
    }
}
