//! Ranks as threads of one process, which read each other's buffers in place.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Cause, CollectiveError, Failure, Options, World,
    call::Call,
    inbox::{Body, Inbox, Incoming, Piece, Sink},
    loan::{Lender, lending},
    transport::{Outgoing, Transport},
    watch::Watch,
};

/// How often a rank whose buffer others still read looks whether the job has failed.
const GLANCE: Duration = Duration::from_millis(50);

/// Runs `body` as each of so many ranks, on threads, and returns what they return.
///
/// A rank that returns an error or panics fails the job for the others.
///
/// # Errors
/// Of each rank: what it returned, or the failure that ended it.
pub fn run_threads<R: Send, E: From<CollectiveError> + fmt::Display + Send>(
    ranks: usize,
    options: &Options,
    body: impl Fn(&World) -> Result<R, E> + Sync,
) -> Vec<Result<R, E>> {
    let worlds = worlds(ranks, options);
    let run = |world: World| {
        let result = catch_unwind(AssertUnwindSafe(|| body(&world)));
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                world.fail(Cause::Failed(error.to_string()));
                Err(error)
            }
            Err(payload) => Err(world.fail(Cause::Panicked(message_of(&*payload))).into()),
        }
    };
    thread::scope(|scope| {
        let run = &run;
        let spawn = |world: World| {
            let rank = world.rank();
            let thread = thread::Builder::new().name(format!("rank-{rank}"));
            thread.spawn_scoped(scope, move || run(world)).map_err(|error| CollectiveError::Join {
                rank,
                reason: format!("no thread for it: {error}"),
            })
        };
        let threads: Vec<_> = worlds.into_iter().map(spawn).collect();
        let join = |thread: Result<thread::ScopedJoinHandle<'_, Result<R, E>>, CollectiveError>| {
            // The closure catches what `body` panics with.
            thread?.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        };
        threads.into_iter().map(join).collect()
    })
}

/// The worlds of so many ranks in this process, for threads that already are.
pub fn worlds(ranks: usize, options: &Options) -> Vec<World> {
    let (watch, inboxes) = shared(ranks, options);
    let world = |rank| {
        let transport = Local { rank, watch: watch.clone(), inboxes: inboxes.clone() };
        World::new(Arc::new(transport), ranks, options)
    };
    (0..ranks).map(world).collect()
}

/// The world of the only rank.
pub(super) fn alone(options: &Options) -> World {
    let (watch, inboxes) = shared(1, options);
    World::new(Arc::new(Local { rank: 0, watch, inboxes }), 1, options)
}

fn shared(ranks: usize, options: &Options) -> (Arc<Watch>, Arc<[Inbox]>) {
    let watch = Arc::new(Watch::new(ranks, options.deadline));
    let inboxes = (0..ranks).map(|rank| Inbox::new(rank, watch.clone())).collect();
    (watch, inboxes)
}

/// What a panic says.
pub(super) fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "with no message".into())
}

#[derive(Debug)]
struct Local {
    rank: usize,
    watch: Arc<Watch>,
    inboxes: Arc<[Inbox]>,
}

impl Local {
    fn post(&self, call: &Call, phase: u8, send: &Outgoing<'_>, body: Body) {
        let piece = Piece { call: *call, total: send.bytes.len() as u64, offset: 0, body };
        self.inboxes[send.to].deliver(self.rank, phase, piece);
    }

    /// Waits until everybody has read what was lent.
    fn settle(
        &self,
        call: &Call,
        phase: u8,
        sends: &[Outgoing<'_>],
        lender: &Lender<'_>,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        while !lender.wait(GLANCE) {
            if let Some(failure) = self.watch.failure() {
                return Err((*failure).clone());
            }
            let ended = sends.iter().find(|send| self.watch.has_ended(send.to));
            if let Some(send) = ended.filter(|send| self.takes_back(send.to, call, phase)) {
                return Err(self.blame(send.to, Cause::Ended));
            }
            let waited = begun.elapsed();
            if waited >= self.watch.deadline {
                let late = sends.iter().find(|send| self.takes_back(send.to, call, phase));
                let rank = late.or(sends.first()).map_or(self.rank, |send| send.to);
                let place = format!("in {}", self.watch.describe(call));
                return Err(self.watch.late(self.rank, rank, place, waited));
            }
        }
        Ok(())
    }

    fn takes_back(&self, from: usize, call: &Call, phase: u8) -> bool {
        self.inboxes[from].recall(self.rank, call, phase)
    }
}

impl Transport for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn watch(&self) -> &Watch {
        &self.watch
    }

    fn exchange(
        &self,
        call: &Call,
        phase: u8,
        sends: &[Outgoing<'_>],
        detached: bool,
        from: &[Incoming],
        sink: &mut Sink<'_>,
    ) -> Result<(), Arc<Failure>> {
        let inbox = &self.inboxes[self.rank];
        if detached {
            for send in sends {
                self.post(call, phase, send, Body::Owned(send.bytes.to_vec()));
            }
            let received = inbox.receive(call, phase, from, sink);
            return received.map_err(|failure| self.fail(failure));
        }
        let recall = || {
            for send in sends {
                self.takes_back(send.to, call, phase);
            }
        };
        lending(recall, |lender| {
            for send in sends {
                self.post(call, phase, send, Body::Lent(lender.lend(send.bytes)));
            }
            let received = inbox.receive(call, phase, from, sink);
            let settled = received.and_then(|()| self.settle(call, phase, sends, lender));
            // Before the recall, so that those who still read hear that it is over.
            settled.map_err(|failure| self.fail(failure))
        })
    }

    fn fail(&self, failure: Failure) -> Arc<Failure> {
        let (failure, is_new) = self.watch.raise(failure);
        if is_new {
            self.inboxes.iter().for_each(Inbox::wake);
            self.watch.tell(&failure);
        }
        failure
    }

    fn end(&self) {
        self.watch.set_ended(self.rank);
        self.inboxes.iter().for_each(Inbox::wake);
    }
}
