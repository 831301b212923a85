//! Groups elementwise operators into `fused` loops.
//!
//! A group computes one value over one index space; a producer joins when it has that shape and no
//! reader outside, so nothing is computed twice and no intermediate value touches memory. Scalar
//! constants and coordinates (`iota`) are recomputed in every loop that reads them. Views are left
//! to the memory planner, which reads them through strides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Attrs, Body, Builder, Graph, Module, NodeId, OpError, Value};

use crate::PassError;

/// Operands of a loop beyond this number cost more in address registers than they save.
const MAX_OPERANDS: usize = 12;

/// Rewrites every function of the module.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn fuse_loops(module: &mut Module) -> Result<(), PassError> {
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = module.functions[&name].clone();
        let groups = groups(&graph);
        let mut bodies = BTreeMap::new();
        for (root, group) in &groups {
            let body = body(module, &graph, *root, group, bodies.len())
                .map_err(|e| PassError::new(&name, e))?;
            bodies.insert(*root, body);
        }
        for b in bodies.values() {
            module.add(b.graph.clone());
        }
        let fused =
            rebuild(module, &graph, &groups, &bodies).map_err(|e| PassError::new(&name, e))?;
        module.add(fused);
    }
    Ok(())
}

/// Whether an operator computes each element of its result from the elements at the same place.
pub(crate) fn is_elementwise(op: ir::OpRef) -> bool {
    matches!(
        op.name(),
        "neg"
            | "abs"
            | "sign"
            | "exp"
            | "log"
            | "sqrt"
            | "rsqrt"
            | "reciprocal"
            | "tanh"
            | "erf"
            | "sin"
            | "cos"
            | "floor"
            | "ceil"
            | "round"
            | "not"
            | "is_nan"
            | "add"
            | "sub"
            | "mul"
            | "div"
            | "rem"
            | "pow"
            | "maximum"
            | "minimum"
            | "equal"
            | "less"
            | "less_equal"
            | "greater"
            | "greater_equal"
            | "and"
            | "or"
            | "xor"
            | "select"
            | "cast"
            | "relu"
            | "sigmoid"
            | "silu"
            | "gelu"
            | "gelu_tanh"
    )
}

/// Values that every loop recomputes rather than reads.
fn is_free(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    match node.op.name() {
        "constant" => node.results()[0].constant.as_ref().is_some_and(|t| t.len() == 1),
        "size_vector" => node.attrs.bool("scalar"),
        "iota" => true,
        _ => false,
    }
}

/// Members of each group by its root, the node whose result the loop writes.
fn groups(graph: &Graph) -> BTreeMap<NodeId, BTreeSet<NodeId>> {
    let order = graph.topo();
    let live: BTreeSet<NodeId> = order.iter().copied().collect();
    let outputs: BTreeSet<NodeId> = graph.outputs.iter().map(|(_, v)| v.node).collect();
    let mut taken = BTreeSet::new();
    let mut out = BTreeMap::new();
    for root in order.iter().rev() {
        let node = graph.node(*root);
        let alone = is_free(graph, *root) && {
            let mut users = graph.users(*root).into_iter().filter(|u| live.contains(u));
            outputs.contains(root) || users.any(|u| !is_elementwise(graph.node(u).op))
        };
        if taken.contains(root) || !(is_elementwise(node.op) || alone) {
            continue;
        }
        let shape = &node.results()[0].ty.shape;
        let mut group = BTreeSet::from([*root]);
        let mut frontier = vec![*root];
        while let Some(id) = frontier.pop() {
            for v in graph.node(id).inputs().iter().flatten() {
                let p = graph.node(v.node);
                let joins = !group.contains(&v.node)
                    && !taken.contains(&v.node)
                    && !outputs.contains(&v.node)
                    && is_elementwise(p.op)
                    && p.results()[0].ty.shape == *shape
                    && graph.users(v.node).iter().all(|u| group.contains(u) || !live.contains(u));
                if joins {
                    group.insert(v.node);
                    if operands(graph, &group).len() > MAX_OPERANDS {
                        group.remove(&v.node);
                    } else {
                        frontier.push(v.node);
                    }
                }
            }
        }
        taken.extend(group.iter().copied());
        out.insert(*root, group);
    }
    out
}

