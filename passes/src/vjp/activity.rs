//! Which values depend on what is differentiated, and which of them the results depend on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Graph, Module, Node, TensorType, Value, Vjp};

/// Values that depend on active parameters or weights by way of derivatives; floats all.
pub(super) struct Activity<'a> {
    module: &'a Module,
    weights: &'a BTreeSet<Arc<str>>,
    /// Which results are active, by function and active parameters.
    known: BTreeMap<(Arc<str>, Vec<bool>), Vec<bool>>,
}

impl<'a> Activity<'a> {
    pub(super) fn new(module: &'a Module, weights: &'a BTreeSet<Arc<str>>) -> Activity<'a> {
        Activity { module, weights, known: BTreeMap::new() }
    }

    /// The active values of a function.
    pub(super) fn active(&mut self, graph: &Graph, params: &[bool]) -> BTreeSet<Value> {
        let flagged = graph.param_values().zip(params).filter(|(_, active)| **active);
        let mut active: BTreeSet<Value> = flagged.map(|(p, _)| p).collect();
        for id in graph.topo() {
            let node = graph.node(id);
            let inputs: Vec<bool> =
                node.inputs().iter().map(|v| v.is_some_and(|v| active.contains(&v))).collect();
            let results = match node.op.name() {
                "param" => continue,
                "weight" => vec![self.weights.contains(node.attrs.str("name"))],
                "call" => self.results(node.attrs.str("callee"), &inputs),
                _ => vec![inputs.contains(&true); node.results().len()],
            };
            let results = results.into_iter().zip(active_results(graph, node)).enumerate();
            let own = results.filter(|(_, (depends, can))| *depends && *can);
            active.extend(own.map(|(port, _)| Value { node: id, port }));
        }
        active
    }

    /// Which results of a call are active.
    fn results(&mut self, callee: &str, params: &[bool]) -> Vec<bool> {
        let key = (callee.into(), params.to_vec());
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let module = self.module;
        let Some(graph) = module.function(callee) else { return Vec::new() };
        let active = self.active(graph, params);
        let out: Vec<bool> = graph.outputs.iter().map(|(_, v)| active.contains(v)).collect();
        self.known.insert(key, out.clone());
        out
    }
}

/// Which results of a node may depend on its operands by way of derivatives.
pub(super) fn active_results(graph: &Graph, node: &Node) -> Vec<bool> {
    let zero = matches!(node.op.vjp(&node.attrs, &types(graph, node)), Vjp::Zero);
    node.results().iter().map(|f| !zero && f.ty.dtype.is_float()).collect()
}

/// Types of a node's operands.
pub(super) fn types(graph: &Graph, node: &Node) -> Vec<Option<TensorType>> {
    node.inputs().iter().map(|v| v.map(|v| graph.ty(v).clone())).collect()
}

/// The active values that the chosen outputs depend on.
pub(super) fn useful(
    graph: &Graph,
    active: &BTreeSet<Value>,
    outputs: impl Iterator<Item = bool>,
) -> BTreeSet<Value> {
    let chosen = graph.outputs.iter().zip(outputs).filter(|(_, chosen)| *chosen);
    let mut useful: BTreeSet<Value> =
        chosen.map(|((_, v), _)| *v).filter(|v| active.contains(v)).collect();
    for id in graph.topo().into_iter().rev() {
        let node = graph.node(id);
        let ports = 0..node.results().len();
        if ports.into_iter().any(|port| useful.contains(&Value { node: id, port })) {
            useful.extend(node.inputs().iter().flatten().filter(|v| active.contains(v)));
        }
    }
    useful
}
