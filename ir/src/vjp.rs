//! How operators are differentiated in reverse mode: what [`OpDef::vjp`](crate::OpDef::vjp) states.
//!
//! The vector-Jacobian product of an operator takes the cotangents of its results to those of its
//! operands. Griewank & Walther 2008, "Evaluating Derivatives", chapter 3; rules over a graph
//! instead of a tape: Innes 2018, arXiv:1810.07951. The pass `passes::vjp` walks a function with
//! them.

use crate::{Attrs, Builder, Dim, Expand, OpError, TensorType, Value};

/// What an operator states of its derivative.
#[derive(Clone, Copy)]
pub enum Vjp {
    /// Built by a rule.
    Rule(VjpRule),
    /// That of the operator's expansion, which is computed again among the gradients: the node
    /// itself stays as it is.
    Expansion,
    /// That of operators which compute the same, again among the gradients.
    Recomputed(Expand),
    /// That of what the node is replaced by in a differentiated function, so that values on the way
    /// may be kept. Results are equal, bit for bit, and there may be more of them.
    Replaced(Expand),
    /// Zero wherever it exists: results are constant between jumps, or no floats.
    Zero,
    /// None, for the reason given, which completes "`op` ..".
    Refused(&'static str),
    /// Parameters, weights and calls, which only a pass over functions can differentiate.
    Structural,
}

/// Builds the cotangents of operands, in order; `None` for one that is zero or not needed.
///
/// A cotangent may have any shape that the operand's broadcasts to, and any float type:
/// [`VjpCx::pull`] sums and casts it back.
pub type VjpRule = fn(&mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError>;

/// What a rule sees.
pub struct VjpCx<'a, 'm> {
    /// Where it builds.
    pub b: &'a mut Builder<'m>,
    /// The node's attributes, defaults filled in.
    pub attrs: &'a Attrs,
    /// Its operands; `None` for an absent optional one.
    pub args: &'a [Option<Value>],
    /// Its results.
    pub results: &'a [Value],
    /// The results' cotangents; `None` for one that is zero.
    pub cotangents: &'a [Option<Value>],
    /// Which operands need a cotangent.
    pub needs: &'a [bool],
}

impl VjpCx<'_, '_> {
    /// A required operand.
    ///
    /// # Panics
    /// If it is absent, which [`Signature::check_operands`](crate::Signature::check_operands)
    /// rules out.
    pub fn arg(&self, i: usize) -> Value {
        self.args[i].expect("required operand")
    }

    /// The type of a required operand.
    pub fn ty(&self, i: usize) -> TensorType {
        self.b.ty(self.arg(i)).clone()
    }

    /// Whether operand `i` is there and needs a cotangent.
    pub fn needs(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }

    /// The cotangent of result `i`, zeros where it has none.
    ///
    /// # Errors
    /// None in practice.
    pub fn cotangent(&mut self, i: usize) -> Result<Value, OpError> {
        match self.cotangents[i] {
            Some(v) => Ok(v),
            None => {
                let ty = self.b.ty(self.results[i]).clone();
                self.b.full(ty.dtype, 0.0, &ty.shape)
            }
        }
    }

    /// The cotangent of operand `i`, built if it is needed.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn when(
        &mut self,
        i: usize,
        build: impl FnOnce(&mut Self) -> Result<Value, OpError>,
    ) -> Result<Option<Value>, OpError> {
        if self.needs(i) { build(self).map(Some) } else { Ok(None) }
    }

    /// Applies a rule, and brings what it returns to the shapes and element types of the operands.
    ///
    /// # Errors
    /// Those of the rule, or where it returns what does not fit.
    pub fn pull(&mut self, rule: VjpRule) -> Result<Vec<Option<Value>>, OpError> {
        let mut out = rule(self)?;
        out.resize(self.args.len(), None);
        for (i, slot) in out.iter_mut().enumerate() {
            let (Some(v), Some(arg), true) = (*slot, self.args[i], self.needs(i)) else {
                *slot = None;
                continue;
            };
            let ty = self.b.ty(arg).clone();
            let v = sum_to(self.b, v, &ty.shape)?;
            *slot = Some(self.b.cast(v, ty.dtype)?);
            let got = self.b.ty(slot.expect("just set"));
            if got.equal(&ty, &self.b.module().symbols) != Some(true) {
                return Err(OpError::new(format!(
                    "the cotangent of operand {i} is {got}, not {ty}"
                )));
            }
        }
        Ok(out)
    }
}

/// Sums over the axes along which a shape was broadcast to that of `v`.
///
/// # Errors
/// Where `v` has fewer axes than the shape.
pub fn sum_to(b: &mut Builder<'_>, v: Value, shape: &[Dim]) -> Result<Value, OpError> {
    let from = b.ty(v).shape.clone();
    let lead = from.len().checked_sub(shape.len());
    let lead = lead.ok_or_else(|| OpError::new(format!("cannot sum {} to {shape:?}", b.ty(v))))?;
    let repeated = |i: &usize| *i < lead || (shape[*i - lead].is(1) && !from[*i].is(1));
    let axes: Vec<i64> = (0..from.len()).filter(repeated).map(|i| i as i64).collect();
    if axes.is_empty() {
        return Ok(v);
    }
    let sum = b.reduce("reduce_sum", v, &axes, false)?;
    b.reshape(sum, shape.to_vec())
}
