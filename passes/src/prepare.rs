//! Separates what depends on weights alone, to be computed once before anything runs.
//!
//! Layer functions then take prepared weights as parameters, and the entry reads them as weights of
//! the module. Each prepared weight has a recipe: a graph over the logical weights.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Attrs, Builder, Graph, Module, NodeId, OpError, TensorType, Value};

use crate::PassError;

/// How one prepared weight comes from logical weights.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Name of the prepared weight in the module.
    pub name: Arc<str>,
    /// A function without parameters whose one output is the prepared weight.
    pub graph: Graph,
    /// The logical weights that it reads.
    pub sources: Vec<Arc<str>>,
}

/// Rewrites `entry` and the functions that it calls to read prepared weights.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn prepare(module: &mut Module, entry: &str) -> Result<Vec<Recipe>, PassError> {
    let callees = callees_in_order(module, entry);
    let weights = weight_params(module, entry, &callees);
    // For each layer function: which of its parameters stay, and what its prepare function gives.
    let mut split: BTreeMap<Arc<str>, Split> = BTreeMap::new();
    for name in callees {
        let parts = split_layer(module, &module.functions[&name], &weights[&name])?;
        module.add(parts.rest.clone());
        module.add(parts.prepare.clone());
        split.insert(name, parts);
    }
    let graph = apply_splits(module, &module.functions[entry], &split)?;
    let (graph, recipes, types) = hoist_entry(module, &graph)?;
    module.weights.retain(|name, _| !types.contains_key(name));
    module.weights.extend(types);
    module.add(graph);
    Ok(recipes)
}

/// Functions that `entry` calls (layers do not call further functions).
fn callees_in_order(module: &Module, entry: &str) -> Vec<Arc<str>> {
    let graph = &module.functions[entry];
    let mut out: Vec<Arc<str>> = Vec::new();
    for id in graph.topo() {
        let node = graph.node(id);
        if node.op.name() == "call" {
            let name: Arc<str> = node.attrs.str("callee").into();
            if !out.contains(&name) {
                out.push(name);
            }
        }
    }
    out
}

/// For each callee, which parameters are weight-only at every call.
fn weight_params(
    module: &Module,
    entry: &str,
    callees: &[Arc<str>],
) -> BTreeMap<Arc<str>, Vec<bool>> {
    let graph = &module.functions[entry];
    let only = weight_only(graph, &BTreeSet::new());
    let mut out: BTreeMap<Arc<str>, Vec<bool>> = callees
        .iter()
        .map(|n| (n.clone(), vec![true; module.functions[n].params().len()]))
        .collect();
    for id in graph.topo() {
        let node = graph.node(id);
        if node.op.name() == "call" {
            let flags = out.get_mut(node.attrs.str("callee")).expect("collected above");
            for (flag, v) in flags.iter_mut().zip(node.inputs()) {
                *flag &= v.is_some_and(|v| only.contains(&v.node));
            }
        }
    }
    out
}

/// Nodes that depend on weights, constants and the given parameters alone, and have constant
/// shapes.
pub(crate) fn weight_only(graph: &Graph, params: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut out = BTreeSet::new();
    for id in graph.topo() {
        let node = graph.node(id);
        let own = match node.op.name() {
            "param" => params.contains(&id),
            "call" => false,
            _ => {
                node.inputs().iter().flatten().all(|v| out.contains(&v.node))
                    && node.results().iter().all(|f| f.ty.const_shape().is_some())
                    && node.attrs.0.iter().all(|(_, a)| match a {
                        ir::Attr::Dims(d) => d.iter().all(|d| d.as_const().is_some()),
                        _ => true,
                    })
            }
        };
        if own {
            out.insert(id);
        }
    }
    out
}

/// A scalar constant is part of the code that uses it, not a weight.
fn is_scalar_constant(graph: &Graph, v: Value) -> bool {
    let node = graph.node(v.node);
    node.op.name() == "constant" && graph.fact(v).constant.as_ref().is_some_and(|t| t.len() == 1)
}

