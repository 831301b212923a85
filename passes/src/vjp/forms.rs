//! Forward and backward forms of functions, one pair for all calls that need the same gradients.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Graph, Module, NodeId, Value};

use super::{
    Candidates, Recompute,
    activity::{Activity, useful},
    cut::{self, Residual},
    joint::{self, Joint, Seed, Target},
};
use crate::{PassError, WeightParams, weight_only::weight_only, weight_params};

/// How a call is differentiated.
#[derive(Clone)]
pub(super) struct Form {
    /// The function called in its place: its results are those of the source, and what is kept.
    pub(super) forward: Arc<str>,
    /// The function of residuals, then cotangents of results.
    pub(super) backward: Arc<str>,
    pub(super) residuals: Vec<Residual>,
    /// Which results' cotangents it takes.
    pub(super) cotangents: Vec<usize>,
    /// What its results are the cotangents of.
    pub(super) grads: Vec<Target>,
}

/// Operations for an element of a result from which on it is kept rather than computed again.
const COSTLY: i64 = 16;

/// Callee, parameters that need gradients, results that have cotangents.
type Key = (Arc<str>, Vec<bool>, Vec<bool>);

/// Makes forms as calls ask for them.
pub(super) struct Forms<'a> {
    source: &'a Module,
    /// The source and the forms made so far.
    module: Module,
    activity: Activity<'a>,
    weights: &'a BTreeSet<Arc<str>>,
    recompute: Recompute<'a>,
    weight_params: WeightParams,
    made: BTreeMap<Key, Option<Form>>,
    errors: Vec<PassError>,
}

impl<'a> Forms<'a> {
    pub(super) fn new(
        source: &'a Module,
        weights: &'a BTreeSet<Arc<str>>,
        recompute: Recompute<'a>,
    ) -> Forms<'a> {
        Forms {
            source,
            module: source.clone(),
            activity: Activity::new(source, weights),
            weights,
            recompute,
            weight_params: weight_params(source),
            made: BTreeMap::new(),
            errors: Vec::new(),
        }
    }

    /// The module with all forms, and what went wrong.
    pub(super) fn finish(self) -> (Module, Vec<PassError>) {
        (self.module, self.errors)
    }

    /// Forward and backward of a function in one graph; nothing where there are errors.
    pub(super) fn joint(
        &mut self,
        source: &Graph,
        name: &str,
        needs: &[bool],
        seed: Seed<'_>,
    ) -> Option<Joint> {
        let active = self.activity.active(source, needs);
        let outputs = (0..source.outputs.len()).map(|i| seed.takes(i));
        let useful = useful(source, &active, outputs);
        let mut calls = BTreeMap::new();
        for id in source.topo() {
            let node = source.node(id);
            if node.op.name() != "call" {
                continue;
            }
            let result = |port| useful.contains(&Value { node: id, port });
            let results: Vec<bool> = (0..node.results().len()).map(result).collect();
            if results.contains(&true) {
                let needs = node.inputs().iter().map(|v| v.is_some_and(|v| active.contains(&v)));
                let key = (node.attrs.str("callee").into(), needs.collect(), results);
                // One that failed is gone on without, to find what else does.
                if let Some(form) = self.form(key) {
                    calls.insert(id, form);
                }
            }
        }
        let walk = joint::Source { graph: source, needs, active: &active, useful: &useful, calls };
        match joint::joint(&self.module, &walk, name, self.weights, seed) {
            Ok(joint) => Some(joint),
            Err(errors) => {
                let known = &mut self.errors;
                errors.into_iter().for_each(|e| {
                    if !known.contains(&e) {
                        known.push(e)
                    }
                });
                None
            }
        }
    }

    fn form(&mut self, key: Key) -> Option<Form> {
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let form = self.make(&key);
        self.made.insert(key, form.clone());
        form
    }

    fn make(&mut self, (callee, needs, results): &Key) -> Option<Form> {
        let source = self.source;
        let graph = source.function(callee)?;
        let joint = self.joint(graph, callee, needs, Seed::Params(results))?;
        let kept = self.kept(callee, &joint);
        let names = ["forward", "backward"].map(|form| self.free(callee, form));
        let cut = match cut::cut(&self.module, graph, &joint, &kept, &names) {
            Ok(cut) => cut,
            Err(e) => {
                self.errors.push(PassError::new(callee, e));
                return None;
            }
        };
        let forward = cut.forward.as_ref().map_or(callee.clone(), |f| f.name.clone());
        let backward = cut.backward.name.clone();
        cut.forward.into_iter().chain([cut.backward]).for_each(|f| self.module.add(f));
        let cotangents = results.iter().enumerate().filter(|(_, takes)| **takes).map(|(i, _)| i);
        Some(Form {
            forward,
            backward,
            residuals: cut.residuals,
            cotangents: cotangents.collect(),
            grads: joint.grads.into_iter().map(|(target, _)| target).collect(),
        })
    }

    /// A name that no function has.
    fn free(&self, callee: &str, form: &str) -> String {
        let first = format!("{callee}.{form}");
        let others = (1..).map(|i| format!("{first}.{i}"));
        let mut names = [first.clone()].into_iter().chain(others);
        names.find(|n| !self.module.functions.contains_key(n.as_str())).unwrap_or(first)
    }

    /// Whether a node computes much for an element of its results.
    fn is_costly(&self, graph: &Graph, id: NodeId) -> bool {
        let node = graph.node(id);
        let args: Vec<_> = node.inputs().iter().map(|v| v.map(|v| graph.ty(v).clone())).collect();
        let results: Vec<_> = node.results().iter().map(|fact| fact.ty.clone()).collect();
        let most = |size: ir::Dim| size.bounds(&self.source.symbols).hi;
        let elements = results.iter().map(|ty| most(ty.elements())).fold(0, i64::saturating_add);
        let flops = most(node.op.flops(&node.attrs, &args, &results));
        node.op.name() == "call" || flops > elements.saturating_mul(COSTLY)
    }

    fn kept(&self, callee: &str, joint: &Joint) -> BTreeSet<Value> {
        match self.recompute {
            Recompute::Full => BTreeSet::new(),
            Recompute::Cheap => {
                let costly = joint.forward.iter().filter(|id| self.is_costly(&joint.graph, **id));
                let ports = |id: &NodeId| joint.graph.node(*id).results().len();
                let values =
                    costly.flat_map(|id| (0..ports(id)).map(|port| Value { node: *id, port }));
                values.collect()
            }
            Recompute::None => {
                let graph = &joint.graph;
                let names = self.weight_params.get(callee);
                let weight =
                    |p: &&NodeId| names.is_some_and(|names| names.contains(graph.param_name(**p)));
                let weights = graph.params()[..joint.params].iter().filter(weight);
                let only = weight_only(graph, &weights.copied().collect());
                joint.read().into_iter().filter_map(|v| stored(graph, &only, v)).collect()
            }
            Recompute::Chosen(choose) => choose(&Candidates {
                function: callee,
                graph: &joint.graph,
                forward: &joint.forward,
                read: &joint.read(),
            }),
        }
    }
}

/// The value that has to be kept so that `v` is there without arithmetic, if there is one.
pub(super) fn stored(graph: &Graph, weight_only: &BTreeSet<NodeId>, v: Value) -> Option<Value> {
    let node = graph.node(v.node);
    match node.inputs().first() {
        None => None,
        Some(_) if weight_only.contains(&v.node) => None,
        Some(Some(viewed)) if node.op.is_view() => stored(graph, weight_only, *viewed),
        Some(_) => Some(v),
    }
}
