//! Forward and backward of one function in one graph.
//!
//! The forward is the function as it is, but for operators that keep more for their gradients
//! ([`Vjp::Replaced`]) and calls of forward forms. The backward walks it from its end and asks each
//! operator for the cotangents of its operands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Attrs, Builder, Graph, Module, NodeId, OpError, Value, Vjp};

use super::{
    activity::{active_results, types},
    forms::Form,
};
use crate::PassError;

/// What a gradient is by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A parameter of the function.
    Param(usize),
    /// A weight that the function reads, or one that it calls.
    Weight(Arc<str>),
}

/// Where cotangents come from.
#[derive(Clone, Copy)]
pub(super) enum Seed<'a> {
    /// One, for this output; none for the others.
    One(usize),
    /// Further parameters, for these outputs.
    Params(&'a [bool]),
}

impl Seed<'_> {
    pub(super) fn takes(self, output: usize) -> bool {
        match self {
            Seed::One(i) => i == output,
            Seed::Params(flags) => flags.get(output).copied().unwrap_or(false),
        }
    }
}

/// A function and what is known of it.
pub(super) struct Source<'a> {
    pub(super) graph: &'a Graph,
    /// Parameters that need gradients.
    pub(super) needs: &'a [bool],
    pub(super) active: &'a BTreeSet<Value>,
    pub(super) useful: &'a BTreeSet<Value>,
    /// Calls that gradients pass through.
    pub(super) calls: BTreeMap<NodeId, Form>,
}

/// Forward and backward in one graph, whose outputs are those of the function, then the gradients.
pub(super) struct Joint {
    pub(super) graph: Graph,
    /// How many of the parameters are the function's; cotangents follow.
    pub(super) params: usize,
    /// Nodes of the forward.
    pub(super) forward: BTreeSet<NodeId>,
    /// The function's outputs.
    pub(super) outputs: Vec<Value>,
    pub(super) grads: Vec<(Target, Value)>,
}

impl Joint {
    /// Values of the forward that the backward reads.
    pub(super) fn read(&self) -> BTreeSet<Value> {
        let mut read = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut stack: Vec<Value> = self.grads.iter().map(|(_, v)| *v).collect();
        while let Some(v) = stack.pop() {
            if self.forward.contains(&v.node) {
                read.insert(v);
            } else if seen.insert(v.node) {
                stack.extend(self.graph.node(v.node).inputs().iter().flatten());
            }
        }
        read
    }
}

/// Builds the joint graph of a function.
///
/// # Errors
/// Each operator that has no derivative where one is needed.
pub(super) fn joint(
    module: &Module,
    source: &Source<'_>,
    name: &str,
    weights: &BTreeSet<Arc<str>>,
    seed: Seed<'_>,
) -> Result<Joint, Vec<PassError>> {
    let mut walk = Walk {
        b: Builder::new(module, name),
        active: BTreeSet::new(),
        own_weights: BTreeMap::new(),
        calls: BTreeMap::new(),
        cotangents: BTreeMap::new(),
        weight_cotangents: BTreeMap::new(),
        function: &source.graph.name,
        errors: Vec::new(),
    };
    let fail = |e: OpError| vec![PassError::new(&source.graph.name, e)];
    let map = walk.forward(source, weights).map_err(fail)?;
    let outputs: Vec<Value> = source.graph.outputs.iter().map(|(_, v)| map[v]).collect();
    let forward: Vec<NodeId> = walk.b.graph().node_ids();
    walk.seed(source.graph, &outputs, seed).map_err(fail)?;
    walk.backward(&forward);
    if !walk.errors.is_empty() {
        return Err(walk.errors);
    }
    let params = source.graph.params().len();
    let grads = walk.grads(source.needs, weights);
    let mut graph = walk.b.finish();
    let all = outputs.iter().chain(grads.iter().map(|(_, v)| v)).enumerate();
    graph.outputs = all.map(|(i, v)| (i.to_string().into(), *v)).collect();
    Ok(Joint { graph, params, forward: forward.into_iter().collect(), outputs, grads })
}

