//! Which weights of a model are trained, and how.

use std::sync::Arc;

use ir::Module;
use passes::{Parameter, Update};
use regex::Regex;

/// What a model is compiled to train.
#[derive(Clone, Debug)]
pub struct Training {
    /// How parameters of two and more dimensions are updated. Those of fewer (biases, norms) do
    /// not decay.
    pub update: Update,
    /// Exceptions; of those that match a weight's name, the first holds.
    pub groups: Vec<Group>,
}

/// Weights with a learning rate of their own.
#[derive(Clone, Debug)]
pub struct Group {
    /// What their names contain.
    pub pattern: Regex,
    /// How they are updated, whatever their dimensions; `None` where they are frozen.
    pub update: Option<Update>,
}

impl Training {
    /// The trained parameters, in the order of the model's weights. Group 0 is that of all weights
    /// that no exception names; the first exception is group 1.
    pub(crate) fn parameters(&self, module: &Module) -> Vec<Parameter> {
        let floats = module.weights.iter().filter(|(_, ty)| ty.dtype.is_float());
        let parameter = |(name, ty): (&Arc<str>, &ir::TensorType)| {
            let found = self.groups.iter().position(|group| group.pattern.is_match(name));
            let (group, update) = match found {
                Some(index) => (index + 1, self.groups[index].update.clone()?),
                None if ty.rank() < 2 => (0, self.update.clone().without_decay()),
                None => (0, self.update.clone()),
            };
            Some(Parameter { weight: name.clone(), update, group })
        };
        floats.filter_map(parameter).collect()
    }
}
