//! Collectives as work of a stream, between the devices of the ranks.
//!
//! Bytes move by NCCL, and generated code adds them in the order of the ranks, part by part: so the
//! results are those of collectives on the host, bit for bit. Long vectors are added in shards,
//! which are shown then; short ones are shown whole.

use cuda::{Address, CudaError, Memory, Message, Stream, nccl::Sum};
use ir::{Collective, CollectiveOp, Fold};

use super::fold::Adder;
use crate::{
    ExecError,
    collectives::{Handle, Shards, digest},
    executable::{Run, sizes::Sizes},
    links::{Link, Links},
};

/// A collective of a run.
pub(super) struct Exchange<'a> {
    pub(super) collective: &'a Collective,
    pub(super) elements: usize,
    pub(super) input: Address,
    pub(super) output: Address,
}

/// That this rank has begun a program, told to those along an axis that it meets there.
pub(super) struct Told {
    label: String,
    handle: Handle<()>,
}

impl Told {
    /// Waits until they have begun it too.
    pub(super) fn wait(self) -> Result<(), ExecError> {
        let Told { label, handle } = self;
        handle.wait().map_err(|source| ExecError::Collective { label, source })
    }
}

/// Tells the other ranks of a run, and of its sizes.
pub(super) fn tell(run: &Run<'_>, elements: &[usize], links: &Links) -> Vec<Told> {
    let mut axes: Vec<&str> = Vec::new();
    let collectives = run.program.collectives.iter().zip(elements);
    for (collective, _) in collectives.clone() {
        if collective.ranks > 1 && !axes.contains(&&*collective.axis) {
            axes.push(&collective.axis);
        }
    }
    let tell = |axis: &str| {
        let along = collectives.clone().filter(|(collective, _)| *collective.axis == *axis);
        let count = along.clone().count();
        let label = along.clone().next().map(|(first, _)| first.label.clone());
        let sizes = along.flat_map(|(collective, elements)| {
            let op = collective.op.name().bytes().chain(collective.dtype.name().bytes());
            op.chain((*elements as u64).to_le_bytes())
        });
        let digest = digest(run.program.name.bytes().chain(sizes));
        let group = &links.along(axis)?.group;
        let handle = group.start(move |turn| turn.attend(count, digest));
        Some(Told { label: label.unwrap_or_default(), handle })
    };
    axes.into_iter().filter_map(tell).collect()
}

impl Exchange<'_> {
    /// Puts it on the links' stream.
    pub(super) fn put(
        &self,
        links: &Links,
        link: &Link,
        adders: &[Adder],
    ) -> Result<(), ExecError> {
        let put = match self.collective.op {
            CollectiveOp::AllGather => self.gather(links.stream(), link).map_err(ExecError::from),
            _ if links.adds() && self.is_even(link) => {
                self.add_by_nccl(links.stream(), link).map_err(ExecError::from)
            }
            _ => self.add(links, link, adders),
        };
        put.map_err(|error| link.explain(&self.collective.label, error))
    }

    fn is_even(&self, link: &Link) -> bool {
        self.collective.op == CollectiveOp::AllReduce
            || self.elements.is_multiple_of(link.communicator.ranks())
    }

    fn size(&self) -> u64 {
        self.collective.dtype.size() as u64
    }

    fn gather(&self, stream: &Stream, link: &Link) -> Result<(), CudaError> {
        let (comm, size) = (&link.communicator, self.size());
        let shards = Shards::even(self.elements, comm.ranks());
        let part = |rank: usize| {
            let range = shards.range(rank);
            (self.output.plus(range.start as u64 * size), range.len() as u64 * size)
        };
        let (own, bytes) = part(comm.rank());
        if own != self.input && bytes > 0 {
            stream.copy(&own, &self.input, bytes)?;
        }
        if self.elements.is_multiple_of(comm.ranks()) {
            return comm.all_gather(stream, &own, &self.output, bytes);
        }
        let others = (0..comm.ranks()).filter(|peer| *peer != comm.rank());
        let message = |peer: usize, (place, bytes)| Message { peer, place, bytes };
        let sends: Vec<Message> =
            others.clone().map(|peer| message(peer, part(comm.rank()))).collect();
        let receives: Vec<Message> = others.map(|peer| message(peer, part(peer))).collect();
        comm.exchange(stream, &sends, &receives)
    }

    fn add_by_nccl(&self, stream: &Stream, link: &Link) -> Result<(), CudaError> {
        let (comm, dtype) = (&link.communicator, self.collective.dtype);
        if self.collective.op == CollectiveOp::AllReduce {
            let sum = Sum { elements: self.elements, dtype };
            return comm.all_reduce(stream, &self.input, &self.output, sum);
        }
        let sum = Sum { elements: self.elements / comm.ranks(), dtype };
        comm.reduce_scatter(stream, &self.input, &self.output, sum)
    }

    /// The sum in the order of the ranks.
    fn add(&self, links: &Links, link: &Link, adders: &[Adder]) -> Result<(), ExecError> {
        let Collective { dtype, ranks, .. } = *self.collective;
        let elements = self.elements as u64;
        let part_bytes = self.collective.part_bytes(elements);
        let adder = adders.iter().find(|adder| adder.is_of(dtype, ranks));
        let staging =
            links.staging().filter(|memory| memory.bytes() >= part_bytes * (u64::from(ranks) + 1));
        // `Executable::join` has reserved it, and `OnGpu::way` looked for the kernel.
        let (adder, staging) = adder.zip(staging).expect("a kernel, and memory to add in");
        let whole = self.collective.is_shown_whole(elements);
        let shards = Shards::even(self.elements, link.communicator.ranks());
        let turns = Turns { exchange: self, links, link, adder, staging, part_bytes, shards };
        let most = if whole { elements } else { turns.shards.range(0).len() as u64 };
        let step = part_bytes / self.size();
        for at in (0..most).step_by(usize::try_from(step.max(1)).unwrap_or(usize::MAX)) {
            if whole { turns.whole(at, step)? } else { turns.shards(at, step)? }
        }
        Ok(())
    }
}

