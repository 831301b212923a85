//! States how a GPU rounds in training what is stored in a narrow type.
//!
//! Where weights are bf16 or f16, tensor cores multiply activations and cotangents in that type and
//! add in f32, forward and backward: PyTorch's autocast does the same. Entries are flattened, so
//! that what a layer's forward keeps is rounded once for all that reads it in the backward, and for
//! each value that products read there is one `cast` to the narrow type, behind which are views and
//! a cast back to f32 for each reader. Results of products are rounded too, unless they are added
//! to the residual stream. Norms, residuals, the loss and what it is made of stay f32: the head's
//! product gives logits in f32, which `cross_entropy` reads.
//!
//! What makes a value then stores it narrow at once, if nothing else reads it
//! ([`crate::plan_memory`]). Micikevicius et al. 2018, "Mixed Precision Training",
//! arXiv:1710.03740.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{
    Attrs, Builder, DType, Dim, Graph, Module, Node, NodeId, OpError, Target, TensorType, Value,
};

use crate::{
    PassError,
    plan_memory::{cast_of, flatten},
};

/// Rewrites the entries of a training step for a target; nothing where it is no GPU.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn mix_precision(module: &mut Module, target: &Target) -> Result<(), PassError> {
    if target.cuda.is_none() {
        return Ok(());
    }
    for name in module.entries.clone() {
        let graph = flatten(module, &name)?;
        let Some(half) = type_of_weights(&graph) else { continue };
        let mixed = Mixed::new(module, &graph, half);
        let mut graph = mixed.rewrite().map_err(|e| PassError::new(&name, e))?;
        graph.remove_dead();
        module.add(graph);
    }
    let called: BTreeSet<Arc<str>> = reachable(module);
    module.functions.retain(|name, _| called.contains(name));
    Ok(())
}

/// Entries and what they call.
fn reachable(module: &Module) -> BTreeSet<Arc<str>> {
    let mut open = module.entries.clone();
    let mut seen = BTreeSet::new();
    while let Some(name) = open.pop() {
        let Some(graph) = module.function(&name) else { continue };
        if !seen.insert(name) {
            continue;
        }
        for id in graph.topo() {
            if let Some(ir::Attr::Str(callee)) = graph.node(id).attrs.get("callee") {
                open.push(callee.clone());
            }
        }
    }
    seen
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::Bf16 | DType::F16)
}

/// Which operand is the weight of a product with one.
fn weight_of(op: &str) -> Option<usize> {
    match op {
        "linear" | "gated_linear" | "linear_cross_entropy" | "linear_cross_entropy_dlogits" => {
            Some(1)
        }
        "linear_grad" => Some(2),
        _ => None,
    }
}

/// The one narrow type of the weights of an entry's products.
fn type_of_weights(graph: &Graph) -> Option<DType> {
    let of = |id: NodeId| {
        let node = graph.node(id);
        let dtype = graph.ty(node.input(weight_of(node.op.name())?)).dtype;
        is_half(dtype).then_some(dtype)
    };
    let types: Vec<DType> = graph.topo().into_iter().filter_map(of).collect();
    let [first, rest @ ..] = &types[..] else { return None };
    rest.iter().all(|other| other == first).then_some(*first)
}

fn is_view(op: &str) -> bool {
    ["reshape", "transpose", "slice", "broadcast_to"].contains(&op)
}

/// Whether parts of a narrow tensor begin at multiples of sixteen bytes, which kernels that read or
/// write several elements at once count on: those of a slice of `x`, or of a tensor like `x` that
/// has parts of these sizes along an axis.
fn is_even(x: &TensorType, axis: i64, sizes: &[Dim]) -> bool {
    let even = |dim: &Dim| dim.as_const().is_some_and(|n| n % 8 == 0);
    let last = x.rank().checked_sub(1);
    let along_last = ir::normalize_axis(axis, x.rank()) == last;
    x.shape.last().is_some_and(even) && (!along_last || sizes.iter().all(even))
}

