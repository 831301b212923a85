//! The engine's thread.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
};

use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{BlockUse, Event, Stats, core::Core, prepare::Prepared};
use crate::{ServeError, StepModel, embedder::Embedder};

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A request, and where its events go.
    Submit(Prepared, UnboundedSender<Event>),
    /// A request whose client has left.
    Cancel(u64),
    /// Texts to embed.
    Embed(Lists, Answer<Vec<Vec<f32>>>),
    /// What each block of memory holds.
    BlockUses(Answer<Vec<BlockUse>>),
    /// To end once there is nothing to do.
    Drain,
}

/// Token ids of several texts.
pub(crate) type Lists = Vec<Vec<u32>>;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, ServeError>>;

/// What the thread shows to others.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// After the last step.
    pub(super) stats: Mutex<Stats>,
    /// Requests that were submitted and are not yet received.
    pub(super) submitted: AtomicUsize,
    /// Requests that wait for room.
    pub(super) waiting: AtomicUsize,
}

impl Board {
    pub(super) fn stats(&self) -> Stats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, stats: &Stats) {
        self.waiting.store(stats.waiting, Ordering::Relaxed);
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone_from(stats);
    }
}

/// A request that is being answered.
struct Client {
    events: UnboundedSender<Event>,
    /// Sequences that have not ended.
    sequences: usize,
}

/// Those who are answered.
#[derive(Default)]
struct Clients {
    listening: HashMap<u64, Client>,
    /// Last events, which are handed on when statistics have been shown that count them.
    last: Vec<(UnboundedSender<Event>, Event)>,
}

/// Answers requests until told to end, or until nobody can tell any more.
pub(super) fn decode<M: StepModel>(
    mut core: Core<M>,
    commands: &Receiver<Command>,
    board: &Board,
) -> Result<(), ServeError> {
    let mut clients = Clients::default();
    let mut is_draining = false;
    loop {
        if core.is_idle() {
            clients.show(core.stats(), board);
            if is_draining {
                return Ok(());
            }
            match commands.recv() {
                Ok(command) => obey(command, &mut core, &mut clients, &mut is_draining, board),
                Err(_) => return Ok(()),
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => obey(command, &mut core, &mut clients, &mut is_draining, board),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    is_draining = true;
                    break;
                }
            }
        }
        if let Err(error) = core.step(&mut |request, event| clients.send(request, event)) {
            let reason = error.to_string();
            let again = || ServeError::Broken { reason: reason.clone() };
            core.fail_all(again, &mut |request, event| clients.send(request, event));
            clients.show(core.stats(), board);
            return Err(error);
        }
        clients.show(core.stats(), board);
    }
}

fn obey<M: StepModel>(
    command: Command,
    core: &mut Core<M>,
    clients: &mut Clients,
    is_draining: &mut bool,
    board: &Board,
) {
    match command {
        Command::Submit(prepared, events) => {
            let sequences = prepared.states.len();
            if let Some(request) = prepared.states.first().map(|s| s.request) {
                clients.listening.insert(request, Client { events, sequences });
            }
            core.add(prepared, &mut |request, event| clients.send(request, event));
            board.waiting.store(core.scheduler().waiting().len(), Ordering::Relaxed);
            board.submitted.fetch_sub(1, Ordering::Relaxed);
        }
        Command::Cancel(request) => {
            if clients.listening.remove(&request).is_some() {
                core.cancel(request);
            }
        }
        Command::Embed(_, answer) => {
            let reason = "generates text and does not embed it";
            let _ = answer.send(Err(ServeError::request("input", reason)));
        }
        Command::BlockUses(answer) => {
            let _ = answer.send(Ok(block_uses(core)));
        }
        Command::Drain => *is_draining = true,
    }
}

impl Clients {
    /// Hands an event on, a request's last one later; tells to end the request if nobody listens.
    fn send(&mut self, request: u64, event: Event) -> ControlFlow<()> {
        let Some(client) = self.listening.get_mut(&request) else { return ControlFlow::Break(()) };
        let is_last = match &event {
            Event::Token(token) if token.finish.is_some() => {
                client.sequences -= 1;
                client.sequences == 0
            }
            Event::Failed(_) => true,
            _ => false,
        };
        if is_last {
            let client = self.listening.remove(&request);
            self.last.extend(client.map(|client| (client.events, event)));
            return ControlFlow::Continue(());
        }
        if client.events.send(event).is_err() {
            self.listening.remove(&request);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Shows statistics, and then hands last events on.
    fn show(&mut self, stats: &Stats, board: &Board) {
        board.show(stats);
        for (events, event) in self.last.drain(..) {
            // Whoever has gone needs nothing.
            let _ = events.send(event);
        }
    }
}

fn block_uses<M: StepModel>(core: &Core<M>) -> Vec<BlockUse> {
    let blocks = core.scheduler().blocks();
    let all = 0..u32::try_from(blocks.blocks()).unwrap_or(u32::MAX);
    all.map(|block| match blocks.uses(block) {
        0 if blocks.is_cached(block) => BlockUse::Cached,
        0 => BlockUse::Free,
        1 => BlockUse::Used,
        _ => BlockUse::Shared,
    })
    .collect()
}

/// Embeds texts until told to end; those that wait share runs.
pub(super) fn embed(
    mut embedder: Embedder,
    commands: &Receiver<Command>,
    board: &Board,
) -> Result<(), ServeError> {
    let mut stats = Stats::default();
    loop {
        let mut jobs: Vec<(Lists, Answer<Vec<Vec<f32>>>)> = Vec::new();
        let mut is_ending = false;
        let mut next = commands.recv().map_err(|_| TryRecvError::Disconnected);
        loop {
            match next {
                Ok(Command::Embed(lists, answer)) => {
                    board.submitted.fetch_sub(1, Ordering::Relaxed);
                    match embedder.check(&lists) {
                        Ok(()) => jobs.push((lists, answer)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Ok(Command::BlockUses(answer)) => drop(answer.send(Ok(Vec::new()))),
                Ok(Command::Submit(..) | Command::Cancel(_)) => {}
                Ok(Command::Drain) | Err(TryRecvError::Disconnected) => is_ending = true,
                Err(TryRecvError::Empty) => break,
            }
            if is_ending {
                break;
            }
            next = commands.try_recv();
        }
        let lists: Vec<&[u32]> =
            jobs.iter().flat_map(|(lists, _)| lists.iter().map(Vec::as_slice)).collect();
        let tokens: usize = lists.iter().map(|list| list.len()).sum();
        if !lists.is_empty() {
            stats.steps += 1;
            stats.prompt_tokens += tokens as u64;
            stats.iteration_tokens.add(tokens as f64);
        }
        let vectors = embedder.embed(&lists);
        let failed = vectors.as_ref().err().map(ToString::to_string);
        let mut vectors = vectors.unwrap_or_default().into_iter();
        for (lists, answer) in jobs {
            let answered = match &failed {
                None => Ok(vectors.by_ref().take(lists.len()).collect()),
                Some(reason) => Err(ServeError::Broken { reason: reason.clone() }),
            };
            stats.finished_stop += u64::from(answered.is_ok());
            let _ = answer.send(answered);
        }
        board.show(&stats);
        if is_ending {
            return Ok(());
        }
    }
}
