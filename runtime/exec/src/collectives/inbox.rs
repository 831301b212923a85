//! Where a rank finds what others have sent: messages by sender and collective, taken in order.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use super::{
    Cause, Failure,
    call::{Call, Key},
    loan::Loan,
    watch::{Watch, lock},
};

/// How much of a message is handed on at a time, and sent in one frame. A multiple of every size
/// of an element; small enough that what is folded stays in the cache.
pub(super) const CHUNK: usize = 64 << 10;

/// A part of a rank's collective that another rank is to send; for its own part `sink` is called
/// without bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub(super) from: usize,
    pub(super) bytes: usize,
}

/// Receives index in the list of what comes, offset, and bytes.
pub(super) type Sink<'a> = dyn FnMut(usize, usize, &[u8]) + 'a;

/// All of a message, or a chunk of it.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) call: Call,
    /// Of the message.
    pub(super) total: u64,
    pub(super) offset: u64,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Owned(Vec<u8>),
    Lent(Loan),
}

/// What has come for a rank.
#[derive(Debug)]
pub(super) struct Inbox {
    rank: usize,
    watch: Arc<Watch>,
    pieces: Mutex<HashMap<Key, VecDeque<Piece>>>,
    changed: Condvar,
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Body::Owned(bytes) => bytes,
            Body::Lent(loan) => loan.bytes(),
        }
    }
}

impl Inbox {
    pub(super) fn new(rank: usize, watch: Arc<Watch>) -> Inbox {
        Inbox { rank, watch, pieces: Mutex::default(), changed: Condvar::new() }
    }

    /// Puts a piece in, behind those of the same message.
    pub(super) fn deliver(&self, from: usize, phase: u8, piece: Piece) {
        lock(&self.pieces).entry(piece.call.key(from, phase)).or_default().push_back(piece);
        self.changed.notify_all();
    }

    /// Takes a message back that nobody has begun to read; whether there was one.
    pub(super) fn recall(&self, from: usize, call: &Call, phase: u8) -> bool {
        let pieces = lock(&self.pieces).remove(&call.key(from, phase));
        pieces.is_some()
    }

    /// Has those that wait look at the watch again.
    pub(super) fn wake(&self) {
        drop(lock(&self.pieces));
        self.changed.notify_all();
    }

    /// Hands `sink` the messages of a phase, chunk by chunk, within a chunk in the order of `from`.
    ///
    /// # Errors
    /// Why a message does not come, or is not what it should be; it is yet to be raised.
    pub(super) fn receive(
        &self,
        call: &Call,
        phase: u8,
        from: &[Incoming],
        sink: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let longest = from.iter().map(|part| part.bytes).max().unwrap_or(0);
        let mut current: Vec<Option<Piece>> = from.iter().map(|_| None).collect();
        for offset in (0..longest.max(1)).step_by(CHUNK) {
            for (index, part) in from.iter().enumerate() {
                let bytes = part.bytes.saturating_sub(offset).min(CHUNK);
                if bytes == 0 && offset > 0 {
                    continue;
                }
                if part.from == self.rank {
                    sink(index, offset, &[]);
                    continue;
                }
                let piece = match current[index].take() {
                    Some(piece) => piece,
                    None => self.next(call, phase, part)?,
                };
                let at = offset.checked_sub(usize::try_from(piece.offset).unwrap_or(usize::MAX));
                let chunk = at.and_then(|at| piece.body.bytes().get(at..)?.get(..bytes));
                let Some(chunk) = chunk else {
                    let what = format!("bytes from {} on, not from {offset} on", piece.offset);
                    return Err(self.failure(part.from, call, Cause::Garbled(what)));
                };
                sink(index, offset, chunk);
                let end = piece.offset + piece.body.bytes().len() as u64;
                if end > (offset + bytes) as u64 {
                    current[index] = Some(piece);
                }
            }
        }
        Ok(())
    }

    /// The next piece of a message, once it is there and if it is what was agreed on.
    fn next(&self, call: &Call, phase: u8, part: &Incoming) -> Result<Piece, Failure> {
        let key = call.key(part.from, phase);
        let begun = Instant::now();
        let mut pieces = lock(&self.pieces);
        let mut waiting = None;
        let piece = loop {
            if let Some(failure) = self.watch.failure() {
                return Err((*failure).clone());
            }
            if let Some(queue) = pieces.get_mut(&key) {
                let piece = queue.pop_front();
                if queue.is_empty() {
                    pieces.remove(&key);
                }
                if let Some(piece) = piece {
                    break piece;
                }
            }
            if self.watch.has_ended(part.from) {
                return Err(self.failure(part.from, call, Cause::Ended));
            }
            let waited = begun.elapsed();
            let Some(left) = self.watch.deadline.checked_sub(waited).filter(|d| !d.is_zero())
            else {
                drop(pieces);
                drop(waiting);
                let place = format!("in {}", self.watch.describe(call));
                return Err(self.watch.late(self.rank, part.from, place, waited));
            };
            waiting.get_or_insert_with(|| self.watch.waiting(self.rank, part.from));
            let wait = self.changed.wait_timeout(pieces, left);
            pieces = wait.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(pieces);
        if !piece.call.meets(call) {
            let theirs = self.watch.describe(&piece.call);
            return Err(self.failure(part.from, call, Cause::Mismatch(theirs)));
        }
        if piece.total != part.bytes as u64 {
            let what = format!("{} bytes where {} were expected", piece.total, part.bytes);
            return Err(self.failure(part.from, call, Cause::Garbled(what)));
        }
        Ok(piece)
    }

    fn failure(&self, rank: usize, call: &Call, cause: Cause) -> Failure {
        let place = format!("in {}", self.watch.describe(call));
        let step = self.watch.step(self.rank);
        Failure { rank, noticed_by: self.rank, step, place, cause }
    }
}