/// Whether a view of a narrow value may stand for one of the wide value.
fn may_view(graph: &Graph, node: &Node) -> bool {
    match node.op.name() {
        "slice" => {
            let attrs = &node.attrs;
            is_even(graph.ty(node.input(0)), attrs.int("axis"), attrs.dims("range"))
        }
        op => is_view(op),
    }
}

/// Whether the parts of a `concat` may be narrow.
fn may_join(graph: &Graph, node: &Node) -> bool {
    let axis = node.attrs.int("axis");
    let part = |v: &Value| {
        let ty = graph.ty(*v);
        let at = ir::normalize_axis(axis, ty.rank()).expect("inferred");
        is_even(ty, axis, &ty.shape[at..=at])
    };
    node.inputs().iter().flatten().all(part)
}

/// An entry, and what is known of its values before they are rounded.
struct Mixed<'a> {
    module: &'a Module,
    graph: &'a Graph,
    half: DType,
    /// Products of two matrices, one of which is narrow, or whose result is stored narrow.
    products: BTreeSet<NodeId>,
    /// Values that something reads rounded, perhaps through views.
    read_rounded: BTreeSet<Value>,
    /// Those that nothing needs unrounded.
    wholly: BTreeSet<Value>,
}

impl<'a> Mixed<'a> {
    fn new(module: &'a Module, graph: &'a Graph, half: DType) -> Mixed<'a> {
        let (read_rounded, wholly) = (BTreeSet::new(), BTreeSet::new());
        let products = BTreeSet::new();
        let mut mixed = Mixed { module, graph, half, products, read_rounded, wholly };
        let order = graph.topo();
        let matmuls = order.iter().filter(|id| graph.node(**id).op.name() == "matmul");
        mixed.products = matmuls.copied().filter(|id| mixed.is_narrow_product(*id)).collect();
        let outputs: BTreeSet<Value> = graph.outputs.iter().map(|(_, v)| *v).collect();
        // Readers come before what they read.
        for id in order.into_iter().rev() {
            let users = graph.users(id);
            for (port, fact) in graph.node(id).results().iter().enumerate() {
                if fact.ty.dtype != DType::F32 {
                    continue;
                }
                let v = Value { node: id, port };
                let (mut any, mut all) = (false, !outputs.contains(&v));
                for user in &users {
                    let inputs = graph.node(*user).inputs().iter().enumerate();
                    for (i, _) in inputs.filter(|(_, input)| **input == Some(v)) {
                        let (rounded, whole) = mixed.reads(*user, i);
                        any |= rounded;
                        all &= whole;
                    }
                }
                if any {
                    mixed.read_rounded.insert(v);
                    if all {
                        mixed.wholly.insert(v);
                    }
                }
            }
        }
        mixed
    }

    /// Whether a node reads operand `i` rounded, and whether it does not need it unrounded.
    fn reads(&self, user: NodeId, i: usize) -> (bool, bool) {
        let op = self.graph.node(user).op.name();
        let result = Value { node: user, port: 0 };
        let own = [&self.read_rounded, &self.wholly].map(|set| set.contains(&result));
        match op {
            _ if self.rounds(user, i) => (true, true),
            _ if may_view(self.graph, self.graph.node(user)) => (own[0], own[1]),
            // One buffer, of one type.
            "concat" => {
                let joins = own[1] && may_join(self.graph, self.graph.node(user));
                (joins, joins)
            }
            _ if cast_of(self.module, self.graph, user) == Some(self.half) => (true, true),
            _ => (false, self.tolerates(user)),
        }
    }

    /// Whether a node multiplies operand `i`.
    fn rounds(&self, user: NodeId, i: usize) -> bool {
        let node = self.graph.node(user);
        let narrow_weight = |w: usize| self.graph.ty(node.input(w)).dtype == self.half;
        match node.op.name() {
            "matmul" => self.products.contains(&user),
            "linear_grad" => i < 2 && narrow_weight(2),
            "attention" | "attention_lse" => i < 3,
            "attention_grad" => i != 4 && i < 6,
            op => weight_of(op).is_some_and(|w| i == 0 && narrow_weight(w)),
        }
    }

    /// Whether a node that could read more bits takes the rounded ones if there are such: sums
    /// over tokens, which are gradients of biases.
    fn tolerates(&self, user: NodeId) -> bool {
        self.graph.node(user).op.name() == "reduce_sum"
    }

    fn is_narrow_product(&self, id: NodeId) -> bool {
        let graph = self.graph;
        let node = graph.node(id);
        if node.results()[0].ty.dtype != DType::F32 {
            return false;
        }
        let comes_narrow = |v: &Value| {
            let mut v = *v;
            while is_view(graph.node(v.node).op.name()) {
                v = graph.node(v.node).input(0);
            }
            let widens = cast_of(self.module, graph, v.node) == Some(DType::F32);
            widens && graph.ty(graph.node(v.node).input(0)).dtype == self.half
        };
        let goes_narrow = || {
            let users = graph.users(id);
            let narrows = |user| cast_of(self.module, graph, user) == Some(self.half);
            !users.is_empty() && users.into_iter().all(narrows)
        };
        node.inputs().iter().flatten().any(comes_narrow) || goes_narrow()
    }

    fn rewrite(&self) -> Result<Graph, OpError> {
        let mut forms = Forms { half: self.half, narrow: BTreeMap::new(), wide: BTreeMap::new() };
        Builder::rewrite(self.module, self.graph, |b, id, inputs| {
            let node = self.graph.node(id);
            let op = node.op.name();
            if matches!(op, "weight" | "constant") {
                return Ok(None);
            }
            let first = || inputs[0].expect("operand");
            match cast_of(self.module, self.graph, id) {
                Some(to) if to == self.half && b.ty(first()).dtype == DType::F32 => {
                    return Ok(Some(vec![forms.narrow(b, first())?]));
                }
                Some(DType::F32) if b.ty(first()).dtype == self.half => {
                    return Ok(Some(vec![forms.widen(b, first())?]));
                }
                _ => {}
            }
            let result = Value { node: id, port: 0 };
            if may_view(self.graph, node)
                && let Some(half) = forms.narrow.get(&first()).copied()
                && b.ty(first()).dtype == DType::F32
                && forms.wide.get(&half) == Some(&first())
            {
                let view = b.op1(op, node.attrs.clone(), &[half])?;
                return Ok(Some(vec![forms.widen(b, view)?]));
            }
            let joins = || self.wholly.contains(&result) && may_join(self.graph, node);
            if op == "concat" && joins() {
                let parts: Result<Vec<Value>, OpError> =
                    inputs.iter().flatten().map(|v| forms.narrow(b, *v)).collect();
                let whole = b.op1("concat", node.attrs.clone(), &parts?)?;
                return Ok(Some(vec![forms.widen(b, whole)?]));
            }
            let mut inputs = inputs.to_vec();
            for (i, v) in node.inputs().iter().enumerate() {
                let (Some(old), Some(new)) = (v, inputs[i]) else { continue };
                let is_wide = b.ty(new).dtype == DType::F32;
                let tolerates = self.tolerates(id) && self.read_rounded.contains(old);
                if is_wide && (self.rounds(id, i) || tolerates) {
                    let half = forms.narrow(b, new)?;
                    inputs[i] = Some(forms.widen(b, half)?);
                }
            }
            if op == "linear_grad" && self.rounds(id, 0) {
                return forms.products_of_gradients(b, &inputs).map(Some);
            }
            if self.is_loss(id) && self.rounds(id, 0) {
                return forms.loss_of_logits(b, &inputs).map(Some);
            }
            // Read rounded and as it is.
            if op == "norm_grad"
                && self.read_rounded.contains(&result)
                && !self.wholly.contains(&result)
            {
                let attrs = node.attrs.clone().with("rounded", self.half);
                let mut results = b.op(op, attrs, &inputs)?;
                let half = results.pop().expect("rounded too");
                forms.narrow.insert(results[0], half);
                return Ok(Some(results));
            }
            let mut results = b.op(op, node.attrs.clone(), &inputs)?;
            if self.is_rounded(id) {
                let half = forms.narrow(b, results[0])?;
                results[0] = forms.widen(b, half)?;
            }
            Ok(Some(results))
        })
    }

    /// Whether a node computes losses of a head and, if anything more, gradients of its logits.
    fn is_loss(&self, id: NodeId) -> bool {
        let lse = Value { node: id, port: 1 };
        match self.graph.node(id).op.name() {
            "linear_cross_entropy_dlogits" => true,
            "linear_cross_entropy" => {
                let reads = |user: &NodeId| self.graph.node(*user).inputs().contains(&Some(lse));
                let is_output = self.graph.outputs.iter().any(|(_, v)| *v == lse);
                !is_output && !self.graph.users(id).iter().any(reads)
            }
            _ => false,
        }
    }

    /// Whether a product's result is rounded: with a residual it is part of what stays f32.
    fn is_rounded(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        match node.op.name() {
            "matmul" => self.products.contains(&id),
            "linear" | "gated_linear" => {
                let residual = node.inputs().get(3).is_some_and(Option::is_some);
                self.rounds(id, 0) && !residual
            }
            _ => false,
        }
    }
}

