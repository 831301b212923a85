//! Loops of what a product gives, by the product's own kernel.
//!
//! Where a GPU multiplies narrow matrices in training, what follows element by element, as an
//! activation or its derivative does, is computed of sums in registers: the product is not written
//! and read again. Where others read the product too, as the backward reads what an activation was
//! of, both are results. What was rounded between the two still is, so that no bit depends on it.

use std::{collections::BTreeMap, sync::Arc};

use ir::{Attrs, Builder, DType, Graph, Module, NodeId, OpError, Target, Value};

use crate::{PassError, norm_residuals::follows, plan_memory::cast_of};

/// Most matrices that a loop reads beside the product.
const MAX_OPERANDS: usize = 3;

/// Rewrites the entries of a training step for a target; nothing where it is no GPU.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn fuse_products(module: &mut Module, target: &Target) -> Result<(), PassError> {
    if target.cuda.is_none() {
        return Ok(());
    }
    // Functions by their text: equal layers have one kernel.
    let mut known: BTreeMap<String, Arc<str>> = BTreeMap::new();
    for name in module.entries.clone() {
        let mut graph = module.functions[&name].clone();
        while let Some(behind) = Behind::of(module, &graph) {
            let wrap = |e: OpError| PassError::new(&name, e);
            let mut body = behind.body(module, &graph).map_err(wrap)?;
            let number = known.len();
            let callee = known.entry(body.to_string()).or_insert_with(|| {
                let name: Arc<str> = format!("product.fused.{number}").into();
                body.name = name.clone();
                module.add(body);
                name
            });
            graph = behind.taken(module, graph, callee).map_err(wrap)?;
        }
        module.add(graph);
    }
    Ok(())
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::Bf16 | DType::F16)
}

/// A product, and the loop that reads it.
struct Behind {
    product: NodeId,
    /// The type that it is rounded to in between.
    rounded: Option<DType>,
    /// What the loop reads of it.
    read: Value,
    reader: NodeId,
    /// Whether others read the product.
    is_kept: bool,
}

impl Behind {
    fn of(module: &Module, graph: &Graph) -> Option<Behind> {
        let order = graph.topo();
        let products = order.iter().filter(|id| is_narrow_product(module, graph, **id));
        products.copied().find_map(|product| {
            let v = Value { node: product, port: 0 };
            let [user] = readers(graph, v)[..] else { return None };
            if let Some(half) = cast_of(module, graph, user).filter(|to| is_half(*to)) {
                let narrow = Value { node: user, port: 0 };
                let users = readers(graph, narrow);
                let widens = |id: &&NodeId| cast_of(module, graph, **id) == Some(DType::F32);
                let wide = users.iter().find(widens)?;
                let read = Value { node: *wide, port: 0 };
                let of_wide = readers(graph, read);
                let is_output = |v: Value| graph.outputs.iter().any(|(_, output)| *output == v);
                let others = users.len() + of_wide.len() > 2 || is_output(narrow);
                let is_kept = others || is_output(read);
                let fits = |reader: &&NodeId| is_loop(module, graph, **reader, (v, read));
                let reader = *order.iter().filter(|id| of_wide.contains(id)).find(fits)?;
                return Some(Behind { product, rounded: Some(half), read, reader, is_kept });
            }
            let (reader, is_kept) = (user, false);
            is_loop(module, graph, user, (v, v)).then_some(Behind {
                product,
                rounded: None,
                read: v,
                reader,
                is_kept,
            })
        })
    }

