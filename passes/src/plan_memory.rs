//! Gives every value of an entry function a place, and lists the launches that compute them.
//!
//! Calls are flattened first: sharing, liveness and the arena are about the whole step. Reshapes,
//! transposes, slices and broadcasts become views of the buffer that they look at; a kernel that
//! cannot read such a view gets a copy. Buffers live from their first write to their last read and
//! are put at fixed offsets of one arena, sized by the symbols' upper bounds, largest first. The
//! arena's size is the exact peak. For a device with memory of its own, inputs lie one behind the
//! other, and so do outputs, whatever the sizes of a run: one copy moves them.

mod arena;
mod casts;
mod flatten;
mod groups;
mod parts;
#[cfg(test)]
mod tests;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ir::{
    Attrs, Collective, CollectiveOp, DType, Dim, Graph, Interval, Kernel, KernelSpec, Kernels,
    Launch, Layout, Module, NodeId, Part, Place, Port, Program, Region, Sharded, Symbols,
    TensorType, Value, artifact::MAX_SIZE,
};

use self::{
    arena::Request,
    groups::{Sized, Spot, assign_groups},
    views::{reshape_view, view_of},
};
pub(crate) use self::{casts::cast_of, flatten::flatten};
use crate::{PassError, page_kv::State};

/// A program whose kernels are specified but not yet generated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Launches, places and sizes. What code generation decides of a kernel (symbol, offset, tiles,
    /// scratch memory) is still empty.
    pub program: Program,
    /// What each kernel of the program computes.
    pub specs: Vec<KernelSpec>,
    /// Names of the weights that [`Region::Weight`] numbers.
    pub weights: Vec<Arc<str>>,
}

/// Plans an entry function.
///
/// # Errors
/// Every node that no kernel computes, with the reason; an update in place of what is no state or
/// is read elsewhere; buffers that are larger than an artifact allows, one or together.
pub fn plan_memory(
    module: &Module,
    entry: &str,
    states: &[State],
    kernels: &dyn Kernels,
) -> Result<Plan, Vec<PassError>> {
    let graph = flatten(module, entry).map_err(|e| vec![e])?;
    let mut planner = Planner::new(module, &graph, states, kernels);
    planner.place_inputs();
    planner.place_made(states);
    for id in graph.topo() {
        planner.visit(id);
    }
    planner.catch_up();
    planner.finish(entry)
}

/// Memory that a value is a view of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// A buffer of the arena.
    Buffer(usize),
    Weight(u32),
    State(u32),
}

/// Where a value's elements are.
#[derive(Clone, Debug)]
struct Storage {
    memory: Memory,
    /// Element zero, in bytes from the memory's beginning.
    offset: Dim,
    layout: Layout,
}

struct Buffer {
    name: String,
    bytes: Dim,
    first: u32,
    last: u32,
}

struct Planner<'a> {
    module: &'a Module,
    graph: &'a Graph,
    kernels: &'a dyn Kernels,
    symbols: Arc<Symbols>,
    state_params: Vec<Arc<str>>,
    /// The state that an output is the new value of.
    state_outputs: HashMap<Arc<str>, Arc<str>>,
    /// Outputs that are made in states which no parameter reads, with the states' numbers.
    made: Vec<(Arc<str>, Value, u32)>,
    storage: BTreeMap<Value, Storage>,
    /// Values that are exact casts of others, and are not there yet.
    widened: BTreeMap<Value, Value>,
    /// Casts of what is stored in their type already.
    narrowed: BTreeSet<NodeId>,
    /// Results of `concat` that have a place, because a part has been computed there.
    wholes: BTreeMap<NodeId, Storage>,
    buffers: Vec<Buffer>,
    weights: Vec<Arc<str>>,
    states: Vec<Port>,
    inputs: Vec<(Arc<str>, TensorType, usize)>,
    specs: Vec<KernelSpec>,
    spec_numbers: HashMap<SpecKey, u32>,
    launches: Vec<(u32, Vec<Option<Storage>>, String)>,
    collectives: Vec<Planned>,
    /// Before which launches something was gathered.
    gathers: Vec<u32>,
    /// Nodes that wait for a reduction to end.
    late: Vec<NodeId>,
    parts: Vec<Part>,
    shards: Vec<Sharded>,
    errors: Vec<PassError>,
}