/// Forms of values in the new graph.
struct Forms {
    half: DType,
    /// Of an f32 value.
    narrow: BTreeMap<Value, Value>,
    /// Of a narrow value.
    wide: BTreeMap<Value, Value>,
}

impl Forms {
    /// A value rounded, views of it behind that.
    fn narrow(&mut self, b: &mut Builder<'_>, v: Value) -> Result<Value, OpError> {
        if let Some(half) = self.narrow.get(&v) {
            return Ok(*half);
        }
        let node = b.graph().node(v.node);
        let (op, attrs) = (node.op.name(), node.attrs.clone());
        let half = if may_view(b.graph(), node) {
            let from = node.input(0);
            let from = self.narrow(b, from)?;
            b.op1(op, attrs, &[from])?
        } else {
            b.op1("cast", Attrs::none().with("to", self.half), &[v])?
        };
        self.narrow.insert(v, half);
        Ok(half)
    }

    fn widen(&mut self, b: &mut Builder<'_>, half: Value) -> Result<Value, OpError> {
        if let Some(wide) = self.wide.get(&half) {
            return Ok(*wide);
        }
        let wide = b.op1("cast", Attrs::none().with("to", DType::F32), &[half])?;
        self.wide.insert(half, wide);
        self.narrow.insert(wide, half);
        Ok(wide)
    }

