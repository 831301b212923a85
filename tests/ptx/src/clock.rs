//! Vector clocks: who knows of which accesses.
//!
//! Every thread of a cluster has a slot. So have each warp, for what it reads collectively
//! (`ldmatrix`, `stmatrix`) and for its `wgmma`, and each mbarrier, for the copies that complete on
//! it. A clock holds two vectors: the accesses it knows of, and those of them that a
//! `fence.proxy.async` has made visible to the asynchronous proxy. Threads that synchronised
//! together share one allocation.

use std::rc::Rc;

/// A participant.
pub(crate) type Slot = usize;

/// What is known, per slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    known: Vec<u32>,
    fenced: Vec<u32>,
}

impl Clock {
    fn known(&self, slot: Slot) -> u32 {
        self.known.get(slot).copied().unwrap_or(0)
    }

    fn fenced(&self, slot: Slot) -> u32 {
        self.fenced.get(slot).copied().unwrap_or(0)
    }

    fn merge(&mut self, other: &Clock) {
        merge(&mut self.known, &other.known);
        merge(&mut self.fenced, &other.fenced);
    }

    pub(crate) fn raise(&mut self, slot: Slot, known: u32, fenced: u32) {
        raise(&mut self.known, slot, known);
        raise(&mut self.fenced, slot, fenced);
    }

    fn contains(&self, other: &Clock) -> bool {
        let covers = |own: &[u32], other: &[u32]| {
            let within = own.iter().zip(other).all(|(own, other)| own >= other);
            within && other.iter().skip(own.len()).all(|epoch| *epoch == 0)
        };
        covers(&self.known, &other.known) && covers(&self.fenced, &other.fenced)
    }
}

fn merge(own: &mut Vec<u32>, other: &[u32]) {
    if own.len() < other.len() {
        own.resize(other.len(), 0);
    }
    own.iter_mut().zip(other).for_each(|(own, other)| *own = (*own).max(*other));
}

fn raise(own: &mut Vec<u32>, slot: Slot, epoch: u32) {
    if own.len() <= slot {
        own.resize(slot + 1, 0);
    }
    own[slot] = own[slot].max(epoch);
}

/// What a thread knows: a shared clock, and newer epochs of its own slots.
#[derive(Clone, Debug)]
pub(crate) struct ThreadClock {
    base: Rc<Clock>,
    own: [Own; 3],
}

/// A slot that this thread advances, alone or with its warp.
#[derive(Clone, Copy, Debug)]
struct Own {
    slot: Slot,
    known: u32,
    fenced: u32,
}

impl ThreadClock {
    pub(crate) fn new(thread: Slot, warp: Slot, wgmma: Slot) -> ThreadClock {
        let own = |slot, known| Own { slot, known, fenced: 0 };
        ThreadClock { base: Rc::default(), own: [own(thread, 1), own(warp, 0), own(wgmma, 0)] }
    }

    /// The epoch that marks what the thread does now.
    pub(crate) fn epoch(&self) -> u32 {
        self.own[0].known
    }

    /// How much of `slot` the thread knows, and how much of that is fenced.
    pub(crate) fn get(&self, slot: Slot) -> (u32, u32) {
        let (mut known, mut fenced) = (self.base.known(slot), self.base.fenced(slot));
        for own in self.own.iter().filter(|own| own.slot == slot) {
            known = known.max(own.known);
            fenced = fenced.max(own.fenced);
        }
        (known, fenced)
    }

    /// The thread's warp did something collectively that ends at once.
    pub(crate) fn saw_warp(&mut self, epoch: u32) {
        self.own[1].known = epoch;
    }

    /// The thread waited for a group of `wgmma`.
    pub(crate) fn saw_wgmma(&mut self, epoch: u32) {
        self.own[2].known = epoch;
    }

    /// What the thread does next is not known to those who know what it did so far.
    pub(crate) fn advance(&mut self) {
        self.own[0].known += 1;
    }