/// A sum, part by part.
struct Turns<'a> {
    exchange: &'a Exchange<'a>,
    links: &'a Links,
    link: &'a Link,
    adder: &'a Adder,
    staging: Memory,
    part_bytes: u64,
    shards: Shards,
}

impl Turns<'_> {
    /// Shows all ranks so many elements from `at` on, and adds theirs.
    fn whole(&self, at: u64, step: u64) -> Result<(), ExecError> {
        let count = step.min(self.exchange.elements as u64 - at);
        let own = self.of(&self.exchange.input, at);
        let output = self.of(&self.exchange.output, at);
        self.add(count, &own, &output, |_| (own.clone(), count)).map(|_| ())
    }

    /// Adds so many elements of its shard from `at` on, and shows the sum to all if they want it.
    fn shards(&self, at: u64, step: u64) -> Result<(), ExecError> {
        let comm = &self.link.communicator;
        let is_reduced = self.exchange.collective.op == CollectiveOp::AllReduce;
        let part = |rank: usize| {
            let range = self.shards.range(rank);
            let count = step.min((range.len() as u64).saturating_sub(at));
            (range.start as u64 + at, count)
        };
        let (start, count) = part(comm.rank());
        let to_others = |peer: usize| {
            let (start, count) = part(peer);
            (self.of(&self.exchange.input, start), count)
        };
        let output = self.of(&self.exchange.output, if is_reduced { start } else { at });
        let own = self.of(&self.exchange.input, start);
        self.add(count, &own, &output, to_others)?;
        if !is_reduced {
            return Ok(());
        }
        let message = |peer: usize, place: Address, count: u64| {
            let bytes = count * self.exchange.size();
            Message { peer, place, bytes }
        };
        let others = || (0..comm.ranks()).filter(|peer| *peer != comm.rank());
        let sends: Vec<_> = others().map(|peer| message(peer, output.clone(), count)).collect();
        let receives = others().map(|peer| {
            let (start, count) = part(peer);
            message(peer, self.of(&self.exchange.output, start), count)
        });
        let receives: Vec<_> = receives.collect();
        Ok(comm.exchange(self.links.stream(), &sends, &receives)?)
    }

    /// Sends each rank its part, receives so many elements of each, and adds them to `output`.
    fn add(
        &self,
        count: u64,
        own: &Address,
        output: &Address,
        to: impl Fn(usize) -> (Address, u64),
    ) -> Result<(), ExecError> {
        let (comm, stream) = (&self.link.communicator, self.links.stream());
        let size = self.exchange.size();
        let others = || (0..comm.ranks()).filter(|peer| *peer != comm.rank());
        let staged = |rank: usize| self.staging.at(rank as u64 * self.part_bytes);
        let sends = others().map(|peer| {
            let (place, count) = to(peer);
            Message { peer, place, bytes: count * size }
        });
        let receives =
            others().map(|peer| Message { peer, place: staged(peer), bytes: count * size });
        let (sends, receives): (Vec<_>, Vec<_>) = (sends.collect(), receives.collect());
        comm.exchange(stream, &sends, &receives)?;
        if count == 0 {
            return Ok(());
        }
        // The kernel reads and writes whole steps, aligned.
        let is_direct = |place: &Address| count.is_multiple_of(Fold::STEP) && place.is_aligned(16);
        let mut places: Vec<Address> = (0..=comm.ranks()).map(staged).collect();
        if is_direct(own) {
            places[comm.rank()] = own.clone();
        } else {
            stream.copy(&places[comm.rank()], own, count * size)?;
        }
        if is_direct(output) {
            places[comm.ranks()] = output.clone();
            return self.adder.add(stream, count, &places);
        }
        self.adder.add(stream, count, &places)?;
        Ok(stream.copy(output, &places[comm.ranks()], count * size)?)
    }

    fn of(&self, place: &Address, elements: u64) -> Address {
        place.plus(elements * self.exchange.size())
    }
}

/// Elements of each of a run's collectives.
pub(super) fn elements(numbers: impl Iterator<Item = usize>, sizes: &Sizes) -> Vec<usize> {
    numbers.map(|number| sizes.count(number)).collect()
}
