//! A training step in stages: the stack of layers is cut, and each part has entries of its own.
//!
//! The loss's graph becomes a function for each stage: contiguous groups of calls, as even as can
//! be, the first with what comes before the layers and the last with what comes behind. What
//! follows from inputs alone (rotation tables, masks), or from weights alone, is computed in every
//! stage that reads it; all else that crosses a cut is handed over, as a rule the hidden state, as
//! output `handed.N` of one stage and state `hidden.N` of the next.
//!
//! Each stage but the last becomes two halves, `forward.S` and `backward.S`. What the one keeps for
//! the other is in states `hidden.N` and `kept.N`, of which a caller has a set for each micro-batch
//! in flight. `backward.S` takes states `cotangent.handed.N` of what was handed on, and gives
//! `returned.N` for what was handed in. The last is forward, loss and backward at once,
//! `accumulate.S`. The other entries are those of a step that is not cut, for a stage's parameters.
//!
//! No gradient depends on the cuts, bit for bit, but those of weights that the first and the last
//! stage read, embeddings that are tied to the head: each sums its own, and the caller adds both.
//!
//! Narayanan et al. 2019, "PipeDream", and 2021, arXiv:2104.04473.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Builder, Graph, Module, NodeId, OpError, Target, Value};

use super::{
    ACCUMULATE, EVALUATE, Entry, EntryBuilder, HIDDEN, KEPT, Parameter, Training, add_loss,
    evaluated, gradients,
    head::Chunk,
    loss::{LOSS, weight_name},
    own_callees, state_name,
};
use crate::{
    PassError, Sharding,
    dropout::without_dropout,
    page_kv::State,
    vjp::{Halves, Recompute, Wrt, active, differentiate, halves},
    weight_only::weight_only,
};

const FORWARD: &str = "forward";
const BACKWARD: &str = "backward";

/// What names of outputs begin with that are handed to the next stage.
const HANDED: &str = "handed.";
/// What names of outputs begin with that are cotangents of what was handed in.
const RETURNED: &str = "returned.";

/// As [`train_step`](super::train_step), in so many stages, each with entries `accumulate.S` or
/// else `forward.S` and `backward.S`, and `norm.S`, `update.S`, `evaluate.S` and, where there are
/// such, `refresh.S`.
///
/// # Errors
/// As there; both numbers if there are fewer layers than stages; every stage without a parameter.
pub fn train_step_in_stages(
    module: &mut Module,
    source: &str,
    parameters: &[Parameter],
    sharding: &Sharding,
    (stages, recompute): (usize, Recompute<'_>),
    target: &Target,
) -> Result<BTreeMap<Arc<str>, Vec<State>>, Vec<PassError>> {
    let one = |e: PassError| vec![e];
    add_loss(module, source, parameters)?;
    sharding.declare(module);
    let trained = parameters.iter().map(|p| p.weight.clone()).collect();
    let stages = cut(module, source, &trained, stages).map_err(one)?;
    let own = own_parameters(source, &stages, parameters)?;
    let mut out = module.clone();
    out.entries.clear();
    let mut states = BTreeMap::new();
    for (stage, parameters) in stages.iter().zip(&own) {
        let mut module = module.clone();
        module.add(stage.graph.clone());
        let work = stage.differentiate(&mut module, parameters, recompute)?;
        let mut training = Training::new(&module, parameters, sharding);
        training.stage = Some(stage.number);
        training.chunk = Chunk::of(target.cuda);
        let mut entries = match &work {
            Work::Whole { forward } => {
                vec![training.accumulate().map_err(one)?, training.evaluate(forward).map_err(one)?]
            }
            Work::Halves { halves, evaluate } => vec![
                training.forward(&halves.forward).map_err(one)?,
                training.backward(stage, &halves.backward).map_err(one)?,
                training.hand_on(evaluate).map_err(one)?,
            ],
        };
        entries.push(training.norm().map_err(one)?);
        entries.push(training.update().map_err(one)?);
        entries.extend(training.refresh().map_err(one)?);
        for Entry { graph, states: own } in entries {
            out.entries.push(graph.name.clone());
            states.insert(graph.name.clone(), own);
            out.add(graph);
        }
        // Those that entries call have names of their own.
        for (name, graph) in &module.functions {
            if !out.functions.contains_key(name) {
                out.add(graph.clone());
            }
        }
    }
    *module = out;
    Ok(states)
}

/// A part of the loss's graph.
struct Stage {
    number: usize,
    graph: Graph,
    /// Weights that it reads.
    weights: BTreeSet<Arc<str>>,
    /// Names of parameters that were handed in and have cotangents.
    hidden: BTreeSet<Arc<str>>,
    /// Names of outputs that are handed on and have cotangents.
    handed: BTreeSet<Arc<str>>,
    is_last: bool,
}

/// A stage, differentiated, with functions of its own.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Work {
    Whole { forward: Graph },
    Halves { halves: Halves, evaluate: Graph },
}

