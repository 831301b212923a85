//! A step in stages: this rank's layers, and what it hands over.
//!
//! Stages hand each other values between programs, from one rank to its neighbours along the
//! pipeline axis, by an [`exec::Channel`] each way: messages travel while both sides compute, and
//! one each way is all that waits in memory. The receiver knows how long each is from its own
//! micro-batch, for all stages read the same ones. What a forward keeps for its backward changes
//! hands without a copy.

use std::{borrow::Cow, collections::VecDeque, sync::Arc};

use exec::{Channel, ExecError, Executable, States};
use ir::{Env, Program, artifact::Manifest};

use super::{EVALUATE, Entry, TrainStep, Work};
use crate::{
    MicroBatch, Rank, TrainError,
    rank::{BACK, ENDS, FORWARD},
    schedule::{Turn, in_flight, turns},
};

const HIDDEN: &str = "hidden.";
const HANDED: &str = "handed.";
const COTANGENT: &str = "cotangent.";
const RETURNED: &str = "returned.";

/// What the first rank says to a stage that is to send it a tensor.
const WANTED: [u8; 1] = [1];

/// The programs of an artifact that a rank of a stage runs.
#[must_use]
pub fn stage_manifest(manifest: &Manifest, stage: usize) -> Manifest {
    let is_own = |program: &&Program| program.stage().is_none_or(|of| of == stage);
    let programs = manifest.programs.iter().filter(is_own).cloned().collect();
    Manifest { programs, ..manifest.clone() }
}

/// Of how many micro-batches of a step a stage keeps things at once, at most.
#[must_use]
pub fn sets(stage: usize, stages: usize, micro_batches: usize) -> usize {
    in_flight(stage, stages, micro_batches)
}

/// The place of a rank in a pipeline.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) stage: usize,
    pub(super) stages: usize,
    /// What is kept of micro-batches, where none is in flight.
    free: Vec<States>,
    /// Sets that there are, free or not.
    made: usize,
    /// Sets that a step of a run takes.
    sets: usize,
    /// From each stage to the next.
    forward: Option<Channel>,
    /// From each stage to the one before.
    back: Option<Channel>,
    /// Between the first and the last, in these.
    ends: Option<Channel>,
}

/// What the micro-batches of a step came to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The sum of each one's losses, in the last stage.
    pub(crate) sums: Vec<f32>,
    /// As [`TrainStep::first_bad_place`] counts.
    pub(crate) place: Option<usize>,
    /// As [`TrainStep::last_bad_gradient`] counts.
    pub(crate) gradient: Option<usize>,
}

impl Place {
    pub(super) fn new(rank: &Rank) -> Result<Place, TrainError> {
        let (stage, stages) = (rank.stage(), rank.stages());
        let channel = |name: &str| rank.groups().channel(name);
        Ok(Place {
            stage,
            stages,
            free: Vec::new(),
            made: 0,
            sets: stages - stage,
            forward: channel(FORWARD)?,
            back: channel(BACK)?,
            ends: channel(ENDS)?,
        })
    }

    /// Says of the programs which of their outputs are sent.
    pub(super) fn prepare(
        &self,
        work: &mut Work,
        evaluate: Option<&mut Entry>,
    ) -> Result<(), TrainError> {
        let prepare = |channel: Option<&Channel>, entry: &mut Entry, kind: &str| match channel {
            Some(channel) => {
                let outputs = outputs(entry.exe.program(), kind);
                let outputs: Vec<&str> = outputs.iter().map(|name| &**name).collect();
                channel.prepare(&mut entry.exe, &outputs).map_err(TrainError::from)
            }
            None => Ok(()),
        };
        let forward = self.forward.as_ref().filter(|_| !self.is_last());
        prepare(forward, work.first_mut(), HANDED)?;
        evaluate.map_or(Ok(()), |evaluate| prepare(forward, evaluate, HANDED))?;
        prepare(self.back.as_ref().filter(|_| self.stage > 0), work.last_mut(), RETURNED)
    }

    /// The name of an entry of this stage.
    pub(super) fn entry(&self, name: &str) -> String {
        if self.stages > 1 { format!("{name}.{}", self.stage) } else { name.to_owned() }
    }

