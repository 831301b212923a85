//! The serving form of a model in training, in the same artifact: entry `step` over the weights as
//! they are.
//!
//! It forks off where the serving form always does, after the rewrites: what is sampled is what
//! trains, and what will serve. From there it is a module of its own, with smaller bounds, since a
//! few sequences are sampled, and with weights that are states.

use std::{collections::BTreeMap, sync::Arc};

use ir::{ModelKind, Module};
use passes::Recipe;

use crate::{
    CompileError,
    pipeline::{Context, PASSES},
};

/// The pass after which the forms part.
pub(crate) const FORK: &str = "optimize";

const ENTRY: &str = "step";
const PAGE_KV: &str = "page-kv";

/// Most tokens of a step.
const MOST_TOKENS: i64 = 256;
/// Most sequences of a step, and most rows of logits.
const MOST_SEQUENCES: i64 = 64;

/// The module of the serving form.
pub(crate) struct Live(Module);

impl Live {
    /// Forks off a module after [`FORK`].
    pub(crate) fn new(module: &Module) -> Live {
        let mut module = module.clone();
        for (symbol, most) in [("T", MOST_TOKENS), ("S", MOST_SEQUENCES), ("R", MOST_SEQUENCES)] {
            if let Some(bounds) = module.symbols.get_mut(symbol) {
                bounds.hi = bounds.hi.min(most.max(bounds.lo));
            }
        }
        Live(module)
    }

    /// Runs the passes that remain, and adds the plan and its recipes to those of training.
    pub(crate) fn plan(self, training: &mut Context<'_>) -> Result<(), CompileError> {
        let Live(mut module) = self;
        let mut cx = Context::new(training.kernels, ModelKind::Decoder, training.max_seq_len);
        cx.target = training.target.clone();
        let parameters = training.parameters.as_deref().unwrap_or_default();
        let sharding = training.sharding().map_err(CompileError::Pass)?;
        for pass in PASSES.iter().skip_while(|pass| pass.name != FORK).skip(1) {
            pass.run(&mut module, &mut cx)?;
            if pass.name == PAGE_KV {
                let weights = passes::live_weights(&mut module, ENTRY, parameters, &sharding);
                let weights = weights.map_err(|e| CompileError::Pass(vec![e]))?;
                cx.states.entry(ENTRY.into()).or_default().extend(weights);
            }
        }
        let names = add_recipes(&mut training.recipes, cx.recipes);
        for mut plan in cx.plans {
            for name in &mut plan.weights {
                *name = names[name].clone();
            }
            training.plans.push(plan);
        }
        Ok(())
    }
}

/// Adds what is not there yet, and returns what each is called then: weights that are prepared
/// alike are stored once, others of the same name get another one.
fn add_recipes(all: &mut Vec<Recipe>, more: Vec<Recipe>) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut names = BTreeMap::new();
    for mut recipe in more {
        let old = recipe.name.clone();
        let text = recipe.graph.to_string();
        let is_same =
            |other: &&Recipe| other.sources == recipe.sources && other.graph.to_string() == text;
        let new = match all.iter().find(is_same) {
            Some(same) => same.name.clone(),
            None => {
                if all.iter().any(|other| other.name == old) {
                    recipe.name = format!("{ENTRY}.{old}").into();
                }
                all.push(recipe.clone());
                recipe.name
            }
        };
        names.insert(old, new);
    }
    names
}