impl Stage {
    fn entry(&self, name: &str) -> String {
        format!("{name}.{}", self.number)
    }

    fn differentiate(
        &self,
        module: &mut Module,
        parameters: &[Parameter],
        recompute: Recompute<'_>,
    ) -> Result<Work, Vec<PassError>> {
        let wrap = |e: OpError| vec![PassError::new(&self.graph.name, e)];
        let as_it_is = |_: &Module, graph: &Graph| Ok(graph.clone());
        let weights = parameters.iter().map(|p| p.weight.clone()).collect();
        let wrt = Wrt { weights, params: self.hidden.clone() };
        if self.is_last {
            *module = differentiate(module, LOSS, &wrt, LOSS, recompute)?;
            let forward = evaluated(module, &self.entry(EVALUATE)).map_err(wrap)?;
            let mut source = module.functions[gradients().as_str()].clone();
            own_callees(module, &self.entry(ACCUMULATE), &mut source, as_it_is).map_err(wrap)?;
            module.add(source);
            return Ok(Work::Whole { forward });
        }
        let params = self.graph.params().iter().map(|p| self.graph.param_name(*p));
        let given = params.filter(|name| !name.starts_with(HIDDEN)).map(Arc::from).collect();
        let handed = (&self.handed, &given);
        let mut halves = halves(module, &self.graph.name, &wrt, handed, recompute)?;
        let mut evaluate = halves.forward.clone();
        evaluate.outputs.retain(|(name, _)| name.starts_with(HANDED));
        evaluate.remove_dead();
        own_callees(module, &self.entry(EVALUATE), &mut evaluate, without_dropout).map_err(wrap)?;
        let evaluate = without_dropout(module, &evaluate).map_err(wrap)?;
        for (entry, half) in [(FORWARD, &mut halves.forward), (BACKWARD, &mut halves.backward)] {
            own_callees(module, &self.entry(entry), half, as_it_is).map_err(wrap)?;
        }
        Ok(Work::Halves { halves, evaluate })
    }
}

impl Training<'_> {
    /// What a stage that is not the last does of a micro-batch first.
    fn forward(&self, source: &Graph) -> Result<Entry, PassError> {
        let wrap = |e: OpError| PassError::new(FORWARD, e);
        let mut entry = EntryBuilder::new(self.module, &self.name(FORWARD));
        let outputs = self.on_states(&mut entry, source).map_err(wrap)?;
        for (name, _) in &source.outputs {
            match name.starts_with(KEPT) {
                true => entry.keep(name, outputs[name]),
                false => entry.outputs.push((name.to_string(), outputs[name])),
            }
        }
        // Entries are computed in the order of their outputs.
        entry.outputs.sort_by_key(|(_, v)| *v);
        Ok(entry.finish())
    }

    /// What it does when cotangents have come.
    fn backward(&self, stage: &Stage, source: &Graph) -> Result<Entry, PassError> {
        let wrap = |e: OpError| PassError::new(BACKWARD, e);
        let mut entry = EntryBuilder::new(self.module, &self.name(BACKWARD));
        let outputs = self.on_states(&mut entry, source).map_err(wrap)?;
        let or_zero = |entry: &mut EntryBuilder<'_>, name: &str, ty: &ir::TensorType| {
            let known = outputs.get(name).copied();
            known.map_or_else(|| entry.b.full(ty.dtype, 0.0, &ty.shape), Ok)
        };
        let grad = |entry: &mut EntryBuilder<'_>, p: &Parameter| {
            or_zero(entry, &state_name("weight", &p.weight), &self.weight_type(&p.weight))
        };
        self.add_up(&mut entry, grad).map_err(wrap)?;
        for name in &stage.hidden {
            let hidden = stage.graph.param(name).map(|v| stage.graph.ty(v).clone());
            let ty = hidden.ok_or_else(|| PassError::new(BACKWARD, format!("has no `{name}`")))?;
            let v = or_zero(&mut entry, &state_name("param", name), &ty).map_err(wrap)?;
            entry.outputs.push((returned(name), v));
        }
        Ok(entry.finish())
    }

    /// The forward alone.
    fn hand_on(&self, source: &Graph) -> Result<Entry, PassError> {
        let wrap = |e: OpError| PassError::new(EVALUATE, e);
        let mut entry = EntryBuilder::new(self.module, &self.name(EVALUATE));
        let outputs = self.on_states(&mut entry, source).map_err(wrap)?;
        let names = source.outputs.iter().map(|(name, _)| name);
        entry.outputs.extend(names.map(|name| (name.to_string(), outputs[name])));
        Ok(entry.finish())
    }
}

