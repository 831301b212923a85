//! Frames over MPI, which carries bytes and does nothing else: it reduces nothing.
//!
//! A frame is one message. A thread asks for what has come, and sleeps ever longer while nothing
//! does, for ranks may be more than cores. When the job has failed, the rank that noticed ends all
//! of them by `MPI_Abort`, once the others have heard why.

mod abi;
mod library;

use std::{
    collections::VecDeque,
    env, fmt,
    path::PathBuf,
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use self::library::{Mpi, Sending};
use super::{
    CollectiveError, Failure, Launch, Options, World,
    frame::{BODY, Frame, HEADER},
    post::Post,
    watch::lock,
    wired::{Unsent, Wire, Wired},
};

/// The file that `brolly-mpi` is built into.
const FILE: &str = "libbrolly_mpi.so";
/// Frames to a rank that may be under way at once.
const WINDOW: usize = 16;
/// How often it is looked for what comes before it is slept, which is about a millisecond.
const YIELDS: u32 = 1000;
/// How long the rank that noticed a failure lets the others speak, and they let it.
const LAST_WORDS: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(3)];
/// How long `MPI_Abort` and `MPI_Finalize` may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the MPI part and connects the ranks by it.
pub(super) fn join(launch: &Launch, options: &Options) -> Result<World, CollectiveError> {
    let path = library_path(options);
    let mpi = Mpi::open(&path).map_err(|reason| {
        let path = path.display();
        CollectiveError::Mpi(format!(
            "cannot use {path}: {reason}; build it with `cargo build --release --manifest-path \
             runtime/exec/mpi/Cargo.toml` and name it in BROLLY_MPI, or set MASTER_ADDR and \
             MASTER_PORT and ask for TCP"
        ))
    })?;
    let (rank, ranks) = (mpi.rank(), mpi.ranks());
    if (rank, ranks) != (launch.rank, launch.ranks) {
        let told = format!("rank {} of {}", launch.rank, launch.ranks);
        return Err(CollectiveError::Mpi(format!(
            "it says rank {rank} of {ranks}, and the launcher says {told}; is the library of the \
             MPI that launched the job?"
        )));
    }
    let post = Post::new(rank, ranks, options);
    let wire = Arc::new(MpiWire {
        mpi,
        queues: (0..ranks).map(|_| Mutex::default()).collect(),
        is_closing: AtomicBool::new(false),
        receiver: Mutex::default(),
    });
    let fail = |error: std::io::Error| CollectiveError::Mpi(format!("no thread for it: {error}"));
    let (its_wire, its_post) = (wire.clone(), post.clone());
    let thread = thread::Builder::new().name("from-mpi".into());
    let receiver = thread.spawn(move || its_wire.receive(rank, &its_post)).map_err(fail)?;
    *lock(&wire.receiver) = Some(receiver);
    let wired = Wired::new(post, wire).map_err(fail)?;
    Ok(World::new(Arc::new(wired), ranks, options))
}

fn library_path(options: &Options) -> PathBuf {
    let named = || env::var_os("BROLLY_MPI").filter(|path| !path.is_empty()).map(PathBuf::from);
    let beside = || Some(env::current_exe().ok()?.with_file_name(FILE)).filter(|p| p.is_file());
    let path = options.mpi_library.clone().or_else(named).or_else(beside);
    path.unwrap_or_else(|| FILE.into())
}

struct MpiWire {
    mpi: Mpi,
    /// Of each rank, what is under way to it.
    queues: Vec<Mutex<VecDeque<Sending>>>,
    is_closing: AtomicBool,
    receiver: Mutex<Option<JoinHandle<()>>>,
}

/// Sleeps ever longer.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    fn wait(&mut self) {
        self.0 = (self.0 + 1).min(YIELDS + 20);
        match self.0.checked_sub(YIELDS) {
            None => thread::yield_now(),
            Some(long) => thread::sleep(Duration::from_micros(25 * u64::from(long + 1))),
        }
    }
}

