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
        let order: BTreeMap<NodeId, usize> = graph.topo().into_iter().zip(0..).collect();
        let mut bodies = BTreeMap::new();
        for (root, group) in &groups {
            let body = body(module, &graph, *root, group, &order, bodies.len())
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
            outputs.contains(root) || users.any(|u| !graph.node(u).op.is_elementwise())
        };
        if taken.contains(root) || !(node.op.is_elementwise() || alone) {
            continue;
        }
        let shape = &node.results()[0].ty.shape;
        let mut group = BTreeSet::from([*root]);
        let mut reads = BTreeSet::new();
        reads.extend(operands_of(graph, *root));
        let mut frontier = vec![*root];
        while let Some(id) = frontier.pop() {
            for v in graph.node(id).inputs().iter().flatten() {
                let p = graph.node(v.node);
                let joins = !group.contains(&v.node)
                    && !taken.contains(&v.node)
                    && !outputs.contains(&v.node)
                    && p.op.is_elementwise()
                    && p.results()[0].ty.shape == *shape
                    && graph.users(v.node).iter().all(|u| group.contains(u) || !live.contains(u));
                if joins {
                    // All readers are in the group, and no operand is: those would have no other
                    // reader than this node.
                    let mut next = reads.clone();
                    next.remove(v);
                    next.extend(operands_of(graph, v.node));
                    if next.len() <= MAX_OPERANDS {
                        reads = next;
                        group.insert(v.node);
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

/// What a node reads that loops do not recompute.
fn operands_of(graph: &Graph, id: NodeId) -> impl Iterator<Item = Value> + '_ {
    graph.node(id).inputs().iter().flatten().copied().filter(|v| !is_free(graph, v.node))
}

/// What a group, given in topological order, reads of other nodes, in order of use.
fn operands(graph: &Graph, group: &[NodeId]) -> Vec<Value> {
    let members: BTreeSet<NodeId> = group.iter().copied().collect();
    let mut out = Vec::new();
    for v in group.iter().flat_map(|id| operands_of(graph, *id)) {
        if !members.contains(&v.node) && !out.contains(&v) {
            out.push(v);
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
    order: &BTreeMap<NodeId, usize>,
    number: usize,
) -> Result<FusedBody, OpError> {
    let free = group.iter().flat_map(|id| graph.node(*id).inputs().iter().flatten());
    let free = free.map(|v| v.node).filter(|id| is_free(graph, *id));
    let mut nodes: Vec<NodeId> = group.iter().copied().chain(free).collect();
    nodes.sort_by_key(|id| order[id]);
    nodes.dedup();
    let members: Vec<NodeId> = nodes.iter().copied().filter(|id| group.contains(id)).collect();
    let operands = operands(graph, &members);
    let mut b = Builder::new(module, &format!("{}.fused.{number}", graph.name));
    let mut map = BTreeMap::new();
    for (i, v) in operands.iter().enumerate() {
        map.insert(*v, b.param(&i.to_string(), graph.ty(*v).clone())?);
    }
    for id in nodes {
        let node = graph.node(id);
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
    let mut changed = false;
    let graph = Builder::rewrite(module, graph, |b, id, inputs| {
        let node = graph.node(id);
        match node.op.body() {
            Body::Composite(expand) if !node.op.is_elementwise() && !has_kernel(graph, id) => {
                changed = true;
                expand(b, &node.attrs, inputs).map(Some)
            }
            _ => Ok(None),
        }
    })?;
    Ok((graph, changed))
}

#[cfg(test)]
mod tests {
    use ir::{DType, TensorType};

    use super::*;
    use crate::testing::count;

    #[test]
    fn a_long_chain_fuses_in_little_time() {
        let mut m = Module::new("m");
        let mut b = m.builder("main");
        let mut x = b.param("x", TensorType::new(DType::F32, [8i64])).unwrap();
        for _ in 0..5_000 {
            x = b.exp(x).unwrap();
            x = b.add(x, x).unwrap();
        }
        b.output("y", x);
        let main = b.finish();
        m.add(main);
        let begin = std::time::Instant::now();
        fuse_loops(&mut m).unwrap();
        assert_eq!(count(&m.functions["main"], "fused"), 1);
        assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    }

    #[test]
    fn a_loop_reads_no_more_operands_than_it_may() {
        let mut m = Module::new("m");
        let mut b = m.builder("main");
        let ty = || TensorType::new(DType::F32, [8i64]);
        let mut y = b.param("x", ty()).unwrap();
        for i in 0..30 {
            let p = b.param(&i.to_string(), ty()).unwrap();
            y = b.add(y, p).unwrap();
        }
        b.output("y", y);
        let main = b.finish();
        m.add(main);
        fuse_loops(&mut m).unwrap();
        let main = &m.functions["main"];
        let loops = main.topo().into_iter().filter(|n| main.node(*n).op.name() == "fused");
        let operands: Vec<usize> = loops.map(|n| main.node(n).inputs().len()).collect();
        assert_eq!(operands.iter().max(), Some(&MAX_OPERANDS), "{operands:?}");
    }
}
