//! The training form of a language model: entries that compute gradients and update parameters.
//!
//! Everything that outlives a run is a state, and entries that name a state alike share it: the
//! parameters `param.W`, their gradients `grad.W` and what the optimiser keeps of each, such as
//! `m.W` and `v.W`, for every weight `W`. All of these are f32. Weights of a narrower type are
//! computed with as `weight.W`, the parameter rounded.
//!
//! - `accumulate` takes a micro-batch of packed documents, `keep f32[]` and `scale f32[]`. It gives
//!   the sum of the losses of all rows and updates `grad.W ← keep·grad.W + scale·∂loss/∂W`. Outputs
//!   `probe.N.PLACE f32[]` are not finite where what comes out of that place is not.
//! - `norm` gives the sum of squares of each gradient, from which the caller knows the global norm
//!   and, if that is not finite, whose fault it is.
//! - `update` takes a learning rate for each group, what the optimiser asks for, and `grad_scale`,
//!   by which gradients are clipped.
//! - `evaluate` gives the loss alone.
//! - `round`, where there are such, gives `weight.W` of `param.W`.
//!
//! Between `accumulate` and `norm` ranks may add up their gradients, and the caller may decide not
//! to update at all: that is why they are entries of their own.

mod live;
mod loss;
mod update;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::Arc,
};

use ir::{Attr, Attrs, Builder, DType, Graph, Module, OpError, TensorType, Value};

use self::{
    loss::{LOSS, PROBE, TOTAL},
    update::{Step, of_shape},
};
use crate::{
    PassError,
    page_kv::State,
    vjp::{Recompute, Wrt, differentiate},
};

pub use live::live_weights;
pub use update::{Parameter, Update};

const EVALUATE: &str = "evaluate";
const ROUND: &str = "round";

/// Name of the function with the loss and its gradients.
fn gradients() -> String {
    format!("{LOSS}.grad")
}

/// Name of a state that holds something of a weight.
fn state_name(kind: &str, weight: &str) -> String {
    format!("{kind}.{weight}")
}

/// Adds the entries of the training form of `source`, and returns the states of each.
///
/// `source` gives `logits [R, V]`. Weights that no parameter names are frozen.
///
/// # Errors
/// Names every parameter that is no weight of the model, and every operator on the way from a
/// parameter to the loss that cannot be differentiated.
pub fn train_step(
    module: &mut Module,
    source: &str,
    parameters: &[Parameter],
) -> Result<BTreeMap<Arc<str>, Vec<State>>, Vec<PassError>> {
    let one = |e: PassError| vec![e];
    let unknown = parameters.iter().filter(|p| !module.weights.contains_key(&p.weight));
    let why = |p: &Parameter| PassError::new(source, format!("has no weight `{}`", p.weight));
    let errors: Vec<PassError> = unknown.map(why).collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    let graph =
        module.function(source).ok_or_else(|| vec![PassError::new(source, "no such function")])?;
    let with_loss = loss::with_loss(module, &graph.clone()).map_err(one)?;
    module.add(with_loss);
    let trained: BTreeSet<&str> = parameters.iter().map(|p| &*p.weight).collect();
    let weights = parameters.iter().map(|p| p.weight.clone()).collect();
    let wrt = Wrt { weights, params: BTreeSet::new() };
    *module = differentiate(module, LOSS, &wrt, LOSS, Recompute::None)?;
    let entries = [
        Some(accumulate(module, parameters, &trained).map_err(one)?),
        Some(norm(module, parameters).map_err(one)?),
        Some(update_entry(module, parameters).map_err(one)?),
        Some(evaluate(module, &trained).map_err(one)?),
        round(module, parameters).map_err(one)?,
    ];
    let mut states = BTreeMap::new();
    module.entries.clear();
    for Entry { graph, states: own } in entries.into_iter().flatten() {
        module.entries.push(graph.name.clone());
        states.insert(graph.name.clone(), own);
        module.add(graph);
    }
    Ok(states)
}

/// An entry and its states.
struct Entry {
    graph: Graph,
    states: Vec<State>,
}

/// Builds an entry with states.
struct EntryBuilder<'m> {
    b: Builder<'m>,
    states: Vec<State>,
    outputs: Vec<(String, Value)>,
}