/// Weight-only values that other nodes, or outputs, read.
fn boundary(graph: &Graph, only: &BTreeSet<NodeId>) -> Vec<Value> {
    let mut out = Vec::new();
    let mut take = |v: Value| {
        if only.contains(&v.node) && !is_scalar_constant(graph, v) && !out.contains(&v) {
            out.push(v);
        }
    };
    for id in graph.topo() {
        if !only.contains(&id) {
            graph.node(id).inputs().iter().flatten().for_each(|v| take(*v));
        }
    }
    graph.outputs.iter().for_each(|(_, v)| take(*v));
    out
}

struct Split {
    /// Which parameters the rest still takes.
    kept: Vec<bool>,
    /// Kept parameters, then prepared weights → the function's outputs.
    rest: Graph,
    /// Weight parameters → prepared weights.
    prepare: Graph,
}

fn split_layer(module: &Module, graph: &Graph, weights: &[bool]) -> Result<Split, PassError> {
    let wrap = |e: OpError| PassError::new(&graph.name, e);
    let flagged = graph.params().iter().zip(weights);
    let params: BTreeSet<NodeId> = flagged.filter(|(_, w)| **w).map(|(p, _)| *p).collect();
    let only = weight_only(graph, &params);
    let prepared = boundary(graph, &only);

    let mut b = Builder::new(module, &format!("{}.prepare", graph.name));
    let mut map = BTreeMap::new();
    for p in graph.param_values().filter(|p| params.contains(&p.node)) {
        let v = b.param(graph.param_name(p.node), graph.ty(p).clone()).map_err(wrap)?;
        map.insert(p, v);
    }
    copy_nodes(&mut b, graph, &mut map, |id| only.contains(&id)).map_err(wrap)?;
    for (i, v) in prepared.iter().enumerate() {
        b.output(&i.to_string(), map[v]);
    }
    let prepare = b.finish();

    let mut b = Builder::new(module, &graph.name);
    let mut map = BTreeMap::new();
    for p in graph.param_values().filter(|p| !params.contains(&p.node)) {
        let v = b.param(graph.param_name(p.node), graph.ty(p).clone()).map_err(wrap)?;
        map.insert(p, v);
    }
    for (i, p) in prepared.iter().enumerate() {
        let v = b.param(&format!("prepared.{i}"), graph.ty(*p).clone()).map_err(wrap)?;
        map.insert(*p, v);
    }
    copy_nodes(&mut b, graph, &mut map, |id| {
        !only.contains(&id) || is_scalar_constant(graph, Value { node: id, port: 0 })
    })
    .map_err(wrap)?;
    for (name, v) in &graph.outputs {
        b.output(name, map[v]);
    }
    Ok(Split { kept: weights.iter().map(|w| !w).collect(), rest: b.finish(), prepare })
}

