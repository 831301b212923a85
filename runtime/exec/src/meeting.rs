//! Collectives of a program: operands and results in memory, and the groups that meet.

#![allow(unsafe_code, reason = "lends memory that kernels compute in to collectives")]

use std::{collections::BTreeMap, slice, sync::Arc};

use ir::{Collective, CollectiveOp, DType};

use crate::{
    Channel, Device, ExecError, Route,
    collectives::{CollectiveError, Group, Handle, Mesh, Reduce, Shards, Turn, World},
    links::Links,
};

/// Whom a rank meets, by the axes of the mesh and other names.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    named: BTreeMap<String, Group>,
    links: Option<Arc<Links>>,
}

impl Groups {
    /// A rank that is alone: collectives of one rank need nobody.
    #[must_use]
    pub fn none() -> Groups {
        Groups::default()
    }

    /// The groups along each axis of a mesh.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] if the mesh has another number of ranks than the job.
    pub fn new(world: &World, mesh: &Mesh) -> Result<Groups, CollectiveError> {
        let group = |(axis, _)| Ok((String::from(axis), world.group(mesh, &[axis])?));
        let named = mesh.axes().map(group).collect::<Result<_, CollectiveError>>()?;
        Ok(Groups { named, links: None })
    }

    /// Adds a group under a name that no axis has, before devices are linked.
    pub fn add(&mut self, name: &str, group: Group) {
        self.named.insert(name.to_owned(), group);
    }

    /// What the ranks of a group hand each other by, between the devices where these are linked;
    /// `None` if there is no such group, or nobody else in it.
    ///
    /// # Errors
    /// [`ExecError::Cuda`].
    pub fn channel(&self, name: &str) -> Result<Option<Channel>, ExecError> {
        let group = self.along(name).filter(|group| group.size() > 1);
        group.map(|group| Channel::new(name, group, self.links.as_ref())).transpose()
    }

