//! Which weights of a model are trained, and how.

use std::{collections::BTreeSet, sync::Arc};

use ir::{Attr, Module, TensorType};
use passes::{Parameter, Update};
use regex::Regex;

use crate::{CompileError, Lora, pipeline::Context};

/// What a model is compiled to train.
#[derive(Clone, Debug)]
pub struct Training {
    /// How parameters are updated. Those of less than two dimensions (biases, norms) do not decay.
    pub update: Update,
    /// How those are updated that are not in layers (embeddings, the head) or are no matrices,
    /// where `update` is for the matrices of layers alone.
    pub others: Option<Update>,
    /// Exceptions; of those that match a weight's name, the first holds.
    pub groups: Vec<Group>,
    /// Adapters, which are all that is trained then.
    pub lora: Option<Lora>,
}

/// Weights with a learning rate of their own.
#[derive(Clone, Debug)]
pub struct Group {
    /// What their names contain.
    pub pattern: Regex,
    /// Their decay, whatever their dimensions; that of all where `None`.
    pub weight_decay: Option<f64>,
    /// They stay as they are.
    pub is_frozen: bool,
}

impl Training {
    /// The trained parameters, in the order of the model's weights. Group 0 is that of all weights
    /// that no exception names; the first exception is group 1. Where there is a rule for
    /// `others`, its groups follow, in the same order.
    pub(crate) fn parameters(&self, module: &Module) -> Vec<Parameter> {
        let in_layers = weights_of_layers(module);
        let floats = module.weights.iter().filter(|(_, ty)| ty.dtype.is_float());
        let parameter = |(name, ty): (&Arc<str>, &TensorType)| {
            let found = self.groups.iter().position(|group| group.pattern.is_match(name));
            let exception = found.map(|index| &self.groups[index]);
            if exception.is_some_and(|group| group.is_frozen) {
                return None;
            }
            let is_matrix = ty.rank() == 2 && in_layers.contains(name);
            let (update, first) = match &self.others {
                Some(others) if !is_matrix => (others, self.groups.len() + 1),
                _ => (&self.update, 0),
            };
            let update = match exception.and_then(|group| group.weight_decay) {
                Some(decay) => update.clone().with_decay(decay),
                None if ty.rank() < 2 => update.clone().with_decay(0.0),
                None => update.clone(),
            };
            let group = first + found.map_or(0, |index| index + 1);
            Some(Parameter { weight: name.clone(), update, group })
        };
        floats.filter_map(parameter).collect()
    }
}

impl Context<'_> {
    /// Adds adapters to a module, where there are to be some, and notes what is trained.
    ///
    /// # Errors
    /// Every name of a target that no weight has, and every adapter that is frozen.
    pub(crate) fn set_training(
        &mut self,
        module: &mut Module,
        training: Option<&Training>,
    ) -> Result<(), CompileError> {
        let Some(training) = training else { return Ok(()) };
        let base: BTreeSet<Arc<str>> = module.weights.keys().cloned().collect();
        let lora = training.lora.as_ref();
        self.adapters = lora.map(|lora| lora.adapt(module)).transpose()?;
        let mut parameters = training.parameters(module);
        if self.adapters.is_some() {
            parameters.retain(|p| !base.contains(&p.weight));
            let learned: BTreeSet<&Arc<str>> = parameters.iter().map(|p| &p.weight).collect();
            let added = module.weights.keys().filter(|name| !base.contains(*name));
            let frozen = added.filter(|name| !learned.contains(name));
            let tell = |name: &Arc<str>| {
                format!("`groups` freezes `{name}`: leave its module out of `lora.targets` instead")
            };
            let frozen: Vec<String> = frozen.map(tell).collect();
            if !frozen.is_empty() {
                return Err(CompileError::Targets(frozen));
            }
        }
        self.parameters = Some(parameters);
        Ok(())
    }
}

/// Weights that an entry hands to a function which it calls.
fn weights_of_layers(module: &Module) -> BTreeSet<Arc<str>> {
    let mut out = BTreeSet::new();
    for graph in module.entries.iter().filter_map(|entry| module.function(entry)) {
        let calls = graph.topo().into_iter().filter(|id| graph.node(*id).op.name() == "call");
        for v in calls.flat_map(|id| graph.node(id).inputs()).flatten() {
            if let Some(Attr::Str(name)) = graph.node(v.node).attrs.get("name")
                && graph.node(v.node).op.name() == "weight"
            {
                out.insert(name.clone());
            }
        }
    }
    out
}