    /// Whether an artifact is for so many stages.
    pub(super) fn check(&self, manifest: &Manifest) -> Result<(), TrainError> {
        let compiled = super::updates(manifest).count().max(1);
        if compiled == self.stages {
            return Ok(());
        }
        let stages = self.stages;
        let reason = format!("was compiled for {compiled} stages, and there are {stages}");
        Err(self.error("accumulate", reason))
    }

    pub(super) fn error(&self, entry: &str, reason: String) -> TrainError {
        ExecError::Ranks { entry: self.entry(entry), reason }.into()
    }

    pub(super) fn is_last(&self) -> bool {
        self.stage + 1 == self.stages
    }

    /// Sends the next stage what the last run hands on.
    fn hand_on(&mut self, exe: &mut Executable) -> Result<(), TrainError> {
        send(self.forward.as_mut(), self.stage + 1, (exe, HANDED))
    }

    /// Sends the stage before what the last run hands back.
    fn hand_back(&mut self, exe: &mut Executable) -> Result<(), TrainError> {
        send(self.back.as_mut(), self.stage - 1, (exe, RETURNED))
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        self.free.iter().map(States::resident_bytes).sum()
    }
}

/// Sends the outputs of one kind of a program's last run.
fn send(
    channel: Option<&mut Channel>,
    to: usize,
    (exe, kind): (&mut Executable, &str),
) -> Result<(), TrainError> {
    let Some(channel) = channel else { return Ok(()) };
    let outputs = outputs(exe.program(), kind);
    let outputs: Vec<&str> = outputs.iter().map(|name| &**name).collect();
    channel.send(to, exe, &outputs).map_err(between_ranks)
}

/// Names of the outputs of one kind.
fn outputs(program: &Program, kind: &str) -> Vec<Arc<str>> {
    let names = program.outputs.iter().map(|port| port.name.clone());
    names.filter(|name| name.starts_with(kind)).collect()
}

/// That a job has failed says the same wherever it is noticed.
fn between_ranks(error: ExecError) -> TrainError {
    match error {
        ExecError::Collective { source, .. } => source.into(),
        error => error.into(),
    }
}

/// Receives what another stage sends into states.
fn receive(
    channel: Option<&mut Channel>,
    from: usize,
    parts: Option<Vec<(String, usize)>>,
    into: &mut States,
) -> Result<(), TrainError> {
    let (Some(channel), Some(parts)) = (channel, parts) else { return Ok(()) };
    // The planner has made room for the largest.
    channel.receive(from, &parts, into).map_err(between_ranks)
}

/// Values for all symbols of a program: those given, else their upper bounds.
pub(super) fn at_most(program: &Program, given: &[(String, i64)]) -> Vec<(String, i64)> {
    let value = |(name, bounds): (&Arc<str>, &ir::Bounds)| {
        let known = given.iter().find(|(symbol, _)| **symbol == **name);
        (name.to_string(), known.map_or(bounds.hi, |(_, n)| *n))
    };
    program.symbols.iter().map(value).collect()
}

fn as_pairs(symbols: &[(String, i64)]) -> Vec<(&str, i64)> {
    symbols.iter().map(|(name, n)| (name.as_str(), *n)).collect()
}

/// Bytes of the states of a manifest's programs beyond one of each, at the bounds of their sizes.
fn further_bytes(manifest: &Manifest, sets: u64) -> u64 {
    let mut known: Vec<&str> = Vec::new();
    let mut bytes = 0;
    for program in &manifest.programs {
        for port in program.states.iter().filter(|port| Program::copies(&port.name, sets) > 1) {
            if !known.contains(&&*port.name) {
                known.push(&port.name);
                let each = port.ty.bytes().bounds(&program.symbols).hi;
                bytes += u64::try_from(each).unwrap_or(0) * (Program::copies(&port.name, sets) - 1);
            }
        }
    }
    bytes
}

impl TrainStep {
    /// The stage that it computes, of how many.
    #[must_use]
    pub fn stage(&self) -> (usize, usize) {
        (self.place.stage, self.place.stages)
    }