    /// Operands of both: the product's, then the loop's others.
    fn operands(&self, graph: &Graph) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        let of = |id: NodeId| graph.node(id).inputs().iter().flatten().copied();
        for v in of(self.product).chain(of(self.reader)) {
            if v != self.read && !all.contains(&v) {
                all.push(v);
            }
        }
        all
    }

    /// The function that gives the loop's result and, where it is kept, the product.
    fn body(&self, module: &Module, graph: &Graph) -> Result<Graph, OpError> {
        let mut b = Builder::new(module, "product.fused");
        let mut map = BTreeMap::new();
        for (i, v) in self.operands(graph).into_iter().enumerate() {
            map.insert(v, b.param(&i.to_string(), graph.ty(v).clone())?);
        }
        let node = graph.node(self.product);
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        let product = b.op(node.op.name(), node.attrs.clone(), &inputs)?[0];
        let mut read = product;
        if let Some(half) = self.rounded {
            read = b.cast(read, half)?;
            read = b.cast(read, DType::F32)?;
        }
        map.insert(self.read, read);
        let node = graph.node(self.reader);
        let args: Vec<Value> = node.inputs().iter().flatten().map(|v| map[v]).collect();
        let callee = &module.functions[node.attrs.str("callee")];
        let result = b.inline(callee, &args)?[0];
        b.output("result", result);
        if self.is_kept {
            b.output("product", product);
        }
        Ok(b.finish())
    }

    fn taken(&self, module: &Module, graph: Graph, callee: &str) -> Result<Graph, OpError> {
        let operands: Vec<_> = self.operands(&graph).into_iter().map(Some).collect();
        let mut b = Builder::resume(module, graph);
        let loc = b.graph().node(self.product).loc.clone();
        b.at(&loc);
        let new = b.op("fused", Attrs::none().with("callee", callee), &operands)?;
        let mut graph = b.finish();
        graph.replace_uses(Value { node: self.reader, port: 0 }, new[0]);
        if self.is_kept {
            graph.replace_uses(Value { node: self.product, port: 0 }, new[1]);
        }
        graph.remove_dead();
        Ok(graph)
    }
}

/// Nodes that read a value; none where it is an output.
fn readers(graph: &Graph, v: Value) -> Vec<NodeId> {
    let reads = |user: &NodeId| graph.node(*user).inputs().contains(&Some(v));
    graph.users(v.node).into_iter().filter(reads).collect()
}

/// Whether a value's innermost axis is dense, whatever holds it: the kernel of a product reads no
/// others.
fn is_dense(graph: &Graph, v: Value) -> bool {
    let node = graph.node(v.node);
    match node.op.name() {
        "cast" | "reshape" => is_dense(graph, node.input(0)),
        "slice" => node.attrs.int("step") == 1 && is_dense(graph, node.input(0)),
        "transpose" | "broadcast_to" => false,
        _ => true,
    }
}

/// Whether a node is a product of two narrow matrices, which gives f32.
fn is_narrow_product(module: &Module, graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let v = Value { node: id, port: 0 };
    let is_output = graph.outputs.iter().any(|(_, output)| *output == v);
    let ty = graph.ty(v);
    let widened = |v: Value| {
        let widens = cast_of(module, graph, v.node) == Some(DType::F32);
        widens && is_half(graph.ty(graph.node(v.node).input(0)).dtype)
    };
    let operand = |i: usize| node.inputs().get(i).copied().flatten();
    let is_meant = match node.op.name() {
        "matmul" => {
            // One matrix for all rows: gradients of weights are of two that have tokens.
            let weight = graph.ty(node.input(1));
            let is_one = weight.rank() == 2 && weight.shape.iter().all(|d| d.as_const().is_some());
            is_one && widened(node.input(0)) && widened(node.input(1))
        }
        "linear" => widened(node.input(0)) && is_half(graph.ty(node.input(1)).dtype),
        _ => false,
    };
    let read = |i: usize| operand(i).is_none_or(|v| is_dense(graph, v));
    is_meant && !is_output && ty.dtype == DType::F32 && ty.rank() == 2 && read(0) && read(3)
}

