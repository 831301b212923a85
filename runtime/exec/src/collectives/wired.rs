//! Ranks as processes: messages are cut into frames, and each rank tells the others that it lives.
//!
//! What comes in is put aside at once, whether somebody waits for it or not, so no rank ever waits
//! for another one to receive. A thread of each rank tells the others every so often what it is at,
//! and watches that they do. A process that was stopped itself begins to count anew.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Cause, Failure,
    call::Call,
    frame::{Frame, HEADER},
    inbox::{CHUNK, Incoming, Sink},
    post::{GRACE, Post},
    pulse,
    transport::{Outgoing, Transport},
    watch::{Watch, lock},
};

/// How long the news of a failure may take to be sent.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// Carries frames.
pub(super) trait Wire: Send + Sync + fmt::Debug + 'static {
    /// Sends a frame, and asks `goes_on` now and then while it can't.
    fn send(
        &self,
        to: usize,
        header: &[u8; HEADER],
        body: &[u8],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Unsent>;

    /// Sends a frame if that needs no waiting.
    fn offer(&self, to: usize, header: &[u8; HEADER], body: &[u8]);

    /// Ends the use of the connections; `is_well` if no rank has failed.
    fn close(&self, is_well: bool);

    /// Whether the connections can only be closed by all ranks at once.
    fn ends_together(&self) -> bool {
        false
    }

    /// Whether a connection breaks when the process at its other end does.
    fn notices_ends(&self) -> bool {
        true
    }

    /// Does what there is to do when the job has failed and everybody has been told.
    fn give_up(&self, _failure: &Failure) {}
}

/// Why a frame was not sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// It was not to be tried any longer.
    GivenUp,
    /// The connection has broken.
    Broken(String),
}

/// A rank that talks to other processes.
#[derive(Debug)]
pub(super) struct Wired<W: Wire> {
    post: Arc<Post>,
    wire: Arc<W>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl<W: Wire> Wired<W> {
    /// Begins to tell the others that this rank lives.
    ///
    /// # Errors
    /// What the operating system says if it starts no thread.
    pub(super) fn new(post: Arc<Post>, wire: Arc<W>) -> std::io::Result<Wired<W>> {
        let (its_post, its_wire) = (post.clone(), wire.clone());
        post.forgive();
        let thread = thread::Builder::new().name("collectives-watch".into());
        let watcher = thread.spawn(move || pulse::watch(&its_post, &*its_wire))?;
        Ok(Wired { post, wire, watcher: Mutex::new(Some(watcher)) })
    }

    fn send(&self, call: &Call, phase: u8, send: &Outgoing<'_>, at: usize) -> Result<(), Failure> {
        let body = &send.bytes[at..send.bytes.len().min(at + CHUNK)];
        let (total, offset) = (send.bytes.len() as u64, at as u64);
        let header = Frame::Data { call: *call, phase, total, offset }.encode(body.len());
        let watch = &self.post.watch;
        let begun = Instant::now();
        let mut goes_on = || match watch.failure() {
            // The frame that was begun is to be ended, if the other rank still takes it.
            Some(_) => begun.elapsed() < GRACE,
            None => begun.elapsed() < watch.deadline,
        };
        let Err(reason) = self.wire.send(send.to, &header, body, &mut goes_on) else {
            return Ok(());
        };
        if let Unsent::Broken(_) = reason {
            // Whoever reads from it notices as well, and may hear why.
            thread::sleep(2 * GRACE);
        }
        if let Some(failure) = watch.failure() {
            return Err((*failure).clone());
        }
        let cause = match reason {
            Unsent::Broken(reason) => Cause::Lost(reason),
            Unsent::GivenUp => {
                let place = format!("in {}", watch.describe(call));
                return Err(watch.late(self.post.rank, send.to, place, begun.elapsed()));
            }
        };
        Err(self.post.blame(send.to, cause))
    }
}

impl<W: Wire> Transport for Wired<W> {
    fn rank(&self) -> usize {
        self.post.rank
    }

    fn watch(&self) -> &Watch {
        &self.post.watch
    }

    fn exchange(
        &self,
        call: &Call,
        phase: u8,
        sends: &[Outgoing<'_>],
        _detached: bool,
        from: &[Incoming],
        sink: &mut Sink<'_>,
    ) -> Result<(), Arc<Failure>> {
        let longest = sends.iter().map(|send| send.bytes.len()).max().unwrap_or(0);
        for offset in (0..longest.max(1)).step_by(CHUNK) {
            for send in sends.iter().filter(|send| offset == 0 || offset < send.bytes.len()) {
                self.send(call, phase, send, offset).map_err(|failure| self.fail(failure))?;
            }
        }
        let received = self.post.inbox.receive(call, phase, from, sink);
        received.map_err(|failure| self.fail(failure))
    }

    fn fail(&self, failure: Failure) -> Arc<Failure> {
        let failure = self.post.raise(failure);
        if self.post.is_closing.load(Relaxed) {
            return failure;
        }
        // The caller may end the process next.
        let is_told = lock(&self.post.is_told);
        let wait = self.post.told.wait_timeout_while(is_told, 2 * LAST_WORDS, |is_told| !*is_told);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
        failure
    }

    fn end(&self) {
        let Post { watch, is_over, woken, is_closing, .. } = &*self.post;
        let begun = Instant::now();
        if watch.failure().is_none() {
            let header = Frame::Ended.encode(0);
            for rank in self.post.others() {
                let mut goes_on = || begun.elapsed() < LAST_WORDS;
                let _ = self.wire.send(rank, &header, &[], &mut goes_on);
            }
            // Closing earlier could take from the others what is still on its way to them.
            let all_ended = || self.post.others().all(|rank| watch.has_ended(rank));
            let goes_on = || self.wire.ends_together() || begun.elapsed() < LAST_WORDS;
            while !all_ended() && watch.failure().is_none() && goes_on() {
                thread::sleep(Duration::from_millis(2));
            }
        }
        is_closing.store(true, Relaxed);
        *lock(is_over) = true;
        woken.notify_all();
        if let Some(watcher) = lock(&self.watcher).take() {
            // It has no reason to panic.
            let _ = watcher.join();
        }
        self.wire.close(watch.failure().is_none());
    }
}
