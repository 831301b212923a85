//! Places as pointers, and sizes by number.

use std::collections::HashMap;

use ir::{Dim, Place, Port, Program, Region};

use super::{
    Base, Executable, Patch,
    ports::{Sizes, Slot},
    walk::{Meeting, Work},
};
use crate::{ExecError, bind::Symbolic};

impl Executable {
    pub(super) fn resolve(&mut self, program: &Program) -> Result<(), ExecError> {
        let model = self.model.clone();
        let mut interned = HashMap::new();
        let symbolic = Symbolic::new(program);
        let mut size = |sizes: &mut Sizes, dim: &Dim| -> Result<usize, ExecError> {
            if let Some(index) = interned.get(dim) {
                return Ok(*index);
            }
            let compiled = dim.compile(&program.symbols);
            sizes.exprs.push(compiled.map_err(|e| symbolic.symbol("?", e.to_string()))?);
            interned.insert(dim.clone(), sizes.exprs.len() - 1);
            Ok(sizes.exprs.len() - 1)
        };
        for kernel in &program.kernels {
            // The artifact has been checked: an offset outside of the code is a bug of ours.
            let entry = model.code().kernel(kernel.code_offset).expect("a checked code offset");
            self.launches.add_kernel(entry, kernel.dims.len());
            for dim in &kernel.dims {
                self.dims.push(size(&mut self.sizes, dim)?);
            }
            let compile = |dim: &Dim| dim.compile(&program.symbols).ok();
            self.work.push(Work {
                tiles: size(&mut self.sizes, &kernel.tiles)?,
                cost: compile(&kernel.flops).zip(compile(&kernel.bytes)),
            });
        }
        let arena = self.arena.as_mut_ptr();
        let base_of = |region: &Region| match region {
            Region::Null => None,
            Region::Arena => Some(Base::Fixed(arena)),
            // Kernels do not write to weights.
            Region::Weight(w) => {
                Some(Base::Fixed(model.artifact().weight(*w as usize).as_ptr().cast_mut()))
            }
            Region::State(s) => Some(Base::State(*s as usize)),
        };
        for launch in &program.launches {
            let first = self.launches.add_launch(launch.kernel as usize, launch.args.len());
            for (i, Place { region, offset }) in launch.args.iter().enumerate() {
                let Some(base) = base_of(region) else { continue };
                match (base, offset.as_const().and_then(|v| usize::try_from(v).ok())) {
                    (Base::Fixed(base), Some(offset)) => {
                        self.launches.set_arg(first + i, base.wrapping_add(offset));
                    }
                    _ => {
                        let offset = size(&mut self.sizes, offset)?;
                        self.patches.push(Patch { arg: first + i, base, offset });
                    }
                }
            }
        }
        for collective in &program.collectives {
            // The artifact has been checked: a collective of nothing is a bug of ours.
            let mut address = |Place { region, offset }: &Place| {
                let base = base_of(region).expect("a collective of what is there");
                Ok::<_, ExecError>((base, size(&mut self.sizes, offset)?))
            };
            let (input, output) = (address(&collective.input)?, address(&collective.output)?);
            let elements = size(&mut self.sizes, &collective.elements)?;
            let (start, end) = (collective.start as usize, collective.end as usize);
            self.meetings.push(Meeting { start, end, elements, input, output });
        }
        let ports = [
            (&program.inputs, &mut self.inputs),
            (&program.outputs, &mut self.outputs),
            (&program.states, &mut self.states),
        ];
        for (ports, slots) in ports {
            for Port { ty, place, .. } in ports {
                let shape: Result<_, ExecError> =
                    ty.shape.iter().map(|dim| size(&mut self.sizes, dim)).collect();
                slots.push(Slot {
                    element_bytes: ty.dtype.size(),
                    shape: shape?,
                    region: place.region,
                    offset: size(&mut self.sizes, &place.offset)?,
                });
            }
        }
        Ok(())
    }
}