/// What a group reads: values of other nodes that it does not recompute, in order of use.
fn operands(graph: &Graph, group: &BTreeSet<NodeId>) -> Vec<Value> {
    let mut out = Vec::new();
    for id in graph.topo().into_iter().filter(|n| group.contains(n)) {
        for v in graph.node(id).inputs().iter().flatten() {
            let free = is_free(graph, v.node);
            if !group.contains(&v.node) && !free && !out.contains(v) {
                out.push(*v);
            }
        }
    }
    out
}

struct FusedBody {
    graph: Graph,
    operands: Vec<Value>,
}

/// The group as a function of its operands.
fn body(
    module: &Module,
    graph: &Graph,
    root: NodeId,
    group: &BTreeSet<NodeId>,
    number: usize,
) -> Result<FusedBody, OpError> {
    let operands = operands(graph, group);
    let mut b = Builder::new(module, &format!("{}.fused.{number}", graph.name));
    let mut map = BTreeMap::new();
    for (i, v) in operands.iter().enumerate() {
        map.insert(*v, b.param(&i.to_string(), graph.ty(*v).clone())?);
    }
    for id in graph.topo() {
        let node = graph.node(id);
        let used = is_free(graph, id) && graph.users(id).iter().any(|u| group.contains(u));
        if !group.contains(&id) && !used {
            continue;
        }
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        let v = b.op(node.op.name(), node.attrs.clone(), &inputs)?[0];
        map.insert(Value { node: id, port: 0 }, v);
    }
    b.output("result", map[&Value { node: root, port: 0 }]);
    Ok(FusedBody { graph: b.finish(), operands })
}

fn rebuild(
    module: &Module,
    graph: &Graph,
    groups: &BTreeMap<NodeId, BTreeSet<NodeId>>,
    bodies: &BTreeMap<NodeId, FusedBody>,
) -> Result<Graph, OpError> {
    let members: BTreeSet<NodeId> = groups.values().flatten().copied().collect();
    let mut b = Builder::new(module, &graph.name);
    let mut map = BTreeMap::new();
    for p in graph.param_values() {
        map.insert(p, b.param(graph.param_name(p.node), graph.ty(p).clone())?);
    }
    for id in graph.topo() {
        let node = graph.node(id);
        b.at(&node.loc);
        let results = match (bodies.get(&id), node.op.name()) {
            (_, "param") => continue,
            (Some(body), _) => {
                let args: Vec<_> = body.operands.iter().map(|v| Some(map[v])).collect();
                b.op("fused", Attrs::none().with("callee", &*body.graph.name), &args)?
            }
            (None, _) if members.contains(&id) => continue,
            (None, "weight") => vec![b.weight(node.attrs.str("name"))?],
            (None, op) => {
                let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
                b.op(op, node.attrs.clone(), &inputs)?
            }
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (name, v) in &graph.outputs {
        b.output(name, map[v]);
    }
    let mut graph = b.finish();
    graph.remove_dead();
    Ok(graph)
}

/// Expands composite operators that no kernel computes, until only kernels, views and elementwise
/// operators are left.
///
/// # Errors
/// Where an expansion does not type: an internal error.
pub fn expand_composites(
    module: &mut Module,
    has_kernel: &dyn Fn(&Graph, NodeId) -> bool,
) -> Result<(), PassError> {
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        loop {
            let graph = &module.functions[&name];
            let (next, changed) =
                expand_once(module, graph, has_kernel).map_err(|e| PassError::new(&name, e))?;
            module.add(next);
            if !changed {
                break;
            }
        }
    }
    Ok(())
}

fn expand_once(
    module: &Module,
    graph: &Graph,
    has_kernel: &dyn Fn(&Graph, NodeId) -> bool,
) -> Result<(Graph, bool), OpError> {
    let mut b = Builder::new(module, &graph.name);
    let mut map = BTreeMap::new();
    let mut changed = false;
    for p in graph.param_values() {
        map.insert(p, b.param(graph.param_name(p.node), graph.ty(p).clone())?);
    }
    for id in graph.topo() {
        let node = graph.node(id);
        b.at(&node.loc);
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        let results = match (node.op.body(), node.op.name()) {
            (_, "param") => continue,
            (_, "weight") => vec![b.weight(node.attrs.str("name"))?],
            (Body::Composite(expand), _) if !is_elementwise(node.op) && !has_kernel(graph, id) => {
                changed = true;
                expand(&mut b, &node.attrs, &inputs)?
            }
            (_, op) => b.op(op, node.attrs.clone(), &inputs)?,
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (name, v) in &graph.outputs {
        b.output(name, map[v]);
    }
    Ok((b.finish(), changed))
}
