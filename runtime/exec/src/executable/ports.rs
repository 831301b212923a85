//! Inputs, outputs and states of a run, and the sizes that they have in it.

use std::ops::Range;

use ir::{CompiledDim, ModelKind, Region};

use super::Executable;
use crate::{ExecError, States, bind::Symbolic};

/// Distinct sizes, and their values in the current run.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub(super) exprs: Vec<CompiledDim>,
    pub(super) values: Vec<i64>,
    pub(super) symbols: Vec<i64>,
}

/// A port with its sizes by number.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) element_bytes: usize,
    pub(super) shape: Vec<usize>,
    pub(super) region: Region,
    pub(super) offset: usize,
}

/// The input that says where sequences begin among packed tokens, see [`ModelKind`].
pub(super) const SEGMENTS: &str = "cu_seqlens";

/// Whether segments split the tokens: kernels use them as they are.
pub(super) fn check_segments(inputs: &[(&str, &[u8])]) -> Result<(), String> {
    let words = |wanted: &str| {
        let (_, bytes) = inputs.iter().find(|(name, _)| *name == wanted)?;
        Some(bytes.chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])))
    };
    let (Some(tokens), Some(segments)) = (words("tokens"), words(SEGMENTS)) else { return Ok(()) };
    let tokens = tokens.len();
    let ends_well =
        segments.clone().next_back().is_some_and(|end| usize::try_from(end) == Ok(tokens));
    if segments.clone().next() != Some(0) || !ends_well || !segments.is_sorted_by(|a, b| a < b) {
        return Err(format!("must rise from 0 to the {tokens} tokens"));
    }
    Ok(())
}

impl Executable {
    /// The address of each state, all large enough for the current sizes.
    pub(super) fn state_bases(
        &self,
        states: &mut States,
        bases: &mut Vec<*mut u8>,
    ) -> Result<(), ExecError> {
        let program = self.program();
        bases.clear();
        for (port, slot) in program.states.iter().zip(&self.states) {
            let fail = |reason: String| Symbolic::new(program).port("state", &port.name, reason);
            let bytes = self.sizes.range(slot).map_or(u64::MAX, |r| r.end as u64);
            let memory = states.bytes_mut(&port.name).ok_or_else(|| fail("is missing".into()))?;
            if (memory.len() as u64) < bytes {
                return Err(fail(format!("has {} bytes instead of {bytes}", memory.len())));
            }
            bases.push(memory.as_mut_ptr());
        }
        Ok(())
    }

    /// Copies the inputs to their places, once all of them are known to fit.
    pub(super) fn write_inputs(
        &mut self,
        inputs: &[(&str, &[u8])],
        places: &mut Vec<(Range<usize>, usize)>,
    ) -> Result<(), ExecError> {
        let program = self.program();
        let symbolic = Symbolic::new(program);
        places.clear();
        for (port, slot) in program.inputs.iter().zip(&self.inputs) {
            let fail = |reason: String| symbolic.port("input", &port.name, reason);
            let mut given = inputs.iter().enumerate().filter(|(_, (n, _))| **n == *port.name);
            let Some((number, (_, bytes))) = given.next() else {
                return Err(fail(format!("of type {} is missing", port.ty)));
            };
            if given.next().is_some() {
                return Err(fail("is given twice".into()));
            }
            let range = self.sizes.range(slot).filter(|_| slot.region == Region::Arena);
            let range = range.filter(|r| r.end as u64 <= self.arena.bytes());
            let Some(range) = range.filter(|r| r.len() == bytes.len()) else {
                return Err(fail(format!("has {} bytes, which is not {}", bytes.len(), port.ty)));
            };
            places.push((range, number));
        }
        if self.model.artifact().manifest().model.kind != ModelKind::Graph {
            check_segments(inputs).map_err(|reason| symbolic.port("input", SEGMENTS, reason))?;
        }
        let is_known = |name: &str| program.inputs.iter().any(|port| *port.name == *name);
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !is_known(name)) {
            let known: Vec<_> = program.inputs.iter().map(|p| format!("`{}`", p.name)).collect();
            let reason = format!("does not exist; there are {}", known.join(", "));
            return Err(symbolic.port("input", name, reason));
        }
        for (range, number) in places {
            self.arena.as_mut_slice()[range.clone()].copy_from_slice(inputs[*number].1);
        }
        Ok(())
    }

    pub(super) fn output_bytes(&self, index: usize) -> Result<&[u8], ExecError> {
        let slot = &self.outputs[index];
        let memory = match slot.region {
            Region::Arena => self.arena.as_slice(),
            Region::Weight(w) => self.model.artifact().weight(w as usize),
            Region::State(_) | Region::Null => &[],
        };
        let bytes = self.sizes.range(slot).and_then(|range| memory.get(range));
        bytes.ok_or_else(|| {
            let name = &self.program().outputs[index].name;
            let reason = "cannot be read: nothing has run, or it is a state";
            Symbolic::new(self.program()).port("output", name, reason)
        })
    }
}

impl Sizes {
    /// Takes the symbols' values, and leaves those of the last run.
    pub(super) fn evaluate(&mut self, symbols: &mut Vec<i64>) -> Option<()> {
        self.values.clear();
        for expr in &self.exprs {
            self.values.push(expr.eval(symbols)?);
        }
        std::mem::swap(&mut self.symbols, symbols);
        Some(())
    }

    /// Where a port lies in its memory in the current run.
    pub(super) fn range(&self, slot: &Slot) -> Option<Range<usize>> {
        let value = |size: &usize| usize::try_from(*self.values.get(*size)?).ok();
        let start = value(&slot.offset)?;
        let bytes =
            slot.shape.iter().try_fold(slot.element_bytes, |n, d| n.checked_mul(value(d)?))?;
        Some(start..start.checked_add(bytes)?)
    }
}
