//! Which weights of a model are trained, and how.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Attr, Module, Split, TensorType};
use passes::{Parameter, PassError, Sharding, Update};
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
    /// Share of hidden states that are dropped, below 1: of what the first layer reads, and of what
    /// attention and the MLP of each layer add. Only gradients are computed so.
    pub dropout: Option<f64>,
    /// How ranks along the data axis share it.
    pub zero: Zero,
    /// Ranks that share every product.
    pub tensor: u32,
    /// Stages that layers are shared among, on ranks of their own: Narayanan et al. 2021.
    pub stages: usize,
    /// What of a layer's forward is there for its backward; `None` keeps as much as there is
    /// memory for.
    pub keep: Option<Keep>,
    /// Bytes that a rank may use; `None` where that is no matter.
    pub memory: Option<u64>,
    /// Whether losses are computed that nothing is learned from.
    pub evaluates: bool,
}

/// What of a layer's forward is kept for its backward. What is not is computed again, and no bit of
/// a gradient depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// All that the backward reads.
    All,
    /// Results of products and attention.
    Costly,
    /// The layer's input.
    Input,
}

impl Keep {
    /// From the most memory to the least.
    pub(crate) const ALL: [Keep; 3] = [Keep::All, Keep::Costly, Keep::Input];

    pub(crate) fn passes(self) -> passes::vjp::Recompute<'static> {
        match self {
            Keep::All => passes::vjp::Recompute::None,
            Keep::Costly => passes::vjp::Recompute::Cheap,
            Keep::Input => passes::vjp::Recompute::Full,
        }
    }
}

/// What of training the ranks along the data axis hold in parts: Rajbhandari et al. 2020.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zero {
    /// Nothing (0), the optimiser's states (1), gradients too (2), weights too (3).
    pub stage: u8,
    /// How many ranks there are.
    pub ranks: u32,
}

/// The axis of the mesh whose ranks share products.
const TENSOR: &str = "tensor";

impl Default for Zero {
    fn default() -> Zero {
        Zero { stage: 0, ranks: 1 }
    }
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
    /// What to try, one after the other.
    pub(crate) fn keeps(&self) -> Vec<Keep> {
        self.keep.map_or(Keep::ALL.into(), |keep| vec![keep])
    }

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
        if training.tensor > 1 {
            self.splits = share_products(module, training, &parameters)?;
        }
        self.parameters = Some(parameters);
        self.zero = training.zero;
        self.evaluates = training.evaluates;
        self.dropout = training.dropout;
        self.stages = training.stages;
        Ok(())
    }

    /// Which rank holds which part of what is trained.
    pub(crate) fn sharding(&self) -> Result<Sharding, Vec<PassError>> {
        let parameters = self.parameters.as_deref().unwrap_or_default();
        let Zero { stage, ranks } = self.zero;
        Sharding::zero(stage, "data", ranks, parameters)?.of_parts(&self.splits, parameters)
    }
}

/// Takes products apart for the ranks along the tensor axis.
fn share_products(
    module: &mut Module,
    training: &Training,
    parameters: &[Parameter],
) -> Result<BTreeMap<Arc<str>, Split>, CompileError> {
    let splits = passes::tensor_parallel(module, TENSOR, training.tensor);
    let splits = splits.map_err(CompileError::Pass)?;
    // A frozen weight is in the artifact, which all ranks have.
    let is_trained = |name: &Arc<str>| parameters.iter().any(|p| p.weight == *name);
    let frozen = splits.keys().filter(|name| !is_trained(name));
    let why = "is frozen, and ranks along the tensor axis hold parts of what is trained alone: \
               train it, or take `tensor = 1`";
    let frozen: Vec<PassError> = frozen.map(|name| PassError::new(name, why)).collect();
    if frozen.is_empty() { Ok(splits) } else { Err(CompileError::Pass(frozen)) }
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
