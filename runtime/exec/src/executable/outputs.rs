//! Outputs of a program's last run: on the host, and where they are.

use cuda::Address;
use ir::Region;

use super::{Engine, Executable, Lent};
use crate::{ExecError, bind::Symbolic};

impl Executable {
    /// An output of the last run, in row-major order, as elements of its type.
    ///
    /// # Errors
    /// [`ExecError::Port`] if there is no such output or `T` is no type for its elements.
    pub fn output<T: bytemuck::AnyBitPattern>(&self, name: &str) -> Result<&[T], ExecError> {
        let index = self.number(name)?;
        let symbolic = Symbolic::new(self.program());
        let ports = &self.program().outputs;
        let element_bytes = ports[index].ty.dtype.size();
        // Nothing lies nowhere in particular.
        let elements = match self.output_bytes(index)? {
            [] => Some(&[][..]),
            bytes => bytemuck::try_cast_slice(bytes).ok(),
        };
        elements.filter(|_| [1, element_bytes].contains(&size_of::<T>())).ok_or_else(|| {
            let reason = format!("has elements of type {}", ports[index].ty.dtype);
            symbolic.port("output", name, reason)
        })
    }

    /// Leaves these outputs where a device computes them, from the next run on: they are not copied
    /// back with the others, and [`output_rows`](Self::output_rows) reads what is needed of them.
    /// On the CPU that makes no difference.
    ///
    /// # Errors
    /// [`ExecError::Port`] if there is no such output.
    pub fn leave_outputs(&mut self, names: &[&str]) -> Result<(), ExecError> {
        let numbers: Result<Vec<usize>, _> = names.iter().map(|name| self.number(name)).collect();
        let numbers = numbers?;
        if let Engine::Gpu(gpu) = &mut self.engine {
            gpu.leave(&numbers);
        }
        Ok(())
    }

    /// Copies rows along the first axis of an output of the last run, wherever that is, with one
    /// wait for as many as a buffer for copies holds.
    ///
    /// # Errors
    /// As [`output`](Self::output); [`ExecError::Port`] for rows that it does not have, and
    /// whatever the device reports.
    pub fn output_rows<T: bytemuck::Pod>(
        &self,
        name: &str,
        rows: &[usize],
    ) -> Result<Vec<Box<[T]>>, ExecError> {
        let index = self.number(name)?;
        let (port, slot) = (&self.program().outputs[index], &self.outputs[index]);
        let fail = |reason: String| Symbolic::new(self.program()).port("output", name, reason);
        if size_of::<T>() != port.ty.dtype.size() {
            return Err(fail(format!("has elements of type {}", port.ty.dtype)));
        }
        let extent = |size: &usize| usize::try_from(*self.sizes.values.get(*size)?).ok();
        let count = slot.shape.first().and_then(extent).unwrap_or(0);
        if let Some(row) = rows.iter().find(|row| **row >= count) {
            return Err(fail(format!("has {count} rows, and row {row} is asked for")));
        }
        let each: Option<usize> = slot.shape[1..].iter().map(extent).product();
        let each = each.ok_or_else(|| fail("cannot be read: nothing has run".into()))?;
        if let (Engine::Gpu(gpu), Region::Arena) = (&self.engine, slot.region) {
            let start = self.sizes.range(slot).map_or(0, |range| range.start);
            let places = rows.iter().map(|row| start + row * each * size_of::<T>());
            let mut found = vec![vec![T::zeroed(); each].into_boxed_slice(); rows.len()];
            let parts = found.iter_mut().map(|row| bytemuck::cast_slice_mut(row));
            gpu.copy_back(places.zip(parts))?;
            return Ok(found);
        }
        let all = self.output::<T>(name)?;
        Ok(rows.iter().map(|row| all[row * each..][..each].into()).collect())
    }

    /// The number of an output.
    pub(super) fn number(&self, output: &str) -> Result<usize, ExecError> {
        let ports = &self.program().outputs;
        ports.iter().position(|port| *port.name == *output).ok_or_else(|| {
            let known: Vec<_> = ports.iter().map(|p| format!("`{}`", p.name)).collect();
            let reason = format!("does not exist; there are {}", known.join(", "));
            Symbolic::new(self.program()).port("output", output, reason)
        })
    }

    /// Where an output of the last run lies in a GPU's memory, and its bytes.
    pub(crate) fn place(&self, output: &str) -> Result<(Address, u64), ExecError> {
        let index = self.number(output)?;
        let slot = &self.outputs[index];
        let range = self.sizes.range(slot).filter(|_| slot.region == Region::Arena);
        match (&self.engine, range) {
            (Engine::Gpu(gpu), Some(range)) => Ok((gpu.at(range.start as u64), range.len() as u64)),
            _ => {
                let reason = "is not in the memory of a GPU: nothing has run, or it is a state";
                Err(Symbolic::new(self.program()).port("output", output, reason))
            }
        }
    }

    /// Lets the next run wait until outputs of the last one have been sent.
    pub(crate) fn lend(&mut self, lent: Lent) {
        if let Engine::Gpu(gpu) = &mut self.engine {
            gpu.lend(lent);
        }
    }

    pub(super) fn output_bytes(&self, index: usize) -> Result<&[u8], ExecError> {
        let slot = &self.outputs[index];
        let range = self.sizes.range(slot);
        let bytes = match (slot.region, &self.engine) {
            (Region::Arena, Engine::Cpu(cpu)) => range.and_then(|range| cpu.memory().get(range)),
            (Region::Arena, Engine::Gpu(gpu)) => gpu.output(index),
            (Region::Weight(w), _) => {
                range.and_then(|range| self.model.artifact().weight(w as usize).get(range))
            }
            (Region::State(_) | Region::Null, _) => None,
        };
        bytes.ok_or_else(|| {
            let name = &self.program().outputs[index].name;
            let reason = "cannot be read: nothing has run, it is a state, or it was left";
            Symbolic::new(self.program()).port("output", name, reason)
        })
    }
}
