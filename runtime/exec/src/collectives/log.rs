//! The last collectives of a rank, to be shown when something has failed.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::watch::lock;

/// A ring of collectives.
#[derive(Debug)]
pub(super) struct FlightLog {
    begun: Instant,
    room: usize,
    entries: Mutex<VecDeque<Entry>>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    step: u64,
    what: String,
    bytes: usize,
    started: Duration,
    ended: Option<Result<Duration, ()>>,
}

impl FlightLog {
    pub(super) fn new(room: usize) -> FlightLog {
        FlightLog { begun: Instant::now(), room: room.max(1), entries: Mutex::default() }
    }

    /// Notes that a collective begins; returns by what name it ends.
    pub(super) fn begin(&self, step: u64, what: String, bytes: usize) -> u64 {
        let mut entries = lock(&self.entries);
        let number = entries.back().map_or(0, |entry| entry.number + 1);
        if entries.len() >= self.room {
            entries.pop_front();
        }
        let started = self.begun.elapsed();
        entries.push_back(Entry { number, step, what, bytes, started, ended: None });
        number
    }

    /// Notes that it has ended, well or not.
    pub(super) fn end(&self, number: u64, is_well: bool) {
        let at = self.begun.elapsed();
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.iter_mut().rev().find(|entry| entry.number == number) {
            entry.ended = Some(if is_well { Ok(at) } else { Err(()) });
        }
    }

    /// A line for each, the oldest first; times are since the rank joined.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for Entry { step, what, bytes, started, ended, .. } in lock(&self.entries).iter() {
            let end = match ended {
                Some(Ok(at)) => format!("{:.6} s", at.as_secs_f64()),
                Some(Err(())) => "failed".into(),
                None => "not ended".into(),
            };
            let start = started.as_secs_f64();
            let line = format!("  step {step}: {what}, {bytes} bytes: {start:.6} s .. {end}");
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        let log = FlightLog::new(2);
        for step in 1..=3 {
            let number = log.begin(step, format!("#{step} barrier"), 8);
            if step < 3 {
                log.end(number, true);
            }
        }
        let text = log.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("  step 2: #2 barrier, 8 bytes: "));
        assert!(lines[1].ends_with(".. not ended"));
    }
}
