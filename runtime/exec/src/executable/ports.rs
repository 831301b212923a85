//! Inputs and states of a run.

use std::ops::Range;

use ir::{ModelKind, Port, Program, Region};

use super::{Executable, sizes::Sizes};
use crate::{ExecError, States, bind::Symbolic};

/// A port with its sizes by number.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) element_bytes: usize,
    pub(super) shape: Vec<usize>,
    pub(super) region: Region,
    pub(super) offset: usize,
}

impl Slot {
    pub(super) fn of(port: &Port, program: &Program, sizes: &mut Sizes) -> Result<Slot, ExecError> {
        let Port { ty, place, .. } = port;
        let shape: Result<_, ExecError> =
            ty.shape.iter().map(|dim| sizes.number(program, dim)).collect();
        Ok(Slot {
            element_bytes: ty.dtype.size(),
            shape: shape?,
            region: place.region,
            offset: sizes.number(program, &place.offset)?,
        })
    }
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
    /// Whether all states are there, large enough for the current sizes.
    pub(super) fn check_states(&self, states: &States) -> Result<(), ExecError> {
        let program = self.program();
        for (port, slot) in program.states.iter().zip(&self.states) {
            let fail = |reason: String| Symbolic::new(program).port("state", &port.name, reason);
            let bytes = self.sizes.range(slot).map_or(u64::MAX, |r| r.end as u64);
            let has = states.bytes_of(&port.name).ok_or_else(|| fail("is missing".into()))?;
            if has < bytes {
                return Err(fail(format!("has {has} bytes instead of {bytes}")));
            }
        }
        Ok(())
    }

    /// Where in the arena each input goes, once all of them are known to fit.
    pub(super) fn place_inputs(
        &self,
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
            let range = range.filter(|r| r.end as u64 <= program.arena_bytes);
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
        Ok(())
    }
}
