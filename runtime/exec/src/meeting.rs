//! Collectives of a program: operands and results in memory, and the groups that meet.

#![allow(unsafe_code, reason = "lends memory that kernels compute in to collectives")]

use std::{collections::BTreeMap, slice};

use ir::{Collective, CollectiveOp, DType};

use crate::{
    ExecError,
    collectives::{CollectiveError, Group, Mesh, Reduce, Shards, World},
};

/// Whom a rank meets, by the axes of the mesh.
#[derive(Clone, Debug, Default)]
pub struct Groups(BTreeMap<String, Group>);

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
        Ok(Groups(mesh.axes().map(group).collect::<Result<_, CollectiveError>>()?))
    }

    /// The group along an axis; `None` of an axis that the mesh lacks.
    #[must_use]
    pub fn along(&self, axis: &str) -> Option<&Group> {
        self.0.get(axis)
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

    /// Meets the other ranks.
    ///
    /// # Safety
    /// `input` and `output` are of the elements that the collective takes and gives; nobody else
    /// uses that memory meanwhile. They are apart, or equal, or the input is this rank's shard of
    /// the output.
    pub(crate) unsafe fn meet(
        &self,
        collective: &Collective,
        elements: usize,
        input: *const u8,
        output: *mut u8,
    ) -> Result<(), ExecError> {
        let Collective { op, axis, dtype, label, .. } = collective;
        let group = self.along(axis);
        let shards = Shards::even(elements, group.map_or(1, Group::size));
        let own = shards.range(group.map_or(0, Group::index));
        let bytes = |elements: usize| elements * dtype.size();
        let (taken, given) = match op {
            CollectiveOp::AllReduce => (elements, elements),
            CollectiveOp::ReduceScatter => (elements, own.len()),
            CollectiveOp::AllGather => (own.len(), elements),
        };
        let place = match op {
            CollectiveOp::AllGather => output.wrapping_add(bytes(own.start)).cast_const(),
            _ => output.cast_const(),
        };
        let is_there = std::ptr::eq(place, input);
        // SAFETY: the caller's promise; an input that lies in the output gets no slice.
        let (input, output) = unsafe {
            let input = if is_there { &[] } else { slice::from_raw_parts(input, bytes(taken)) };
            (input, slice::from_raw_parts_mut(output, bytes(given)))
        };
        let Some(group) = group else {
            if !is_there {
                output.copy_from_slice(input);
            }
            return Ok(());
        };
        let done = meet(group, (*op, *dtype), &shards, (!is_there).then_some(input), output);
        done.map_err(|source| ExecError::Collective { label: label.clone(), source })
    }
}

/// `input` is `None` where it lies in `output` already.
fn meet(
    group: &Group,
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
            group.all_reduce(Reduce::Sum, dtype, output)
        }
        (CollectiveOp::ReduceScatter, Some(input)) => {
            group.reduce_scatter(Reduce::Sum, dtype, shards, input, output)
        }
        (CollectiveOp::ReduceScatter, None) => {
            let input = output.to_vec();
            group.reduce_scatter(Reduce::Sum, dtype, shards, &input, output)
        }
        (CollectiveOp::AllGather, Some(input)) => group.all_gather(dtype, shards, input, output),
        (CollectiveOp::AllGather, None) => group.turn()?.all_gather_in_place(dtype, shards, output),
    }
}
