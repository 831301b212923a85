//! A timeline in the format that Chrome and Perfetto show.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

/// Records what ran when; clones record into the same timeline.
#[derive(Clone, Debug)]
pub struct Trace {
    origin: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

/// A complete event of the trace event format.
#[derive(Debug, Serialize)]
struct Event {
    name: String,
    cat: &'static str,
    ph: &'static str,
    /// Microseconds since the trace began.
    ts: f64,
    /// Microseconds.
    dur: f64,
    pid: u32,
    tid: u32,
}

impl Trace {
    /// An empty timeline that begins now.
    #[must_use]
    pub fn new() -> Trace {
        Trace { origin: Instant::now(), events: Arc::default() }
    }

    /// Adds something that took from `start` until now, such as a request.
    pub fn record(&self, category: &'static str, name: &str, start: Instant) {
        self.push(vec![self.event(category, name, start, start.elapsed(), 0)]);
    }

    /// Adds a run with its launches and collectives, which follow one another from its start to
    /// now; of a collective, before which launch it was waited for, and how long.
    pub(crate) fn record_run<'a>(
        &self,
        entry: &str,
        start: Instant,
        launches: impl Iterator<Item = (&'a str, Duration)>,
        collectives: impl Iterator<Item = ((usize, &'a str), Duration)>,
    ) {
        let took = start.elapsed();
        let mut events = vec![self.event("run", entry, start, took, 0)];
        let launches = launches.enumerate();
        let launches = launches.map(|(i, (label, time))| ((i, 1), "kernel", label, time));
        let collectives = collectives.map(|((i, label), time)| ((i, 0), "collective", label, time));
        let mut parts: Vec<_> = launches.chain(collectives).collect();
        parts.sort_by_key(|(place, ..)| *place);
        // What comes before the first of them is preparation.
        let total: Duration = parts.iter().map(|(.., time)| *time).sum();
        let mut at = start + took.saturating_sub(total);
        for (_, category, label, time) in parts {
            events.push(self.event(category, label, at, time, 1));
            at += time;
        }
        self.push(events);
    }

    /// Writes the timeline as JSON.
    ///
    /// # Errors
    /// What writing reports.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct File<'a> {
            #[serde(rename = "traceEvents")]
            events: &'a [Event],
        }
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(serde_json::to_writer(out, &File { events: &events })?)
    }

    fn push(&self, events: Vec<Event>) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
    }

    fn event(
        &self,
        cat: &'static str,
        name: &str,
        start: Instant,
        took: Duration,
        tid: u32,
    ) -> Event {
        let us = |d: Duration| d.as_secs_f64() * 1e6;
        let ts = us(start.saturating_duration_since(self.origin));
        Event { name: name.into(), cat, ph: "X", ts, dur: us(took), pid: 1, tid }
    }
}

impl Default for Trace {
    fn default() -> Trace {
        Trace::new()
    }
}