/// Copies the chosen nodes in order, extending `map` from old to new values.
fn copy_nodes(
    b: &mut Builder<'_>,
    graph: &Graph,
    map: &mut BTreeMap<Value, Value>,
    chosen: impl Fn(NodeId) -> bool,
) -> Result<(), OpError> {
    for id in graph.topo() {
        let node = graph.node(id);
        let first = Value { node: id, port: 0 };
        if node.op.name() == "param" || map.contains_key(&first) || !chosen(id) {
            continue;
        }
        b.at(&node.loc);
        let results = if node.op.name() == "weight" {
            vec![b.weight(node.attrs.str("name"))?]
        } else {
            let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
            b.op(node.op.name(), node.attrs.clone(), &inputs)?
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    Ok(())
}

/// The entry with each call replaced by a call of the split function, its weights prepared inline.
fn apply_splits(
    module: &Module,
    graph: &Graph,
    split: &BTreeMap<Arc<str>, Split>,
) -> Result<Graph, PassError> {
    let wrap = |e: OpError| PassError::new(&graph.name, e);
    let mut b = Builder::new(module, &graph.name);
    let mut map = BTreeMap::new();
    for p in graph.param_values() {
        let v = b.param(graph.param_name(p.node), graph.ty(p).clone()).map_err(wrap)?;
        map.insert(p, v);
    }
    for id in graph.topo() {
        let node = graph.node(id);
        if node.op.name() != "call" {
            copy_nodes(&mut b, graph, &mut map, |n| n == id).map_err(wrap)?;
            continue;
        }
        let parts = &split[node.attrs.str("callee")];
        let (mut args, mut weights) = (Vec::new(), Vec::new());
        for (v, kept) in node.inputs().iter().flatten().zip(&parts.kept) {
            if *kept { args.push(map[v]) } else { weights.push(map[v]) }
        }
        args.extend(b.inline(&parts.prepare, &weights).map_err(wrap)?);
        b.at(&node.loc);
        let results = b.call(&parts.rest.name, &args).map_err(wrap)?;
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (name, v) in &graph.outputs {
        b.output(name, map[v]);
    }
    Ok(b.finish())
}

type Hoisted = (Graph, Vec<Recipe>, BTreeMap<Arc<str>, TensorType>);

/// Replaces the entry's weight-only values by reads of prepared weights.
fn hoist_entry(module: &Module, graph: &Graph) -> Result<Hoisted, PassError> {
    let wrap = |e: OpError| PassError::new(&graph.name, e);
    let only = weight_only(graph, &BTreeSet::new());
    let mut recipes = Vec::new();
    let mut types: BTreeMap<Arc<str>, TensorType> = BTreeMap::new();
    let mut by_value = BTreeMap::new();
    for v in boundary(graph, &only) {
        let mut b = Builder::new(module, "recipe");
        let mut needed = BTreeSet::new();
        let mut stack = vec![v.node];
        while let Some(id) = stack.pop() {
            if needed.insert(id) {
                stack.extend(graph.node(id).inputs().iter().flatten().map(|v| v.node));
            }
        }
        let mut map = BTreeMap::new();
        copy_nodes(&mut b, graph, &mut map, |id| needed.contains(&id)).map_err(wrap)?;
        b.output("prepared", map[&v]);
        let mut sources: Vec<Arc<str>> = Vec::new();
        for id in graph.topo().into_iter().filter(|id| needed.contains(id)) {
            let node = graph.node(id);
            if node.op.name() == "weight" {
                sources.push(node.attrs.str("name").into());
            }
        }
        let stem = sources.first().map_or("constant", |s| s);
        let taken = |n: &str| types.contains_key(n);
        let plain = graph.node(v.node).op.name() == "weight";
        let name: Arc<str> = if plain && !taken(stem) {
            stem.into()
        } else {
            let numbered = (0..).map(|i| match i {
                0 => format!("{stem}.prepared"),
                i => format!("{stem}.prepared.{i}"),
            });
            numbered.into_iter().find(|n| !taken(n)).expect("endless").into()
        };
        types.insert(name.clone(), graph.ty(v).clone());
        by_value.insert(v, name.clone());
        recipes.push(Recipe { name, graph: b.finish(), sources });
    }
    let mut b = Builder::new(module, &graph.name);
    let mut map = BTreeMap::new();
    for p in graph.param_values() {
        let v = b.param(graph.param_name(p.node), graph.ty(p).clone()).map_err(wrap)?;
        map.insert(p, v);
    }
    for (v, name) in by_value {
        let attrs = Attrs::none().with("name", &*name);
        let fact = vec![graph.ty(v).clone().into()];
        let loc = graph.node(v.node).loc.clone();
        let node = b.graph_mut().add(ir::OpRef::named("weight"), attrs, &[], fact, loc);
        map.insert(v, Value { node, port: 0 });
    }
    copy_nodes(&mut b, graph, &mut map, |id| {
        !only.contains(&id) || is_scalar_constant(graph, Value { node: id, port: 0 })
    })
    .map_err(wrap)?;
    for (name, v) in &graph.outputs {
        b.output(name, map[v]);
    }
    Ok((b.finish(), recipes, types))
}