    /// Reserves memory for what is kept of the micro-batches of a step, of which there are so many,
    /// and plans for no more.
    ///
    /// # Errors
    /// [`TrainError::Exec`] if there is no memory.
    pub fn reserve(&mut self, micro_batches: usize) -> Result<(), TrainError> {
        if self.place.stages > 1 {
            self.place.sets = in_flight(self.place.stage, self.place.stages, micro_batches);
            while self.place.made < self.place.sets {
                let set = self.new_set()?;
                self.place.free.push(set);
            }
        }
        Ok(())
    }

    /// Bytes that are planned beyond one of each state.
    pub(super) fn further_bytes(&self) -> u64 {
        let manifest = stage_manifest(self.model().artifact().manifest(), self.place.stage);
        further_bytes(&manifest, self.place.sets as u64)
    }

    /// Reserves memory for what stages hand back, which there is once.
    pub(super) fn add_cotangents(&mut self) -> Result<(), TrainError> {
        if let Work::Halves { backward, .. } = &self.work {
            let program = backward.exe.program();
            let symbols = at_most(program, &self.rank.symbols());
            let is_meant = |name: &str| name.starts_with(COTANGENT);
            self.states.add_some(program, &as_pairs(&symbols), is_meant)?;
        }
        Ok(())
    }

    fn new_set(&mut self) -> Result<States, TrainError> {
        let mut set = States::on(self.model().device());
        for entry in self.work.entries().chain(&self.evaluate) {
            let program = entry.exe.program();
            let symbols = at_most(program, &self.rank.symbols());
            set.add_some(program, &as_pairs(&symbols), Program::is_in_flight)?;
        }
        self.place.made += 1;
        Ok(set)
    }

    pub(super) fn set(&mut self) -> Result<States, TrainError> {
        match self.place.free.pop() {
            Some(set) => Ok(set),
            None => self.new_set(),
        }
    }

    /// Computes the micro-batches of a step together with the other stages; gradients are added up
    /// from zero on.
    ///
    /// # Errors
    /// As [`TrainStep::accumulate`]; [`TrainError::Ranks`] if the job has failed.
    pub(crate) fn pipelined(
        &mut self,
        batches: &[MicroBatch],
        scale: f32,
    ) -> Result<Found, TrainError> {
        self.refresh()?;
        let mut found = Found::default();
        let mut in_flight = VecDeque::new();
        for turn in turns(self.place.stage, self.place.stages, batches.len()) {
            match turn {
                Turn::Forward(i) => {
                    let scalars = [("keep", if i == 0 { 0.0 } else { 1.0 }), ("scale", scale)];
                    let set = self.first_half(&batches[i], &scalars)?;
                    found.place = found.place.or(self.first_bad_place()?);
                    in_flight.push_back(set);
                    if self.place.is_last() {
                        found.sums.push(self.work.first().exe.output::<f32>("loss")?[0]);
                    }
                }
                Turn::Backward(i) => {
                    let Some(set) = in_flight.pop_front() else { continue };
                    let set = self.second_half(&batches[i], set, if i == 0 { 0.0 } else { 1.0 })?;
                    found.gradient = found.gradient.or(self.last_bad_gradient()?);
                    self.place.free.push(set);
                }
            }
        }
        self.add_up_shared()?;
        Ok(found)
    }

    /// The forward of a stage, or all that the last one computes.
    fn first_half(
        &mut self,
        batch: &MicroBatch,
        scalars: &[(&str, f32)],
    ) -> Result<States, TrainError> {
        let mut set = self.set()?;
        self.receive_hidden("forward", batch, &mut set)?;
        self.states.append(&mut set);
        let ran = self.work.first_mut().run(&mut self.states, Some(batch), scalars);
        let set = self.states.take(Program::is_in_flight);
        ran?;
        if !self.place.is_last() {
            self.place.hand_on(&mut self.work.first_mut().exe)?;
        }
        Ok(set)
    }

    /// The backward of a stage; the last one has computed it.
    fn second_half(
        &mut self,
        batch: &MicroBatch,
        mut set: States,
        keep: f32,
    ) -> Result<States, TrainError> {
        if !self.place.is_last() {
            let behind = self.place.stage + 1;
            let entry = if behind + 1 == self.place.stages { "accumulate" } else { "backward" };
            let mut cotangents = self.states.take(|name| name.starts_with(COTANGENT));
            let kinds = (RETURNED, "cotangent.handed.");
            let parts = self.parts((entry, behind), kinds, batch);
            let received = receive(self.place.back.as_mut(), behind, parts, &mut cotangents);
            self.states.append(&mut cotangents);
            received?;
        }
        if let Work::Halves { backward, .. } = &mut self.work {
            self.states.append(&mut set);
            let ran = backward.run(&mut self.states, Some(batch), &[("keep", keep)]);
            set = self.states.take(Program::is_in_flight);
            ran?;
        }
        if self.place.stage > 0 {
            self.place.hand_back(&mut self.work.last_mut().exe)?;
        }
        Ok(set)
    }

