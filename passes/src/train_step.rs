//! The training form of a language model: entries that compute gradients and update parameters.
//!
//! Everything that outlives a run is a state, and entries that name a state alike share it: the
//! parameters `param.W`, their gradients `grad.W` and what the optimiser keeps of each, such as
//! `m.W` and `v.W`, for every weight `W`. All of these are f32. What is computed with is the
//! parameter itself, or `weight.W` where that is something else: the parameter rounded to a
//! narrower type, or all of it where a rank holds a part.
//!
//! Which part of each a rank holds is [`Sharding`]'s choice. A part is a vector. Where parameters
//! are as wide as weights and a rank holds all of the one and a part of the other, the part lies in
//! the whole. What is held in parts alone is gathered for each use and let go of behind it.
//!
//! - `accumulate` takes a micro-batch of packed documents, `keep f32[]` and `scale f32[]`. It gives
//!   the sum of the losses of all rows and updates `grad.W ← keep·grad.W + scale·∂loss/∂W`. Outputs
//!   `probe.N.PLACE f32[]` are not finite where what comes out of that place is not, and with
//!   several ranks `local.W f32[1]` where this rank's gradient is not. Gradients are added up over
//!   the ranks first, whose `scale` is the same.
//! - `norm` gives the sum of squares of each gradient, a row for each rank's part, from which the
//!   caller knows the global norm and, if that is not finite, whose fault it is.
//! - `update` takes a learning rate for each group, what the optimiser asks for, and `grad_scale`,
//!   by which gradients are clipped.
//! - `evaluate` gives the loss alone.
//! - `refresh`, where there are such, gives `weight.W` of `param.W`.
//!
//! Between `norm` and `update` the caller may decide not to update at all: that is why they are
//! entries of their own.

mod head;
mod live;
mod loss;
mod stages;
mod update;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::Arc,
};

use ir::{Attr, Attrs, Builder, DType, Dim, Graph, Module, OpError, Target, TensorType, Value};

use self::{
    loss::{LOSS, PROBE, TOTAL},
    update::{Step, of_shape},
};
use crate::{
    Holding, PassError, Sharding,
    dropout::without_dropout,
    page_kv::State,
    vjp::{Recompute, Wrt, differentiate},
};

pub use live::live_weights;
pub use stages::train_step_in_stages;
pub use update::{Parameter, Update};

const ACCUMULATE: &str = "accumulate";
const NORM: &str = "norm";
const UPDATE: &str = "update";
const EVALUATE: &str = "evaluate";
const REFRESH: &str = "refresh";

/// What names of values begin with that a stage gets from the one before, as its own states.
const HIDDEN: &str = "hidden.";
/// What names of states begin with in which a stage's forward keeps things for its backward.
const KEPT: &str = "kept.";
/// What names of cotangents begin with that a stage gets from the one behind.
const COTANGENT: &str = "cotangent.";

