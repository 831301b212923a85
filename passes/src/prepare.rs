//! Separates what depends on weights alone, to be computed once before anything runs.
//!
//! Layer functions then take prepared weights as parameters, and the entry reads them as weights of
//! the module. Each prepared weight has a recipe: a graph over the logical weights.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Attrs, Builder, Graph, Module, NodeId, OpError, TensorType, Value};

use crate::{PassError, weight_only::weight_only};

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

/// Rewrites `entry` and the functions that it calls to read prepared weights. `known` are the
/// recipes of other entries of the module: a name stands for one recipe.
///
/// # Errors
/// Where another function calls one of them too, for which it would no longer take the same
/// operands; where a rebuilt graph does not type: an internal error.
pub fn prepare(
    module: &mut Module,
    entry: &str,
    known: &[Recipe],
) -> Result<Vec<Recipe>, PassError> {
    let callees = callees_in_order(module, entry);
    for other in module.functions.keys().filter(|name| &***name != entry) {
        if let Some(shared) = callees_in_order(module, other).iter().find(|c| callees.contains(c)) {
            let why = format!(
                "is called by `{other}` and by `{entry}`: give each entry functions of its own, \
                 for they are rewritten to take the prepared weights of one"
            );
            return Err(PassError::new(shared, why));
        }
    }
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
    let (graph, recipes, types) = hoist_entry(module, &graph, known)?;
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

/// What is part of the code that uses it, not a weight: scalar constants, coordinates, and
/// repetitions of what is smaller.
fn is_code(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    match node.op.name() {
        "constant" => node.results()[0].constant.as_ref().is_some_and(|t| t.len() == 1),
        "iota" | "broadcast_to" => true,
        _ => false,
    }
}

/// Where weight-only values meet the rest of a function.
struct Boundary {
    /// Values to prepare, in order of use.
    prepared: Vec<Value>,
    /// Nodes between them and the rest that stay code.
    code: BTreeSet<NodeId>,
}

impl Boundary {
    /// Weight-only values that other nodes, or outputs, read.
    fn of(graph: &Graph, only: &BTreeSet<NodeId>) -> Boundary {
        let mut out = Boundary { prepared: Vec::new(), code: BTreeSet::new() };
        for id in graph.topo() {
            if !only.contains(&id) {
                graph.node(id).inputs().iter().flatten().for_each(|v| out.take(graph, only, *v));
            }
        }
        graph.outputs.iter().for_each(|(_, v)| out.take(graph, only, *v));
        out
    }

    fn take(&mut self, graph: &Graph, only: &BTreeSet<NodeId>, v: Value) {
        let mut stack = vec![v];
        while let Some(v) = stack.pop().filter(|v| only.contains(&v.node)) {
            if is_code(graph, v.node) {
                self.code.insert(v.node);
                stack.extend(graph.node(v.node).inputs().iter().flatten());
            } else if !self.prepared.contains(&v) {
                self.prepared.push(v);
            }
        }
    }
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
    let Boundary { prepared, code } = Boundary::of(graph, &only);

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
    copy_nodes(&mut b, graph, &mut map, |id| !only.contains(&id) || code.contains(&id))
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
    let written = Builder::rewrite(module, graph, |b, id, inputs| {
        let node = graph.node(id);
        if node.op.name() != "call" {
            return Ok(None);
        }
        let parts = &split[node.attrs.str("callee")];
        let (mut args, mut weights) = (Vec::new(), Vec::new());
        for (v, kept) in inputs.iter().flatten().zip(&parts.kept) {
            if *kept { args.push(*v) } else { weights.push(*v) }
        }
        args.extend(b.inline(&parts.prepare, &weights)?);
        b.at(&node.loc);
        b.call(&parts.rest.name, &args).map(Some)
    });
    written.map_err(|e: OpError| PassError::new(&graph.name, e))
}

type Hoisted = (Graph, Vec<Recipe>, BTreeMap<Arc<str>, TensorType>);

/// Replaces the entry's weight-only values by reads of prepared weights.
fn hoist_entry(module: &Module, graph: &Graph, known: &[Recipe]) -> Result<Hoisted, PassError> {
    let wrap = |e: OpError| PassError::new(&graph.name, e);
    let only = weight_only(graph, &BTreeSet::new());
    let mut recipes = Vec::new();
    let mut types: BTreeMap<Arc<str>, TensorType> = BTreeMap::new();
    let mut by_value = BTreeMap::new();
    let Boundary { prepared, code } = Boundary::of(graph, &only);
    for v in prepared {
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
        let recipe = b.finish();
        let differs = |other: &&Recipe| other.graph.to_string() != recipe.to_string();
        let taken = |n: &str| {
            types.contains_key(n) || known.iter().filter(|r| &*r.name == n).any(|r| differs(&r))
        };
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
        recipes.push(Recipe { name, graph: recipe, sources });
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
    copy_nodes(&mut b, graph, &mut map, |id| !only.contains(&id) || code.contains(&id))
        .map_err(wrap)?;
    for (name, v) in &graph.outputs {
        b.output(name, map[v]);
    }
    Ok((b.finish(), recipes, types))
}

#[cfg(test)]
mod tests {
    use ir::{DType, Dim};

    use super::*;

    fn f32s(shape: impl IntoIterator<Item = impl Into<Dim>>) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    #[test]
    fn what_is_large_by_repetition_is_not_stored() {
        const LARGE: i64 = 1 << 20;
        let mut m = Module::new("m");
        m.weight("w", f32s([8i64]));
        let mut b = m.builder("main");
        let x = b.param("x", f32s([1i64])).unwrap();
        let w = b.weight("w").unwrap();
        let w = b.neg(w).unwrap();
        let shape = vec![Dim::from(LARGE), LARGE.into(), 8.into()];
        let shape = Attrs::none().with("shape", shape);
        let many = b.op1("broadcast_to", shape.clone(), &[w]).unwrap();
        let y = b.add(many, x).unwrap();
        let at = shape.with("axis", 2i64).with("dtype", DType::F32);
        let at = b.op1("iota", at, &[]).unwrap();
        let y = b.add(y, at).unwrap();
        b.output("y", y);
        let main = b.finish();
        m.add(main);
        let recipes = prepare(&mut m, "main", &[]).unwrap();
        ir::verify(&m).unwrap();
        let types: Vec<String> =
            recipes.iter().map(|r| r.graph.ty(r.graph.outputs[0].1).to_string()).collect();
        assert_eq!(types, ["f32[8]"]);
    }

    #[test]
    fn a_layer_of_two_entries_is_refused() {
        let mut m = Module::new("m");
        m.weight("w", f32s([8i64, 8]));
        let mut b = m.builder("layer");
        let x = b.param("x", f32s([3i64, 8])).unwrap();
        let w = b.param("w", f32s([8i64, 8])).unwrap();
        let y = b.matmul(x, w).unwrap();
        b.output("y", y);
        let layer = b.finish();
        m.add(layer);
        for entry in ["one", "two"] {
            let mut b = m.builder(entry);
            let x = b.param("x", f32s([3i64, 8])).unwrap();
            let w = b.weight("w").unwrap();
            let y = b.call("layer", &[x, w]).unwrap()[0];
            b.output("y", y);
            let graph = b.finish();
            m.add(graph);
            m.entries.push(entry.into());
        }
        let why = prepare(&mut m, "one", &[]).unwrap_err().to_string();
        assert!(why.contains("function `layer`: is called by `two` and by `one`"), "{why}");
    }
}
