//! What streams have to do, and what that uses.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
    thread,
};

use super::{Capture, Machine, Meeting, StandIn, State, Used, cublaslt, fault};
use crate::{
    cublaslt::{Matmul, Places},
    driver::{Answer, Function, Pinned, Shape, StreamHandle, Value},
};

/// Work, and what has to stay until it is done.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) work: Work,
    pub(super) uses: BTreeSet<Used>,
}

#[derive(Debug)]
pub(super) enum Work {
    Launch { function: Function, shape: Shape, params: Vec<Value> },
    Multiply { matmul: Matmul, places: Places<u64> },
    Copy { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, byte: u8, bytes: u64 },
    Upload { to: u64, from: Pinned, offset: usize, bytes: usize },
    Download { to: Pinned, offset: usize, from: u64, bytes: usize },
    Record { event: usize, version: u64 },
    Wait { event: usize, version: u64 },
    Graph(usize),
    Meet(Arc<dyn Meeting>),
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Work::Launch { .. } => "a launch",
            Work::Multiply { .. } => "a product",
            Work::Copy { .. } => "a copy",
            Work::Fill { .. } => "a fill",
            Work::Upload { .. } => "an upload",
            Work::Download { .. } => "a download",
            Work::Record { .. } | Work::Wait { .. } => "an event",
            Work::Graph(_) => "a graph",
            Work::Meet(_) => "a meeting",
        }
    }
}

impl State {
    pub(super) fn handle(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    pub(super) fn create(&mut self, used: impl Fn(usize) -> Used) -> usize {
        let handle = self.handle();
        self.alive.insert(used(handle));
        handle
    }

    pub(super) fn stream(&mut self, stream: usize) -> &mut VecDeque<Arc<Task>> {
        self.streams.get_mut(&stream).expect("a stream")
    }

    /// The allocation that bytes are in.
    pub(super) fn memory_of(&self, address: u64, bytes: u64) -> Option<Used> {
        let (start, size) = self.memory.range(..=address).next_back()?;
        (address + bytes <= *start + *size).then_some(Used::Memory(*start))
    }

    /// As [`Self::memory_of`]; there has to be one.
    pub(super) fn memory(&mut self, address: u64, bytes: u64) -> Option<Used> {
        let memory = self.memory_of(address, bytes);
        if memory.is_none() {
            self.mistakes.push(format!("{bytes} bytes at {address:#x} are not allocated"));
        }
        memory
    }

    pub(super) fn queue(&mut self, stream: StreamHandle, work: Work, uses: BTreeSet<Used>) {
        for used in uses.iter().filter(|used| !self.alive.contains(used)) {
            self.mistakes.push(format!("{} uses {used:?}, which is not there", work.name()));
        }
        let before = match &self.captured {
            Some(captured) if captured.stream == stream.0 => captured.work.last(),
            _ => self.streams.get(&stream.0).and_then(VecDeque::back),
        };
        let is_product = |task: &Arc<Task>| matches!(task.work, Work::Multiply { .. });
        if matches!(work, Work::Launch { shape: Shape { dependent: true, .. }, .. })
            && before.is_some_and(is_product)
        {
            self.mistakes.push("a launch depends on a library's, which lets nothing begin".into());
        }
        let task = Arc::new(Task { work, uses });
        match &mut self.captured {
            Some(captured) if captured.stream == stream.0 => captured.work.push(task),
            _ => self.stream(stream.0).push_back(task),
        }
    }

    /// The name of work that is not done and uses something.
    pub(super) fn in_use(&self, used: Used) -> Option<&'static str> {
        let mut pending = self.streams.values().flatten();
        pending.find(|task| task.uses.contains(&used)).map(|task| task.work.name())
    }

