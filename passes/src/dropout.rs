//! Dropout of hidden states in training: Srivastava et al. 2014, in the places that GPT-2 has it
//! (`embd_pdrop`, `resid_pdrop`; Radford et al. 2019).
//!
//! What the first layer reads is dropped, and what attention and the MLP of each layer add to the
//! hidden state. Probabilities of attention are not. The places are found by what a function
//! computes, whatever the family: a layer's result is a sum of one of its parameters, the hidden
//! state, and of what is added to it. Products of which no such sum comes are an error.
//!
//! All masks follow from one integer, the entry's input `dropout_key`: place number `n`, in the
//! order of the forward, has number `n` of SplitMix64 as its seed, and an element its number behind
//! that. So a mask is computed where it is used, in the forward, in what is computed of it again,
//! and in the backward, and never stored.
//!
//! The pass comes behind the rules: what is evaluated and what is sampled are then the products
//! that serve, and dropout takes the residual out of those that drop.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use indexmap::IndexMap;
use ir::{Attrs, Builder, DType, Dim, Graph, Module, NodeId, OpError, TensorType, Value};

use crate::PassError;

/// The input `i64[]` of an entry that masks follow from.
const DROPOUT_KEY: &str = "dropout_key";

/// What names of parameters of layers begin with that are seeds of masks, `i64[]` each.
const SEED: &str = "dropout_seed_";

