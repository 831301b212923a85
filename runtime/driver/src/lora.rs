//! Which weights of a model get low-rank adapters.

use std::{collections::BTreeSet, sync::Arc};

use ir::Module;
use passes::{LowRank, PassError, ProductWeight};

use crate::CompileError;

/// Adapters that a model is compiled to train, its own weights frozen: Hu et al. 2021,
/// arXiv:2106.09685.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Rows of the first factor and columns of the second.
    pub rank: u64,
    /// Factor of the update.
    pub scale: f64,
    /// Ends of names of modules, such as `q_proj`; all matrices of layers where `None`.
    pub targets: Option<Vec<String>>,
}

/// A module's adapters.
pub(crate) struct Adapters {
    pub(crate) lora: passes::Lora,
    options: LowRank,
    /// What is adapted.
    weights: Weights,
}

type Weights = Vec<(Arc<str>, ProductWeight)>;

impl Lora {
    /// Adds adapters to a module as it was imported.
    ///
    /// # Errors
    /// Every target that names no matrix of a product, with the names that there are.
    pub(crate) fn adapt(&self, module: &mut Module) -> Result<Adapters, CompileError> {
        let mut weights: Weights = passes::product_weights(module).into_iter().collect();
        let unknown = self.unknown(&weights);
        if !unknown.is_empty() {
            return Err(CompileError::Targets(unknown));
        }
        weights.retain(|(name, weight)| match &self.targets {
            None => weight.is_in_layer,
            Some(targets) => targets.iter().any(|target| is_named(name, target)),
        });
        let options = LowRank { rank: self.rank, scale: self.scale };
        let targets: BTreeSet<Arc<str>> = weights.iter().map(|(name, _)| name.clone()).collect();
        let lora = passes::add_lora(module, &targets, options).map_err(CompileError::Pass)?;
        Ok(Adapters { lora, options, weights })
    }

    fn unknown(&self, weights: &Weights) -> Vec<String> {
        let targets = self.targets.iter().flatten();
        let unknown = targets.filter(|t| !weights.iter().any(|(name, _)| is_named(name, t)));
        let last =
            |(name, _): &(Arc<str>, _)| module_of(name).rsplit('.').next().map(str::to_owned);
        let known: BTreeSet<String> = weights.iter().filter_map(last).collect();
        let known: Vec<String> = known.into_iter().collect();
        let tell = |target: &String| {
            format!(
                "`lora.targets` has {target:?}, and no product's matrix ends in that name: there \
                 are {}; or write \"all-linear\"",
                known.join(", ")
            )
        };
        unknown.map(tell).collect()
    }
}

impl Adapters {
    /// Adds the entries that merge adapters into weights.
    pub(crate) fn add_merges(&self, module: &mut Module) -> Result<(), PassError> {
        passes::add_merges(module, self.weights.iter().map(|(_, weight)| weight), self.options)
    }
}

/// The name of the module that has a weight.
fn module_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Whether a weight's module has that name, or ends in it: as PEFT has it.
fn is_named(weight: &str, target: &str) -> bool {
    let module = module_of(weight);
    let lead = module.strip_suffix(target);
    lead.is_some_and(|lead| lead.is_empty() || lead.ends_with('.'))
}