/// Elements of a gradient whose squares are added up one after the other.
const NORM_CHUNK: i64 = 1024;

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
/// `source` gives `logits [R, V]`. Weights that no parameter names are frozen. The target decides
/// how many of the head's rows are computed at a time.
///
/// # Errors
/// Names every parameter that is no weight of the model, and every operator on the way from a
/// parameter to the loss that cannot be differentiated.
pub fn train_step(
    module: &mut Module,
    source: &str,
    parameters: &[Parameter],
    sharding: &Sharding,
    recompute: Recompute<'_>,
    target: &Target,
) -> Result<BTreeMap<Arc<str>, Vec<State>>, Vec<PassError>> {
    let one = |e: PassError| vec![e];
    add_loss(module, source, parameters)?;
    let weights = parameters.iter().map(|p| p.weight.clone()).collect();
    let wrt = Wrt { weights, params: BTreeSet::new() };
    *module = differentiate(module, LOSS, &wrt, LOSS, recompute)?;
    sharding.declare(module);
    let forward = evaluated(module, EVALUATE).map_err(|e| one(PassError::new(EVALUATE, e)))?;
    let mut training = Training::new(module, parameters, sharding);
    training.chunk = head::Chunk::of(target.cuda);
    let entries = [
        Some(training.accumulate().map_err(one)?),
        Some(training.norm().map_err(one)?),
        Some(training.update().map_err(one)?),
        Some(training.evaluate(&forward).map_err(one)?),
        training.refresh().map_err(one)?,
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

/// Adds the function with the loss.
fn add_loss(
    module: &mut Module,
    source: &str,
    parameters: &[Parameter],
) -> Result<(), Vec<PassError>> {
    let one = |e: PassError| vec![e];
    let unknown = parameters.iter().filter(|p| !module.weights.contains_key(&p.weight));
    let why = |p: &Parameter| PassError::new(source, format!("has no weight `{}`", p.weight));
    let errors: Vec<PassError> = unknown.map(why).collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    live::separate_weights(module).map_err(one)?;
    let graph =
        module.function(source).ok_or_else(|| vec![PassError::new(source, "no such function")])?;
    let with_loss = loss::with_loss(module, &graph.clone()).map_err(one)?;
    module.add(with_loss);
    Ok(())
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
        self.states.push(State { param: name.into(), output: None, part_of: None, shard_of: None });
        self.b.param(name, ty)
    }

    /// The new value of a state.
    fn set(&mut self, name: &str, value: Value) {
        let output = format!("{name}.out");
        let state = self.states.iter_mut().find(|s| &*s.param == name);
        state.expect("declared").output = Some(output.as_str().into());
        self.outputs.push((output, value));
    }

    /// A state that this entry makes and does not read.
    fn keep(&mut self, name: &str, value: Value) {
        let state =
            State { param: name.into(), output: Some(name.into()), part_of: None, shard_of: None };
        self.states.push(state);
        self.outputs.push((name.to_owned(), value));
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

/// Whether a weight is computed with at less than the precision of its parameter.
fn is_narrow(ty: &TensorType) -> bool {
    matches!(ty.dtype, DType::Bf16 | DType::F16)
}

/// Sums of squares, in f32: of each row and then of the rows, so that all threads take part.
fn sum_of_squares(b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
    let x = b.cast(x, DType::F32)?;
    if b.ty(x).rank() == 0 {
        let square = b.mul(x, x)?;
        return b.reshape(square, vec![1.into()]);
    }
    let mut sum = b.reduce("reduce_sum_square", x, &[-1], false)?;
    while b.ty(sum).rank() > 0 {
        sum = b.reduce("reduce_sum", sum, &[-1], false)?;
    }
    b.reshape(sum, vec![1.into()])
}

/// The sum of squares of a vector, in f32, by chunks.
fn squares_of_part(b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
    let x = b.cast(x, DType::F32)?;
    let len = b.ty(x).shape[0].clone();
    let rows = len.floor_div(NORM_CHUNK);
    let end = rows.clone() * Dim::from(NORM_CHUNK);
    let tail = b.slice(x, 0, end.clone(), len)?;
    let tail = sum_of_squares(b, tail)?;
    if rows.is(0) {
        return Ok(tail);
    }
    let head = b.slice(x, 0, 0i64, end)?;
    let head = b.reshape(head, vec![rows, NORM_CHUNK.into()])?;
    let head = sum_of_squares(b, head)?;
    b.add(head, tail)
}

/// What the entries are made of.
struct Training<'a> {
    module: &'a Module,
    parameters: &'a [Parameter],
    trained: BTreeSet<&'a str>,
    sharding: &'a Sharding,
    /// Rows of the head that are computed at a time.
    chunk: head::Chunk,
    /// Which stage of several it is.
    stage: Option<usize>,
}

impl<'a> Training<'a> {
    fn new(module: &'a Module, parameters: &'a [Parameter], sharding: &'a Sharding) -> Self {
        let trained = parameters.iter().map(|p| &*p.weight).collect();
        let chunk = head::Chunk::of(None);
        Training { module, parameters, trained, sharding, chunk, stage: None }
    }

    /// The name of an entry.
    fn name(&self, entry: &str) -> String {
        self.stage.map_or_else(|| entry.to_owned(), |stage| format!("{entry}.{stage}"))
    }

    fn weight_type(&self, name: &str) -> TensorType {
        self.module.weights[name].clone()
    }

    /// Declares a state that is of a weight's shape as far as it is held.
    fn state(
        &self,
        entry: &mut EntryBuilder<'_>,
        (kind, weight): (&str, &str),
        (whole, holding): (&TensorType, Holding),
    ) -> Result<Value, OpError> {
        let ty = self.sharding.type_of(whole, holding);
        let value = entry.state(&state_name(kind, weight), ty)?;
        let state = entry.states.last_mut().expect("declared");
        state.shard_of = self.sharding.shard_of(weight, whole, holding);
        Ok(value)
    }

    /// Declares the sum of gradients.
    fn grad(&self, entry: &mut EntryBuilder<'_>, weight: &str) -> Result<Value, OpError> {
        let whole = of_shape(&self.weight_type(weight).shape);
        self.state(entry, ("grad", weight), (&whole, self.sharding.held(weight).grad))
    }

    /// Whether what is computed with is another state than what is updated.
    fn has_weight(&self, weight: &str) -> bool {
        let held = self.sharding.held(weight);
        is_narrow(&self.weight_type(weight)) || held.weight != held.optimizer
    }

    /// Declares the state that an optimiser updates.
    fn param(&self, entry: &mut EntryBuilder<'_>, weight: &str) -> Result<Value, OpError> {
        let held = self.sharding.held(weight);
        let ty = self.weight_type(weight);
        let whole = of_shape(&ty.shape);
        let param = self.state(entry, ("param", weight), (&whole, held.optimizer))?;
        if self.has_weight(weight) && !is_narrow(&ty) {
            let of = state_name("weight", weight).into();
            let state = entry.states.last_mut().expect("declared");
            state.part_of = Some((of, self.sharding.offset_of(&ty)));
        }
        Ok(param)
    }

    /// Declares the state that is computed with.
    fn weight(&self, entry: &mut EntryBuilder<'_>, weight: &str) -> Result<Value, OpError> {
        match self.has_weight(weight) {
            true => {
                let whole = self.weight_type(weight);
                self.state(entry, ("weight", weight), (&whole, self.sharding.held(weight).weight))
            }
            false => self.param(entry, weight),
        }
    }

    fn norm(&self) -> Result<Entry, PassError> {
        let wrap = |e: OpError| PassError::new(NORM, e);
        let mut entry = EntryBuilder::new(self.module, &self.name(NORM));
        let mut squares = Vec::new();
        for p in self.parameters {
            let holding = self.sharding.held(&p.weight).grad;
            let grad = self.grad(&mut entry, &p.weight).map_err(wrap)?;
            entry.b.at(&p.weight);
            let own = match self.sharding.ranks() {
                1 => sum_of_squares(&mut entry.b, grad),
                _ => {
                    let own = self.sharding.own(&mut entry.b, grad, holding).map_err(wrap)?;
                    squares_of_part(&mut entry.b, own)
                }
            };
            squares.push(own.map_err(wrap)?);
        }
        let mut squares = entry.b.concat(&squares, 0).map_err(wrap)?;
        if self.sharding.ranks() > 1 {
            squares = self.sharding.side_by_side(&mut entry.b, squares).map_err(wrap)?;
        }
        entry.outputs.push(("squares".into(), squares));
        Ok(entry.finish())
    }

    fn update(&self) -> Result<Entry, PassError> {
        let wrap = |e: OpError| PassError::new(UPDATE, e);
        let mut entry = EntryBuilder::new(self.module, &self.name(UPDATE));
        let scale = entry.scalar("grad_scale").map_err(wrap)?;
        let groups: BTreeSet<usize> = self.parameters.iter().map(|p| p.group).collect();
        let mut inputs: BTreeMap<String, Value> = BTreeMap::new();
        let rates = groups.iter().map(|group| format!("lr.{group}"));
        let named = self.parameters.iter().flat_map(|p| p.update.scalars());
        for name in rates.chain(named.map(ToString::to_string)) {
            if let btree_map::Entry::Vacant(place) = inputs.entry(name) {
                let input = entry.scalar(place.key()).map_err(wrap)?;
                place.insert(input);
            }
        }
        for p in self.parameters {
            let held = self.sharding.held(&p.weight);
            let name = |kind: &str| state_name(kind, &p.weight);
            let param = self.param(&mut entry, &p.weight).map_err(wrap)?;
            let mut grad = self.grad(&mut entry, &p.weight).map_err(wrap)?;
            let kinds = p.update.states(&of_shape(&self.weight_type(&p.weight).shape));
            let mut states = Vec::new();
            for (kind, ty) in &kinds {
                let state = self.state(&mut entry, (kind, &p.weight), (ty, held.optimizer));
                states.push(state.map_err(wrap)?);
            }
            let rate = format!("lr.{}", p.group);
            let scalars = p.update.scalars().iter().map(ToString::to_string);
            let scalars = [rate].into_iter().chain(scalars).map(|n| inputs[&n]);
            let scalars: Vec<Value> = scalars.collect();
            entry.b.at(&p.weight);
            if held.optimizer == Holding::Shard {
                grad = self.sharding.own(&mut entry.b, grad, held.grad).map_err(wrap)?;
            }
            let b = &mut entry.b;
            let (states, scalars) = (&*states, &*scalars);
            let step = Step { b, param, grad, states, scalars, scale };
            let new = p.update.build(step).map_err(wrap)?;
            let names = ["param"].into_iter().chain(kinds.iter().map(|k| k.0));
            for (kind, value) in names.zip(new) {
                entry.set(&name(kind), value);
            }
        }
        Ok(entry.finish())
    }

    /// What is computed with, from what is updated.
    fn refresh(&self) -> Result<Option<Entry>, PassError> {
        let wrap = |e: OpError| PassError::new(REFRESH, e);
        let parameters = self.parameters.iter().map(|p| &p.weight);
        let refreshed: Vec<&Arc<str>> = parameters.filter(|w| self.has_weight(w)).collect();
        if refreshed.is_empty() {
            return Ok(None);
        }
        let mut entry = EntryBuilder::new(self.module, &self.name(REFRESH));
        let nothing = entry.b.scalar(DType::F32, 0.0).map_err(wrap)?;
        for name in refreshed {
            let held = self.sharding.held(name);
            let ty = self.weight_type(name);
            let weight = self.weight(&mut entry, name).map_err(wrap)?;
            let param = self.param(&mut entry, name).map_err(wrap)?;
            let b = &mut entry.b;
            b.at(name);
            let new = if held.weight == held.optimizer {
                b.op1("accumulate", Attrs::none(), &[weight, param, nothing])
            } else {
                let part = b.cast(param, ty.dtype).map_err(wrap)?;
                self.sharding.gather(b, part, &ty.shape, Some(weight))
            };
            entry.set(&state_name("weight", name), new.map_err(wrap)?);
        }
        Ok(Some(entry.finish()))
    }

    /// Copies the body of `source` in, the parameters that it reads those of the entry, and the
    /// trained weights and what stages hand over and keep states; returns its outputs.
    fn on_states(
        &self,
        entry: &mut EntryBuilder<'_>,
        source: &Graph,
    ) -> Result<BTreeMap<Arc<str>, Value>, OpError> {
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        let is_output = |p: &Value| source.outputs.iter().any(|(_, v)| v == p);
        let is_read = |p: &Value| !source.users(p.node).is_empty() || is_output(p);
        for p in source.param_values().filter(is_read) {
            let (name, ty) = (source.param_name(p.node), source.ty(p).clone());
            let is_state = [HIDDEN, KEPT, COTANGENT].iter().any(|kind| name.starts_with(kind));
            let v = if is_state { entry.state(name, ty)? } else { entry.b.param(name, ty)? };
            map.insert(p, v);
        }
        let mut weights: BTreeMap<Arc<str>, Value> = BTreeMap::new();
        // Of each shard, the shape of the whole, and where it was gathered last.
        type Last = Option<(Arc<str>, Value)>;
        let mut shards: BTreeMap<Value, (ir::Shape, Last)> = BTreeMap::new();
        for id in source.topo() {
            let node = source.node(id);
            if node.op.name() == "param" {
                continue;
            }
            entry.b.at(&node.loc);
            let results = match loss::weight_name(source, id) {
                Some(name) if !self.trained.contains(name) => vec![entry.b.weight(name)?],
                Some(name) => vec![match weights.get(name) {
                    Some(v) => *v,
                    None => {
                        let v = self.weight(entry, name)?;
                        weights.insert(name.into(), v);
                        if self.sharding.held(name).weight == Holding::Shard {
                            shards.insert(v, (self.weight_type(name).shape, None));
                        }
                        v
                    }
                }],
                None => {
                    let mut inputs: Vec<_> =
                        node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
                    for v in inputs.iter_mut().flatten() {
                        let Some((shape, last)) = shards.get_mut(v) else { continue };
                        let known = last.as_ref().filter(|(loc, _)| {
                            !node.loc.is_empty() && *loc == node.loc && node.op.name() != "call"
                        });
                        *v = match known {
                            Some((_, whole)) => *whole,
                            None => self.sharding.gather(&mut entry.b, *v, shape, None)?,
                        };
                        *last = Some((node.loc.clone(), *v));
                    }
                    entry.b.op(node.op.name(), node.attrs.clone(), &inputs)?
                }
            };
            for (port, v) in results.into_iter().enumerate() {
                map.insert(Value { node: id, port }, v);
            }
        }
        Ok(source.outputs.iter().map(|(name, v)| (name.clone(), map[v])).collect())
    }

    fn accumulate(&self) -> Result<Entry, PassError> {
        let wrap = |e: OpError| PassError::new(ACCUMULATE, e);
        let mut entry = EntryBuilder::new(self.module, &self.name(ACCUMULATE));
        let source = &self.module.functions[gradients().as_str()];
        let source = head::fuse_head(self.module, source, self.chunk).map_err(wrap)?;
        let outputs = self.on_states(&mut entry, &source).map_err(wrap)?;
        self.add_up(&mut entry, |_, p| Ok(outputs[state_name("grad", &p.weight).as_str()]))
            .map_err(wrap)?;
        entry.outputs.push(("loss".into(), outputs[TOTAL]));
        for (name, _) in source.outputs.iter().filter(|(name, _)| name.starts_with(PROBE)) {
            entry.outputs.push((name.to_string(), outputs[name]));
        }
        for (name, _) in &source.outputs {
            if let Some(hidden) = name.strip_prefix("grad.").filter(|of| of.starts_with(HIDDEN)) {
                entry.outputs.push((stages::returned(hidden), outputs[name]));
            }
        }
        Ok(entry.finish())
    }

    /// Adds a micro-batch's gradients to those before.
    fn add_up(
        &self,
        entry: &mut EntryBuilder<'_>,
        mut grad: impl FnMut(&mut EntryBuilder<'_>, &Parameter) -> Result<Value, OpError>,
    ) -> Result<(), OpError> {
        let keep = entry.scalar("keep")?;
        let mut sums = Vec::new();
        for p in self.parameters {
            let sum = self.grad(entry, &p.weight)?;
            sums.push((grad(entry, p)?, p, sum));
        }
        // Gradients are added up as soon as they are there, the last layer's first: entries are
        // computed in the order of their outputs.
        sums.sort_by_key(|(grad, ..)| *grad);
        for (grad, p, sum) in sums {
            let holding = self.sharding.held(&p.weight).grad;
            entry.b.at(&p.weight);
            if self.sharding.ranks() > 1 {
                let squares = sum_of_squares(&mut entry.b, grad)?;
                entry.outputs.push((state_name("local", &p.weight), squares));
            }
            let grad = self.sharding.reduce(&mut entry.b, grad, holding)?;
            let new = entry.b.op1("accumulate", Attrs::none(), &[sum, grad, keep])?;
            entry.set(&state_name("grad", &p.weight), new);
        }
        Ok(())
    }

    fn evaluate(&self, forward: &Graph) -> Result<Entry, PassError> {
        let wrap = |e: OpError| PassError::new(EVALUATE, e);
        let mut entry = EntryBuilder::new(self.module, &self.name(EVALUATE));
        let forward = head::chunk_losses(self.module, forward, self.chunk).map_err(wrap)?;
        let outputs = self.on_states(&mut entry, &forward).map_err(wrap)?;
        entry.outputs.push(("loss".into(), outputs[TOTAL]));
        Ok(entry.finish())
    }
}

/// The forward of training itself, so that both have the same bits, with functions of its own, and
/// nothing dropped.
fn evaluated(module: &mut Module, entry: &str) -> Result<Graph, OpError> {
    let mut source = module.functions[gradients().as_str()].clone();
    source.outputs.retain(|(name, _)| &**name == TOTAL);
    source.remove_dead();
    own_callees(module, entry, &mut source, without_dropout)?;
    without_dropout(module, &source)
}

/// Gives a graph copies of the functions that it calls: what is prepared for one entry is not for
/// another.
fn own_callees(
    module: &mut Module,
    entry: &str,
    graph: &mut Graph,
    write: fn(&Module, &Graph) -> Result<Graph, OpError>,
) -> Result<(), OpError> {
    for id in graph.topo() {
        let Some(Attr::Str(callee)) = graph.node(id).attrs.get("callee").cloned() else { continue };
        let name: Arc<str> = format!("{entry}.{callee}").into();
        if !module.functions.contains_key(&name) {
            let mut copy = module.functions[&callee].clone();
            own_callees(module, entry, &mut copy, write)?;
            copy = write(module, &copy)?;
            copy.name = name.clone();
            module.add(copy);
        }
        let attrs = graph.attrs_mut(id);
        *attrs = attrs.clone().with("callee", &*name);
    }
    Ok(())
}