/// Drops a share `p` of hidden states in `entry` and in the layers that it calls.
///
/// # Errors
/// Every layer whose result is not the hidden state with something added to it, or in which a
/// product goes another way; an entry whose layers do not follow one another.
pub fn add_dropout(module: &mut Module, entry: &str, p: f64) -> Result<(), Vec<PassError>> {
    let graph = module.function(entry).cloned();
    let graph = graph.ok_or_else(|| vec![PassError::new(entry, "no such function")])?;
    let mut layers: IndexMap<Arc<str>, Layer> = IndexMap::new();
    let mut errors = Vec::new();
    for callee in graph.topo().into_iter().filter_map(|id| callee(&graph, id)) {
        if layers.contains_key(callee) || errors.iter().any(|e: &PassError| *e.function == *callee)
        {
            continue;
        }
        match module.function(callee).map(Layer::of) {
            Some(Ok(layer)) => drop(layers.insert(callee.into(), layer)),
            Some(Err(why)) => errors.push(PassError::new(callee, why)),
            None => errors.push(PassError::new(callee, "no such function")),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let first = first_hidden(&graph, &layers).map_err(|why| vec![PassError::new(entry, why)])?;
    for (name, layer) in &layers {
        let written = layer.write(module, &module.functions[name], p);
        module.add(written.map_err(|e| vec![PassError::new(name, e)])?);
    }
    let written = write_entry(module, &graph, &layers, first, p);
    module.add(written.map_err(|e| vec![PassError::new(entry, e)])?);
    Ok(())
}

/// The same function with nothing dropped, as that of the layers which it calls is there already;
/// without the parameters that seeds come by.
pub(crate) fn without_dropout(module: &Module, source: &Graph) -> Result<Graph, OpError> {
    let is_own = |name: &str| name == DROPOUT_KEY || name.starts_with(SEED);
    if !source.param_values().any(|p| is_own(source.param_name(p.node))) {
        return Ok(source.clone());
    }
    let mut b = Builder::new(module, &source.name);
    // What is not in here follows from seeds alone.
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for p in source.param_values().filter(|p| !is_own(source.param_name(p.node))) {
        map.insert(p, b.param(source.param_name(p.node), source.ty(p).clone())?);
    }
    for id in source.topo() {
        let node = source.node(id);
        let inputs = node.inputs().iter().map(|v| v.map(|v| map.get(&v).copied()));
        let known: Option<Vec<Option<Value>>> =
            inputs.map(|v| v.map_or(Some(None), |v| v.map(Some))).collect();
        b.at(&node.loc);
        let results = match (node.op.name(), known) {
            ("param", _) => continue,
            ("weight", _) => vec![b.weight(node.attrs.str("name"))?],
            ("dropout", _) => vec![map[&node.input(0)]],
            ("call", _) => {
                let inputs = node.inputs().iter().flatten();
                let inputs: Vec<_> = inputs.filter_map(|v| map.get(v).copied().map(Some)).collect();
                b.op("call", node.attrs.clone(), &inputs)?
            }
            (op, Some(inputs)) => b.op(op, node.attrs.clone(), &inputs)?,
            (_, None) => continue,
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (name, v) in &source.outputs {
        b.output(name, map[v]);
    }
    let mut graph = b.finish();
    graph.remove_dead();
    Ok(graph)
}

/// The function that a node calls.
fn callee(graph: &Graph, id: NodeId) -> Option<&str> {
    let node = graph.node(id);
    (node.op.name() == "call").then(|| node.attrs.str("callee"))
}

/// What a node adds up: an operand, by number, or `None` for what it computes without a residual.
type Addends = [Option<usize>; 2];

/// A function with a hidden state, and where it is added to.
struct Layer {
    /// The parameter, by number.
    hidden: usize,
    /// Of each sum, which of its addends are dropped.
    sums: BTreeMap<NodeId, [bool; 2]>,
}

impl Layer {
    /// Finds the hidden state behind the result.
    fn of(graph: &Graph) -> Result<Layer, String> {
        let [(_, result)] = &graph.outputs[..] else {
            return Err(format!(
                "has {} results: dropout is for layers of one, the next hidden state",
                graph.outputs.len()
            ));
        };
        let mut way = Way { graph, values: BTreeSet::new(), sums: Vec::new() };
        let hidden = way.back(*result).filter(|_| !way.sums.is_empty()).ok_or_else(|| {
            "its result is not a parameter, the hidden state, with something added to it: dropout \
             is for what is added"
                .to_owned()
        })?;
        let position = graph.params().iter().position(|p| *p == hidden.node);
        let mut layer = Layer { hidden: position.expect("a parameter"), sums: BTreeMap::new() };
        let mut covered = BTreeSet::new();
        for (id, branch) in &way.sums {
            layer.add(&way, *id, *branch);
            covered.extend(way.behind(*id, *branch));
        }
        let live = Way { values: BTreeSet::new(), ..way }.cone(&[result.node]);
        if let Some(id) = live.into_iter().find(|id| is_work(graph, *id) && !covered.contains(id)) {
            let node = graph.node(id);
            return Err(format!(
                "`{}` (node `{}`) adds nothing to the hidden state, so dropout has no place behind \
                 it",
                node.op.name(),
                node.loc
            ));
        }
        Ok(layer)
    }

    /// Drops an addend; of what attention and an MLP add together, both.
    fn add(&mut self, way: &Way<'_>, id: NodeId, addend: usize) {
        let operand = way.addends(id).and_then(|addends| addends[addend]);
        if let Some(v) = operand.map(|i| way.graph.node(id).input(i))
            && way.addends(v.node).is_some()
            && !way.values.contains(&v)
        {
            let parts = [0, 1].map(|part| way.behind(v.node, part));
            let has = |is: fn(&Graph, NodeId) -> bool| {
                parts.each_ref().map(|part| part.iter().any(|id| is(way.graph, *id)))
            };
            let [a, b] = has(is_attention);
            if has(is_work) == [true; 2] && a != b {
                self.add(way, v.node, 0);
                self.add(way, v.node, 1);
                return;
            }
        }
        self.sums.entry(id).or_default()[addend] = true;
    }

    /// How many masks a call takes.
    fn places(&self) -> usize {
        self.sums.values().flatten().filter(|is_dropped| **is_dropped).count()
    }

    /// The function with dropout, a seed for each place as further parameters.
    fn write(&self, module: &Module, source: &Graph, p: f64) -> Result<Graph, OpError> {
        let way = Way { graph: source, values: BTreeSet::new(), sums: Vec::new() };
        let mut b = Builder::new(module, &source.name);
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for p in source.param_values() {
            map.insert(p, b.param(source.param_name(p.node), source.ty(p).clone())?);
        }
        let seeds = (0..self.places()).map(|i| b.param(&format!("{SEED}{i}"), integer()));
        let mut seeds = seeds.collect::<Result<Vec<_>, _>>()?.into_iter();
        for id in source.topo() {
            let node = source.node(id);
            b.at(&node.loc);
            let mut inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
            let mut own = None;
            if let (Some(dropped), Some(addends)) = (self.sums.get(&id), way.addends(id)) {
                for (addend, _) in addends.iter().zip(dropped).filter(|(_, dropped)| **dropped) {
                    let seed = seeds.next().expect("as many as places");
                    match addend {
                        Some(i) => {
                            let x = inputs[*i].expect("an addend");
                            inputs[*i] = Some(dropped_by(&mut b, x, seed, p)?);
                        }
                        None => own = Some(seed),
                    }
                }
                if let (Some(seed), [_, Some(residual)]) = (own, addends) {
                    let residual = inputs[residual].take().expect("an addend");
                    let y = b.op(node.op.name(), node.attrs.clone(), &inputs)?[0];
                    let y = dropped_by(&mut b, y, seed, p)?;
                    map.insert(Value { node: id, port: 0 }, b.add(residual, y)?);
                    continue;
                }
            }
            let results = match node.op.name() {
                "param" => continue,
                "weight" => vec![b.weight(node.attrs.str("name"))?],
                op => b.op(op, node.attrs.clone(), &inputs)?,
            };
            for (port, v) in results.into_iter().enumerate() {
                map.insert(Value { node: id, port }, v);
            }
        }
        for (name, v) in &source.outputs {
            b.output(name, map[v]);
        }
        Ok(b.finish())
    }
}

/// The way from a layer's result to its hidden state.
#[derive(Clone)]
struct Way<'g> {
    graph: &'g Graph,
    /// Hidden states on the way, the first and the last included.
    values: BTreeSet<Value>,
    /// Sums with the number of the addend that is not on the way, the last first.
    sums: Vec<(NodeId, usize)>,
}

impl Way<'_> {
    /// Goes back through sums and norms to a parameter, and notes what it comes through.
    fn back(&mut self, v: Value) -> Option<Value> {
        let node = self.graph.node(v.node);
        let found = match node.op.name() {
            "param" => Some(v).filter(|v| self.graph.ty(*v).dtype.is_float()),
            "rms_norm" | "layer_norm" => self.back(node.input(0)),
            _ => {
                let addends = self.addends(v.node)?;
                (0..2).find_map(|i| {
                    let before = self.clone();
                    self.sums.push((v.node, 1 - i));
                    let found = addends[i].and_then(|operand| self.back(node.input(operand)));
                    if found.is_none() {
                        *self = before;
                    }
                    found
                })
            }
        };
        if found.is_some() {
            self.values.insert(v);
        }
        found
    }

    /// The addends of a node that is a sum of two values of one type.
    fn addends(&self, id: NodeId) -> Option<Addends> {
        let node = self.graph.node(id);
        let ty = self.graph.ty(Value { node: id, port: 0 });
        if node.op.name() == "add" {
            let is_whole = |i: &usize| self.graph.ty(node.input(*i)) == ty;
            return [0, 1].iter().all(is_whole).then_some([0, 1].map(Some));
        }
        let residual = node.op.signature().operands.iter().position(|o| o.name == "residual")?;
        node.inputs().get(residual).copied().flatten()?;
        Some([None, Some(residual)])
    }

    /// Nodes that an addend of a sum is computed by from hidden states.
    fn behind(&self, id: NodeId, addend: usize) -> BTreeSet<NodeId> {
        let inputs = self.graph.node(id).inputs().iter().copied().enumerate();
        let addends = self.addends(id).unwrap_or_default();
        let is_read = |i: usize| match addends[addend] {
            Some(operand) => i == operand,
            None => Some(i) != addends[1 - addend],
        };
        let starts = inputs.filter(|(i, _)| is_read(*i)).filter_map(|(_, v)| v);
        let starts = starts.filter(|v| !self.values.contains(v)).map(|v| v.node);
        let mut cone = self.cone(&starts.collect::<Vec<_>>());
        if addends[addend].is_none() {
            cone.insert(id);
        }
        cone
    }

    /// Nodes and those that they are computed from, up to hidden states.
    fn cone(&self, starts: &[NodeId]) -> BTreeSet<NodeId> {
        let mut cone: BTreeSet<NodeId> = starts.iter().copied().collect();
        let mut stack = starts.to_vec();
        while let Some(id) = stack.pop() {
            for v in self.graph.node(id).inputs().iter().flatten() {
                if !self.values.contains(v) && cone.insert(v.node) {
                    stack.push(v.node);
                }
            }
        }
        cone
    }
}

/// Whether a node is what layers are made of: products, attention, further functions.
fn is_work(graph: &Graph, id: NodeId) -> bool {
    let name = graph.node(id).op.name();
    name.ends_with("linear") || matches!(name, "matmul" | "call") || is_attention(graph, id)
}

fn is_attention(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).op.name().starts_with("attention")
}

fn integer() -> TensorType {
    TensorType::new(DType::I64, Vec::<Dim>::new())
}

fn dropped_by(b: &mut Builder<'_>, x: Value, seed: Value, p: f64) -> Result<Value, OpError> {
    b.op1("dropout", Attrs::none().with("p", p), &[x, seed])
}

/// The value that the first layer reads as its hidden state.
fn first_hidden(graph: &Graph, layers: &IndexMap<Arc<str>, Layer>) -> Result<Value, String> {
    let mut first = BTreeSet::new();
    for id in graph.topo() {
        let Some(layer) = callee(graph, id).and_then(|name| layers.get(name)) else { continue };
        let v = graph.node(id).input(layer.hidden);
        if callee(graph, v.node).is_none() {
            first.insert(v);
        }
    }
    match first.iter().collect::<Vec<_>>()[..] {
        [first] => Ok(*first),
        [] => Err("calls no layers: dropout is for what comes before and out of those".to_owned()),
        _ => Err(format!(
            "its layers read {} hidden states that come out of no layer: dropout is for models \
             whose layers follow one another",
            first.len()
        )),
    }
}

/// The entry, with what `first` is dropped, and seeds for every call.
fn write_entry(
    module: &Module,
    source: &Graph,
    layers: &IndexMap<Arc<str>, Layer>,
    first: Value,
    p: f64,
) -> Result<Graph, OpError> {
    let mut b = Builder::new(module, &source.name);
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for p in source.param_values() {
        map.insert(p, b.param(source.param_name(p.node), source.ty(p).clone())?);
    }
    let key = b.param(DROPOUT_KEY, integer())?;
    let calls = source.topo().into_iter().filter_map(|id| layers.get(callee(source, id)?));
    let places = 1 + calls.map(Layer::places).sum::<usize>();
    let numbers = b.op1("iota", Attrs::none().with("shape", vec![Dim::from(places)]), &[])?;
    let seeds = b.op1("splitmix64", Attrs::none(), &[key, numbers])?;
    let mut number = 0i64;
    let mut next = |b: &mut Builder<'_>| {
        let seed = b.slice(seeds, 0, number, number + 1)?;
        number += 1;
        b.reshape(seed, Vec::new())
    };
    // The first place, whatever the order of nodes.
    let seed = next(&mut b)?;
    if let Some(v) = map.get_mut(&first) {
        *v = dropped_by(&mut b, *v, seed, p)?;
    }
    for id in source.topo() {
        let node = source.node(id);
        b.at(&node.loc);
        let mut inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        for _ in 0..callee(source, id).and_then(|name| layers.get(name)).map_or(0, Layer::places) {
            inputs.push(Some(next(&mut b)?));
        }
        let results = match node.op.name() {
            "param" => continue,
            "weight" => vec![b.weight(node.attrs.str("name"))?],
            op => b.op(op, node.attrs.clone(), &inputs)?,
        };
        for (port, mut v) in results.into_iter().enumerate() {
            let from = Value { node: id, port };
            if from == first {
                v = dropped_by(&mut b, v, seed, p)?;
            }
            map.insert(from, v);
        }
    }
    for (name, v) in &source.outputs {
        b.output(name, map[v]);
    }
    Ok(b.finish())
}
