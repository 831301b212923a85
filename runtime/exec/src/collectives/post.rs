//! What comes to a rank from other processes, and what it makes of it.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Cause, Failure, Options,
    frame::Frame,
    inbox::{Body, Inbox, Piece},
    watch::{State, Watch, lock, millis},
};

/// How long after a connection has broken somebody else may still say why.
pub(super) const GRACE: Duration = Duration::from_millis(300);

/// What comes in.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) rank: usize,
    ranks: usize,
    pub(super) watch: Arc<Watch>,
    pub(super) inbox: Inbox,
    pub(super) silence: Duration,
    begun: Instant,
    /// When each rank was last heard of, in milliseconds since `begun`.
    heard_ms: Vec<AtomicU64>,
    /// Whether the news of a failure has been sent.
    pub(super) is_told: Mutex<bool>,
    pub(super) told: Condvar,
    /// Whether this rank has ended, and what wakes the watching thread.
    pub(super) is_over: Mutex<bool>,
    pub(super) woken: Condvar,
    pub(super) is_closing: AtomicBool,
}

impl Post {
    pub(super) fn new(rank: usize, ranks: usize, options: &Options) -> Arc<Post> {
        let watch = Arc::new(Watch::new(ranks, options.deadline));
        Arc::new(Post {
            rank,
            ranks,
            inbox: Inbox::new(rank, watch.clone()),
            watch,
            silence: options.silence,
            begun: Instant::now(),
            heard_ms: (0..ranks).map(|_| AtomicU64::new(0)).collect(),
            is_told: Mutex::new(false),
            told: Condvar::new(),
            is_over: Mutex::new(false),
            woken: Condvar::new(),
            is_closing: AtomicBool::new(false),
        })
    }

    /// Takes in a frame; whether it made sense.
    pub(super) fn deliver(&self, from: usize, frame: Frame, body: Vec<u8>) -> bool {
        self.heard_ms[from].store(millis(self.begun.elapsed()), Relaxed);
        match frame {
            Frame::Data { call, phase, total, offset } => {
                let piece = Piece { call, total, offset, body: Body::Owned(body) };
                self.inbox.deliver(from, phase, piece);
            }
            Frame::Alive => match serde_json::from_slice::<State>(&body) {
                Ok(state) => self.watch.learn(from, state),
                Err(_) => return false,
            },
            Frame::Failed => match serde_json::from_slice::<Failure>(&body) {
                Ok(failure) => drop(self.raise(failure)),
                Err(_) => return false,
            },
            Frame::Ended => {
                self.watch.set_ended(from);
                self.inbox.wake();
            }
        }
        true
    }

    /// Notes that nothing more comes from a rank.
    pub(super) fn lose(&self, from: usize, reason: &str) {
        if self.watch.has_ended(from) || self.is_closing.load(Relaxed) {
            return;
        }
        thread::sleep(GRACE);
        self.raise(self.blame(from, Cause::Lost(reason.to_owned())));
    }

    /// Notes that what a rank sends makes no sense.
    pub(super) fn reject(&self, from: usize) {
        self.raise(self.blame(from, Cause::Garbled("what is no message of this version".into())));
    }

    pub(super) fn raise(&self, failure: Failure) -> Arc<Failure> {
        let (failure, is_new) = self.watch.raise(failure);
        if is_new {
            self.inbox.wake();
            drop(lock(&self.is_over));
            self.woken.notify_all();
        }
        failure
    }

    pub(super) fn blame(&self, rank: usize, cause: Cause) -> Failure {
        let (me, watch) = (self.rank, &self.watch);
        Failure { rank, noticed_by: me, step: watch.step(me), place: watch.place(me), cause }
    }

    pub(super) fn others(&self) -> impl Iterator<Item = usize> {
        let me = self.rank;
        (0..self.ranks).filter(move |&rank| rank != me)
    }

    /// The rank that has been silent for too long, and for how long it has.
    pub(super) fn silent(&self) -> Option<(usize, Duration)> {
        let now = millis(self.begun.elapsed());
        let silent_ms = |rank: usize| now.saturating_sub(self.heard_ms[rank].load(Relaxed));
        let alive = self.others().filter(|&rank| !self.watch.has_ended(rank));
        let (silent_ms, rank) = alive.map(|rank| (silent_ms(rank), rank)).max()?;
        (silent_ms > millis(self.silence)).then_some((rank, Duration::from_millis(silent_ms)))
    }

    /// Begins to count the silence of all others anew.
    pub(super) fn forgive(&self) {
        let now = millis(self.begun.elapsed());
        self.heard_ms.iter().for_each(|heard| heard.store(now, Relaxed));
    }
}
