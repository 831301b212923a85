//! A ring of stages between one producer and several consumers, guarded by `mbarrier`s.
//!
//! Every stage has two: full, which an arrival of each that fills it and the bytes of its copies
//! complete, and empty, which one lane of every consuming warp completes. Waits name the parity of
//! the round.

use crate::emit::{Cmp, Elem, Emitter, Val};

/// The barriers, in shared memory: all full ones, then all empty ones.
pub(crate) struct Ring {
    pub(crate) barriers: Val,
    pub(crate) stages: i64,
}

/// A place in the ring: stage and parity of the round, both i32.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) stage: Val,
    pub(crate) parity: Val,
}

impl Turn {
    pub(crate) fn start(e: &Emitter) -> Turn {
        Turn { stage: e.i32(0), parity: e.i32(0) }
    }

    pub(crate) fn of(values: &[Val]) -> Turn {
        Turn { stage: values[0], parity: values[1] }
    }

    pub(crate) fn values(self) -> [Val; 2] {
        [self.stage, self.parity]
    }
}

impl Ring {
    /// Bytes of the barriers.
    pub(crate) const fn bytes(stages: i64) -> i64 {
        16 * stages
    }

    /// Prepares the barriers for so many arrivals at each full and at each empty one.
    pub(crate) fn init(&self, e: &Emitter, full: i64, empty: Val) {
        for i in 0..2 * self.stages {
            let count = if i < self.stages { e.i32(full) } else { empty };
            let text = format!("mbarrier.init.shared::cta.b64 [$0+{}], $1;", 8 * i);
            e.ptx(&text, &[self.barriers, count]);
        }
        e.ptx("fence.mbarrier_init.release.cluster;", &[]);
    }

    /// The full barrier of a stage.
    pub(crate) fn full(&self, e: &Emitter, turn: Turn) -> Val {
        e.add(self.barriers, e.shl(turn.stage, 3))
    }

    /// Arrives at the full barrier of a stage.
    pub(crate) fn arrive_full(&self, e: &Emitter, turn: Turn) {
        e.ptx("mbarrier.arrive.shared::cta.b64 _, [$0];", &[self.full(e, turn)]);
    }

    fn empty(&self, e: &Emitter, stage: Val) -> Val {
        e.add_const(e.add(self.barriers, e.shl(stage, 3)), 8 * self.stages)
    }

    /// Waits until the stage's copies of this round have landed.
    pub(crate) fn wait_full(&self, e: &Emitter, turn: Turn) {
        wait(e, self.full(e, turn), turn.parity);
    }

    /// Waits until the stage has been read in the last round; in the first nobody has to.
    pub(crate) fn wait_empty(&self, e: &Emitter, turn: Turn) {
        wait(e, self.empty(e, turn.stage), e.xor(turn.parity, e.i32(1)));
    }

    /// Arrives at the full barrier of the stage before.
    pub(crate) fn arrive_full_before(&self, e: &Emitter, turn: Turn) {
        let before = Turn { stage: self.before(e, turn), ..turn };
        self.arrive_full(e, before);
    }

    /// Arrives at the empty barrier of a stage.
    pub(crate) fn release(&self, e: &Emitter, turn: Turn) {
        e.ptx("mbarrier.arrive.shared::cta.b64 _, [$0];", &[self.empty(e, turn.stage)]);
    }

    /// Arrives at the empty barrier of the stage before.
    pub(crate) fn release_before(&self, e: &Emitter, turn: Turn) {
        let before = Turn { stage: self.before(e, turn), ..turn };
        self.release(e, before);
    }

    fn before(&self, e: &Emitter, turn: Turn) -> Val {
        let first = e.cmp(Cmp::Eq, turn.stage, e.i32(0));
        e.select(first, e.i32(self.stages - 1), e.add_const(turn.stage, -1))
    }

    /// The next stage.
    pub(crate) fn next(&self, e: &Emitter, turn: Turn) -> Turn {
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