impl<'m> EntryBuilder<'m> {
    fn new(module: &'m Module, name: &str) -> EntryBuilder<'m> {
        let b = Builder::new(module, name);
        EntryBuilder { b, states: Vec::new(), outputs: Vec::new() }
    }

    /// A state, read or updated.
    fn state(&mut self, name: &str, ty: TensorType) -> Result<Value, OpError> {
        self.states.push(State { param: name.into(), output: None });
        self.b.param(name, ty)
    }

    /// The new value of a state.
    fn set(&mut self, name: &str, value: Value) {
        let output = format!("{name}.out");
        let state = self.states.iter_mut().find(|s| &*s.param == name);
        state.expect("declared").output = Some(output.as_str().into());
        self.outputs.push((output, value));
    }

    fn scalar(&mut self, name: &str) -> Result<Value, OpError> {
        self.b.param(name, TensorType::new(DType::F32, Vec::<ir::Dim>::new()))
    }

    fn finish(mut self) -> Entry {
        for (name, value) in self.outputs {
            self.b.output(&name, value);
        }
        Entry { graph: self.b.finish(), states: self.states }
    }
}

/// The type of a weight.
fn weight_type(module: &Module, name: &str) -> TensorType {
    module.weights[name].clone()
}

/// Whether a weight is computed with at less than the precision of its parameter.
fn is_narrow(ty: &TensorType) -> bool {
    matches!(ty.dtype, DType::Bf16 | DType::F16)
}

/// Sums of squares, in f32: of each row and then of the rows, so that all threads take part.
fn sum_of_squares(b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
    let x = b.cast(x, DType::F32)?;
    let squares = b.mul(x, x)?;
    let mut sum = squares;
    while b.ty(sum).rank() > 0 {
        sum = b.reduce("reduce_sum", sum, &[-1], false)?;
    }
    b.reshape(sum, vec![1.into()])
}

fn norm(module: &Module, parameters: &[Parameter]) -> Result<Entry, PassError> {
    let wrap = |e: OpError| PassError::new("norm", e);
    let mut entry = EntryBuilder::new(module, "norm");
    let mut squares = Vec::new();
    for p in parameters {
        let name = state_name("grad", &p.weight);
        let grad =
            entry.state(&name, of_shape(&weight_type(module, &p.weight).shape)).map_err(wrap)?;
        entry.b.at(&p.weight);
        squares.push(sum_of_squares(&mut entry.b, grad).map_err(wrap)?);
    }
    let squares = entry.b.concat(&squares, 0).map_err(wrap)?;
    entry.outputs.push(("squares".into(), squares));
    Ok(entry.finish())
}

fn update_entry(module: &Module, parameters: &[Parameter]) -> Result<Entry, PassError> {
    let wrap = |e: OpError| PassError::new("update", e);
    let mut entry = EntryBuilder::new(module, "update");
    let scale = entry.scalar("grad_scale").map_err(wrap)?;
    let groups: BTreeSet<usize> = parameters.iter().map(|p| p.group).collect();
    let mut inputs: BTreeMap<String, Value> = BTreeMap::new();
    let rates = groups.iter().map(|group| format!("lr.{group}"));
    let named = parameters.iter().flat_map(|p| p.update.scalars());
    for name in rates.chain(named.map(ToString::to_string)) {
        if let btree_map::Entry::Vacant(place) = inputs.entry(name) {
            let input = entry.scalar(place.key()).map_err(wrap)?;
            place.insert(input);
        }
    }
    for p in parameters {
        let ty = of_shape(&weight_type(module, &p.weight).shape);
        let name = |kind: &str| state_name(kind, &p.weight);
        let kinds = p.update.states(&ty);
        let param = entry.state(&name("param"), ty.clone()).map_err(wrap)?;
        let grad = entry.state(&name("grad"), ty).map_err(wrap)?;
        let mut states = Vec::new();
        for (kind, ty) in &kinds {
            states.push(entry.state(&name(kind), ty.clone()).map_err(wrap)?);
        }
        let rate = format!("lr.{}", p.group);
        let scalars = p.update.scalars().iter().map(ToString::to_string);
        let scalars: Vec<Value> = [rate].into_iter().chain(scalars).map(|n| inputs[&n]).collect();
        entry.b.at(&p.weight);
        let b = &mut entry.b;
        let (states, scalars) = (&*states, &*scalars);
        let new = p.update.build(Step { b, param, grad, states, scalars, scale }).map_err(wrap)?;
        for (kind, value) in ["param"].into_iter().chain(kinds.iter().map(|k| k.0)).zip(new) {
            entry.set(&name(kind), value);
        }
    }
    Ok(entry.finish())
}

/// Rounds what is computed with at less precision than f32.
fn round(module: &Module, parameters: &[Parameter]) -> Result<Option<Entry>, PassError> {
    let wrap = |e: OpError| PassError::new(ROUND, e);
    let types = parameters.iter().map(|p| (&p.weight, weight_type(module, &p.weight)));
    let narrow: Vec<_> = types.filter(|(_, ty)| is_narrow(ty)).collect();
    if narrow.is_empty() {
        return Ok(None);
    }
    let mut entry = EntryBuilder::new(module, ROUND);
    let nothing = entry.b.scalar(DType::F32, 0.0).map_err(wrap)?;
    for (weight, ty) in narrow {
        let [of_param, of_weight] = ["param", "weight"].map(|kind| state_name(kind, weight));
        let param = entry.state(&of_param, of_shape(&ty.shape)).map_err(wrap)?;
        let rounded = entry.state(&of_weight, ty).map_err(wrap)?;
        entry.b.at(weight);
        let args = [rounded, param, nothing];
        let new = entry.b.op1("accumulate", Attrs::none(), &args).map_err(wrap)?;
        entry.set(&of_weight, new);
    }
    Ok(Some(entry.finish()))
}

/// Copies the body of `source` in, the parameters that it reads those of the entry and the trained
/// weights states; returns its outputs.
fn on_states(
    entry: &mut EntryBuilder<'_>,
    source: &Graph,
    trained: &BTreeSet<&str>,
) -> Result<BTreeMap<Arc<str>, Value>, OpError> {
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for p in source.param_values().filter(|p| !source.users(p.node).is_empty()) {
        let v = entry.b.param(source.param_name(p.node), source.ty(p).clone())?;
        map.insert(p, v);
    }
    let mut weights: BTreeMap<Arc<str>, Value> = BTreeMap::new();
    for id in source.topo() {
        let node = source.node(id);
        if node.op.name() == "param" {
            continue;
        }
        entry.b.at(&node.loc);
        let results = match loss::weight_name(source, id) {
            Some(name) if !trained.contains(name) => vec![entry.b.weight(name)?],
            Some(name) => vec![match weights.get(name) {
                Some(v) => *v,
                None => {
                    let ty = weight_type(entry.b.module(), name);
                    let kind = if is_narrow(&ty) { "weight" } else { "param" };
                    let v = entry.state(&state_name(kind, name), ty)?;
                    weights.insert(name.into(), v);
                    v
                }
            }],
            None => {
                let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
                entry.b.op(node.op.name(), node.attrs.clone(), &inputs)?
            }
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    Ok(source.outputs.iter().map(|(name, v)| (name.clone(), map[v])).collect())
}

fn accumulate(
    module: &Module,
    parameters: &[Parameter],
    trained: &BTreeSet<&str>,
) -> Result<Entry, PassError> {
    let wrap = |e: OpError| PassError::new("accumulate", e);
    let mut entry = EntryBuilder::new(module, "accumulate");
    let source = &module.functions[gradients().as_str()];
    let outputs = on_states(&mut entry, source, trained).map_err(wrap)?;
    let keep = entry.scalar("keep").map_err(wrap)?;
    for p in parameters {
        let name = state_name("grad", &p.weight);
        let sum =
            entry.state(&name, of_shape(&weight_type(module, &p.weight).shape)).map_err(wrap)?;
        entry.b.at(&p.weight);
        let args = [sum, outputs[name.as_str()], keep];
        let new = entry.b.op1("accumulate", Attrs::none(), &args).map_err(wrap)?;
        entry.set(&name, new);
    }
    entry.outputs.push(("loss".into(), outputs[TOTAL]));
    for (name, _) in source.outputs.iter().filter(|(name, _)| name.starts_with(PROBE)) {
        entry.outputs.push((name.to_string(), outputs[name]));
    }
    Ok(entry.finish())
}

fn evaluate(module: &mut Module, trained: &BTreeSet<&str>) -> Result<Entry, PassError> {
    let wrap = |e: OpError| PassError::new(EVALUATE, e);
    // The forward of training itself, so that both have the same bits.
    let mut source = module.functions[gradients().as_str()].clone();
    source.outputs.retain(|(name, _)| &**name == TOTAL);
    source.remove_dead();
    own_callees(module, &mut source);
    let mut entry = EntryBuilder::new(module, EVALUATE);
    let outputs = on_states(&mut entry, &source, trained).map_err(wrap)?;
    entry.outputs.push(("loss".into(), outputs[TOTAL]));
    Ok(entry.finish())
}

/// Gives a graph copies of the functions that it calls: what is prepared for one entry is not for
/// another.
fn own_callees(module: &mut Module, graph: &mut Graph) {
    for id in graph.topo() {
        let Some(Attr::Str(callee)) = graph.node(id).attrs.get("callee") else { continue };
        let name: Arc<str> = format!("{EVALUATE}.{callee}").into();
        if !module.functions.contains_key(&name) {
            let mut copy = module.functions[callee].clone();
            copy.name = name.clone();
            module.add(copy);
        }
        let attrs = graph.attrs_mut(id);
        *attrs = attrs.clone().with("callee", &*name);
    }
}
