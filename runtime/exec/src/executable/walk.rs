//! Launches and collectives in their order.

#![allow(unsafe_code, reason = "lends memory to kernels and collectives")]

use std::time::{Duration, Instant};

use ir::{CompiledDim, Target};

use super::{Base, Executable};
use crate::{ExecError, launch::Scratch, meeting::Started};

/// Waking the threads takes as long as so many launches.
const WAKE_LAUNCHES: f64 = 25.0;

#[derive(Debug)]
pub(super) struct Work {
    pub(super) tiles: usize,
    pub(super) cost: Option<(CompiledDim, CompiledDim)>,
}

impl Work {
    /// Seconds that one thread takes, by the target's rates.
    fn seconds(&self, symbols: &[i64], target: &Target) -> f64 {
        let seconds = |(flops, bytes): &(CompiledDim, CompiledDim)| {
            let flops = flops.eval(symbols)? as f64 / target.peak_flops;
            Some(flops.max(bytes.eval(symbols)? as f64 / target.read_bandwidth))
        };
        self.cost.as_ref().and_then(seconds).unwrap_or(f64::INFINITY)
    }
}

/// Places and size of a collective.
#[derive(Debug)]
pub(super) struct Meeting {
    /// Before which launch it begins.
    pub(super) start: usize,
    /// Before which launch it has ended.
    pub(super) end: usize,
    pub(super) elements: usize,
    pub(super) input: (Base, usize),
    pub(super) output: (Base, usize),
}

/// Collectives under way: number, the launch before which it has ended, and what it is waited for
/// by.
#[derive(Default)]
struct UnderWay(Vec<(usize, usize, Started)>);

impl UnderWay {
    /// Waits for those that have to end before a launch.
    fn wait(&mut self, launch: usize, waits: &mut Vec<(usize, Duration)>) -> Result<(), ExecError> {
        let mut at = 0;
        while let Some((_, end, _)) = self.0.get(at) {
            if *end > launch {
                at += 1;
                continue;
            }
            let (number, _, started) = self.0.remove(at);
            let start = Instant::now();
            started.wait()?;
            waits.push((number, start.elapsed()));
        }
        Ok(())
    }
}

impl Executable {
    /// Walks launches and collectives in order.
    pub(super) fn walk(&mut self, bases: &[*mut u8]) -> Result<(), ExecError> {
        let model = self.model.clone();
        let program = &model.artifact().manifest().programs[self.index];
        self.groups.check(&program.collectives).map_err(|reason| {
            let entry = program.name.clone();
            ExecError::Ranks { entry, reason }
        })?;
        let scratch = Scratch { base: self.scratch.as_mut_ptr(), stride: self.scratch_stride };
        let pool = model.device().pool();
        if let Some(times) = &mut self.times {
            times.clear();
        }
        self.waits.clear();
        let size = |number: usize| usize::try_from(self.sizes.values[number]).unwrap_or(usize::MAX);
        let address = |(base, offset): (Base, usize)| {
            let base = match base {
                Base::Fixed(base) => base,
                Base::State(state) => bases[state],
            };
            base.wrapping_add(size(offset))
        };
        let mut under_way = UnderWay::default();
        let mut next = 0;
        let mut done = 0;
        loop {
            while let Some(meeting) = self.meetings.get(next).filter(|m| m.start <= done) {
                under_way.wait(done, &mut self.waits)?;
                let (input, output) = (address(meeting.input), address(meeting.output));
                let (collective, elements) = (&program.collectives[next], size(meeting.elements));
                // SAFETY: as below; the planner puts operand and result apart or as `start` takes
                // them, and no launch before its end uses them.
                let started = unsafe { self.groups.start(collective, elements, input, output) };
                under_way.0.push((next, meeting.end, started));
                next += 1;
            }
            under_way.wait(done, &mut self.waits)?;
            if done == program.launches.len() {
                return Ok(());
            }
            let ends = under_way.0.iter().map(|(_, end, _)| *end);
            let starts = self.meetings.get(next).map(|meeting| meeting.start);
            let end = ends.chain(starts).min().unwrap_or(program.launches.len());
            // SAFETY: the artifact is trusted code whose kernels have this signature (see
            // `ir::artifact`), and its places were checked to lie in the arena, the weights and the
            // states at the bounds that the symbols were just compared with. Indices among the
            // inputs lead nowhere else: kernels bound slots, blocks, positions and tokens, and
            // segments were just checked. `&mut self` and `&mut States` of the callers keep
            // everybody else away from what kernels write to.
            unsafe { self.launches.run(pool, scratch, done..end, self.times.as_mut()) };
            done = end;
        }
    }

    /// Decides which launches are worth more than one thread: those that take longer than threads
    /// take to meet, in a run that takes longer than threads take to wake up.
    pub(super) fn share_work(&mut self, seconds: &mut Vec<f64>) {
        let target = &self.model.artifact().manifest().target;
        let symbols = &self.sizes.symbols;
        seconds.clear();
        seconds.extend(self.work.iter().map(|work| work.seconds(symbols, target)));
        let programs = &self.model.artifact().manifest().programs;
        let launches = programs[self.index].launches.iter();
        let total: f64 = launches.map(|launch| seconds[launch.kernel as usize]).sum();
        let is_short = total < WAKE_LAUNCHES * target.launch_seconds;
        for (kernel, (work, seconds)) in self.work.iter().zip(&*seconds).enumerate() {
            let tiles = self.sizes.values[work.tiles];
            let is_small = is_short || tiles <= 1 || *seconds < target.launch_seconds;
            self.launches.set_work(kernel, tiles, is_small);
        }
    }
}
