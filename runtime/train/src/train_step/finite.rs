//! Where what a step computes is not finite.

use ir::DType;

use super::{TrainStep, of_kind};
use crate::TrainError;

impl TrainStep {
    /// Where what the last micro-batch made is not finite: the number of the first place on the way
    /// from the embeddings to the loss, for [`place`](Self::place).
    ///
    /// # Errors
    /// None in practice.
    pub fn first_bad_place(&self) -> Result<Option<usize>, TrainError> {
        let exe = &self.work.first().exe;
        let mut next = 0;
        for port in &exe.program().outputs {
            let Some((number, _)) = probe(&port.name) else { continue };
            if !exe.output::<f32>(&port.name)?[0].is_finite() {
                return Ok(Some(number));
            }
            next = number + 1;
        }
        let is_bad = self.place.is_last() && !exe.output::<f32>("loss")?[0].is_finite();
        Ok(is_bad.then_some(next))
    }

    /// The name of a place by its number.
    #[must_use]
    pub fn place(&self, number: usize) -> String {
        let programs = &self.model().artifact().manifest().programs;
        let outputs = programs.iter().flat_map(|program| &program.outputs);
        let mut probes = outputs.filter_map(|port| probe(&port.name));
        match probes.find(|(known, _)| *known == number) {
            Some((_, place)) => format!("what comes out of `{place}`"),
            None => "the loss".to_owned(),
        }
    }

    /// The last parameter, by its number, whose gradient of the last micro-batch is not finite as
    /// this rank computed it. With one rank gradients are looked at when they are added up.
    ///
    /// # Errors
    /// None in practice.
    pub fn last_bad_gradient(&self) -> Result<Option<usize>, TrainError> {
        let exe = &self.work.last().exe;
        for number in self.own.iter().rev().copied() {
            let name = format!("local.{}", self.parameters[number].name);
            let is_there = exe.program().outputs.iter().any(|port| *port.name == *name);
            if is_there && !exe.output::<f32>(&name)?[0].is_finite() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// The first parameter, by its number, with an element of this rank that is not finite.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    pub fn first_bad_parameter(&self) -> Result<Option<usize>, TrainError> {
        for number in self.own.iter().copied() {
            let p = &self.parameters[number];
            let bytes = self.state(&format!("param.{}", p.name))?.unwrap_or_default();
            if !is_finite(p.dtype, &bytes) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// Whether every element is finite; integers are.
pub(crate) fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    // All bits of the exponent are set in infinities and what is no number.
    let narrow = |exponent: u16| {
        let bits = bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        bits.into_iter().all(|bits| bits & exponent != exponent)
    };
    match dtype {
        DType::F64 => bytes.as_chunks::<8>().0.iter().all(|b| f64::from_le_bytes(*b).is_finite()),
        DType::F32 => bytes.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
        DType::Bf16 => narrow(0x7f80),
        DType::F16 => narrow(0x7c00),
        _ => true,
    }
}

/// Number and name of a place on the way from the embeddings to the loss, from an output's name.
fn probe(output: &str) -> Option<(usize, &str)> {
    let (number, place) = of_kind("probe", output)?.split_once('.')?;
    Some((number.parse().ok()?, place))
}