/// A collective, and where its operand and result are.
struct Planned {
    collective: Collective,
    input: Storage,
    output: Storage,
    /// Whether it is known before which launch it has ended.
    has_ended: bool,
}

type SpecKey = (&'static str, Attrs, Vec<Option<Layout>>, Vec<Layout>);

impl<'a> Planner<'a> {
    fn new(
        module: &'a Module,
        graph: &'a Graph,
        states: &[State],
        kernels: &'a dyn Kernels,
    ) -> Self {
        let outputs = states.iter().filter_map(|s| Some((s.output.clone()?, s.param.clone())));
        let parts = states.iter().filter_map(|s| {
            let (of, offset) = s.part_of.clone()?;
            Some(Part { state: s.param.clone(), of, offset })
        });
        let shards = states
            .iter()
            .filter_map(|s| Some(Sharded { state: s.param.clone(), of: s.shard_of.clone()? }));
        Planner {
            module,
            graph,
            kernels,
            symbols: Arc::new(module.symbols.clone()),
            state_params: states.iter().map(|s| s.param.clone()).collect(),
            state_outputs: outputs.collect(),
            made: Vec::new(),
            storage: BTreeMap::new(),
            widened: BTreeMap::new(),
            narrowed: BTreeSet::new(),
            wholes: BTreeMap::new(),
            buffers: Vec::new(),
            weights: Vec::new(),
            states: Vec::new(),
            inputs: Vec::new(),
            specs: Vec::new(),
            spec_numbers: HashMap::new(),
            launches: Vec::new(),
            collectives: Vec::new(),
            gathers: Vec::new(),
            late: Vec::new(),
            parts: parts.collect(),
            shards: shards.collect(),
            errors: Vec::new(),
        }
    }

    fn place_inputs(&mut self) {
        for v in self.graph.param_values() {
            let name: Arc<str> = self.graph.param_name(v.node).into();
            let ty = self.graph.ty(v).clone();
            let memory = if self.state_params.contains(&name) {
                let number = u32::try_from(self.states.len()).expect("few states");
                let place = Place { region: Region::State(number), offset: Dim::from(0) };
                self.states.push(Port { name, ty: ty.clone(), place });
                Memory::State(number)
            } else {
                let buffer = self.buffer(&name, &ty);
                self.inputs.push((name, ty.clone(), buffer));
                Memory::Buffer(buffer)
            };
            let layout = Layout::contiguous(&ty);
            self.storage.insert(v, Storage { memory, offset: Dim::from(0), layout });
        }
    }

    /// Gives a place to states that the entry makes and does not take: their outputs are computed
    /// there.
    fn place_made(&mut self, states: &[State]) {
        for state in states.iter().filter(|state| self.graph.param(&state.param).is_none()) {
            let of = |(name, _): &&(Arc<str>, Value)| Some(name) == state.output.as_ref();
            let Some((name, v)) = self.graph.outputs.iter().find(of) else { continue };
            let number = u32::try_from(self.states.len()).expect("few states");
            let place = Place { region: Region::State(number), offset: Dim::from(0) };
            let ty = self.graph.ty(*v).clone();
            self.states.push(Port { name: state.param.clone(), ty, place });
            self.state_outputs.remove(name);
            self.made.push((name.clone(), *v, number));
        }
    }

    /// The state in which a value is to be made, if there is one.
    fn made_in(&self, v: Value) -> Option<Storage> {
        let (_, _, number) = self.made.iter().find(|(_, made, _)| *made == v)?;
        let layout = Layout::contiguous(self.graph.ty(v));
        Some(Storage { memory: Memory::State(*number), offset: Dim::from(0), layout })
    }

    /// A buffer of the arena, written by the next launch.
    fn buffer(&mut self, name: &str, ty: &TensorType) -> usize {
        let now = self.now();
        self.buffers.push(Buffer { name: name.into(), bytes: ty.bytes(), first: now, last: now });
        self.buffers.len() - 1
    }

    fn fresh(&mut self, name: &str, ty: &TensorType) -> Storage {
        let buffer = self.buffer(name, ty);
        Storage {
            memory: Memory::Buffer(buffer),
            offset: Dim::from(0),
            layout: Layout::contiguous(ty),
        }
    }

    /// As [`Self::fresh`], in a layout without overlaps.
    fn fresh_as(&mut self, name: &str, layout: &Layout) -> Storage {
        let mut storage = self.fresh(name, &layout.ty);
        if let (false, Memory::Buffer(b)) = (layout.is_contiguous(), storage.memory) {
            let (rows, stride) = (layout.ty.shape[0].clone(), layout.strides[0].clone());
            self.buffers[b].bytes = rows * stride * Dim::from(layout.ty.dtype.size());
            storage.layout = layout.clone();
        }
        storage
    }

    fn now(&self) -> u32 {
        u32::try_from(self.launches.len()).expect("fewer than 2^32 launches")
    }

    fn fail(&mut self, id: NodeId, why: impl std::fmt::Display) {
        let node = self.graph.node(id);
        let loc = if node.loc.is_empty() { String::new() } else { format!(" `{}`", node.loc) };
        self.errors.push(PassError::new(&self.graph.name, format!("{:?}{loc}: {why}", node.op)));
    }

    fn visit(&mut self, id: NodeId) {
        if self.may_be_late(id) {
            self.late.push(id);
        } else {
            self.visit_now(id);
        }
    }

    fn visit_now(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let value = Value { node: id, port: 0 };
        if self.is_spared(id) {
            return;
        }
        let inputs: Option<Vec<Option<Storage>>> = node
            .inputs()
            .iter()
            .map(|v| match v {
                Some(v) => self.storage_of(v).map(Some),
                None => Some(None),
            })
            .collect();
        // An operand that failed has been reported.
        let Some(inputs) = inputs else { return };
        match node.op.name() {
            "param" => {}
            "weight" => {
                let name: Arc<str> = node.attrs.str("name").into();
                let known = self.weights.iter().position(|w| *w == name);
                let number = known.unwrap_or_else(|| {
                    self.weights.push(name);
                    self.weights.len() - 1
                });
                let memory = Memory::Weight(u32::try_from(number).expect("few weights"));
                let layout = Layout::contiguous(&node.results()[0].ty);
                self.storage.insert(value, Storage { memory, offset: Dim::from(0), layout });
            }
            "reshape" => {
                let x = inputs[0].clone().expect("operand");
                let ty = node.results()[0].ty.clone();
                let view = match reshape_view(&x.layout, &ty) {
                    Some(layout) => Storage { layout, ..x },
                    None => {
                        let Some(copy) = self.copy(id, &x, None) else { return };
                        Storage { layout: Layout::contiguous(&ty), ..copy }
                    }
                };
                self.storage.insert(value, view);
            }
            "transpose" | "slice" | "broadcast_to" => {
                let x = inputs[0].clone().expect("operand");
                let (layout, skip) = view_of(node, &x.layout);
                let bytes = Dim::from(layout.ty.dtype.size());
                let offset = x.offset + skip * bytes;
                self.storage.insert(value, Storage { memory: x.memory, offset, layout });
            }
            "concat" => self.concat(id, &inputs),
            "all_reduce" | "reduce_scatter" | "all_gather" => self.collective(id, &inputs),
            _ => self.kernel(id, inputs),
        }
    }

    /// Where a value is, or will be: of one that has to be widened first, in its own type.
    fn storage_of(&self, v: &Value) -> Option<Storage> {
        let waits = || {
            let from = self.storage.get(self.widened.get(v)?)?;
            let layout = Layout::contiguous(self.graph.ty(*v));
            Some(Storage { layout, ..from.clone() })
        };
        self.storage.get(v).cloned().or_else(waits)
    }

    /// Copies each operand into its part of the result, unless it has been computed there.
    fn concat(&mut self, id: NodeId, inputs: &[Option<Storage>]) {
        let node = self.graph.node(id);
        let whole = self.whole_of(id);
        for (i, x) in inputs.iter().enumerate() {
            let Some(x) = x else { continue };
            let part = parts::part_of(self.graph, node, &whole, i);
            let is_there = x.memory == part.memory && x.offset == part.offset;
            if !is_there && self.copy(id, x, Some(part)).is_none() {
                return;
            }
        }
        self.storage.insert(Value { node: id, port: 0 }, whole);
    }

    /// Launches a copy of `from` into `to`, or into a new buffer.
    fn copy(&mut self, id: NodeId, from: &Storage, to: Option<Storage>) -> Option<Storage> {
        let to = match to {
            Some(to) => to,
            None => self.fresh(&format!("{}.copy", self.label(id)), &from.layout.ty),
        };
        let spec = KernelSpec {
            op: "copy",
            attrs: Attrs::none(),
            operands: vec![Some(from.layout.clone())],
            results: vec![to.layout.clone()],
            body: None,
            symbols: self.symbols.clone(),
        };
        if let Err(why) = self.kernels.supports(&spec) {
            self.fail(id, why);
            return None;
        }
        let label = format!("{} (copy)", self.label(id));
        self.launch(spec, vec![Some(from.clone()), Some(to.clone())], label);
        Some(to)
    }

    /// A collective, which begins as early as its operand is there, and ends before the first
    /// launch that reads its result.
    ///
    /// What is gathered of a state begins when the gathering before it has ended, so that it comes
    /// while a layer is computed: what two layers gather is there at once, and no more.
    fn collective(&mut self, id: NodeId, inputs: &[Option<Storage>]) {
        let node = self.graph.node(id);
        let op = CollectiveOp::find(node.op.name()).expect("a collective");
        let mut start = self.now();
        if op != CollectiveOp::AllGather {
            // What was reduced last is used now, while this is reduced.
            self.catch_up();
        }
        let mut input = inputs[0].clone().expect("operand");
        if !input.layout.is_contiguous() {
            let Some(copy) = self.copy(id, &input, None) else { return };
            (input, start) = (copy, self.now());
        }
        self.end_collectives(input.memory, false);
        let ty = node.results()[0].ty.clone();
        // A view may be of what others read.
        let is_last_use = |x: &Storage| {
            let v = node.input(0);
            let is_buffer = matches!(x.memory, Memory::Buffer(_)) && self.is_kernel(v.node);
            is_buffer && self.is_read_before(v, id)
        };
        let now = self.now();
        let into = node.inputs().get(1).copied().flatten();
        let output = match (op, into) {
            (_, Some(into)) => {
                if let Err(why) = self.may_update(id, into) {
                    self.fail(id, format!("cannot write into its operand: it {why}"));
                    return;
                }
                inputs[1].clone().expect("there")
            }
            (CollectiveOp::AllReduce, None) if is_last_use(&input) => input.clone(),
            (CollectiveOp::AllGather, None) if self.is_constant_state(node.input(0)) => {
                if self.gathers.last() != Some(&now) {
                    self.gathers.push(now);
                }
                start = self.gathers.iter().rev().nth(1).copied().unwrap_or(0);
                self.fresh(&self.label(id), &ty)
            }
            _ => self.fresh(&self.label(id), &ty),
        };
        if into.is_some() {
            // One after the other, so that what they read need not be there all at once.
            self.end_gathers();
        }
        if let (Memory::Buffer(b), None) = (output.memory, into) {
            let first = &mut self.buffers[b].first;
            *first = start.min(*first);
        }
        let whole = match op {
            CollectiveOp::AllGather => &ty,
            _ => self.graph.ty(node.input(0)),
        };
        let nowhere = Place { region: Region::Null, offset: Dim::from(0) };
        let collective = Collective {
            op,
            axis: node.attrs.str("axis").into(),
            ranks: u32::try_from(node.attrs.int("ranks")).expect("inferred"),
            dtype: ty.dtype,
            elements: whole.elements(),
            input: nowhere.clone(),
            output: nowhere,
            start,
            end: now,
            label: self.label(id),
        };
        self.storage.insert(Value { node: id, port: 0 }, output.clone());
        self.collectives.push(Planned { collective, input, output, has_ended: false });
    }

    /// Whether a value is a state that this program leaves as it is.
    fn is_constant_state(&self, v: Value) -> bool {
        let node = self.graph.node(v.node);
        let is_updated = || {
            let name = self.graph.param_name(v.node);
            self.state_outputs.values().any(|state| **state == *name)
        };
        let is_state = self.storage.get(&v).is_some_and(|s| matches!(s.memory, Memory::State(_)));
        node.op.name() == "param" && is_state && !is_updated()
    }

    /// Ends the collectives before the next launch that make what it reads, or use what it writes.
    fn end_collectives(&mut self, memory: Memory, is_written: bool) {
        let now = self.now();
        for planned in self.collectives.iter_mut().filter(|planned| !planned.has_ended) {
            let is_read = is_written && planned.input.memory == memory;
            if is_read || planned.output.memory == memory {
                planned.has_ended = true;
                planned.collective.end = now;
                for storage in [&planned.input, &planned.output] {
                    if let Memory::Buffer(b) = storage.memory {
                        let last = &mut self.buffers[b].last;
                        *last = now.max(*last);
                    }
                }
            }
        }
    }

    /// Ends the gathers into states before the next launch.
    fn end_gathers(&mut self) {
        let into = |planned: &Planned| {
            let is_state = matches!(planned.output.memory, Memory::State(_));
            (!planned.has_ended && is_state).then_some(planned.output.memory)
        };
        let under_way: Vec<Memory> = self.collectives.iter().filter_map(into).collect();
        under_way.into_iter().for_each(|memory| self.end_collectives(memory, false));
    }

    /// Whether a node does nothing but add up the result of a reduction, which nobody waits for.
    fn may_be_late(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let is_reduced = |v: &Value| {
            let op = CollectiveOp::find(self.graph.node(v.node).op.name());
            matches!(op, Some(CollectiveOp::AllReduce | CollectiveOp::ReduceScatter))
        };
        let is_given = |v: &Value| self.graph.node(v.node).op.name() == "param";
        let mut inputs = node.inputs().iter().flatten();
        self.graph.users(id).is_empty()
            && node.inputs().iter().flatten().any(is_reduced)
            && inputs.all(|v| is_reduced(v) || is_given(v))
    }

    /// Launches what waited for reductions.
    fn catch_up(&mut self) {
        for id in std::mem::take(&mut self.late) {
            self.visit_now(id);
        }
    }

    fn kernel(&mut self, id: NodeId, mut inputs: Vec<Option<Storage>>) {
        let node = self.graph.node(id);
        let in_place = node.op.in_place();
        let in_place = in_place.iter().filter(|(result, _)| *result < node.results().len());
        let in_place: Vec<(usize, usize)> = in_place.copied().collect();
        for (_, operand) in &in_place {
            if let Err(why) = self.may_update(id, node.input(*operand)) {
                self.fail(id, format!("cannot update operand {operand} in place: it {why}"));
                return;
            }
        }
        let body = match node.op.name() {
            "fused" => self.module.functions.get(node.attrs.str("callee")).cloned().map(Arc::new),
            _ => None,
        };
        let results: Vec<Layout> =
            node.results().iter().map(|f| Layout::contiguous(&f.ty)).collect();
        let mut spec = KernelSpec {
            op: node.op.name(),
            attrs: node.attrs.clone(),
            operands: inputs.iter().map(|s| s.as_ref().map(|s| s.layout.clone())).collect(),
            results,
            body,
            symbols: self.symbols.clone(),
        };
        self.read_narrow(id, &mut spec, &mut inputs);
        for (i, v) in node.inputs().iter().enumerate() {
            let Some(v) = v.filter(|v| !self.storage.contains_key(v)) else { continue };
            if inputs[i].as_ref().is_some_and(|s| s.layout.ty.dtype == self.graph.ty(v).dtype) {
                self.widen(v);
                let Some(storage) = self.storage.get(&v).cloned() else { return };
                spec.operands[i] = Some(storage.layout.clone());
                inputs[i] = Some(storage);
            }
        }
        let narrow = self.store_narrow(id, &mut spec);
        self.pad_rows(id, &mut spec, &narrow);
        let in_parts = self.compute_parts(id, &mut spec, &narrow);
        if self.kernels.supports(&spec).is_err() {
            // A view that this kernel cannot read becomes a copy in row-major order.
            for (i, input) in inputs.iter_mut().enumerate() {
                let Some(x) = input.clone() else { continue };
                if x.layout.is_contiguous() || in_place.iter().any(|(_, o)| *o == i) {
                    continue;
                }
                let Some(copy) = self.copy(id, &x, None) else { return };
                spec.operands[i] = Some(copy.layout.clone());
                *input = Some(copy);
                if self.kernels.supports(&spec).is_ok() {
                    break;
                }
            }
            if let Err(why) = self.kernels.supports(&spec) {
                self.fail(id, why);
                return;
            }
        }
        let mut args = inputs.clone();
        for (port, layout) in spec.results.clone().iter().enumerate() {
            let storage = match in_place.iter().find(|(r, _)| *r == port) {
                Some((_, operand)) => inputs[*operand].clone().expect("operand"),
                None if in_parts.contains_key(&port) => {
                    let (concat, i) = in_parts[&port];
                    let whole = self.whole_of(concat);
                    let part = parts::part_of(self.graph, self.graph.node(concat), &whole, i);
                    Storage { layout: layout.clone(), ..part }
                }
                None => {
                    let own = Value { node: id, port };
                    self.made_in(narrow.get(&port).copied().unwrap_or(own)).unwrap_or_else(|| {
                        let name = match spec.results.len() {
                            1 => self.label(id),
                            _ => format!("{}.{port}", self.label(id)),
                        };
                        self.fresh_as(&name, layout)
                    })
                }
            };
            self.storage.insert(Value { node: id, port }, storage.clone());
            args.push(Some(storage));
        }
        let label = self.label(id);
        let workspace = self.kernels.workspace_bytes(&spec);
        if let Some(bytes) = i64::try_from(workspace).ok().filter(|bytes| *bytes > 0) {
            let ty = TensorType::new(DType::U8, [bytes]);
            args.push(Some(self.fresh(&format!("{label}.workspace"), &ty)));
        }
        self.launch(spec, args, label);
    }

    /// Whether a node may write to the memory of a value: a state, or a state after another write,
    /// that nothing else reads afterwards.
    fn may_update(&self, id: NodeId, v: Value) -> Result<(), &'static str> {
        let node = self.graph.node(v.node);
        let whole = match node.op.name() {
            "param" => true,
            _ => node.op.in_place().iter().any(|(result, _)| *result == v.port),
        };
        match self.storage.get(&v).map(|s| s.memory) {
            Some(Memory::State(_)) if whole => {}
            _ => return Err("is not a state of the program"),
        }
        let own = self.graph.node(id).inputs().iter().filter(|input| **input == Some(v)).count();
        match own == 1 && self.is_read_before(v, id) {
            true => Ok(()),
            false => Err("is read elsewhere too"),
        }
    }

    /// Whether everything but `id` that reads the memory of a value has been launched.
    fn is_read_before(&self, v: Value, id: NodeId) -> bool {
        if self.graph.outputs.iter().any(|(_, output)| *output == v) {
            return false;
        }
        let memory = self.storage.get(&v).map(|s| s.memory);
        let mut others = self.graph.users(v.node).into_iter().filter(|user| *user != id);
        others.all(|user| {
            let node = self.graph.node(user);
            let result = Value { node: user, port: 0 };
            let reads = node.inputs().contains(&Some(v));
            let is_view = !self.is_kernel(user);
            match self.storage.get(&result) {
                _ if !reads => true,
                None => false,
                Some(s) if is_view && Some(s.memory) == memory => self.is_read_before(result, id),
                Some(_) => true,
            }
        })
    }

    fn is_kernel(&self, id: NodeId) -> bool {
        let views = ["reshape", "transpose", "slice", "broadcast_to"];
        !views.contains(&self.graph.node(id).op.name())
    }

    fn launch(&mut self, spec: KernelSpec, args: Vec<Option<Storage>>, label: String) {
        for (i, s) in args.iter().enumerate() {
            if let Some(s) = s {
                self.end_collectives(s.memory, i >= spec.operands.len());
            }
        }
        let now = self.now();
        for s in args.iter().flatten() {
            if let Memory::Buffer(b) = s.memory {
                self.buffers[b].last = now;
            }
        }
        let key = (spec.op, spec.attrs.clone(), spec.operands.clone(), spec.results.clone());
        let next = u32::try_from(self.specs.len()).expect("few kernels");
        let number = *self.spec_numbers.entry(key).or_insert(next);
        if number == next {
            self.specs.push(spec);
        }
        self.launches.push((number, args, label));
    }

    fn label(&self, id: NodeId) -> String {
        let node = self.graph.node(id);
        let op = node.op.name();
        if node.loc.is_empty() { op.into() } else { format!("{} {op}", node.loc) }
    }

    /// Buffers that are to lie together: those of inputs, and those that are outputs.
    fn groups(&self, outputs: &[(Arc<str>, Storage)]) -> [Vec<usize>; 2] {
        if !self.kernels.run_apart() {
            return [Vec::new(), Vec::new()];
        }
        let inputs: Vec<usize> = self.inputs.iter().map(|(_, _, b)| *b).collect();
        let whole = |(_, x): &(Arc<str>, Storage)| match x.memory {
            Memory::Buffer(b) if !inputs.contains(&b) => {
                (x.offset.is(0) && self.buffers[b].bytes == x.layout.ty.bytes()).then_some(b)
            }
            _ => None,
        };
        let outputs = outputs.iter().filter_map(whole).collect();
        [inputs, outputs]
    }

    fn finish(mut self, entry: &str) -> Result<Plan, Vec<PassError>> {
        let mut outputs = Vec::new();
        for (name, v) in &self.graph.outputs.clone() {
            let Some(x) = self.storage.get(v).cloned() else { continue };
            if let Some(state) = self.state_outputs.get(name) {
                let number = self.states.iter().position(|port| port.name == *state);
                let number = number.and_then(|n| u32::try_from(n).ok());
                if number.is_none_or(|n| x.memory != Memory::State(n)) {
                    let why = format!("output `{name}` is not its state updated in place");
                    self.errors.push(PassError::new(entry, why));
                }
                continue;
            }
            if let Some((_, _, number)) = self.made.iter().find(|(made, ..)| made == name) {
                let memory = Memory::State(*number);
                if x.memory != memory {
                    let layout = Layout::contiguous(&x.layout.ty);
                    let state = Storage { memory, offset: Dim::from(0), layout };
                    self.copy(v.node, &x, Some(state));
                }
                continue;
            }
            // The caller reads outputs in row-major order from the arena.
            let ready = x.layout.is_contiguous()
                && matches!(x.memory, Memory::Buffer(_))
                && !outputs.iter().any(|(_, o): &(_, Storage)| o.memory == x.memory);
            let x = match ready {
                true => Some(x),
                false => self.copy(v.node, &x, None),
            };
            outputs.extend(x.map(|x| (name.clone(), x)));
        }
        let end = self.now();
        for (_, s) in &outputs {
            if let Memory::Buffer(b) = s.memory {
                self.buffers[b].last = end;
            }
        }
        let pending: Vec<Memory> = self.collectives.iter().map(|c| c.output.memory).collect();
        pending.into_iter().for_each(|memory| self.end_collectives(memory, false));
        self.collectives.sort_by_key(|planned| planned.collective.start);
        // Inputs are written before the first launch.
        for (_, _, b) in &self.inputs {
            self.buffers[*b].first = 0;
        }
        let mut sized = Vec::new();
        for b in &self.buffers {
            let bound = b.bytes.bounds(&self.symbols).hi;
            match u64::try_from(bound) {
                Ok(bytes) if bound <= MAX_SIZE => {
                    let request = Request { bytes, first: b.first, last: b.last };
                    sized.push(Sized { request, bytes: b.bytes.clone() });
                }
                _ => {
                    let why = format!(
                        "`{}` takes {} bytes, which may be more than the {MAX_SIZE} that an \
                         artifact holds; state lower bounds of its dimensions with --bound",
                        b.name, b.bytes
                    );
                    self.errors.push(PassError::new(entry, why));
                }
            }
        }
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        let groups = self.groups(&outputs);
        let (spots, arena_bytes) = assign_groups(&sized, &groups, &self.symbols);
        if arena_bytes > MAX_SIZE.unsigned_abs() {
            let largest = self.buffers.iter().zip(&sized).max_by_key(|(_, s)| s.request.bytes);
            let largest = largest.map_or("", |(b, _)| &b.name);
            let why = format!(
                "takes {arena_bytes} bytes of memory at the bounds of its sizes, more than the \
                 {MAX_SIZE} that an artifact holds; the largest value is `{largest}`: state lower \
                 bounds with --bound"
            );
            return Err(vec![PassError::new(entry, why)]);
        }
        let place = |s: &Storage| match s.memory {
            Memory::Buffer(b) => {
                Place { region: Region::Arena, offset: s.offset.clone() + spots[b].offset.clone() }
            }
            Memory::Weight(w) => Place { region: Region::Weight(w), offset: s.offset.clone() },
            Memory::State(n) => Place { region: Region::State(n), offset: s.offset.clone() },
        };
        let null = Place { region: Region::Null, offset: Dim::from(0) };
        let launches = self.launches.iter().map(|(kernel, args, label)| Launch {
            kernel: *kernel,
            args: args.iter().map(|a| a.as_ref().map_or(null.clone(), &place)).collect(),
            label: label.clone(),
        });
        let collectives = self.collectives.iter().map(|planned| Collective {
            input: place(&planned.input),
            output: place(&planned.output),
            ..planned.collective.clone()
        });
        let intervals = self.buffers.iter().zip(&sized).zip(&spots);
        let intervals = intervals.map(|((b, s), Spot { last, .. })| Interval {
            name: b.name.clone(),
            offset: *last,
            bytes: s.request.bytes,
            first: b.first,
            last: b.last,
        });
        let program = Program {
            name: entry.into(),
            symbols: self.module.symbols.clone(),
            inputs: self
                .inputs
                .iter()
                .map(|(name, ty, b)| Port {
                    name: name.clone(),
                    ty: ty.clone(),
                    place: Place { region: Region::Arena, offset: spots[*b].offset.clone() },
                })
                .collect(),
            outputs: outputs
                .iter()
                .map(|(name, s)| Port {
                    name: name.clone(),
                    ty: s.layout.ty.clone(),
                    place: place(s),
                })
                .collect(),
            states: self.states.clone(),
            parts: self.parts.clone(),
            shards: self.shards.clone(),
            kernels: self.specs.iter().map(empty_kernel).collect(),
            launches: launches.collect(),
            collectives: collectives.collect(),
            arena_bytes,
            intervals: intervals.collect(),
            window: window(&self.specs),
        };
        Ok(Plan { program, specs: self.specs, weights: self.weights })
    }
}

/// The largest window of all attention over paged memory; `None` where one has none.
fn window(specs: &[KernelSpec]) -> Option<u64> {
    let paged = specs.iter().filter(|spec| spec.op == "paged_attention");
    let windows = paged.map(|spec| u64::try_from(spec.attrs.int("window")).ok().filter(|w| *w > 0));
    windows.collect::<Option<Vec<u64>>>()?.into_iter().max()
}

/// What is known of a kernel before its code is.
fn empty_kernel(spec: &KernelSpec) -> Kernel {
    Kernel {
        op: spec.op.into(),
        symbol: String::new(),
        code_offset: 0,
        dims: Vec::new(),
        tiles: Dim::from(0),
        scratch_bytes: 0,
        flops: Dim::from(0),
        bytes: Dim::from(0),
        cuda: Vec::new(),
    }
}