    /// Lets programs on GPUs meet between the devices, if so they are to: by NCCL, of which all
    /// ranks of the job now set up the communicators, in one order. Returns why they go by way of
    /// the host instead, if they do.
    ///
    /// # Errors
    /// [`ExecError::Route`] if NCCL was asked for and cannot be had; [`ExecError::Cuda`] with what
    /// it says; [`ExecError::Collective`] if the job has failed.
    pub fn link(&mut self, device: &Device, route: Route) -> Result<Option<String>, ExecError> {
        let meets = self.named.values().any(|group| group.size() > 1);
        match device.gpu() {
            Some(gpu) if meets && route != Route::Host => {
                let (links, reason) = match Links::new(gpu, &self.named, route)? {
                    Ok(links) => (Some(links), None),
                    Err(reason) => (None, Some(reason)),
                };
                self.links = links;
                Ok(reason)
            }
            None if matches!(route, Route::Nccl | Route::NcclSums) => {
                Err(ExecError::Route { reason: "the ranks are on CPUs".into() })
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn links(&self) -> Option<&Links> {
        self.links.as_deref()
    }

    /// The group along an axis, or of another name; `None` of one that is not there.
    #[must_use]
    pub fn along(&self, axis: &str) -> Option<&Group> {
        self.named.get(axis)
    }

    /// Whether a program's collectives find their groups, of the size that they were compiled for.
    pub(crate) fn check(&self, collectives: &[Collective]) -> Result<(), String> {
        for Collective { axis, ranks, label, .. } in collectives {
            let size = self.along(axis).map_or(1, Group::size);
            if size != *ranks as usize {
                return Err(format!(
                    "`{label}` was compiled for {ranks} ranks along `{axis}`, and there are {size}"
                ));
            }
        }
        Ok(())
    }

    /// Bytes of operand and result of a collective over so many elements.
    pub(crate) fn bytes(&self, collective: &Collective, elements: usize) -> (usize, usize) {
        let group = self.along(&collective.axis);
        let shards = Shards::even(elements, group.map_or(1, Group::size));
        let own = shards.range(group.map_or(0, Group::index)).len();
        let (taken, given) = match collective.op {
            CollectiveOp::AllReduce => (elements, elements),
            CollectiveOp::ReduceScatter => (elements, own),
            CollectiveOp::AllGather => (own, elements),
        };
        let size = collective.dtype.size();
        (taken * size, given * size)
    }

    /// Begins to meet the other ranks with an operand of its own.
    pub(crate) fn start_with(
        &self,
        collective: &Collective,
        elements: usize,
        operand: Vec<u8>,
    ) -> StartedWith {
        let Collective { op, axis, dtype, label, .. } = collective;
        let (op, dtype, group) = (*op, *dtype, self.along(axis));
        let (_, given) = self.bytes(collective, elements);
        let shards = Shards::even(elements, group.map_or(1, Group::size));
        let result = match group {
            None => Ok(operand),
            Some(group) => Err(group.start(move |turn| {
                let mut result = vec![0; given];
                meet(turn, (op, dtype), &shards, Some(&operand), &mut result)?;
                Ok(result)
            })),
        };
        StartedWith { result, label: label.clone() }
    }

    /// Begins to meet the other ranks, on a thread of its own.
    ///
    /// # Safety
    /// `input` and `output` are of the elements that the collective takes and gives; nobody else
    /// uses that memory until what is returned has been dropped. They are apart, or equal, or the
    /// input is this rank's shard of the output.
    pub(crate) unsafe fn start(
        &self,
        collective: &Collective,
        elements: usize,
        input: *const u8,
        output: *mut u8,
    ) -> Started {
        let Collective { op, axis, dtype, label, .. } = collective;
        let (op, dtype, group) = (*op, *dtype, self.along(axis));
        let shards = Shards::even(elements, group.map_or(1, Group::size));
        let own = shards.range(group.map_or(0, Group::index));
        let (taken, given) = self.bytes(collective, elements);
        let place = match op {
            CollectiveOp::AllGather => output.wrapping_add(own.start * dtype.size()).cast_const(),
            _ => output.cast_const(),
        };
        let is_there = std::ptr::eq(place, input);
        let memory = Memory { input, taken, output, given, is_there };
        let Some(group) = group else {
            // SAFETY: the caller's promise.
            let (input, output) = unsafe { memory.slices() };
            if let Some(input) = input {
                output.copy_from_slice(input);
            }
            return Started { handle: None, label: label.clone() };
        };
        let handle = group.start(move |turn| {
            let memory = memory;
            // SAFETY: the caller's promise, and `Started` waits until this has run.
            let (input, output) = unsafe { memory.slices() };
            meet(turn, (op, dtype), &shards, input, output)
        });
        Started { handle: Some(handle), label: label.clone() }
    }
}

/// Operand and result.
struct Memory {
    input: *const u8,
    taken: usize,
    output: *mut u8,
    given: usize,
    /// Whether the operand lies where the result is to have it.
    is_there: bool,
}

// SAFETY: plain addresses of memory that nobody else uses while a collective is under way.
unsafe impl Send for Memory {}

impl Memory {
    /// The operand, unless it lies in the result already, and the result.
    ///
    /// # Safety
    /// Nobody else uses them.
    unsafe fn slices<'a>(&self) -> (Option<&'a [u8]>, &'a mut [u8]) {
        // SAFETY: the caller's promise; what lies in the result gets no slice of its own.
        unsafe {
            let input = (!self.is_there).then(|| slice::from_raw_parts(self.input, self.taken));
            (input, slice::from_raw_parts_mut(self.output, self.given))
        }
    }
}

/// A collective under way, which has ended when this is gone.
#[derive(Debug)]
pub(crate) struct Started {
    handle: Option<Handle<()>>,
    label: String,
}

impl Started {
    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Result<(), ExecError> {
        let done = self.handle.take().map_or(Ok(()), Handle::wait);
        let label = std::mem::take(&mut self.label);
        done.map_err(|source| ExecError::Collective { label, source })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // A failure has been told where it was waited for first.
        let _ = self.handle.take().map(Handle::wait);
    }
}

/// A collective under way whose operand and result are its own.
pub(crate) struct StartedWith {
    result: Result<Vec<u8>, Handle<Vec<u8>>>,
    label: String,
}

impl StartedWith {
    /// Waits for the result.
    pub(crate) fn wait(self) -> Result<Vec<u8>, ExecError> {
        let label = self.label;
        self.result.or_else(Handle::wait).map_err(|source| ExecError::Collective { label, source })
    }
}

/// `input` is `None` where it lies in `output` already.
fn meet(
    turn: &Turn<'_>,
    (op, dtype): (CollectiveOp, DType),
    shards: &Shards,
    input: Option<&[u8]>,
    output: &mut [u8],
) -> Result<(), CollectiveError> {
    match (op, input) {
        (CollectiveOp::AllReduce, input) => {
            if let Some(input) = input {
                output.copy_from_slice(input);
            }
            turn.all_reduce(Reduce::Sum, dtype, output)
        }
        (CollectiveOp::ReduceScatter, Some(input)) => {
            turn.reduce_scatter(Reduce::Sum, dtype, shards, input, output)
        }
        (CollectiveOp::ReduceScatter, None) => {
            let input = output.to_vec();
            turn.reduce_scatter(Reduce::Sum, dtype, shards, &input, output)
        }
        (CollectiveOp::AllGather, Some(input)) => turn.all_gather(dtype, shards, input, output),
        (CollectiveOp::AllGather, None) => turn.all_gather_in_place(dtype, shards, output),
    }
}
