//! Starts workers, some side by side, for most of a case's time the driver assembles its kernel. A
//! case that loses the device, hangs or ends its worker is lost alone, and the next worker goes on
//! behind it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, ScopedJoinHandle},
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

/// Runs all cases within a time, in so many processes at once, which `command` makes: for the case
/// of the first number given and each that comes so many behind it. Where the device is for one
/// process at a time, they run one after the other.
///
/// # Errors
/// If no process can be started.
pub fn run(
    cases: &[Case],
    limit: Duration,
    lanes: usize,
    command: impl Fn(usize, usize) -> Command + Sync,
) -> io::Result<Findings> {
    let end = Instant::now() + limit;
    let lanes = lanes.clamp(1, cases.len().max(1));
    let mut findings = side_by_side(cases.len(), end, lanes, &command)?;
    if lanes > 1 && findings.failed.is_some() {
        findings = side_by_side(cases.len(), end, 1, &command)?;
    }
    compare(cases, &mut findings.outcomes);
    Ok(findings)
}

fn side_by_side(
    count: usize,
    end: Instant,
    lanes: usize,
    command: &(impl Fn(usize, usize) -> Command + Sync),
) -> io::Result<Findings> {
    let found: Vec<io::Result<Findings>> = thread::scope(|scope| {
        let lane = |first| scope.spawn(move || lane(count, (first, lanes), end, command));
        let threads: Vec<_> = (0..lanes).map(lane).collect();
        let join = |thread: ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        };
        threads.into_iter().map(join).collect()
    });
    let mut all = Findings { outcomes: vec![None; count], ..Findings::default() };
    for (first, findings) in found.into_iter().enumerate() {
        let Findings { device, outcomes, failed } = findings?;
        let own = outcomes.into_iter().enumerate().skip(first).step_by(lanes);
        for (number, outcome) in own {
            all.outcomes[number] = outcome;
        }
        all.device = all.device.or(device);
        all.failed = all.failed.or(failed);
    }
    Ok(all)
}

/// Runs every `step`th case from `next` on, in one process after the other.
fn lane(
    count: usize,
    (mut next, step): (usize, usize),
    end: Instant,
    command: &impl Fn(usize, usize) -> Command,
) -> io::Result<Findings> {
    let mut findings = Findings { outcomes: vec![None; count], ..Findings::default() };
    let mut idle = 0;
    while next < count && Instant::now() < end && findings.failed.is_none() {
        let mut worker = Worker::start(command(next, step))?;
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
                    (current, next) = (None, number + step);
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
            next = number + step;
        }
        idle = if next == before { idle + 1 } else { 0 };
        if idle == STARTS && findings.failed.is_none() {
            findings.failed = Some("workers end before they begin; see what they said".into());
        }
    }
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
        thread::spawn(move || {
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

#[cfg(test)]
mod tests {
    use cuda::Launch;

    use super::*;
    use crate::{Check, Same};

    const FACTS: &str = r#"{"device":[{"name":"GPU","capability":[9,0],"driver":13000,
        "memory_bytes":1,"multiprocessors":1,"shared_bytes":1,"l2_bytes":1,"clock_khz":1},null]}"#;

    /// A case that must have the bits of the others.
    fn case(number: usize) -> Case {
        Case {
            name: number.to_string(),
            family: "a".into(),
            target: "sm_80".into(),
            module: "m".into(),
            launch: Launch {
                symbol: "k".into(),
                params: Vec::new(),
                grid: [1; 3],
                block: 32,
                cluster: 1,
                shared_bytes: 0,
                dependent: false,
            },
            operands: Vec::new(),
            results: Vec::new(),
            check: Check::Whole { files: Vec::new(), tolerance: 0.0 },
            same: vec![Same { name: "all".into(), offset: 0, bytes: 1 }],
            timing: None,
        }
    }

    /// Runs eleven cases; a worker says `begin` before its cases, and of number 5 `five`.
    fn run_eleven(lanes: usize, begin: &str, five: &str) -> Findings {
        let cases: Vec<Case> = (0..11).map(case).collect();
        let facts = FACTS.replace('\n', "");
        let command = |first: usize, step: usize| {
            let script = format!(
                r#"echo '{facts}'; {begin}
                for n in $(seq {first} {step} 10); do
                    echo "{{\"begin\":$n}}"; [ $n = 5 ] && {{ {five}; }}
                    echo "{{\"end\":[$n,{{\"error\":null,\"fatal\":false,\"worst\":0.5,\
                        \"same\":[\"bits\"],\"us\":null}}]}}" | tr -d '\n'; echo
                done"#
            );
            let mut command = Command::new("sh");
            command.arg("-c").arg(script);
            command
        };
        run(&cases, Duration::from_secs(60), lanes, command).unwrap()
    }

    #[test]
    fn a_case_that_ends_its_worker_is_lost_alone() {
        for lanes in [1, 3, 99] {
            let findings = run_eleven(lanes, "", "exit 7");
            assert_eq!(findings.failed, None);
            assert_eq!(findings.device.unwrap().0.name, "GPU");
            for (number, outcome) in findings.outcomes.iter().enumerate() {
                let error = outcome.as_ref().expect("it was run").error.clone();
                let expected = (number == 5).then(|| "its process ended: exit status: 7".into());
                assert_eq!(error, expected, "case {number} of {lanes} at once");
            }
        }
    }

    #[test]
    fn bits_are_compared_across_workers() {
        let other = r#"echo '{"end":[5,{"error":null,"fatal":false,"worst":0.5,"#.to_owned()
            + r#""same":["others"],"us":null}]}'; exit 0"#;
        let findings = run_eleven(4, "", &other);
        let error = findings.outcomes[5].as_ref().unwrap().error.clone().unwrap();
        assert_eq!(error, "its bits are not those of `0`");
    }

    #[test]
    fn a_device_for_one_process_runs_all_in_one() {
        let lock = std::env::temp_dir().join(format!("gpu-check-lock-{}", std::process::id()));
        let begin = format!(
            r#"mkdir '{0}' 2>/dev/null || {{ echo '{{"failed":"busy"}}'; exit 0; }}
            trap "rmdir '{0}'" EXIT; sleep 0.3"#,
            lock.display()
        );
        let findings = run_eleven(3, &begin, "true");
        assert_eq!(findings.failed, None);
        assert!(findings.outcomes.iter().all(|o| o.as_ref().is_some_and(|o| o.error.is_none())));
    }
}
