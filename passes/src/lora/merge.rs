//! Entries that add updates to weights, for models without adapters.

use ir::{Builder, DType, Graph, Module, OpError, TensorType, Value};

use super::{LowRank, ProductWeight};
use crate::PassError;

/// Adds an entry for each shape and order of weights, named by [`merge_entry`], which gives a
/// weight with its update: of `w` as it is stored, `a [rank, in]` and `b [out, rank]`, all f32,
/// `merged = w + scale · b · a`.
///
/// # Errors
/// None in practice.
pub fn add_merges<'a>(
    module: &mut Module,
    weights: impl IntoIterator<Item = &'a ProductWeight>,
    options: LowRank,
) -> Result<(), PassError> {
    for weight in weights {
        let name = merge_entry(weight.inputs, weight.outputs, weight.is_turned);
        if !module.functions.contains_key(name.as_str()) {
            let graph = merge(module, &name, weight, options);
            let graph = graph.map_err(|e| PassError::new(&name, e))?;
            module.entries.push(graph.name.clone());
            module.add(graph);
        }
    }
    Ok(())
}

/// The entry for weights of that shape and order, such as `merge.8x16`.
#[must_use]
pub fn merge_entry(inputs: i64, outputs: i64, is_turned: bool) -> String {
    format!("merge.{inputs}x{outputs}{}", if is_turned { ".turned" } else { "" })
}

fn merge(
    module: &Module,
    name: &str,
    weight: &ProductWeight,
    options: LowRank,
) -> Result<Graph, OpError> {
    let ProductWeight { inputs, outputs, is_turned, .. } = *weight;
    let stored = if is_turned { [outputs, inputs] } else { [inputs, outputs] };
    let [down, up] = options.shapes(weight);
    let mut b = Builder::new(module, name);
    let shapes = [("w", stored), ("a", down), ("b", up)];
    let params: Result<Vec<Value>, OpError> = shapes
        .into_iter()
        .map(|(name, shape)| b.param(name, TensorType::new(DType::F32, shape)))
        .collect();
    let [w, down, up] = params?[..] else { return Err(OpError::new("has three operands")) };
    let update = match is_turned {
        true => b.matmul(up, down)?,
        false => {
            let (down, up) = (b.transpose(down, &[1, 0])?, b.transpose(up, &[1, 0])?);
            b.matmul(down, up)?
        }
    };
    let scale = b.scalar(DType::F32, options.scale)?;
    let update = b.mul(update, scale)?;
    let merged = b.add(w, update)?;
    b.output("merged", merged);
    Ok(b.finish())
}
