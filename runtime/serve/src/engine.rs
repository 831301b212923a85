//! The engine: a model on a thread of its own, shared by any number of requests.
//!
//! An [`Engine`] owns the model and its key/value memory, which is fixed at the start. Requests
//! come in from any thread, take part in steps as the [scheduler](crate::scheduler) says, and are
//! answered through an [`EventStream`] each; dropping that ends the request. HTTP is one user.

pub(crate) mod core;
mod event;
pub(crate) mod prepare;
mod request;
mod stats;
mod stream;
mod worker;

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use exec::{Device, Memory, Model};
use ir::{ModelInfo, ModelKind, artifact::Artifact};
use text::{TextBundle, Tokenizer};
use tokio::sync::{mpsc, oneshot};

use self::{
    core::Core,
    prepare::prepare,
    worker::{Board, Command},
};
use crate::{
    Limits, ServeError, StepModel,
    decoder::{self, Decoder},
    embedder::Embedder,
    scheduler::Budget,
    session,
    verdict::Verdict,
};

pub use event::{Event, NewToken, PromptDone, TokenLogprob};
pub use request::{GenerateParams, Request};
pub use stats::{Histogram, Stats};
pub use stream::{EventStream, Reply};

/// How to run an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where to run; by default on what the artifact is for.
    pub device: Option<Device>,
    /// Which GPU, if one is to be opened; by default the first.
    pub gpu: Option<u32>,
    /// Threads; by default as many as the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence; by default what the model is compiled for.
    pub max_seq_len: Option<usize>,
    /// Bytes of key/value memory; by default what the plan leaves of the memory that this process
    /// may use.
    pub kv_cache_bytes: Option<u64>,
    /// Sequences that run at once; by default what the model is compiled for.
    pub max_num_seqs: Option<NonZeroUsize>,
    /// Tokens of one step; by default what the model is compiled for.
    pub max_num_batched_tokens: Option<NonZeroUsize>,
    /// Tokens of prompts in a step that other sequences decode in.
    pub prefill_chunk: NonZeroUsize,
    /// Requests that may wait; further ones are refused. All of one call are taken if one is.
    pub max_queue: usize,
    /// Whether prompts reuse what others with the same beginning have computed.
    pub prefix_cache: bool,
    /// Where to record steps and launches.
    pub trace: Option<exec::Trace>,
}

/// A running engine; clones share it. It stops when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// It is at fault, or the model is of another kind.
    #[error(transparent)]
    Refused(#[from] ServeError),
    /// Too many requests wait already.
    #[error("{waiting} requests wait already; try again in {} s", retry_after.as_secs())]
    QueueFull {
        /// How many.
        waiting: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// The engine is about to stop.
    #[error("the server is shutting down")]
    Draining,
}

/// What a block of key/value memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockUse {
    /// Nothing.
    Free,
    /// A prefix that nobody uses now.
    Cached,
    /// Keys and values of one sequence.
    Used,
    /// Keys and values that several sequences share.
    Shared,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            device: None,
            gpu: None,
            threads: None,
            max_seq_len: None,
            kv_cache_bytes: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            prefill_chunk: PREFILL_CHUNK,
            max_queue: 512,
            prefix_cache: true,
            trace: None,
        }
    }
}

/// Enough rows to use every arithmetic unit, and few enough that a step takes little longer.
const PREFILL_CHUNK: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// What all handles share. The thread ends when the last is gone.
#[derive(Debug)]
struct Shared {
    info: ModelInfo,
    bundle: TextBundle,
    tokenizer: Option<Arc<Tokenizer>>,
    eos_ids: Vec<u32>,
    limits: Option<Limits>,
    memory: Memory,
    max_queue: usize,
    commands: Sender<Command>,
    board: Arc<Board>,
    next: AtomicU64,
    is_draining: AtomicBool,
    thread: Mutex<Option<JoinHandle<Result<(), ServeError>>>>,
}

/// What a model is besides what computes it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) info: ModelInfo,
    pub(crate) bundle: TextBundle,
    pub(crate) memory: Memory,
}

type Work = Box<dyn FnOnce(&Receiver<Command>, &Board) -> Result<(), ServeError> + Send>;

