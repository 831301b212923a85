//! Frames over sockets, one between each pair of ranks.

use std::{
    io::{self, BufReader, ErrorKind, IoSlice, Read, Write},
    mem,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, TryLockError},
    thread,
    time::Duration,
};

use super::{
    CollectiveError, Launch, Options, World,
    frame::{BODY, Frame, HEADER},
    post::Post,
    rendezvous,
    watch::lock,
    wired::{Unsent, Wire, Wired},
};

/// How long a write waits before it looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(100);

/// Brings the ranks together and connects them all.
pub(super) fn join(launch: &Launch, options: &Options) -> Result<World, CollectiveError> {
    let fail = |reason: String| CollectiveError::Join { rank: launch.rank, reason };
    let streams = rendezvous::meet(launch, options.join_deadline).map_err(fail)?;
    let io_fail = |error: io::Error| fail(format!("cannot set up its connections: {error}"));
    connect(launch.rank, streams, options).map_err(io_fail)
}

fn connect(rank: usize, streams: Vec<Option<TcpStream>>, options: &Options) -> io::Result<World> {
    let ranks = streams.len();
    let post = Post::new(rank, ranks, options);
    let mut links = Vec::new();
    let mut readers = Vec::new();
    for (from, stream) in streams.into_iter().enumerate() {
        let Some(stream) = stream else {
            links.push(None);
            continue;
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(GLANCE))?;
        readers.push((from, stream.try_clone()?));
        let closer = stream.try_clone()?;
        links.push(Some(Link { pipe: Mutex::new(Pipe { stream, rest: Vec::new() }), closer }));
    }
    for (from, stream) in readers {
        let post = post.clone();
        let thread = thread::Builder::new().name(format!("from-rank-{from}"));
        thread.spawn(move || read(from, stream, &post))?;
    }
    let wired = Wired::new(post, Arc::new(Tcp { links }))?;
    Ok(World::new(Arc::new(wired), ranks, options))
}

/// The sockets of a rank.
#[derive(Debug)]
struct Tcp {
    /// By rank; `None` for this one.
    links: Vec<Option<Link>>,
}

#[derive(Debug)]
struct Link {
    pipe: Mutex<Pipe>,
    closer: TcpStream,
}

#[derive(Debug)]
struct Pipe {
    stream: TcpStream,
    /// What is left of a frame that was begun and given up.
    rest: Vec<u8>,
}

impl Tcp {
    fn link(&self, to: usize) -> Option<&Link> {
        self.links.get(to).and_then(Option::as_ref)
    }
}

impl Wire for Tcp {
    fn send(
        &self,
        to: usize,
        header: &[u8; HEADER],
        body: &[u8],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Unsent> {
        let link = self.link(to).ok_or_else(|| Unsent::Broken("there is no connection".into()))?;
        // Who has the lock looks whether to go on as well.
        lock(&link.pipe).write(header, body, goes_on)
    }

    fn offer(&self, to: usize, header: &[u8; HEADER], body: &[u8]) {
        let Some(link) = self.link(to) else { return };
        let mut pipe = match link.pipe.try_lock() {
            Ok(pipe) => pipe,
            Err(TryLockError::Poisoned(pipe)) => pipe.into_inner(),
            // What is being sent is a sign of life as well.
            Err(TryLockError::WouldBlock) => return,
        };
        let _ = pipe.write(header, body, &mut || false);
    }

    fn close(&self, _is_well: bool) {
        for link in self.links.iter().flatten() {
            let _ = link.closer.shutdown(Shutdown::Both);
        }
    }
}

impl Pipe {
    fn write(
        &mut self,
        header: &[u8],
        body: &[u8],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Unsent> {
        let rest = mem::take(&mut self.rest);
        let mut slices = [&rest, header, body].map(IoSlice::new);
        let (mut left, mut sent) = (&mut slices[..], 0);
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.stream.write_vectored(left) {
                Ok(0) => return Err(Unsent::Broken("it takes no more bytes".into())),
                Ok(written) => {
                    sent += written;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if goes_on() => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        let is_begun = sent > rest.len();
                        let end = if is_begun { usize::MAX } else { rest.len() };
                        let all = [&rest, header, body].concat();
                        self.rest = all[sent..all.len().min(end)].to_vec();
                        return Err(Unsent::GivenUp);
                    }
                    _ => return Err(Unsent::Broken(error.to_string())),
                },
            }
        }
        Ok(())
    }
}

/// Takes in what a rank sends, until it ends.
fn read(from: usize, stream: TcpStream, post: &Post) {
    let mut stream = BufReader::with_capacity(BODY, stream);
    let mut header = [0; HEADER];
    loop {
        let reason = match stream.read_exact(&mut header) {
            Ok(()) => {
                let Some((frame, length)) = Frame::decode(&header) else {
                    return post.reject(from);
                };
                let mut body = vec![0; length];
                match stream.read_exact(&mut body) {
                    Ok(()) if post.deliver(from, frame, body) => continue,
                    Ok(()) => return post.reject(from),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let reason = match reason.kind() {
            ErrorKind::UnexpectedEof => "its connection was closed".into(),
            _ => format!("its connection broke: {reason}"),
        };
        return post.lose(from, &reason);
    }
}