    /// `linear_grad` as two products, of which each has kernels of its own.
    fn products_of_gradients(
        &mut self,
        b: &mut Builder<'_>,
        inputs: &[Option<Value>],
    ) -> Result<Vec<Value>, OpError> {
        let [dy, x, w] = [0, 1, 2].map(|i| inputs[i].expect("operand"));
        let w = self.widen(b, w)?;
        let dx = b.matmul(dy, w)?;
        let dx = self.narrow(b, dx)?;
        let dx = self.widen(b, dx)?;
        let dy = self.narrow(b, dy)?;
        let dy = b.transpose(dy, &[1, 0])?;
        let dy = self.widen(b, dy)?;
        Ok(vec![dx, b.matmul(dy, x)?])
    }

    /// A head's losses from logits, and the gradients of those where there is a `dloss`.
    fn loss_of_logits(
        &mut self,
        b: &mut Builder<'_>,
        inputs: &[Option<Value>],
    ) -> Result<Vec<Value>, OpError> {
        let [x, w] = [0, 1].map(|i| inputs[i].expect("operand"));
        let w = b.transpose(w, &[1, 0])?;
        let w = self.widen(b, w)?;
        let logits = b.matmul(x, w)?;
        let args: Vec<_> = [Some(logits)].into_iter().chain(inputs[2..].iter().copied()).collect();
        b.op("cross_entropy", Attrs::none(), &args)
    }
}

#[cfg(test)]
mod tests;