    /// The sum of the losses of a micro-batch, in the last stage; zero in others.
    pub(super) fn evaluate_stage(
        &mut self,
        evaluate: &mut Entry,
        batch: &MicroBatch,
        mut set: States,
    ) -> Result<f32, TrainError> {
        self.receive_hidden(EVALUATE, batch, &mut set)?;
        self.states.append(&mut set);
        let ran = evaluate.run(&mut self.states, Some(batch), &[]);
        let set = self.states.take(Program::is_in_flight);
        self.place.free.push(set);
        ran?;
        if self.place.is_last() {
            return Ok(evaluate.exe.output::<f32>("loss")?[0]);
        }
        self.place.hand_on(&mut evaluate.exe)?;
        Ok(0.0)
    }

    /// Receives what the stage before hands on from such an entry.
    fn receive_hidden(
        &mut self,
        entry: &str,
        batch: &MicroBatch,
        set: &mut States,
    ) -> Result<(), TrainError> {
        match self.place.stage.checked_sub(1) {
            None => Ok(()),
            Some(before) => {
                let parts = self.parts((entry, before), (HANDED, HIDDEN), batch);
                receive(self.place.forward.as_mut(), before, parts, set)
            }
        }
    }

    /// What an entry of another stage gives for a micro-batch, of its outputs of one kind: the
    /// states of another kind that they become, and bytes. `None` if there is no such entry.
    fn parts(
        &self,
        (entry, from): (&str, usize),
        (kind, own): (&str, &str),
        batch: &MicroBatch,
    ) -> Option<Vec<(String, usize)>> {
        let manifest = self.model().artifact().manifest();
        let program = manifest.program(&format!("{entry}.{from}"))?;
        let mut env: Env =
            self.rank.symbols().into_iter().map(|(name, n)| (name.into(), n)).collect();
        let size = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        env.extend(batch.sizes().map(|(name, n)| (name.into(), size(n))));
        let parts = program.outputs.iter().filter_map(|port| {
            let number = port.name.strip_prefix(kind)?;
            let bytes = port.ty.bytes().eval(&env).ok().and_then(|n| usize::try_from(n).ok());
            Some((format!("{own}{number}"), bytes.unwrap_or(0)))
        });
        Some(parts.collect())
    }

    /// Adds up the gradients of weights that the first and the last stage read.
    fn add_up_shared(&mut self) -> Result<(), TrainError> {
        let Some(ends) = &mut self.place.ends else { return Ok(()) };
        let names: Vec<String> = self.shared.iter().map(|name| format!("grad.{name}")).collect();
        ends.sum(&names, &mut self.states).map_err(between_ranks)
    }

    /// What the first rank needs to write a tensor that another stage holds; all ranks have to ask.
    pub(super) fn on_first<'a>(
        &self,
        owner: usize,
        own: Option<Cow<'a, [u8]>>,
        bytes: usize,
    ) -> Result<Option<Cow<'a, [u8]>>, TrainError> {
        let leads = owner > 0 && self.rank.leads_pipeline();
        let (Some(stages), Some(all)) =
            (self.rank.pipeline().filter(|_| leads), self.rank.everybody())
        else {
            return Ok(own);
        };
        match &own {
            Some(whole) if self.place.stage == owner => {
                all.recv(0, &mut [0; WANTED.len()])?;
                all.send(0, whole)?;
            }
            _ if self.place.stage == 0 => {
                let mut whole = vec![0; bytes];
                // One at a time, so that no more than one is in memory here.
                let owner = stages.members()[owner];
                all.send(owner, &WANTED)?;
                all.recv(owner, &mut whole)?;
                return Ok(Some(whole.into()));
            }
            _ => {}
        }
        Ok(own)
    }
}
