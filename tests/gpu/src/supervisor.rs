//! Starts workers, one after the other: a case that loses the device, hangs or ends its worker is
//! lost alone, and the next worker goes on behind it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use cuda::Facts;

use crate::{
    Case,
    worker::{Message, Outcome},
};

/// The longest that a case may take.
const CASE: Duration = Duration::from_secs(12);
/// Workers that may come to nothing in a row.
const STARTS: usize = 2;

/// What workers found.
#[derive(Debug, Default)]
pub struct Findings {
    /// The device, and bytes per second of copies on it.
    pub device: Option<(Facts, Option<f64>)>,
    /// By case; `None` for those that time did not suffice for.
    pub outcomes: Vec<Option<Outcome>>,
    /// Why no worker can run at all.
    pub failed: Option<String>,
}

/// Runs all cases within a time, in processes that `command` makes for the cases from a number on.
///
/// # Errors
/// If no process can be started.
pub fn run(
    cases: &[Case],
    limit: Duration,
    command: impl Fn(usize) -> Command,
) -> io::Result<Findings> {
    let end = Instant::now() + limit;
    let mut findings = Findings { outcomes: vec![None; cases.len()], ..Findings::default() };
    let (mut next, mut idle) = (0, 0);
    while next < cases.len() && Instant::now() < end && findings.failed.is_none() {
        let mut worker = Worker::start(command(next))?;
        let (before, mut current) = (next, None);
        let lost = loop {
            let wait = CASE.min(end.saturating_duration_since(Instant::now()));
            match worker.lines.recv_timeout(wait) {
                Ok(Message::Device(facts, copied)) => {
                    findings.device.get_or_insert((facts, copied));
                }
                Ok(Message::Begin(number)) => current = Some(number),
                Ok(Message::End(number, outcome)) => {
                    if let Some(slot) = findings.outcomes.get_mut(number) {
                        *slot = Some(outcome);
                    }
                    (current, next) = (None, number + 1);
                }
                Ok(Message::Failed(reason)) => {
                    findings.failed = Some(reason);
                    break None;
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= end => break None,
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = CASE.as_secs();
                    break Some(format!("no result in {seconds} s: it hangs"));
                }
                Err(RecvTimeoutError::Disconnected) => break Some(worker.ended()),
            }
        };
        drop(worker);
        if let (Some(reason), Some(number)) = (lost, current) {
            let error = Outcome { error: Some(reason), fatal: true, ..Outcome::default() };
            findings.outcomes[number] = Some(error);
            next = number + 1;
        }
        idle = if next == before { idle + 1 } else { 0 };
        if idle == STARTS && findings.failed.is_none() {
            findings.failed = Some("workers end before they begin; see what they said".into());
        }
    }
    compare(cases, &mut findings.outcomes);
    Ok(findings)
}

/// Turns cases whose bits differ from those of others, where they must not, into failed ones.
fn compare(cases: &[Case], outcomes: &mut [Option<Outcome>]) {
    let mut first: BTreeMap<&str, (String, &str)> = BTreeMap::new();
    for (case, outcome) in cases.iter().zip(outcomes) {
        let Some(outcome) = outcome else { continue };
        let digests = outcome.same.clone();
        for (same, digest) in case.same.iter().zip(digests) {
            let (seen, whose) =
                first.entry(&same.name).or_insert_with(|| (digest.clone(), &case.name));
            if *seen != digest && outcome.error.is_none() {
                outcome.error = Some(format!("its bits are not those of `{whose}`"));
            }
        }
    }
}

/// A process, which is killed when this is dropped.
struct Worker {
    child: Child,
    lines: Receiver<Message>,
}

impl Worker {
    fn start(mut command: Command) -> io::Result<Worker> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let (sender, lines) = mpsc::channel();
        let out = child.stdout.take();
        std::thread::spawn(move || {
            for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { return };
                match serde_json::from_str(&line) {
                    Ok(message) => {
                        if sender.send(message).is_err() {
                            return;
                        }
                    }
                    Err(_) => eprintln!("{line}"),
                }
            }
        });
        Ok(Worker { child, lines })
    }

    /// How it ended.
    fn ended(&mut self) -> String {
        match self.child.wait() {
            Ok(status) => format!("its process ended: {status}"),
            Err(error) => format!("its process cannot be waited for: {error}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
