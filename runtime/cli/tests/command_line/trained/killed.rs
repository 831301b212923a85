//! Runs that are killed again and again, and go on each time.
//!
//! `cargo xtask soak` kills a hundred times.

use std::{
    collections::hash_map::RandomState,
    env,
    hash::BuildHasher,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::*;
use crate::brolly;

/// How often to kill.
const KILLS: &str = "BROLLY_SOAK_KILLS";
/// Steps that a run is let go on for at most before it is killed.
const MOST_STEPS: u64 = 6;
/// Steps for each kill: some are taken between what is looked for and the kill.
const STEPS_PER_KILL: u64 = 12;

const PATIENCE: Duration = Duration::from_secs(60);

/// When a run is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after its start: while it loads, most often.
    Start(Duration),
    /// So many lines of figures after its start, and so long after the last of them.
    Steps(u64, Duration),
    /// So many lines after its start, as soon as a checkpoint is being written, and so long after.
    Writing(u64, Duration),
}

/// Numbers that differ from run to run; the seed is told.
struct Moments(u64);

impl Moments {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }

    fn next(&mut self) -> Moment {
        let steps = 1 + self.below(MOST_STEPS);
        match self.below(8) {
            0 => Moment::Start(Duration::from_millis(self.below(400))),
            1..=3 => Moment::Steps(steps, Duration::from_micros(self.below(20_000))),
            _ => Moment::Writing(steps, Duration::from_micros(self.below(4_000))),
        }
    }
}

/// A folder of a run, looked at from outside.
struct Watched<'a>(&'a Path);

impl Watched<'_> {
    fn lines(&self) -> u64 {
        let bytes = fs::read(self.0.join("metrics.jsonl")).unwrap_or_default();
        bytes.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    fn is_writing(&self) -> bool {
        let entries = fs::read_dir(self.0.join("ckpt")).into_iter().flatten().flatten();
        entries.into_iter().any(|e| e.path().extension().is_some_and(|x| x == "partial"))
    }

    /// Waits for something of a run; `false` if the run has ended before it came.
    fn wait(&self, child: &mut Child, holds: impl Fn(&Self) -> bool) -> bool {
        let start = Instant::now();
        while !holds(self) {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(start.elapsed() < PATIENCE, "nothing came of the run in a minute");
            sleep(Duration::from_micros(300));
        }
        true
    }

    /// Waits for the moment; `false` if the run has ended before.
    fn wait_for(&self, child: &mut Child, moment: Moment) -> bool {
        let before = self.lines();
        let (steps, is_writing, rest) = match moment {
            Moment::Start(rest) => (0, false, rest),
            Moment::Steps(steps, rest) => (steps, false, rest),
            Moment::Writing(steps, rest) => (steps, true, rest),
        };
        let came = self.wait(child, |run| run.lines() >= before + steps)
            && (!is_writing || self.wait(child, Self::is_writing));
        sleep(rest);
        came && child.try_wait().unwrap().is_none()
    }
}

/// Where the data goes on after the newest checkpoint.
fn position(dir: &Path, step: u64) -> Value {
    let manifest = dir.join(format!("ckpt/step-{step:08}/manifest.json"));
    serde_json::from_slice::<Value>(&fs::read(manifest).unwrap()).unwrap()["position"].clone()
}

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_with_the_same_bits() {
    let kills: u64 = env::var(KILLS).map_or(5, |kills| kills.parse().unwrap());
    let steps = STEPS_PER_KILL * kills;
    let (config, whole) = run("train-whole", steps, steps);
    accepted(&["train", &config]);
    let want = losses(&whole);
    assert_eq!(want.len() as u64, steps);
    assert!(whole.join("ckpt/final/config.json").is_file());
    assert!(fs::read_dir(whole.join("runs")).unwrap().count() > 0);

    let said = refused(&["train", &config], 1);
    assert!(said.contains("--resume"), "{said}");

    let (config, killed) = run("train-killed", steps, 1);
    let seed = RandomState::new().hash_one(0);
    println!("{kills} kills of {steps} steps, moments from seed {seed}");
    let mut moments = Moments(seed);
    let watched = Watched(&killed);
    let mut torn = 0;
    for number in 1..=kills {
        let moment = moments.next();
        let mut child = brolly(&["train", &config, "--resume"]);
        let mut child = child.stderr(Stdio::null()).spawn().unwrap();
        let is_running = watched.wait_for(&mut child, moment);
        let _ = child.kill();
        child.wait().unwrap();
        assert!(is_running, "kill {number}, {moment:?}: the run has ended before");
        torn += u64::from(watched.is_writing());
    }
    println!("{torn} of them while a checkpoint was written");
    assert!(torn > 0 || kills < 50, "no kill came while a checkpoint was written");
    accepted(&["train", &config, "--resume"]);
    assert_eq!(losses(&killed), want, "a sample was lost or repeated");
    assert_eq!(position(&killed, steps), position(&whole, steps));
    assert!(model(&killed) == model(&whole));
}
