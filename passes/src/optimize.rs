//! The optimiser: rewrites every function of a module by its e-graph.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use egg::{Id, Language};
use ir::{Body, Builder, Env, Graph, Kernels, Module, OpError, Value};

use crate::{
    PassError,
    egraph::{Data, ENode, Function, attrs},
    extract::{Choice, Costs, extract},
    report::{Report, regions},
    rules,
    weight_only::weight_only,
};

/// For each function, the parameters that are weights.
pub type WeightParams = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

/// Rounds in which composite operators without a kernel are expanded: their nesting depth.
const EXPANSIONS: usize = 8;

/// Rewrites every function into the cheapest equal term that the rules reach.
///
/// `env` gives the symbols representative values. Types of parameters and outputs, and the order
/// of both, stay.
///
/// # Errors
/// Where a function is too large to be weighed, or does not type: an internal error, or a module
/// that does not verify.
pub fn optimize(
    module: &mut Module,
    weight_params: &WeightParams,
    kernels: &dyn Kernels,
    env: &Env,
) -> Result<Report, PassError> {
    let mut report = Report::default();
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    let none = BTreeSet::new();
    for name in names {
        let span = tracing::info_span!("optimize", function = &*name);
        let _entered = span.enter();
        let weights = weight_params.get(&name).unwrap_or(&none);
        let source = &module.functions[&name];
        let (graph, fusions) = optimize_function(module, source, weights, Costs { kernels, env })
            .map_err(|e| PassError::new(&name, e))?;
        report.fusions.extend(fusions);
        module.add(graph);
    }
    report.count(module);
    Ok(report)
}

fn optimize_function(
    module: &Module,
    source: &Graph,
    weights: &BTreeSet<Arc<str>>,
    costs: Costs<'_>,
) -> Result<(Graph, Vec<crate::report::Fusion>), OpError> {
    let mut function = Function::new(module, source, weights)?;
    let original = original_nodes(&function);
    rules::apply(&mut function.terms, costs.kernels.asks_library())?;
    expand(&mut function, costs)?;
    let egraph = &function.terms.egraph;
    let original: HashSet<ENode> =
        original.into_iter().map(|n| n.map_children(|c| egraph.find(c))).collect();
    let roots: Vec<Id> = source.outputs.iter().map(|(_, v)| function.classes[v]).collect();
    let choice = extract(egraph, &roots, &original, costs)?;
    let graph = rebuild(module, &function, &choice, &roots)?;
    let fusions = regions(&function, &choice, &roots, costs);
    Ok((graph, fusions))
}

/// The source's terms as nodes.
fn original_nodes(function: &Function) -> Vec<ENode> {
    let egraph = &function.terms.egraph;
    let classes = function.classes.values().chain(function.nodes.iter().map(|(_, id)| id));
    classes.flat_map(|id| egraph[*id].nodes.clone()).collect()
}

