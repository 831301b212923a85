//! How ranks share what training keeps: which rank holds which part of parameters, gradients and
//! the optimiser's states.
//!
//! [`Sharding`] is the choice, a row for each parameter; [`train_step`](crate::train_step) is
//! written over it, and says with collectives where what is held apart comes together. Whoever
//! chooses needs to know nothing of graphs: [`Sharding::zero`] is the choice of Rajbhandari et al.
//! 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
//!
//! Every choice adds up gradients in one order, over the ranks in each micro-step and then over the
//! micro-steps, so the bits of parameters do not depend on it.

use std::{collections::BTreeMap, sync::Arc};

use ir::{Attr, Attrs, Builder, Dim, Module, OpError, Shard, ShardOf, Split, TensorType, Value};

use crate::{Parameter, PassError};

/// Whether a rank holds all of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holding {
    /// All of it.
    #[default]
    Whole,
    /// Its [`Shard`], in row-major order.
    Shard,
}

/// What a rank holds of a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// What forward and backward compute with.
    pub weight: Holding,
    /// The gradient that micro-steps add up.
    pub grad: Holding,
    /// The optimiser's states, and the f32 that it updates.
    pub optimizer: Holding,
}

/// How the ranks along an axis of the mesh share what training keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Sharding {
    axis: Arc<str>,
    ranks: u32,
    held: BTreeMap<Arc<str>, Held>,
    splits: BTreeMap<Arc<str>, Split>,
}

impl Sharding {
    /// One rank.
    #[must_use]
    pub fn none() -> Sharding {
        Sharding { axis: "data".into(), ranks: 1, held: BTreeMap::new(), splits: BTreeMap::new() }
    }

    /// The choice of a stage of ZeRO: with 1 the optimiser's states are held apart, with 2
    /// gradients too, with 3 weights too.
    ///
    /// # Errors
    /// Names every parameter whose rule cannot update a part without the rest.
    pub fn zero(
        stage: u8,
        axis: &str,
        ranks: u32,
        parameters: &[Parameter],
    ) -> Result<Sharding, Vec<PassError>> {
        let from = |least: u8| match stage >= least && ranks > 1 {
            true => Holding::Shard,
            false => Holding::Whole,
        };
        let held = Held { weight: from(3), grad: from(2), optimizer: from(1) };
        let whole = |p: &&Parameter| held.optimizer == Holding::Shard && !p.update.is_elementwise();
        let why = |p: &Parameter| {
            let why = "is updated by a rule that needs all of it, so ranks cannot hold its states \
                       in parts: take `zero = 0`, or an optimizer that updates elements one by one \
                       (adamw, lion, sgd)";
            PassError::new(&p.weight, why)
        };
        let errors: Vec<PassError> = parameters.iter().filter(whole).map(why).collect();
        if !errors.is_empty() {
            return Err(errors);
        }
        let held = parameters.iter().map(|p| (p.weight.clone(), held)).collect();
        Ok(Sharding { axis: axis.into(), ranks, held, splits: BTreeMap::new() })
    }

    /// The same choice for weights of which some are parts, as
    /// [`tensor_parallel`](crate::tensor_parallel) has cut them.
    ///
    /// # Errors
    /// Names every parameter of these whose rule cannot update a part without the rest.
    pub fn of_parts(
        self,
        splits: &BTreeMap<Arc<str>, Split>,
        parameters: &[Parameter],
    ) -> Result<Sharding, Vec<PassError>> {
        let whole = |p: &&Parameter| splits.contains_key(&p.weight) && !p.update.is_elementwise();
        let why = |p: &Parameter| {
            let why = "is updated by a rule that needs all of it, and ranks along the tensor axis \
                       hold it in parts: take `tensor = 1`, or an optimizer that updates elements \
                       one by one (adamw, lion, sgd)";
            PassError::new(&p.weight, why)
        };
        let errors: Vec<PassError> = parameters.iter().filter(whole).map(why).collect();
        match errors.is_empty() {
            true => Ok(Sharding { splits: splits.clone(), ..self }),
            false => Err(errors),
        }
    }

