//! Casts that are no launches: kernels that convert as they load and store.
//!
//! A value that nothing but a cast to a narrower type reads is stored in that type at once; a cast
//! to a wider one, which is exact, is left to the kernels that read it. Where a kernel does not
//! convert, the cast is launched, when it is first needed.

use std::collections::BTreeMap;

use ir::{DType, Dim, Graph, KernelSpec, Module, NodeId, TensorType, Value};

use super::{Planner, Storage};

/// The type that a node casts its one operand to, if that is all it does.
pub(crate) fn cast_of(module: &Module, graph: &Graph, id: NodeId) -> Option<DType> {
    let node = graph.node(id);
    let to = match node.op.name() {
        "cast" => node.results()[0].ty.dtype,
        "fused" => {
            let body = module.functions.get(node.attrs.str("callee"))?;
            let [(_, v)] = body.outputs.as_slice() else { return None };
            let is_cast = body.node(v.node).op.name() == "cast" && body.topo().len() == 2;
            is_cast.then(|| body.ty(*v).dtype)?
        }
        _ => return None,
    };
    let from = graph.ty(node.input(0));
    (from.shape == node.results()[0].ty.shape).then_some(to)
}

/// Products, which multiply in the narrowest of their operands' types and round the others to it.
const PRODUCTS: [&str; 6] =
    ["matmul", "linear_", "grouped_", "attention", "paged_attention", "conv"];

/// Whether a product multiplies its operand number `i`: logarithms of sums and cotangents of losses
/// are factors of no product.
fn is_factor(op: &str, i: usize) -> bool {
    match op {
        // The first two of a product with a loop behind it.
        "fused" => i < 2,
        "attention_grad" => i != 4,
        "linear_cross_entropy" | "linear_cross_entropy_dlogits" | "linear_cross_entropy_grad" => {
            i < 2
        }
        _ => true,
    }
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::Bf16 | DType::F16)
}

/// Whether a loop begins with a product.
fn has_product(body: &Graph) -> bool {
    let is_product = |id: &NodeId| matches!(body.node(*id).op.name(), "matmul" | "linear");
    body.topo().iter().any(is_product)
}

