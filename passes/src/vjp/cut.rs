//! Cuts the joint graph of a function in two, at the values that are kept between them.

use std::collections::{BTreeMap, BTreeSet};

use ir::{Builder, Graph, Module, NodeId, OpError, Value};

use super::joint::{Joint, Target};

/// Where a value comes from that the backward form takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residual {
    /// An argument of the call.
    Param(usize),
    /// A result of the forward form.
    Result(usize),
}

pub(super) struct Cut {
    /// The function and what is kept; absent where that is nothing.
    pub(super) forward: Option<Graph>,
    pub(super) residuals: Vec<Residual>,
    pub(super) backward: Graph,
}

/// Cuts a joint graph. The backward form takes the values of `kept` and the parameters that it
/// reaches, in order of creation, and computes again whatever else of the forward it reads.
pub(super) fn cut(
    module: &Module,
    source: &Graph,
    joint: &Joint,
    kept: &BTreeSet<Value>,
    [forward, backward]: &[String; 2],
) -> Result<Cut, OpError> {
    let reached = Reached::of(joint, kept);
    let params = &joint.graph.params()[..joint.params];
    let mut outputs = joint.outputs.clone();
    let residuals = reached.residuals.iter().map(|v| {
        if let Some(i) = params.iter().position(|p| *p == v.node) {
            return Residual::Param(i);
        }
        let at = outputs.iter().position(|o| o == v).unwrap_or(outputs.len());
        if at == outputs.len() {
            outputs.push(*v);
        }
        Residual::Result(at)
    });
    let residuals: Vec<Residual> = residuals.collect();
    let keeps = residuals.iter().any(|r| matches!(r, Residual::Result(_)));
    let forward = keeps.then(|| forward_form(module, source, joint, &outputs, forward));
    let backward = backward_form(module, source, joint, &reached, backward)?;
    Ok(Cut { forward: forward.transpose()?, residuals, backward })
}

/// What gradients are computed from.
struct Reached {
    /// Values that the backward form takes.
    residuals: BTreeSet<Value>,
    /// Nodes of the backward form.
    nodes: BTreeSet<NodeId>,
}

impl Reached {
    fn of(joint: &Joint, kept: &BTreeSet<Value>) -> Reached {
        let mut out = Reached { residuals: BTreeSet::new(), nodes: BTreeSet::new() };
        let params: BTreeSet<NodeId> = joint.graph.params().iter().copied().collect();
        let mut stack: Vec<Value> = joint.grads.iter().map(|(_, v)| *v).collect();
        while let Some(v) = stack.pop() {
            let forward = joint.forward.contains(&v.node);
            if forward && (params.contains(&v.node) || kept.contains(&v)) {
                out.residuals.insert(v);
            } else if !params.contains(&v.node) && out.nodes.insert(v.node) {
                stack.extend(joint.graph.node(v.node).inputs().iter().flatten());
            }
        }
        out
    }
}

fn forward_form(
    module: &Module,
    source: &Graph,
    joint: &Joint,
    outputs: &[Value],
    name: &str,
) -> Result<Graph, OpError> {
    let mut b = Builder::new(module, name);
    let mut map = BTreeMap::new();
    for p in joint.graph.param_values().take(joint.params) {
        let name = joint.graph.param_name(p.node);
        map.insert(p, b.param(name, joint.graph.ty(p).clone())?);
    }
    copy(&mut b, &joint.graph, &mut map, |id| joint.forward.contains(&id))?;
    for (i, v) in outputs.iter().enumerate() {
        match source.outputs.get(i) {
            Some((name, _)) => b.output(name, map[v]),
            None => b.output(&format!("kept.{}", i - source.outputs.len()), map[v]),
        }
    }
    let mut graph = b.finish();
    graph.remove_dead();
    Ok(graph)
}

fn backward_form(
    module: &Module,
    source: &Graph,
    joint: &Joint,
    reached: &Reached,
    name: &str,
) -> Result<Graph, OpError> {
    let mut b = Builder::new(module, name);
    let mut map = BTreeMap::new();
    for (i, v) in reached.residuals.iter().enumerate() {
        map.insert(*v, b.param(&format!("kept.{i}"), joint.graph.ty(*v).clone())?);
    }
    for p in joint.graph.param_values().skip(joint.params) {
        let name = joint.graph.param_name(p.node);
        map.insert(p, b.param(name, joint.graph.ty(p).clone())?);
    }
    copy(&mut b, &joint.graph, &mut map, |id| reached.nodes.contains(&id))?;
    for (target, v) in &joint.grads {
        let name = match target {
            Target::Param(i) => format!("param.{}", source.param_name(source.params()[*i])),
            Target::Weight(name) => format!("weight.{name}"),
        };
        b.output(&name, map[v]);
    }
    Ok(b.finish())
}

/// Copies the chosen nodes in order of creation, in which operands precede their readers. Values
/// that `map` holds already stay what they are.
fn copy(
    b: &mut Builder<'_>,
    graph: &Graph,
    map: &mut BTreeMap<Value, Value>,
    chosen: impl Fn(NodeId) -> bool,
) -> Result<(), OpError> {
    for id in graph.node_ids() {
        let node = graph.node(id);
        if node.op.name() == "param" || !chosen(id) {
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
            map.entry(Value { node: id, port }).or_insert(v);
        }
    }
    Ok(())
}