/// A joint graph as it is built.
pub(super) struct Walk<'m> {
    pub(super) b: Builder<'m>,
    pub(super) active: BTreeSet<Value>,
    /// One node for each weight that the function reads.
    pub(super) own_weights: BTreeMap<Arc<str>, Value>,
    /// Forms of calls in the forward.
    pub(super) calls: BTreeMap<NodeId, Form>,
    pub(super) cotangents: BTreeMap<Value, Value>,
    /// Of weights that functions read which this one calls.
    pub(super) weight_cotangents: BTreeMap<Arc<str>, Value>,
    pub(super) function: &'m str,
    pub(super) errors: Vec<PassError>,
}

impl Walk<'_> {
    /// Copies the function; returns its values' places.
    fn forward(
        &mut self,
        source: &Source<'_>,
        weights: &BTreeSet<Arc<str>>,
    ) -> Result<BTreeMap<Value, Value>, OpError> {
        let graph = source.graph;
        let mut map = BTreeMap::new();
        for (p, needs) in graph.param_values().zip(source.needs) {
            self.b.at(&graph.node(p.node).loc);
            let v = self.b.param(graph.param_name(p.node), graph.ty(p).clone())?;
            map.insert(p, v);
            if *needs {
                self.active.insert(v);
            }
        }
        for id in graph.topo() {
            let node = graph.node(id);
            self.b.at(&node.loc);
            let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
            let first = self.b.graph().bound();
            let own = |port| Value { node: id, port };
            let results = match (node.op.name(), source.calls.get(&id)) {
                ("param", _) => continue,
                ("weight", _) => vec![self.weight(node.attrs.str("name"), weights)?],
                ("call", form) => {
                    let callee = form.map_or(node.attrs.str("callee"), |form| &*form.forward);
                    let attrs = Attrs::none().with("callee", callee);
                    let results = self.b.op("call", attrs, &inputs)?;
                    if let (Some(form), Some(first)) = (form, results.first()) {
                        self.calls.insert(first.node, form.clone());
                    }
                    for (port, v) in results.iter().enumerate().take(node.results().len()) {
                        if source.active.contains(&own(port)) {
                            self.active.insert(*v);
                        }
                    }
                    results
                }
                (op, _) => {
                    let mut ports = (0..node.results().len()).map(own);
                    let differentiated = ports.any(|v| source.useful.contains(&v));
                    match node.op.vjp(&node.attrs, &types(graph, node)) {
                        Vjp::Replaced(expand) if differentiated => {
                            expand(&mut self.b, &node.attrs, &inputs)?
                        }
                        _ => self.b.op(op, node.attrs.clone(), &inputs)?,
                    }
                }
            };
            if !matches!(node.op.name(), "call" | "weight") {
                self.mark(first);
            }
            let results = results.into_iter().take(node.results().len()).enumerate();
            map.extend(results.map(|(port, v)| (own(port), v)));
        }
        Ok(map)
    }

    fn weight(&mut self, name: &str, weights: &BTreeSet<Arc<str>>) -> Result<Value, OpError> {
        if let Some(v) = self.own_weights.get(name) {
            return Ok(*v);
        }
        let v = self.b.weight(name)?;
        self.own_weights.insert(name.into(), v);
        if weights.contains(name) {
            self.active.insert(v);
        }
        Ok(v)
    }

    /// Marks the active results of the nodes from number `first` on.
    pub(super) fn mark(&mut self, first: usize) {
        for id in self.b.graph().nodes_from(first) {
            let graph = self.b.graph();
            let node = graph.node(id);
            if node.inputs().iter().flatten().any(|v| self.active.contains(v)) {
                let can = active_results(graph, node).into_iter().enumerate();
                let can = can.filter(|(_, can)| *can).map(|(port, _)| Value { node: id, port });
                self.active.extend(can);
            }
        }
    }

    fn seed(&mut self, source: &Graph, outputs: &[Value], seed: Seed<'_>) -> Result<(), OpError> {
        for (i, (v, (name, _))) in outputs.iter().zip(&source.outputs).enumerate() {
            if !seed.takes(i) {
                continue;
            }
            let ty = self.b.ty(*v).clone();
            let cotangent = match seed {
                Seed::One(_) => self.b.full(ty.dtype, 1.0, &ty.shape)?,
                Seed::Params(_) => self.b.param(&format!("cotangent.{name}"), ty)?,
            };
            self.accumulate(*v, cotangent)?;
        }
        Ok(())
    }
}