/// The output that is the cotangent of what was handed in under this name.
pub(super) fn returned(hidden: &str) -> String {
    let number = hidden.strip_prefix(HIDDEN).unwrap_or(hidden);
    format!("{RETURNED}{number}")
}

/// Each stage's parameters. One that no stage reads is the last stage's.
fn own_parameters(
    source: &str,
    stages: &[Stage],
    parameters: &[Parameter],
) -> Result<Vec<Vec<Parameter>>, Vec<PassError>> {
    let is_read = |p: &Parameter| stages.iter().any(|stage| stage.weights.contains(&p.weight));
    let own = stages.iter().map(|stage| {
        let is_own =
            |p: &&Parameter| stage.weights.contains(&p.weight) || stage.is_last && !is_read(p);
        parameters.iter().filter(is_own).cloned().collect()
    });
    let own: Vec<Vec<Parameter>> = own.collect();
    let idle = own.iter().enumerate().filter(|(_, own)| own.is_empty());
    let why = |(number, _): (usize, &Vec<Parameter>)| {
        let why = format!(
            "has nothing to train in stage {number} of {}, counted from 0, for all weights there \
             are frozen: take a smaller mesh.pipeline",
            stages.len()
        );
        PassError::new(source, why)
    };
    let mut errors: Vec<PassError> = idle.map(why).collect();
    for p in parameters {
        let reads = |stage: &&Stage| stage.weights.contains(&p.weight);
        let readers: Vec<usize> = stages.iter().filter(reads).map(|stage| stage.number).collect();
        if readers.len() > 1 && readers != [0, stages.len() - 1] {
            let why = format!(
                "`{}` is read by stages {readers:?}, counted from 0, and only the first and the \
                 last can share a weight that is trained: take a smaller mesh.pipeline",
                p.weight
            );
            errors.push(PassError::new(source, why));
        }
    }
    if errors.is_empty() { Ok(own) } else { Err(errors) }
}

/// Which stage computes what.
struct Cut<'a> {
    loss: &'a Graph,
    order: Vec<NodeId>,
    /// Of all nodes but those that every stage may compute for itself.
    stages: BTreeMap<NodeId, usize>,
}