impl Planner<'_> {
    /// Takes care of a cast that needs no launch now.
    pub(super) fn is_spared(&mut self, id: NodeId) -> bool {
        let Some(to) = cast_of(self.module, self.graph, id) else { return false };
        let (value, from) = (Value { node: id, port: 0 }, self.graph.node(id).input(0));
        if self.narrowed.contains(&id) {
            let Some(storage) = self.storage.get(&from).cloned() else { return true };
            self.storage.insert(value, storage);
            return true;
        }
        let may_wait = to == DType::F32 && is_half(self.graph.ty(from).dtype) && {
            let users = self.graph.users(id);
            let is_output = self.graph.outputs.iter().any(|(_, output)| *output == value);
            !is_output && !users.is_empty() && users.into_iter().all(|user| self.is_launch(user))
        };
        if may_wait && self.storage.contains_key(&from) {
            self.widened.insert(value, from);
        }
        may_wait
    }

    fn is_launch(&self, id: NodeId) -> bool {
        let others = ["concat", "all_reduce", "reduce_scatter", "all_gather"];
        self.is_kernel(id) && !others.contains(&self.graph.node(id).op.name())
    }

    /// The operands of a node's kernel, as wide as the operator has them unless `spec` with the
    /// narrow ones has a kernel too.
    pub(super) fn read_narrow(
        &mut self,
        id: NodeId,
        spec: &mut KernelSpec,
        inputs: &mut [Option<Storage>],
    ) {
        let operands = self.graph.node(id).inputs();
        let is_product = PRODUCTS.iter().any(|product| spec.op.starts_with(product))
            || spec.body.as_ref().is_some_and(|body| has_product(body));
        let is_wide =
            |v: &Value| self.graph.ty(*v).dtype == DType::F32 && !self.widened.contains_key(v);
        let factors = operands.iter().enumerate().filter(|(i, _)| is_factor(spec.op, *i));
        if is_product && factors.filter_map(|(_, v)| v.as_ref()).any(is_wide) {
            return;
        }
        let mut narrow = Vec::new();
        for (i, v) in operands.iter().enumerate() {
            let Some(from) = v.as_ref().and_then(|v| self.widened.get(v)) else { continue };
            // A weight's type is what the others are rounded to.
            if i == 1 && ["linear", "gated_linear", "quantized_linear"].contains(&spec.op) {
                continue;
            }
            narrow.push((i, self.storage[from].clone()));
        }
        // All at once for products, otherwise what can be.
        let groups: Vec<&[(usize, Storage)]> =
            if is_product { vec![&narrow[..]] } else { narrow.chunks(1).collect() };
        for group in groups {
            let mut other = spec.clone();
            for (i, storage) in group {
                other.operands[*i] = Some(storage.layout.clone());
            }
            if self.kernels.converts(&other) {
                *spec = other;
                for (i, storage) in group {
                    inputs[*i] = Some(storage.clone());
                }
            }
        }
    }

    /// Launches casts that have waited, of operands that a kernel does not read as they are.
    pub(super) fn widen(&mut self, v: Value) {
        if self.storage.contains_key(&v) {
            return;
        }
        if let Some(from) = self.widened.get(&v) {
            let input = self.storage.get(from).cloned();
            self.kernel(v.node, vec![input]);
        }
    }

    /// Begins rows of matrices at multiples of sixteen bytes, if their kernel can write them so:
    /// of what is cast to a narrow type, for products copy their operands in such units, and of
    /// logits and their gradients. `narrow` has the casts that the kernel takes over.
    pub(super) fn pad_rows(
        &self,
        id: NodeId,
        spec: &mut KernelSpec,
        narrow: &BTreeMap<usize, Value>,
    ) {
        let is_cast = cast_of(self.module, self.graph, id).is_some_and(is_half);
        for port in 0..spec.results.len() {
            let own = Value { node: id, port };
            let is_meant = match spec.op {
                "cross_entropy" => narrow.contains_key(&port),
                "matmul" => self.is_logits(own),
                _ => is_cast,
            };
            let value = narrow.get(&port).copied().unwrap_or(own);
            let is_output = self.graph.outputs.iter().any(|(_, output)| *output == value);
            let [_, columns] = &*spec.results[port].ty.shape else { continue };
            let Some(columns) = columns.as_const() else { continue };
            if !is_meant || columns % 8 == 0 || is_output || self.made_in(value).is_some() {
                continue;
            }
            let mut other = spec.clone();
            other.results[port].strides[0] = Dim::from((columns + 7) / 8 * 8);
            if self.kernels.converts(&other) {
                *spec = other;
            }
        }
    }

    /// Whether a value is read as logits alone.
    fn is_logits(&self, v: Value) -> bool {
        let users = self.graph.users(v.node);
        let reads = |user: &NodeId| {
            let node = self.graph.node(*user);
            node.op.name() == "cross_entropy" && node.input(0) == v
        };
        !users.is_empty() && users.iter().all(reads)
    }

    /// Gives results of a kernel the type that their one reader casts them to, if the kernel stores
    /// them so; returns the casts' values by the results' numbers.
    pub(super) fn store_narrow(
        &mut self,
        id: NodeId,
        spec: &mut KernelSpec,
    ) -> BTreeMap<usize, Value> {
        let node = self.graph.node(id);
        let mut casts = BTreeMap::new();
        if !node.op.in_place().is_empty() {
            return casts;
        }
        for (port, fact) in node.results().iter().enumerate() {
            let value = Value { node: id, port };
            let reads = |user: &NodeId| self.graph.node(*user).inputs().contains(&Some(value));
            let users: Vec<NodeId> = self.graph.users(id).into_iter().filter(reads).collect();
            let [user] = users[..] else { continue };
            let is_output = self.graph.outputs.iter().any(|(_, output)| *output == value);
            if is_output || self.made_in(value).is_some() || fact.ty.dtype != DType::F32 {
                continue;
            }
            let to = cast_of(self.module, self.graph, user).filter(|to| is_half(*to));
            let Some(to) = to else { continue };
            let mut other = spec.clone();
            other.results[port].ty = TensorType { dtype: to, ..other.results[port].ty.clone() };
            if self.kernels.converts(&other) {
                *spec = other;
                self.narrowed.insert(user);
                casts.insert(port, Value { node: user, port: 0 });
            }
        }
        casts
    }
}