impl Engine {
    /// Opens an artifact, reserves its memory and starts its thread.
    ///
    /// # Errors
    /// [`ServeError`], which says what to do.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Engine, ServeError> {
        Engine::start(Arc::new(Artifact::open(path)?), options)
    }

    /// As [`open`](Self::open), for an artifact that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn start(artifact: Arc<Artifact>, options: &EngineOptions) -> Result<Engine, ServeError> {
        let device = match &options.device {
            Some(device) => device.clone(),
            None => Device::open(&artifact.manifest().target, options.gpu, options.threads)?,
        };
        let threads = device.pool().threads();
        let verdict = Verdict::begin(&artifact, threads);
        let bundle = artifact.text::<Option<TextBundle>>()?.unwrap_or_default();
        let model = Model::load(artifact, device)?;
        let info = model.artifact().manifest().model.clone();
        let max_seq_len = session::max_seq_len(&info, options.max_seq_len)?;
        let trace = options.trace.clone();
        match info.kind {
            ModelKind::Decoder => {
                let seats = options.max_num_seqs.map(NonZeroUsize::get);
                let blocks =
                    decoder::blocks_for(&model, max_seq_len, options.kv_cache_bytes, seats)?;
                let mut decoder =
                    Decoder::load(&model, max_seq_len, blocks, verdict, decoder::Weights::Own)?;
                decoder.executable().set_trace(trace);
                let (memory, _) = decoder.memory()?;
                Engine::of_model(decoder, Identity { info, bundle, memory }, options)
            }
            ModelKind::Encoder => {
                let mut embedder = Embedder::load(&model, max_seq_len, verdict)?;
                embedder.executable().set_trace(trace);
                let (memory, _) = embedder.memory()?;
                let work: Work =
                    Box::new(move |commands, board| worker::embed(embedder, commands, board));
                Engine::spawn(Identity { info, bundle, memory }, None, options.max_queue, work)
            }
            ModelKind::Graph => Err(ServeError::Kind {
                architecture: info.architecture.clone(),
                reason: "is a graph, which `brolly exec` runs; only language models and models of \
                         embeddings are served"
                    .into(),
            }),
        }
    }

    /// An engine for anything that computes steps.
    pub(crate) fn of_model<M: StepModel + Send + 'static>(
        model: M,
        identity: Identity,
        options: &EngineOptions,
    ) -> Result<Engine, ServeError> {
        let limits = model.limits().clone();
        let mut budget = Budget::of(&limits);
        let cap = |most: &mut usize, asked: Option<NonZeroUsize>| {
            *most = asked.map_or(*most, NonZeroUsize::get).min(*most);
        };
        cap(&mut budget.max_batch_tokens, options.max_num_batched_tokens);
        cap(&mut budget.max_running, options.max_num_seqs);
        budget.prefill_chunk = options.prefill_chunk.get();
        let core = Core::new(model, budget, options.prefix_cache);
        let work: Work = Box::new(move |commands, board| worker::decode(core, commands, board));
        Engine::spawn(identity, Some(limits), options.max_queue, work)
    }

    fn spawn(
        identity: Identity,
        limits: Option<Limits>,
        max_queue: usize,
        work: Work,
    ) -> Result<Engine, ServeError> {
        let Identity { info, bundle, memory } = identity;
        let (commands, received) = channel();
        let board = Arc::new(Board::default());
        let shown = board.clone();
        let thread = thread::Builder::new()
            .name("engine".into())
            .spawn(move || work(&received, &shown))
            .map_err(|e| ServeError::Broken { reason: format!("no thread can be started: {e}") })?;
        let tokenizer = bundle.tokenizer()?.map(Arc::new);
        let eos_ids = bundle.eos_ids(tokenizer.as_deref());
        let shared = Shared {
            info,
            bundle,
            tokenizer,
            eos_ids,
            limits,
            memory,
            max_queue,
            commands,
            board,
            next: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            thread: Mutex::new(Some(thread)),
        };
        Ok(Engine { shared: Arc::new(shared) })
    }

    /// The model.
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// Tokenizer, templates and defaults as the artifact carries them.
    pub fn bundle(&self) -> &TextBundle {
        &self.shared.bundle
    }

    /// The tokenizer; `None` if the model has none.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.shared.tokenizer.as_ref()
    }

    /// End-of-sequence tokens.
    pub fn eos_ids(&self) -> &[u32] {
        &self.shared.eos_ids
    }

    /// What a language model takes at most; `None` for models of embeddings.
    pub fn limits(&self) -> Option<&Limits> {
        self.shared.limits.as_ref()
    }

    /// Memory that is reserved.
    pub fn memory(&self) -> Memory {
        self.shared.memory
    }

    /// Takes a request. Its events come through the stream.
    ///
    /// # Errors
    /// [`SubmitError`], before anything is computed.
    pub fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        let mut streams = self.submit_all(vec![request])?;
        streams.pop().ok_or(SubmitError::Draining)
    }

    /// Takes all requests of a call or none, with a stream each. They need room for one in the
    /// queue: what is asked for together cannot be sent again in parts by who is refused.
    ///
    /// # Errors
    /// [`SubmitError`], before anything is computed.
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<EventStream>, SubmitError> {
        let Shared { tokenizer, eos_ids, next, commands, .. } = &*self.shared;
        let limits = self.limits().ok_or_else(|| self.kind("does not generate text"))?;
        let prepare = |request| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let prepared = prepare(request, number, limits, tokenizer.as_deref(), eos_ids);
            prepared.map(|prepared| (number, prepared))
        };
        let prepared = requests.into_iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
        self.reserve(prepared.len())?;
        let submit = |(request, prepared)| -> Result<EventStream, SubmitError> {
            let (sender, events) = mpsc::unbounded_channel();
            let sent = commands.send(Command::Submit(prepared, sender));
            sent.map_err(|_| SubmitError::Draining)?;
            Ok(EventStream { request, events, commands: commands.clone() })
        };
        prepared.into_iter().map(submit).collect()
    }

    /// One vector for each list of tokens, by a model of embeddings. Lists of several calls share
    /// runs.
    ///
    /// # Errors
    /// [`SubmitError`]; the answer can be a [`ServeError`] too.
    pub fn embed(&self, lists: Vec<Vec<u32>>) -> Result<Reply<Vec<Vec<f32>>>, SubmitError> {
        if self.info().kind != ModelKind::Encoder {
            return Err(self.kind("does not embed text").into());
        }
        self.reserve(1)?;
        let (answer, reply) = oneshot::channel();
        let command = Command::Embed(lists, answer);
        self.shared.commands.send(command).map_err(|_| SubmitError::Draining)?;
        Ok(Reply(reply))
    }

    /// The state after the last step.
    pub fn stats(&self) -> Stats {
        self.shared.board.stats()
    }

    /// The use of every block of key/value memory, between two steps.
    pub fn block_uses(&self) -> Reply<Vec<BlockUse>> {
        let (answer, reply) = oneshot::channel();
        // Without a thread the reply says so.
        let _ = self.shared.commands.send(Command::BlockUses(answer));
        Reply(reply)
    }

    /// Takes no further requests; those accepted are answered.
    pub fn drain(&self) {
        self.shared.is_draining.store(true, Ordering::SeqCst);
        let _ = self.shared.commands.send(Command::Drain);
    }

    /// Whether no further requests are taken.
    pub fn is_draining(&self) -> bool {
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let has_ended = thread.as_ref().is_none_or(JoinHandle::is_finished);
        has_ended || self.shared.is_draining.load(Ordering::SeqCst)
    }

    /// Waits until every accepted request has been answered, after [`drain`](Self::drain).
    ///
    /// # Errors
    /// What ended the engine before its time.
    pub fn join(&self) -> Result<(), ServeError> {
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            Some(Err(payload)) => std::panic::resume_unwind(payload),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }

    /// Counts requests that are about to be sent, if one more may wait.
    fn reserve(&self, requests: usize) -> Result<(), SubmitError> {
        if self.is_draining() {
            return Err(SubmitError::Draining);
        }
        let Board { submitted, waiting, .. } = &*self.shared.board;
        let sent = submitted.fetch_add(requests, Ordering::Relaxed);
        let waiting = sent + waiting.load(Ordering::Relaxed);
        if waiting < self.shared.max_queue {
            return Ok(());
        }
        submitted.fetch_sub(requests, Ordering::Relaxed);
        Err(SubmitError::QueueFull { waiting, retry_after: self.retry_after(waiting) })
    }

    /// When so many waiting requests may have been taken, by how long others have taken.
    fn retry_after(&self, waiting: usize) -> Duration {
        let stats = self.stats();
        let each = stats.e2e_latency.sum / stats.e2e_latency.count().max(1) as f64;
        let seconds = each * waiting as f64 / stats.running.max(1) as f64;
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0).ceil())
    }

    fn kind(&self, reason: &str) -> ServeError {
        let architecture = self.info().architecture.clone();
        ServeError::Kind { architecture, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests;