impl<'a> Cut<'a> {
    fn new(loss: &'a Graph, stages: usize) -> Result<Cut<'a>, String> {
        let order = loss.topo();
        let is_call = |id: &&NodeId| loss.node(**id).op.name() == "call";
        let layers: Vec<NodeId> = order.iter().filter(is_call).copied().collect();
        let count = layers.len();
        if count < stages {
            return Err(format!(
                "has {count} layers, which {stages} stages cannot share: let mesh.pipeline be \
                 {} at most",
                count.max(1)
            ));
        }
        // The first stages have one more, for the last has the head.
        let first = |stage: usize| stage * (count / stages) + stage.min(count % stages);
        let stage_of = |layer: usize| (1..stages).take_while(|s| first(*s) <= layer).count();
        let by_weights = weight_only(loss, &BTreeSet::new());
        let mut by_inputs = BTreeSet::new();
        let mut of: BTreeMap<NodeId, usize> = BTreeMap::new();
        for id in &order {
            let node = loss.node(*id);
            let inputs = || node.inputs().iter().flatten().map(|v| v.node);
            let layer = layers.iter().position(|call| call == id);
            let by_inputs_alone = node.op.name() == "param"
                || layer.is_none()
                    && node.op.name() != "weight"
                    && inputs().all(|id| by_inputs.contains(&id));
            if by_inputs_alone {
                by_inputs.insert(*id);
            } else if !by_weights.contains(id) && node.op.name() != "weight" {
                let behind = inputs().filter_map(|id| of.get(&id).copied());
                let stage = behind.chain(layer.map(stage_of)).max().unwrap_or(0);
                of.insert(*id, stage);
            }
        }
        Ok(Cut { loss, order, stages: of })
    }

    /// What is handed from a stage to the next.
    fn crossing(&self, stage: usize) -> Vec<Value> {
        let is_behind = |id: &NodeId| self.stages.get(id).is_some_and(|of| *of > stage);
        let mut out = Vec::new();
        for id in self.order.iter().filter(|id| self.stages.get(id).is_some_and(|s| *s <= stage)) {
            let users: Vec<NodeId> = self.loss.users(*id).into_iter().filter(is_behind).collect();
            for port in 0..self.loss.node(*id).results().len() {
                let v = Value { node: *id, port };
                if users.iter().any(|user| self.loss.node(*user).inputs().contains(&Some(v))) {
                    out.push(v);
                }
            }
        }
        out
    }

    /// The nodes of a stage, and those that it computes for itself.
    fn nodes(&self, stage: usize) -> BTreeSet<NodeId> {
        let is_own = |id: &NodeId| self.stages.get(id) == Some(&stage);
        let mut open: Vec<NodeId> = self.order.iter().filter(|id| is_own(id)).copied().collect();
        let outputs = self.outputs(stage);
        open.extend(outputs.iter().map(|(_, v)| v.node));
        let mut nodes = BTreeSet::new();
        while let Some(id) = open.pop() {
            let is_handed = self.stages.get(&id).is_some_and(|of| *of < stage);
            if !is_handed && nodes.insert(id) {
                open.extend(self.loss.node(id).inputs().iter().flatten().map(|v| v.node));
            }
        }
        nodes
    }

    /// The loss's outputs that a stage gives.
    fn outputs(&self, stage: usize) -> Vec<(Arc<str>, Value)> {
        let outputs = self.loss.outputs.iter();
        let of = |v: &Value| self.stages.get(&v.node).copied().unwrap_or(0);
        outputs.filter(|(_, v)| of(v) == stage).cloned().collect()
    }

    /// A stage as a function.
    fn function(&self, module: &Module, name: &str, stage: usize) -> Result<Graph, OpError> {
        let mut b = Builder::new(module, name);
        let nodes = self.nodes(stage);
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for p in self.loss.param_values().filter(|p| nodes.contains(&p.node)) {
            let v = b.param(self.loss.param_name(p.node), self.loss.ty(p).clone())?;
            map.insert(p, v);
        }
        let hidden = stage.checked_sub(1).map(|before| self.crossing(before)).unwrap_or_default();
        for (i, v) in hidden.into_iter().enumerate() {
            map.insert(v, b.param(&format!("{HIDDEN}{i}"), self.loss.ty(v).clone())?);
        }
        for id in self.order.iter().filter(|id| nodes.contains(id)) {
            let node = self.loss.node(*id);
            if node.op.name() == "param" {
                continue;
            }
            b.at(&node.loc);
            let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
            let results = match weight_name(self.loss, *id) {
                Some(name) => vec![b.weight(name)?],
                None => b.op(node.op.name(), node.attrs.clone(), &inputs)?,
            };
            for (port, v) in results.into_iter().enumerate() {
                map.insert(Value { node: *id, port }, v);
            }
        }
        for (name, v) in self.outputs(stage) {
            b.output(&name, map[&v]);
        }
        for (i, v) in self.crossing(stage).into_iter().enumerate() {
            b.output(&format!("{HANDED}{i}"), map[&v]);
        }
        Ok(b.finish())
    }
}

/// Cuts the function with the loss.
fn cut(
    module: &Module,
    source: &str,
    trained: &BTreeSet<Arc<str>>,
    stages: usize,
) -> Result<Vec<Stage>, PassError> {
    let loss = &module.functions[LOSS];
    let cut = Cut::new(loss, stages).map_err(|why| PassError::new(source, why))?;
    let active = active(module, loss, trained);
    let with_cotangent = |kind: &str, values: Vec<Value>| {
        let values = values.into_iter().enumerate().filter(|(_, v)| active.contains(v));
        values.map(|(i, _)| format!("{kind}{i}").into()).collect()
    };
    let stage = |number: usize| {
        let is_last = number + 1 == stages;
        let name = if is_last { LOSS.to_owned() } else { format!("stage.{number}") };
        let graph = cut.function(module, &name, number);
        let graph = graph.map_err(|e| PassError::new(source, e))?;
        let weights = graph.topo().into_iter().filter_map(|id| weight_name(&graph, id));
        let weights = weights.map(Arc::from).collect();
        let hidden = number.checked_sub(1).map(|before| cut.crossing(before)).unwrap_or_default();
        let hidden = with_cotangent(HIDDEN, hidden);
        let handed = with_cotangent(HANDED, cut.crossing(number));
        Ok(Stage { number, graph, weights, hidden, handed, is_last })
    };
    (0..stages).map(stage).collect()
}
