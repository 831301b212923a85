//! What ranks hand each other between programs, as the stages of a pipeline do: outputs of one's
//! become states of another's.
//!
//! On CPUs, and where devices are not linked, it is a message of the group, and waits in the memory
//! of the receiver; the next one is sent when it has been taken. Between linked GPUs it goes from
//! memory to memory, on a stream and by a communicator that the channel has to itself. Nothing is
//! copied: it lies among the outputs that it is until it has been sent, so the next run of that
//! program waits for that, on the device, and one message of each program is under way at most.
//! What is received is waited for by all that the device does behind it.
//!
//! A send ends when the receiver's device has come to it, and what lies behind it on its stream
//! waits. So what goes one way is a channel and what goes the other way is another, for the sides
//! come to these in different orders; within a channel the order is that of the micro-batches on
//! both sides. A stage then waits only for its neighbour down the channel to come to a message, all
//! that this one needs of the stage it has already, and the last one sends nothing: nobody waits in
//! a circle (`train::schedule` plays it through).
//!
//! Devices wait without deadlines. The sender tells the receiver on the host before it posts, with
//! all lengths, and the receiver posts when it has heard, and says so; for that the sender waits
//! beside, by a deadline.

use std::sync::Arc;

use cuda::{Address, Event, Message, Stream, nccl::Sum};
use ir::DType;

use crate::{
    ExecError, Executable, States,
    collectives::{CollectiveError, Expected, Group, Reduce, digest},
    executable::Lent,
    links::{Link, Links},
};

/// What a rank says when it comes to a message, so that more can come.
const TAKEN: [u8; 1] = [1];

/// Alignment of what is received and let go.
const ALIGN: u64 = 256;

/// What the ranks of a group hand each other by, in one direction.
#[derive(Debug)]
pub struct Channel {
    name: String,
    group: Group,
    /// That the last message has been taken, if it is still to be heard.
    owed: Option<Expected>,
    wire: Option<Wire>,
}

/// Between linked devices.
#[derive(Debug)]
struct Wire {
    name: String,
    /// Goes before what ends its waits.
    stream: Stream,
    links: Arc<Links>,
    /// Where that goes which no state is for: memory that was once large enough, and is kept, for
    /// to free it would wait for all that the device does.
    spare: Vec<cuda::Memory>,
    /// Whether nothing has been sent since the last receipt.
    receives: bool,
}

impl Channel {
    pub(crate) fn new(
        name: &str,
        group: &Group,
        links: Option<&Arc<Links>>,
    ) -> Result<Channel, ExecError> {
        let links = links.filter(|links| links.along(name).is_some());
        let wire = links.map(|links| {
            let (name, stream) = (name.to_owned(), Stream::new(links.gpu().device())?);
            let links = links.clone();
            Ok::<_, ExecError>(Wire { name, stream, links, spare: Vec::new(), receives: false })
        });
        let wire = wire.transpose()?;
        Ok(Channel { name: name.to_owned(), group: group.clone(), owed: None, wire })
    }

    /// Has a program's outputs of these names, which are to be sent, stay where they are computed,
    /// if they go from there.
    ///
    /// # Errors
    /// [`ExecError::Port`] if there is no such output.
    pub fn prepare(&self, exe: &mut Executable, outputs: &[&str]) -> Result<(), ExecError> {
        if self.wire.is_some() { exe.leave_outputs(outputs) } else { Ok(()) }
    }

    /// Sends a member outputs of a program's last run, and does not wait for it to come to them:
    /// what was sent before is waited for, here or by that program's next run.
    ///
    /// # Errors
    /// [`ExecError::Port`] if there is no such output; [`ExecError::Collective`] if the job has
    /// failed; [`ExecError::Cuda`].
    pub fn send(
        &mut self,
        to: usize,
        exe: &mut Executable,
        outputs: &[&str],
    ) -> Result<(), ExecError> {
        let Channel { name, group, owed, wire } = self;
        if let Some(wire) = wire {
            return wire.send((group, to), exe, outputs);
        }
        let failed = |source| failed(name, source);
        if let Some(taken) = owed.take() {
            taken.wait(&mut [0; TAKEN.len()]).map_err(failed)?;
        }
        for output in outputs {
            group.send(to, exe.output::<u8>(output)?).map_err(failed)?;
        }
        *owed = Some(group.expect(to).map_err(failed)?);
        Ok(())
    }

    /// Receives what another member sends, of so many bytes each, into the states of these names;
    /// what there is no state for is let go.
    ///
    /// # Errors
    /// [`ExecError::Collective`] if the job has failed, or something else was sent;
    /// [`ExecError::Cuda`].
    ///
    /// # Panics
    /// If a state is too small.
    pub fn receive(
        &mut self,
        from: usize,
        parts: &[(String, usize)],
        into: &mut States,
    ) -> Result<(), ExecError> {
        let Channel { name, group, wire, .. } = self;
        if let Some(wire) = wire {
            return wire.receive((group, from), parts, into);
        }
        let failed = |source| failed(name, source);
        for (state, bytes) in parts {
            let receive = |room: &mut [u8]| group.recv(from, &mut room[..*bytes]).map_err(failed);
            if into.change(state, receive)?.is_none() {
                group.recv(from, &mut vec![0; *bytes]).map_err(failed)?;
            }
        }
        group.send(from, &TAKEN).map_err(failed)
    }