    /// Ranks along it.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Declares the symbol for a rank's place along the axis.
    pub(crate) fn declare(&self, module: &mut Module) {
        if self.ranks > 1 {
            module.symbol(&Shard::symbol(&self.axis), 0, i64::from(self.ranks) - 1);
        }
    }

    /// What a rank holds of a parameter.
    #[must_use]
    pub fn held(&self, weight: &str) -> Held {
        self.held.get(weight).copied().unwrap_or_default()
    }

    /// A rank's part of a tensor of constant size.
    fn shard(&self, shape: &[Dim]) -> Shard {
        let elements = shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
        let elements = elements.as_const().expect("weights have constant sizes");
        Shard::of(elements, &self.axis, self.ranks.into())
    }

    /// The type of what is held.
    pub(crate) fn type_of(&self, ty: &TensorType, holding: Holding) -> TensorType {
        match holding {
            Holding::Whole => ty.clone(),
            Holding::Shard => TensorType::new(ty.dtype, [self.shard(&ty.shape).len]),
        }
    }

    /// What is said of a state of a weight that is held so.
    pub(crate) fn shard_of(
        &self,
        weight: &str,
        ty: &TensorType,
        holding: Holding,
    ) -> Option<ShardOf> {
        let split = self.splits.get(weight).cloned();
        if holding == Holding::Whole && split.is_none() {
            return None;
        }
        let extent = |d: &Dim| d.as_const().and_then(|n| u64::try_from(n).ok());
        let shape = ty.shape.iter().map(|d| extent(d).expect("weights have constant sizes"));
        let mut shape: Vec<u64> = shape.collect();
        if let Some(split) = &split {
            shape[split.dim] = split.pieces.iter().sum();
        }
        let ranks = if holding == Holding::Whole { 1 } else { self.ranks };
        Some(ShardOf { shape, split, axis: self.axis.clone(), ranks })
    }

    /// At which byte of a tensor this rank's part begins.
    pub(crate) fn offset_of(&self, ty: &TensorType) -> Dim {
        self.shard(&ty.shape).start * Dim::from(ty.dtype.size())
    }

    fn attrs(&self) -> Attrs {
        let ranks = Attr::Int(self.ranks.into());
        Attrs::none().with("axis", &*self.axis).with("ranks", ranks)
    }

    /// The sum over the ranks, as it is held.
    pub(crate) fn reduce(
        &self,
        b: &mut Builder<'_>,
        x: Value,
        holding: Holding,
    ) -> Result<Value, OpError> {
        match (self.ranks, holding) {
            (1, Holding::Whole) => Ok(x),
            (_, Holding::Whole) => b.op1("all_reduce", self.attrs(), &[x]),
            (_, Holding::Shard) => b.op1("reduce_scatter", self.attrs(), &[x]),
        }
    }

    /// The whole of a part that is held, in the memory of `into` where that is there.
    pub(crate) fn gather(
        &self,
        b: &mut Builder<'_>,
        shard: Value,
        shape: &[Dim],
        into: Option<Value>,
    ) -> Result<Value, OpError> {
        let attrs = self.attrs().with("shape", shape.to_vec());
        let args: Vec<Value> = [shard].into_iter().chain(into).collect();
        b.op1("all_gather", attrs, &args)
    }

    /// This rank's part of what it holds: a vector.
    pub(crate) fn own(
        &self,
        b: &mut Builder<'_>,
        x: Value,
        holding: Holding,
    ) -> Result<Value, OpError> {
        if holding == Holding::Shard {
            return Ok(x);
        }
        let shape = b.ty(x).shape.to_vec();
        let Shard { start, len } = self.shard(&shape);
        let flat = b.reshape(x, vec![shape.into_iter().fold(Dim::from(1), |n, d| n * d)])?;
        b.slice(flat, 0, start.clone(), start + len)
    }

    /// Ranks' vectors one behind the other.
    pub(crate) fn side_by_side(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
        let len = b.ty(x).shape[0].clone();
        let shape = [Dim::from(i64::from(self.ranks)) * len];
        self.gather(b, x, &shape, None)
    }
}