impl MpiWire {
    /// Hands on what comes, until the rank has ended.
    fn receive(&self, rank: usize, post: &Post) {
        let mut backoff = Backoff::default();
        while !self.is_closing.load(Relaxed) {
            let (from, message) = match self.mpi.receive() {
                Ok(Some(message)) => message,
                Ok(None) => {
                    backoff.wait();
                    continue;
                }
                Err(code) => return post.lose(rank, &format!("MPI reports error {code}")),
            };
            backoff = Backoff::default();
            let header = message.first_chunk::<HEADER>().and_then(Frame::decode);
            let body = message.get(HEADER..).unwrap_or_default();
            let is_well = match header {
                Some((frame, length)) if length == body.len() => {
                    post.deliver(from, frame, body.to_vec())
                }
                _ => false,
            };
            if !is_well {
                return post.reject(from);
            }
        }
    }

    /// Forgets what has been sent; how much has not.
    fn settle(&self, queue: &mut VecDeque<Sending>) -> Result<usize, Unsent> {
        while let Some(sending) = queue.front_mut() {
            match self.mpi.is_sent(sending) {
                Ok(true) => drop(queue.pop_front()),
                Ok(false) => break,
                Err(code) => return Err(Unsent::Broken(format!("MPI reports error {code}"))),
            }
        }
        Ok(queue.len())
    }

    fn push(
        &self,
        to: usize,
        queue: &mut VecDeque<Sending>,
        header: &[u8],
        body: &[u8],
    ) -> Result<(), Unsent> {
        let sending = self.mpi.send(to, [header, body].concat());
        let broken = |code| Unsent::Broken(format!("MPI reports error {code}"));
        queue.push_back(sending.map_err(broken)?);
        Ok(())
    }
}

impl Wire for MpiWire {
    fn send(
        &self,
        to: usize,
        header: &[u8; HEADER],
        body: &[u8],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Unsent> {
        debug_assert!(body.len() <= BODY);
        let mut queue = lock(&self.queues[to]);
        let mut backoff = Backoff::default();
        while self.settle(&mut queue)? >= WINDOW {
            if !goes_on() {
                return Err(Unsent::GivenUp);
            }
            backoff.wait();
        }
        self.push(to, &mut queue, header, body)
    }

    fn offer(&self, to: usize, header: &[u8; HEADER], body: &[u8]) {
        let Ok(mut queue) = self.queues[to].try_lock() else { return };
        if self.settle(&mut queue).is_ok_and(|left| left < WINDOW) {
            let _ = self.push(to, &mut queue, header, body);
        }
    }

    fn ends_together(&self) -> bool {
        true
    }

    fn notices_ends(&self) -> bool {
        false
    }

    fn close(&self, is_well: bool) {
        let begun = Instant::now();
        let mut backoff = Backoff::default();
        for queue in &self.queues {
            let mut queue = lock(queue);
            while self.settle(&mut queue).is_ok_and(|left| left > 0) && begun.elapsed() < PATIENCE {
                backoff.wait();
            }
        }
        self.is_closing.store(true, Relaxed);
        if let Some(receiver) = lock(&self.receiver).take() {
            // It has no reason to panic.
            let _ = receiver.join();
        }
        if is_well {
            within_patience(|| self.mpi.finalize());
        }
    }

    fn give_up(&self, failure: &Failure) {
        let [noticed, heard] = LAST_WORDS;
        let is_first = failure.noticed_by == self.mpi.rank();
        thread::sleep(if is_first { noticed } else { heard });
        within_patience(|| self.mpi.abort());
    }
}

/// Calls what may never return, and ends the process if it does not.
fn within_patience(call: impl FnOnce()) {
    let is_done = Arc::new(AtomicBool::new(false));
    let its = is_done.clone();
    let watchdog = thread::Builder::new().name("mpi-watchdog".into()).spawn(move || {
        let begun = Instant::now();
        while !its.load(Relaxed) {
            if begun.elapsed() > PATIENCE {
                process::abort();
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    call();
    is_done.store(true, Relaxed);
    if let Ok(watchdog) = watchdog {
        let _ = watchdog.join();
    }
}

impl fmt::Debug for MpiWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiWire").field("mpi", &self.mpi).finish_non_exhaustive()
    }
}
