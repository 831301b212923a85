//! Distinct sizes of a program, and their values in a run.

use std::{collections::HashMap, ops::Range};

use ir::{CompiledDim, Dim, Program};

use super::ports::Slot;
use crate::{ExecError, bind::Symbolic};

/// Distinct sizes by number.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    known: HashMap<Dim, usize>,
    exprs: Vec<CompiledDim>,
    pub(super) values: Vec<i64>,
    pub(super) symbols: Vec<i64>,
}

impl Sizes {
    /// The number of a size.
    pub(super) fn number(&mut self, program: &Program, dim: &Dim) -> Result<usize, ExecError> {
        if let Some(index) = self.known.get(dim) {
            return Ok(*index);
        }
        let compiled = dim.compile(&program.symbols);
        let fail = |e: ir::DimError| Symbolic::new(program).symbol("?", e.to_string());
        self.exprs.push(compiled.map_err(fail)?);
        self.known.insert(dim.clone(), self.exprs.len() - 1);
        Ok(self.exprs.len() - 1)
    }

    /// Takes the symbols' values, and leaves those of the last run.
    pub(super) fn evaluate(&mut self, symbols: &mut Vec<i64>) -> Option<()> {
        self.values.clear();
        for expr in &self.exprs {
            self.values.push(expr.eval(symbols)?);
        }
        std::mem::swap(&mut self.symbols, symbols);
        Some(())
    }

    /// A size that counts something, in this run.
    pub(super) fn count(&self, number: usize) -> usize {
        usize::try_from(self.values[number]).unwrap_or(usize::MAX)
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
