//! Tensor parallelism: every rank of an axis computes a part of each attention and MLP, with a part
//! of their weights. Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053.
//!
//! A product whose operand was made by other products, with nothing between them that needs all of
//! it, is taken apart: those products make a rank's columns of the operand, and it sums a rank's
//! rows, so that one `all_reduce` behind it gives the result. What lies between is found by going
//! from the product backwards, an operator at a time, with the axis along which its result is cut
//! (`region`): heads, for attention. No model is known by name.
//!
//! What enters such a region whole is the same on all ranks and goes through `vary`, which sums its
//! gradient over them; a weight that does, such as the norm of each head's queries, stays whole.
//! Where ranks are more than key and value heads, each computes all of these and takes its own.
//!
//! The pass works on a module as it was imported, where products are `matmul`. It declares weights
//! as a rank's parts; which those are is returned.

mod region;
mod rewrite;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use indexmap::IndexMap;
use ir::{Graph, Module, Shard, Split, TensorType, Value};

use self::region::{Cut, Region};
use crate::{PassError, WeightParams, weight_params};

/// Which ranks share products.
#[derive(Clone, Copy, Debug)]
struct Along<'a> {
    /// The axis of the mesh.
    axis: &'a str,
    /// Ranks along it.
    ranks: i64,
}

/// Takes products apart for the ranks along an axis, and returns how weights are cut.
///
/// # Errors
/// Every number of heads, and every other extent, that the ranks do not divide; every weight of
/// which a part is asked for and something else as well; that there is nothing to take apart.
pub fn tensor_parallel(
    module: &mut Module,
    axis: &str,
    ranks: u32,
) -> Result<BTreeMap<Arc<str>, Split>, Vec<PassError>> {
    if ranks <= 1 {
        return Ok(BTreeMap::new());
    }
    let along = Along { axis, ranks: i64::from(ranks) };
    let weights = weight_params(module);
    let mut regions: IndexMap<Arc<str>, Vec<Region<'_>>> = IndexMap::new();
    let mut errors = Vec::new();
    let source = module.clone();
    let leaves: Vec<BTreeSet<Value>> =
        source.functions.values().map(|graph| leaves(graph, &weights)).collect();
    for ((name, graph), leaves) in source.functions.iter().zip(&leaves) {
        let (found, problems) = region::find(graph, leaves, along);
        errors.extend(problems.into_iter().map(|why| PassError::new(name, why)));
        regions.insert(name.clone(), found);
    }
    if errors.is_empty() && regions.values().all(Vec::is_empty) {
        let why = format!(
            "has no product that {ranks} ranks could share: take `{axis} = 1`, and more ranks \
             along `data`"
        );
        errors.push(PassError::new(&module.name, why));
    }
    let splits = splits(&source, &regions, along, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    for (name, split) in &splits {
        let ty = &source.weights[name];
        let mut shape = ty.shape.to_vec();
        shape[split.dim] = shape[split.dim].floor_div(along.ranks);
        module.weight(name, TensorType::new(ty.dtype, shape));
    }
    module.symbol(&Shard::symbol(axis), 0, along.ranks - 1);
    module.functions.clear();
    for (name, graph) in &source.functions {
        let written = rewrite::write(module, graph, &regions[name], along);
        module.add(written.map_err(|e| vec![PassError::new(name, e)])?);
    }
    Ok(splits)
}

/// Values of a function that are weights as they are stored.
fn leaves(graph: &Graph, weights: &WeightParams) -> BTreeSet<Value> {
    let own = weights.get(&graph.name);
    let params = graph.param_values();
    let params = params.filter(|p| own.is_some_and(|own| own.contains(graph.param_name(p.node))));
    let nodes = graph.topo().into_iter().filter(|id| graph.node(*id).op.name() == "weight");
    params.chain(nodes.map(|node| Value { node, port: 0 })).collect()
}

/// How each weight of the module is cut, from how functions cut their parameters.
fn splits(
    module: &Module,
    regions: &IndexMap<Arc<str>, Vec<Region<'_>>>,
    along: Along<'_>,
    errors: &mut Vec<PassError>,
) -> BTreeMap<Arc<str>, Split> {
    let cut = |function: &str, v: Value| -> Option<&Cut> {
        regions.get(function)?.iter().find_map(|region| region.cuts.get(&v))
    };
    // Of each weight, how every reader has it.
    let mut reads: BTreeMap<&str, Vec<Option<&Cut>>> = BTreeMap::new();
    for (function, graph) in &module.functions {
        for id in graph.topo() {
            let node = graph.node(id);
            let v = Value { node: id, port: 0 };
            if node.op.name() == "weight" && cut(function, v).is_some() {
                reads.entry(node.attrs.str("name")).or_default().push(cut(function, v));
            }
            let callee = (node.op.name() == "call").then(|| node.attrs.str("callee"));
            for (index, v) in node.inputs().iter().enumerate() {
                let Some(read) = v.map(|v| graph.node(v.node)) else { continue };
                if read.op.name() != "weight" || v.is_some_and(|v| cut(function, v).is_some()) {
                    continue;
                }
                let param = callee.and_then(|callee| {
                    let param = module.function(callee)?.param_values().nth(index)?;
                    cut(callee, param)
                });
                reads.entry(read.attrs.str("name")).or_default().push(param);
            }
        }
    }
    let mut splits = BTreeMap::new();
    for (name, cuts) in reads {
        let Some(first) = cuts.iter().flatten().next() else { continue };
        if cuts.iter().any(|cut| *cut != Some(first)) {
            let why = format!(
                "is read whole and in parts, so {} ranks along `{}` cannot share it",
                along.ranks, along.axis
            );
            errors.push(PassError::new(name, why));
            continue;
        }
        let pieces = first.ranges.iter().map(|(start, end)| (end - start).unsigned_abs());
        let split = Split {
            axis: along.axis.into(),
            ranks: u32::try_from(along.ranks).unwrap_or(u32::MAX),
            dim: first.dim,
            pieces: pieces.collect(),
        };
        splits.insert(name.into(), split);
    }
    splits
}