    /// Learns all that `other` knows.
    pub(crate) fn acquire(&mut self, other: &Rc<Clock>, memo: &mut Memo) {
        self.base = memo.join(&self.base, other);
    }

    /// `fence.proxy.async`: all that is known becomes visible to the asynchronous proxy.
    pub(crate) fn fence(&mut self, memo: &mut Memo) {
        self.base = memo.fence(&self.base);
        self.own.iter_mut().for_each(|own| own.fenced = own.known);
    }
}

/// The last results, since the threads of a warp ask for the same ones.
#[derive(Default)]
pub(crate) struct Memo {
    join: Option<[Rc<Clock>; 3]>,
    fence: Option<[Rc<Clock>; 2]>,
}

impl Memo {
    fn join(&mut self, a: &Rc<Clock>, b: &Rc<Clock>) -> Rc<Clock> {
        if Rc::ptr_eq(a, b) || a.contains(b) {
            return a.clone();
        }
        if let Some([last_a, last_b, result]) = &self.join
            && Rc::ptr_eq(a, last_a)
            && Rc::ptr_eq(b, last_b)
        {
            return result.clone();
        }
        let mut joined = Clock::clone(a);
        joined.merge(b);
        let result = Rc::new(joined);
        self.join = Some([a.clone(), b.clone(), result.clone()]);
        result
    }

    fn fence(&mut self, base: &Rc<Clock>) -> Rc<Clock> {
        if let Some([last, result]) = &self.fence
            && Rc::ptr_eq(base, last)
        {
            return result.clone();
        }
        let result = Rc::new(Clock { known: base.known.clone(), fenced: base.known.clone() });
        self.fence = Some([base.clone(), result.clone()]);
        result
    }
}

/// Collects what threads know, as they arrive at a barrier.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gather {
    clock: Clock,
    last: Option<Rc<Clock>>,
}

impl Gather {
    pub(crate) fn add(&mut self, thread: &ThreadClock) {
        self.add_clock(&thread.base);
        for own in &thread.own {
            self.clock.raise(own.slot, own.known, own.fenced);
        }
    }

    pub(crate) fn add_clock(&mut self, clock: &Rc<Clock>) {
        if self.last.as_ref().is_none_or(|last| !Rc::ptr_eq(last, clock)) {
            self.clock.merge(clock);
            self.last = Some(clock.clone());
        }
    }

    pub(crate) fn raise(&mut self, slot: Slot, epoch: u32) {
        self.clock.raise(slot, epoch, epoch);
    }

    /// All that was collected; begins anew.
    pub(crate) fn take(&mut self) -> Rc<Clock> {
        Rc::new(std::mem::take(self).clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_tells_each_what_all_did() {
        let mut threads = [ThreadClock::new(0, 2, 3), ThreadClock::new(1, 2, 3)];
        let epoch = threads[0].epoch();
        assert!(threads[1].get(0).0 < epoch);
        let mut gather = Gather::default();
        threads.iter().for_each(|thread| gather.add(thread));
        let joined = gather.take();
        let mut memo = Memo::default();
        for thread in &mut threads {
            thread.acquire(&joined, &mut memo);
            thread.advance();
        }
        assert!(threads[1].get(0).0 >= epoch);
        assert!(threads[1].get(0).0 < threads[0].epoch());
    }

    #[test]
    fn a_fence_of_one_side_is_enough() {
        let (mut writer, mut issuer) = (ThreadClock::new(0, 2, 3), ThreadClock::new(1, 2, 3));
        let epoch = writer.epoch();
        let mut memo = Memo::default();
        let mut gather = Gather::default();
        gather.add(&writer);
        issuer.acquire(&gather.take(), &mut memo);
        assert_eq!(issuer.get(0), (epoch, 0));
        issuer.fence(&mut memo);
        assert_eq!(issuer.get(0), (epoch, epoch));
        writer.fence(&mut memo);
        assert_eq!(writer.get(0), (epoch, epoch));
    }
}
