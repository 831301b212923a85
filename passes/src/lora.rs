//! Low-rank adapters beside products with weights: Hu et al. 2021, arXiv:2106.09685.
//!
//! A product `x · W` with a chosen weight becomes `x · W + (scale · (x · Aᵀ)) · Bᵀ`, with new
//! weights `A [rank, in]` and `B [out, rank]`, whatever the order in which `W` is stored. Where `B`
//! is zero the sum is the product. Base weights stay weights of the module: whether they learn is
//! for those to say who differentiate it. The function of a layer stays one function for all calls
//! that hand adapted weights to the same parameters.
//!
//! The pass works on a module as it was imported, where products are `matmul`. Rules that merge
//! products of weights must not take an adapter for a weight, so that what they make of frozen ones
//! is still made at compile time: [`Lora::take_from`].

mod merge;
mod products;
mod rewrite;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc};

use indexmap::IndexMap;
use ir::{DType, Module, TensorType};

use self::rewrite::{Writer, patterns};
use crate::{PassError, WeightParams};

pub use merge::{add_merges, merge_entry};
pub use products::{ProductWeight, product_weights};

/// What is added to every product with a chosen weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    /// Rows of `A` and columns of `B`.
    pub rank: u64,
    /// Factor of the update: `alpha / rank`, or `alpha / √rank` of Kalajdzievski 2023,
    /// arXiv:2312.03732.
    pub scale: f64,
}

impl LowRank {
    /// Shapes of `A` and `B`.
    fn shapes(&self, weight: &ProductWeight) -> [[i64; 2]; 2] {
        let rank = i64::try_from(self.rank).unwrap_or(i64::MAX);
        [[rank, weight.inputs], [weight.outputs, rank]]
    }
}

/// What the pass has added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lora {
    /// New weights by that which they adapt: `A`, then `B`.
    pub factors: IndexMap<Arc<str>, [Arc<str>; 2]>,
    /// Parameters of functions that new weights are handed to.
    params: WeightParams,
}

impl Lora {
    /// Removes the parameters that adapters are handed to from those that count as weights.
    pub fn take_from(&self, weights: &mut WeightParams) {
        for (function, params) in &self.params {
            if let Some(known) = weights.get_mut(function) {
                known.retain(|name| !params.contains(name));
            }
        }
    }
}

/// Adds adapters to all products with the weights of `targets`.
///
/// # Errors
/// Every target that is not of [`product_weights`], and every name that is taken.
pub fn add_lora(
    module: &mut Module,
    targets: &BTreeSet<Arc<str>>,
    options: LowRank,
) -> Result<Lora, Vec<PassError>> {
    let products = product_weights(module);
    let mut lora = Lora::default();
    let mut errors = Vec::new();
    let name = module.name.clone();
    let mut fail = |weight: &str, why: &str| {
        errors.push(PassError::new(&name, format!("weight `{weight}` {why}")));
    };
    for target in targets {
        let Some(product) = products.get(target) else {
            fail(target, "is not read by matrix products alone, which are what is adapted");
            continue;
        };
        let names = factor_names(target);
        for (name, shape) in names.iter().zip(options.shapes(product)) {
            if module.weights.contains_key(&**name) {
                fail(name, "is there already");
            }
            module.weight(name, TensorType::new(DType::F32, shape));
        }
        lora.factors.insert(target.clone(), names.map(Arc::from));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let source = module.clone();
    let patterns = patterns(&source, targets);
    module.functions.clear();
    for (name, graph) in &source.functions {
        for pattern in &patterns[name] {
            let writer = Writer { source: &source, patterns: &patterns, lora: &lora, options };
            let written = writer.write(module, graph, pattern);
            let (graph, params) = written.map_err(|e| vec![PassError::new(name, e)])?;
            lora.params.insert(graph.name.clone(), params);
            module.add(graph);
        }
    }
    Ok(lora)
}

/// Names of the factors of a weight: those of PEFT, `MODULE.lora_A.weight` and
/// `MODULE.lora_B.weight`.
fn factor_names(weight: &str) -> [String; 2] {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    ["A", "B"].map(|factor| format!("{module}.lora_{factor}.weight"))
}
