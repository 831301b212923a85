//! How processes find each other: rank 0 listens where the launcher says, and tells the others
//! where each of them listens.
//!
//! The connection to rank 0 stays; every other pair is connected by the higher rank. Whoever knocks
//! without knowing the greeting is let go, and does not disturb the others.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Launch, failure::name_ranks};

/// Before every greeting and answer; it names the version.
const MAGIC: &[u8; 8] = b"brollyT1";
/// No greeting or answer is longer.
const LONGEST: u32 = 4 << 20;
/// How often is looked for what has not come yet.
const GLANCE: Duration = Duration::from_millis(10);
/// How long somebody who knocks may take to greet.
const GREETING: Duration = Duration::from_secs(5);

/// Who knocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Greeting {
    rank: usize,
    ranks: usize,
    job: u64,
    /// Where it listens itself.
    port: u16,
}

/// What rank 0 says: where each rank listens, with no address for those on its own machine; or why
/// there is no job.
type Answer = Result<Vec<(Option<IpAddr>, u16)>, String>;

/// Connections to all other ranks, by rank, or why there are none.
pub(super) fn meet(launch: &Launch, timeout: Duration) -> Result<Vec<Option<TcpStream>>, String> {
    let (host, port) = launch.meeting.as_ref().ok_or(
        "there is no MASTER_ADDR and MASTER_PORT, by which ranks find each other over TCP",
    )?;
    let deadline = Instant::now() + timeout;
    let place = format!("{host}:{port}");
    match launch.rank {
        0 => gather(launch, &place, deadline, timeout),
        _ => attend(launch, &place, deadline, timeout),
    }
}

/// What rank 0 does.
fn gather(
    launch: &Launch,
    place: &str,
    deadline: Instant,
    timeout: Duration,
) -> Result<Vec<Option<TcpStream>>, String> {
    let taken =
        |error: io::Error| format!("cannot listen at {place}: {error}; choose another MASTER_PORT");
    let address = resolve(place).map_err(taken)?;
    let listener = TcpListener::bind((open_to(address.ip()), address.port())).map_err(taken)?;
    let wanted = 1..launch.ranks;
    let mut problem = None;
    let met = greet(launch, &listener, wanted.clone(), deadline, &mut problem)
        .map_err(|error| format!("cannot listen at {place}: {error}"))?;
    let missing: Vec<usize> = wanted.filter(|rank| !met.contains_key(rank)).collect();
    if problem.is_none() && !missing.is_empty() {
        let missing = name_ranks(&missing, "has", "have");
        let (ranks, seconds) = (launch.ranks, timeout.as_secs());
        let reason = format!("of {ranks} ranks, {missing} not come to {place}");
        problem = Some(format!("{reason} within {seconds} s"));
    }
    let mut table = vec![(None, 0)];
    for (greeting, stream) in met.values() {
        let address = stream.peer_addr().map(|address| address.ip()).ok();
        table.push((address.filter(|address| !address.is_loopback()), greeting.port));
    }
    let answer: Answer = problem.map_or(Ok(table), Err);
    let mut streams: Vec<Option<TcpStream>> = (0..launch.ranks).map(|_| None).collect();
    for (rank, (_, mut stream)) in met {
        let said = say(&mut stream, &answer);
        said.map_err(|error| format!("rank {rank} left before all had come: {error}"))?;
        streams[rank] = Some(stream);
    }
    answer.map(|_| streams)
}

/// What every other rank does.
fn attend(
    launch: &Launch,
    place: &str,
    deadline: Instant,
    timeout: Duration,
) -> Result<Vec<Option<TcpStream>>, String> {
    let seconds = timeout.as_secs();
    let mut master = loop {
        let error = match resolve(place).and_then(|to| knock(to, deadline)) {
            Ok(stream) => break stream,
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(format!("cannot reach rank 0 at {place} for {seconds} s: {error}"));
        }
        thread::sleep(5 * GLANCE);
    };
    let lost = |error: io::Error| format!("rank 0 at {place} does not answer: {error}");
    let own = master.local_addr().map_err(lost)?;
    let listener = TcpListener::bind((open_to(own.ip()), 0));
    let listener = listener.map_err(|error| format!("cannot listen: {error}"))?;
    let port = listener.local_addr().map_err(|error| format!("cannot listen: {error}"))?.port();
    let Launch { rank, ranks, job, .. } = *launch;
    say(&mut master, &Greeting { rank, ranks, job, port }).map_err(lost)?;
    // Rank 0 waits for the others first, and then says who is missing.
    let patience = deadline.saturating_duration_since(Instant::now()) + GREETING;
    let table = hear::<Answer>(&mut master, patience).map_err(lost)??;
    if table.len() != ranks {
        return Err(format!("rank 0 at {place} knows {} ranks", table.len()));
    }
    let machine = master.peer_addr().map_err(lost)?.ip();
    let mut streams: Vec<Option<TcpStream>> = (0..ranks).map(|_| None).collect();
    streams[0] = Some(master);
    for (other, &(address, port)) in table.iter().enumerate().take(rank).skip(1) {
        let to = SocketAddr::new(address.unwrap_or(machine), port);
        let lost = |error: io::Error| format!("cannot reach rank {other} at {to}: {error}");
        let mut stream = knock(to, deadline).map_err(lost)?;
        say(&mut stream, &Greeting { rank, ranks, job, port: 0 }).map_err(lost)?;
        streams[other] = Some(stream);
    }
    let mut problem = None;
    let met = greet(launch, &listener, rank + 1..ranks, deadline, &mut problem)
        .map_err(|error| format!("cannot listen: {error}"))?;
    if let Some(problem) = problem {
        return Err(problem);
    }
    for (other, (_, stream)) in met {
        streams[other] = Some(stream);
    }
    let missing = (rank + 1..ranks).filter(|&rank| streams[rank].is_none());
    let missing: Vec<usize> = missing.collect();
    if missing.is_empty() {
        return Ok(streams);
    }
    Err(format!("{} not connected within {seconds} s", name_ranks(&missing, "has", "have")))
}