    /// Makes each of these states of f32 the sum of all members', in their order.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn sum(&mut self, names: &[String], states: &mut States) -> Result<(), ExecError> {
        let Channel { name, group, wire, .. } = self;
        // A sum of two has one order, which is NCCL's too.
        if let Some(wire) = wire.as_mut().filter(|_| group.size() == 2) {
            return wire.sum(group, names, states);
        }
        for state in names {
            let add = |all: &mut [u8]| group.all_reduce(Reduce::Sum, DType::F32, all);
            states.change(state, |all| add(all).map_err(|source| failed(name, source)))?;
        }
        Ok(())
    }
}

fn failed(label: &str, source: CollectiveError) -> ExecError {
    ExecError::Collective { label: label.to_owned(), source }
}

/// By which both sides see that they mean the same.
fn digest_of(lengths: impl Iterator<Item = u64>) -> u64 {
    digest(lengths.flat_map(u64::to_le_bytes))
}

impl Wire {
    fn link(&self) -> &Link {
        // `Channel::new` has seen it.
        self.links.along(&self.name).expect("a link")
    }

    fn send(
        &mut self,
        (group, to): (&Group, usize),
        exe: &mut Executable,
        outputs: &[&str],
    ) -> Result<(), ExecError> {
        let mut sends = Vec::new();
        for output in outputs {
            let (place, bytes) = exe.place(output)?;
            sends.push(Message { peer: to, place, bytes });
        }
        // The run that made them waited for all of this.
        self.settle()?;
        let lengths = || sends.iter().map(|message| message.bytes);
        let failed = |source| failed(&self.name, source);
        group.announce(to, lengths().sum(), digest_of(lengths())).map_err(failed)?;
        let taken = group.expect(to).map_err(failed)?;
        let taken = group.start(move |_| taken.wait(&mut [0; TAKEN.len()]));
        self.receives = false;
        let sent =
            self.post(|wire| Ok(wire.link().communicator.exchange(&wire.stream, &sends, &[])?))?;
        exe.lend(Lent { label: self.name.clone(), sent, taken });
        Ok(())
    }

    fn receive(
        &mut self,
        (group, from): (&Group, usize),
        parts: &[(String, usize)],
        into: &mut States,
    ) -> Result<(), ExecError> {
        if self.receives {
            self.settle()?;
        }
        let places = self.places(parts, into)?;
        let receives: Vec<Message> = places
            .into_iter()
            .zip(parts)
            .map(|(place, (_, bytes))| Message { peer: from, place, bytes: *bytes as u64 })
            .collect();
        let lengths = || receives.iter().map(|message| message.bytes);
        let failed = |source| failed(&self.name, source);
        group.announced(from, lengths().sum(), digest_of(lengths())).map_err(failed)?;
        group.send(from, &TAKEN).map_err(failed)?;
        self.receives = true;
        let received = self
            .post(|wire| Ok(wire.link().communicator.exchange(&wire.stream, &[], &receives)?))?;
        Ok(self.links.gpu().stream().wait(&received)?)
    }

    fn sum(
        &mut self,
        group: &Group,
        names: &[String],
        states: &mut States,
    ) -> Result<(), ExecError> {
        self.settle()?;
        let mut places = Vec::new();
        for name in names {
            let place = states.address(name).zip(states.bytes_of(name));
            places.extend(place.filter(|(_, bytes)| *bytes > 0));
        }
        let (count, digest) = (places.len(), digest_of(places.iter().map(|(_, bytes)| *bytes)));
        let told = group.start(move |turn| turn.attend(count, digest));
        self.receives = true;
        let added = self.post(|wire| {
            for (place, bytes) in &places {
                let elements = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
                let sum = Sum { elements, dtype: DType::F32 };
                wire.link().communicator.all_reduce(&wire.stream, place, place, sum)?;
            }
            Ok(())
        })?;
        self.links.gpu().stream().wait(&added)?;
        told.wait().map_err(|source| failed(&self.name, source))
    }

    /// Puts work on the channel's stream, behind what the device has been given so far; the event
    /// of its end.
    fn post(&self, work: impl FnOnce(&Wire) -> Result<(), ExecError>) -> Result<Event, ExecError> {
        let gpu = self.links.gpu();
        let [before, after] = [Event::new(gpu.device())?, Event::new(gpu.device())?];
        before.record(gpu.stream())?;
        self.stream.wait(&before)?;
        work(self).map_err(|error| self.link().explain(&self.name, error))?;
        after.record(&self.stream)?;
        Ok(after)
    }

    /// Lets go what the stream keeps, once it has come to its end.
    fn settle(&self) -> Result<(), ExecError> {
        let done = self.stream.synchronize();
        match self.links.failure() {
            Some(failure) => Err(failed(&self.name, failure.into())),
            None => Ok(done?),
        }
    }

    /// Where parts go.
    fn places(
        &mut self,
        parts: &[(String, usize)],
        into: &States,
    ) -> Result<Vec<Address>, ExecError> {
        let found: Vec<_> = parts.iter().map(|(state, _)| into.address(state)).collect();
        let room = |bytes: usize| (bytes as u64).next_multiple_of(ALIGN);
        let lost = parts.iter().zip(&found).filter(|(_, place)| place.is_none());
        let lost: u64 = lost.map(|((_, bytes), _)| room(*bytes)).sum();
        if lost > self.spare.last().map_or(0, cuda::Memory::bytes) {
            let memory = self.links.gpu().device().allocate(lost.next_power_of_two())?;
            self.spare.push(memory);
        }
        let mut at = 0;
        let place = |(place, (_, bytes)): (Option<Address>, &(String, usize))| {
            place.or_else(|| {
                at += room(*bytes);
                Some(self.spare.last()?.at(at - room(*bytes)))
            })
        };
        let places: Option<Vec<Address>> = found.into_iter().zip(parts).map(place).collect();
        // Without anything to let go there is a state for each.
        Ok(places.expect("a place for each part"))
    }
}