    /// The name of work that is not done and copies to these bytes of pinned memory, or from them
    /// if that matters too.
    pub(super) fn copies(
        &self,
        pinned: Pinned,
        range: Range<usize>,
        also_from: bool,
    ) -> Option<&'static str> {
        let meets = |(at, offset, bytes): (Pinned, usize, usize)| {
            at == pinned && offset < range.end && range.start < offset + bytes
        };
        let is_meant = |task: &Arc<Task>| match task.work {
            Work::Upload { from, offset, bytes, .. } => also_from && meets((from, offset, bytes)),
            Work::Download { to, offset, bytes, .. } => meets((to, offset, bytes)),
            _ => false,
        };
        let mut pending = self.streams.values().flatten();
        let found = pending.find(|task| match task.work {
            Work::Graph(graph) => self.graphs[&graph].iter().any(is_meant),
            _ => is_meant(task),
        });
        found.map(|task| task.work.name())
    }

    pub(super) fn release(&mut self, used: Used) -> bool {
        if let Some(work) = self.in_use(used) {
            self.mistakes.push(format!("{used:?} is released while {work} uses it"));
        }
        let was_there = self.alive.remove(&used);
        if !was_there {
            self.mistakes.push(format!("{used:?} is released twice"));
        }
        was_there
    }

    /// CUDA refuses a call of a thread that records.
    pub(super) fn refuse_while_recording(&mut self, call: &str) {
        if self.captured.as_ref().is_some_and(|c| c.thread == thread::current().id()) {
            self.mistakes.push(format!("{call} while work is recorded"));
        }
    }

    pub(super) fn begin_capture(&mut self, stream: usize) {
        assert!(self.captured.is_none(), "one stream is recorded at a time");
        let thread = thread::current().id();
        self.captured = Some(Capture { stream, thread, work: Vec::new() });
    }
}

impl<M: Machine> StandIn<M> {
    /// Does something, unless it has to wait.
    pub(super) fn attempt(&self, state: &mut State, work: &Work) -> Answer<bool> {
        let mut machine = self.machine();
        match work {
            Work::Launch { function, shape, params } => {
                state.counts.launches += 1;
                machine.launch(*function, *shape, params)?;
            }
            Work::Multiply { matmul, places } => {
                state.counts.products += 1;
                cublaslt::multiply(&mut *machine, matmul, places)?;
            }
            Work::Copy { to, from, bytes } => {
                let data = machine.read(*from, size(*bytes))?;
                let data: Option<Vec<u8>> = data.into_iter().collect();
                let data = data.ok_or_else(|| fault("copy", "of what nothing has written"))?;
                machine.write(*to, &data);
            }
            Work::Fill { to, byte, bytes } => machine.write(*to, &vec![*byte; size(*bytes)]),
            Work::Upload { to, from, offset, bytes } => {
                state.counts.uploads += 1;
                let data = &state.pinned[&from.0][*offset..][..*bytes];
                // What nothing has written stays so.
                let mut at = 0;
                for run in data.chunk_by(|a, b| a.is_some() == b.is_some()) {
                    let written: Vec<u8> = run.iter().flatten().copied().collect();
                    if !written.is_empty() {
                        machine.write(*to + at, &written);
                    }
                    at += run.len() as u64;
                }
            }
            Work::Download { to, offset, from, bytes } => {
                state.counts.downloads += 1;
                let data = machine.read(*from, *bytes)?;
                let pinned = state.pinned.get_mut(&to.0).expect("pinned memory");
                pinned[*offset..][..*bytes].copy_from_slice(&data);
            }
            Work::Record { event, version } => {
                state.reached.insert(*event, *version);
            }
            Work::Wait { event, version } => {
                return Ok(state.reached.get(event).copied().unwrap_or(0) >= *version);
            }
            Work::Graph(graph) => {
                drop(machine);
                state.counts.replays += 1;
                for task in state.graphs[graph].clone() {
                    assert!(self.attempt(state, &task.work)?, "a graph waits for nobody");
                }
            }
            Work::Meet(meeting) => {
                let has_met = meeting.attempt(&mut *machine)?;
                state.counts.meetings += u64::from(has_met);
                return Ok(has_met);
            }
        }
        Ok(true)
    }
}

pub(super) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a size")
}