/// Whether a node is a loop over elements of the product `v` alone, of which it reads `read`, and
/// of others like it that do not follow from the product.
fn is_loop(module: &Module, graph: &Graph, id: NodeId, (v, read): (Value, Value)) -> bool {
    let node = graph.node(id);
    let ty = graph.ty(v);
    if node.op.name() != "fused" || node.results().len() != 1 {
        return false;
    }
    let body = &module.functions[node.attrs.str("callee")];
    let plain = |id: &NodeId| {
        let op = body.node(*id).op;
        op.is_elementwise() || matches!(op.name(), "param" | "constant")
    };
    let others = || node.inputs().iter().flatten().filter(|other| **other != read);
    graph.ty(Value { node: id, port: 0 }) == ty
        && body.topo().iter().all(plain)
        && others().count() <= MAX_OPERANDS
        && others().all(|other| {
            let fits = graph.ty(*other) == ty && is_dense(graph, *other);
            fits && !follows(graph, *other, v.node)
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ir::{Env, parse_module};

    use super::*;
    use crate::testing::{count, eval, sample};

    const TEXT: &str = r#"
module "m"
symbol T in 1..8
fn gelu(%x: f32[T, 8]) {
  %0 = gelu_tanh(%x) : f32[T, 8]
  return result = %0
}
fn scaled(%x: f32[T, 8], %y: f32[T, 8]) {
  %0 = mul(%x, %y) : f32[T, 8]
  return result = %0
}
fn f(%x: bf16[T, 6], %w: bf16[1, 6, 16], %b: f32[8], %dy: bf16[T, 4], %u: bf16[4, 8]) {
  %0 = cast(%x) {to = f32} : f32[T, 6]
  %1 = linear(%0, %w, %b, _) {n = 8} : f32[T, 8]
  %2 = cast(%1) {to = bf16} : bf16[T, 8]
  %3 = cast(%2) {to = f32} : f32[T, 8]
  %4 = fused(%3) {callee = "gelu"} : f32[T, 8]
  %5 = cast(%dy) {to = f32} : f32[T, 4]
  %6 = cast(%u) {to = f32} : f32[4, 8]
  %7 = matmul(%5, %6) : f32[T, 8]
  %8 = cast(%7) {to = bf16} : bf16[T, 8]
  %9 = cast(%8) {to = f32} : f32[T, 8]
  %10 = fused(%3, %9) {callee = "scaled"} : f32[T, 8]
  %11 = linear(%0, %w, _, _) {n = 8} : f32[T, 8]
  %12 = fused(%11, %11) {callee = "scaled"} : f32[T, 8]
  %13 = linear(%0, %w, _, _) {n = 8} : f32[T, 8]
  %14 = add(%13, %12) : f32[T, 8]
  %15 = fused(%13, %14) {callee = "scaled"} : f32[T, 8]
  return y = %4, dx = %10, z = %12, a = %15
}
"#;

    #[test]
    fn loops_are_computed_with_their_products() {
        let before = {
            let mut module = parse_module(TEXT).unwrap();
            module.entries = vec!["f".into()];
            module
        };
        let mut module = before.clone();
        fuse_products(&mut module, &Target::x86_64_v3()).unwrap();
        assert_eq!(count(&module.functions["f"], "matmul"), 1, "not on a CPU");
        fuse_products(&mut module, &Target::sm_90a()).unwrap();
        ir::verify(&module).unwrap();
        let f = &module.functions["f"];
        // The last product has two readers, of which one follows from the other.
        let ops = ["matmul", "linear", "fused", "cast"].map(|op| count(f, op));
        assert_eq!(ops, [0, 1, 4, 5], "{f}");
        let kept = f.topo().into_iter().filter(|id| f.node(*id).results().len() == 2).count();
        assert_eq!(kept, 1, "{f}");
        let env: Env = [(Arc::from("T"), 5)].into();
        let inputs: Vec<_> = (1..)
            .zip(before.functions["f"].param_values())
            .map(|(i, v)| sample(before.functions["f"].ty(v), &env, i))
            .collect();
        let [got, want] = [&module, &before].map(|m| eval(m, "f", &inputs, &env));
        assert_eq!(got, want);
    }
}
