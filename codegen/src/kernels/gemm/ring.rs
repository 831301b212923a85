//! A ring of stages between one producer and several consumers, guarded by `mbarrier`s.
//!
//! Every stage has two: full, which an arrival of each that fills it and the bytes of its copies
//! complete, and empty, which one lane of every consuming warp completes. Waits name the parity of
//! the round.

use crate::emit::{Cmp, Elem, Emitter, Val};

/// The barriers, in shared memory: all full ones, then all empty ones.
pub(super) struct Ring {
    pub(super) barriers: Val,
    pub(super) stages: i64,
}

/// A place in the ring: stage and parity of the round, both i32.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) stage: Val,
    pub(super) parity: Val,
}

impl Turn {
    pub(super) fn start(e: &Emitter) -> Turn {
        Turn { stage: e.i32(0), parity: e.i32(0) }
    }

    pub(super) fn of(values: &[Val]) -> Turn {
        Turn { stage: values[0], parity: values[1] }
    }

    pub(super) fn values(self) -> [Val; 2] {
        [self.stage, self.parity]
    }
}

impl Ring {
    /// Bytes of the barriers.
    pub(super) const fn bytes(stages: i64) -> i64 {
        16 * stages
    }

    /// Prepares the barriers for so many arrivals at each full and at each empty one.
    pub(super) fn init(&self, e: &Emitter, full: i64, empty: i64) {
        for i in 0..2 * self.stages {
            let count = if i < self.stages { full } else { empty };
            let text = format!("mbarrier.init.shared::cta.b64 [$0+{}], {count};", 8 * i);
            e.ptx(&text, &[self.barriers]);
        }
        e.ptx("fence.mbarrier_init.release.cluster;", &[]);
    }

    /// The full barrier of a stage.
    pub(super) fn full(&self, e: &Emitter, turn: Turn) -> Val {
        e.add(self.barriers, e.shl(turn.stage, 3))
    }

    /// Arrives at the full barrier of a stage.
    pub(super) fn arrive_full(&self, e: &Emitter, turn: Turn) {
        e.ptx("mbarrier.arrive.shared::cta.b64 _, [$0];", &[self.full(e, turn)]);
    }

    fn empty(&self, e: &Emitter, stage: Val) -> Val {
        e.add_const(e.add(self.barriers, e.shl(stage, 3)), 8 * self.stages)
    }

    /// Waits until the stage's copies of this round have landed.
    pub(super) fn wait_full(&self, e: &Emitter, turn: Turn) {
        wait(e, self.full(e, turn), turn.parity);
    }

    /// Waits until the stage has been read in the last round; in the first nobody has to.
    pub(super) fn wait_empty(&self, e: &Emitter, turn: Turn) {
        wait(e, self.empty(e, turn.stage), e.xor(turn.parity, e.i32(1)));
    }

    /// Arrives at the empty barrier of the stage before.
    pub(super) fn release_before(&self, e: &Emitter, turn: Turn) {
        let first = e.cmp(Cmp::Eq, turn.stage, e.i32(0));
        let before = e.select(first, e.i32(self.stages - 1), e.add_const(turn.stage, -1));
        e.ptx("mbarrier.arrive.shared::cta.b64 _, [$0];", &[self.empty(e, before)]);
    }

    /// The next stage.
    pub(super) fn next(&self, e: &Emitter, turn: Turn) -> Turn {
        let stage = e.add_const(turn.stage, 1);
        let wraps = e.cmp(Cmp::Eq, stage, e.i32(self.stages));
        let turned = e.cast(wraps, Elem::I32);
        Turn { stage: e.select(wraps, e.i32(0), stage), parity: e.xor(turn.parity, turned) }
    }
}

fn wait(e: &Emitter, barrier: Val, parity: Val) {
    let text = "{\n.reg .pred done;\nwait_${:uid}:\nmbarrier.try_wait.parity.shared::cta.b64 done, \
                [$0], $1;\n@!done bra wait_${:uid};\n}";
    e.ptx(text, &[barrier, parity]);
}
