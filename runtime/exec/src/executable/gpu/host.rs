//! Collectives by way of this machine's memory, for ranks whose devices are not linked.

use std::time::{Duration, Instant};

use cuda::{Address, Event};

use super::{Base, Meeting, OnGpu};
use crate::{
    ExecError,
    executable::{Run, Times},
    meeting::StartedWith,
};

/// A collective whose result goes to `output` before a launch.
struct UnderWay {
    number: usize,
    end: usize,
    output: Address,
    started: StartedWith,
}

impl OnGpu {
    /// Launches and collectives one by one, these by way of this machine's memory.
    pub(super) fn walk(
        &mut self,
        run: &Run<'_>,
        states: &[Address],
        times: &mut Times,
    ) -> Result<(), ExecError> {
        let device = self.gpu.device().clone();
        let measures = times.launches.is_some();
        while measures && self.events.len() < 2 * self.launches.len() {
            self.events.push(Event::new(&device)?);
        }
        let stream = self.gpu.stream();
        self.ports.upload(stream, &self.arena)?;
        let mut under_way: Vec<UnderWay> = Vec::new();
        let mut next = 0;
        for done in 0..=self.launches.len() {
            self.end(&mut under_way, done, &mut times.waits)?;
            while let Some(meeting) = self.meetings.get(next).filter(|m| m.start <= done) {
                under_way.push(self.begin(run, states, (next, meeting))?);
                next += 1;
                self.end(&mut under_way, done, &mut times.waits)?;
            }
            let Some(planned) = self.launches.get(done) else { break };
            if measures {
                self.events[2 * done].record(stream)?;
            }
            self.launch(planned, run.sizes, states, true)?;
            if measures {
                self.events[2 * done + 1].record(stream)?;
            }
        }
        self.ports.download(stream, &self.arena)?;
        let Some(launches) = &mut times.launches else { return Ok(()) };
        launches.clear();
        stream.synchronize()?;
        for pair in self.events[..2 * self.launches.len()].chunks_exact(2) {
            launches.push(Duration::from_secs_f64(pair[1].ms_since(&pair[0])?.max(0.0) / 1e3));
        }
        Ok(())
    }

    /// Hands a collective's operand to the other ranks, by way of this machine's memory.
    fn begin(
        &self,
        run: &Run<'_>,
        states: &[Address],
        (number, meeting): (usize, &Meeting),
    ) -> Result<UnderWay, ExecError> {
        let collective = &run.program.collectives[number];
        let elements = run.sizes.count(meeting.elements);
        let (taken, _) = run.groups.bytes(collective, elements);
        let address = |place: &(Base, usize)| self.address(place, run.sizes, states);
        let mut operand = vec![0; taken];
        self.gpu.download(&address(&meeting.input), &mut operand)?;
        let started = run.groups.start_with(collective, elements, operand);
        let (end, output) = (meeting.end, address(&meeting.output));
        Ok(UnderWay { number, end, output, started })
    }

    /// Waits for the collectives that have to end before a launch.
    fn end(
        &self,
        under_way: &mut Vec<UnderWay>,
        launch: usize,
        waits: &mut Vec<(usize, Duration)>,
    ) -> Result<(), ExecError> {
        let mut at = 0;
        while at < under_way.len() {
            if under_way[at].end > launch {
                at += 1;
                continue;
            }
            let UnderWay { number, output, started, .. } = under_way.remove(at);
            let start = Instant::now();
            let result = started.wait()?;
            waits.push((number, start.elapsed()));
            self.gpu.upload(&output, &result)?;
        }
        Ok(())
    }
}