/// Waits for ranks to come; `problem` receives why there can be no job.
fn greet(
    launch: &Launch,
    listener: &TcpListener,
    wanted: std::ops::Range<usize>,
    deadline: Instant,
    problem: &mut Option<String>,
) -> io::Result<BTreeMap<usize, (Greeting, TcpStream)>> {
    listener.set_nonblocking(true)?;
    let (greeted, greetings) = mpsc::channel();
    let mut met = BTreeMap::new();
    while met.len() < wanted.len() && problem.is_none() && Instant::now() < deadline {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let greeted = greeted.clone();
                let listen = move || {
                    let is_ready = stream.set_nonblocking(false);
                    let greeting = is_ready.and_then(|()| hear::<Greeting>(&mut stream, GREETING));
                    if let Ok(greeting) = greeting {
                        let _ = greeted.send((greeting, stream));
                    }
                };
                thread::Builder::new().name("greeting".into()).spawn(listen)?;
            }
            // Who knocks and leaves is no problem of the job.
            Err(_) => thread::sleep(GLANCE),
        }
        for (greeting, mut stream) in greetings.try_iter() {
            let is_second = met.contains_key(&greeting.rank);
            match refusal(launch, &greeting, is_second || !wanted.contains(&greeting.rank)) {
                None => drop(met.insert(greeting.rank, (greeting, stream))),
                Some(reason) => {
                    let _ = say(&mut stream, &Answer::Err(reason.clone()));
                    problem.get_or_insert(reason);
                }
            }
        }
    }
    Ok(met)
}

/// Why there can be no job with this one.
fn refusal(launch: &Launch, greeting: &Greeting, is_taken: bool) -> Option<String> {
    let Greeting { rank, ranks, job, .. } = greeting;
    let (own_rank, own_ranks) = (launch.rank, launch.ranks);
    if *ranks != own_ranks {
        let own = format!("rank {own_rank} is told that there are {own_ranks} ranks");
        return Some(format!("{own}, and rank {rank} that there are {ranks}"));
    }
    if *job != launch.job {
        return Some(format!("rank {rank} of another job came; choose another MASTER_PORT"));
    }
    is_taken.then(|| format!("two processes say that they are rank {rank}"))
}

fn resolve(place: &str) -> io::Result<SocketAddr> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses: Vec<SocketAddr> = place.to_socket_addrs()?.collect();
    // What one side resolves to IPv6 and the other to IPv4 would never meet.
    addresses.sort_by_key(|address| !address.is_ipv4());
    addresses.first().copied().ok_or_else(none)
}

/// Listens to this machine alone if the others are on it.
fn open_to(address: IpAddr) -> IpAddr {
    match address {
        address if address.is_loopback() => address,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn knock(to: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now()).max(GLANCE);
    TcpStream::connect_timeout(&to, left.min(GREETING))
}

fn say(stream: &mut TcpStream, what: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(what)?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    stream.set_write_timeout(Some(GREETING))?;
    stream.write_all(&[&MAGIC[..], &length.to_le_bytes(), &text].concat())
}

fn hear<T: DeserializeOwned>(stream: &mut TcpStream, patience: Duration) -> io::Result<T> {
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "it speaks another language");
    stream.set_read_timeout(Some(patience))?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let [magic @ .., a, b, c, d] = head;
    let length = u32::from_le_bytes([a, b, c, d]);
    if magic != *MAGIC || length > LONGEST {
        return Err(garbled());
    }
    let mut text = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|_| garbled())
}