/// Adds expansions of composite operators where no kernel computes any form of the value.
fn expand(function: &mut Function, costs: Costs<'_>) -> Result<(), OpError> {
    let mut done: HashSet<ENode> = HashSet::new();
    for _ in 0..EXPANSIONS {
        let egraph = &function.terms.egraph;
        let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let mut missing = Vec::new();
        for id in ids {
            let valid = matches!(egraph[id].data, Data::Value(_));
            if !valid || egraph[id].nodes.iter().any(|n| costs.seconds(egraph, id, n).is_some()) {
                continue;
            }
            for node in &egraph[id].nodes {
                let Some((op, ..)) = node.as_op() else { continue };
                if matches!(op.body(), Body::Composite(_)) {
                    let node = node.clone().map_children(|c| egraph.find(c));
                    if done.insert(node.clone()) {
                        missing.push((id, node));
                    }
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        for (id, node) in missing {
            function.terms.expand(id, &node)?;
        }
        function.terms.egraph.rebuild();
    }
    Ok(())
}

/// The chosen terms as a graph.
fn rebuild(
    module: &Module,
    function: &Function,
    choice: &Choice,
    roots: &[Id],
) -> Result<Graph, OpError> {
    let egraph = &function.terms.egraph;
    let source = &function.source;
    let mut locs: BTreeMap<Id, Arc<str>> = BTreeMap::new();
    for (node, id) in &function.nodes {
        let loc = &source.node(*node).loc;
        if !loc.is_empty() {
            locs.entry(egraph.find(*id)).or_insert_with(|| loc.clone());
        }
    }
    let order = choice.order(egraph, roots);
    // A term that the source does not have belongs to the source node that first reads it.
    for id in order.iter().rev() {
        let (Some(loc), Some(node)) = (locs.get(id).cloned(), choice.node(*id)) else { continue };
        for c in node.children() {
            locs.entry(egraph.find(*c)).or_insert_with(|| loc.clone());
        }
    }
    let mut b = Builder::new(module, &source.name);
    let mut values: BTreeMap<Id, Vec<Value>> = BTreeMap::new();
    for p in source.param_values() {
        b.at(&source.node(p.node).loc);
        let v = b.param(source.param_name(p.node), source.ty(p).clone())?;
        if let Some(class) = function.classes.get(&p) {
            values.insert(egraph.find(*class), vec![v]);
        }
    }
    for id in order {
        if values.contains_key(&id) {
            continue;
        }
        b.at(locs.get(&id).map_or("", |l| l));
        let results = match choice.node(id) {
            Some(ENode::Leaf(i)) => {
                vec![b.weight(source.node(function.leaves[*i as usize].node).attrs.str("name"))?]
            }
            Some(ENode::Proj(i, of)) => vec![values[&egraph.find(*of)][*i as usize]],
            Some(node @ ENode::Op(..)) => {
                let (op, operands, attr_ids) = node.as_op().expect("an operator");
                let attrs = attrs(egraph, op, attr_ids)
                    .ok_or_else(|| OpError::new("an attribute is not a constant"))?;
                let inputs: Vec<_> =
                    operands.iter().map(|c| values.get(&egraph.find(*c)).map(|v| v[0])).collect();
                b.op(op.name(), attrs, &inputs)?
            }
            Some(ENode::Attr(_) | ENode::Absent) | None => continue,
        };
        values.insert(id, results);
    }
    for ((name, _), root) in source.outputs.iter().zip(roots) {
        b.output(name, values[&egraph.find(*root)][0]);
    }
    Ok(b.finish())
}

/// For each function, the parameters that are weight-only at every call.
pub fn weight_params(module: &Module) -> WeightParams {
    let mut out = WeightParams::new();
    let mut called: BTreeMap<Arc<str>, Vec<bool>> = BTreeMap::new();
    // Callers come after their callees, so walk backwards.
    for (name, graph) in module.functions.iter().rev() {
        let flags = called.remove(name).unwrap_or_else(|| vec![false; graph.params().len()]);
        let chosen = graph.params().iter().zip(&flags).filter(|(_, w)| **w);
        let weights: BTreeSet<Arc<str>> =
            chosen.map(|(p, _)| graph.param_name(*p).into()).collect();
        let params = graph.params().iter().zip(&flags).filter(|(_, w)| **w);
        let only = weight_only(graph, &params.map(|(p, _)| *p).collect());
        for id in graph.topo() {
            let node = graph.node(id);
            if node.op.name() == "call" {
                let n = node.inputs().len();
                let flags =
                    called.entry(node.attrs.str("callee").into()).or_insert_with(|| vec![true; n]);
                for (flag, v) in flags.iter_mut().zip(node.inputs().iter().flatten()) {
                    *flag &= only.contains(&v.node);
                }
            }
        }
        out.insert(name.clone(), weights);
    }
    out
}

#[cfg(test)]
mod imported;
#[cfg(test)]
pub(crate) mod tests;
