//! Sums of a norm's gradient and of another cotangent, by the gradient's own kernel.
//!
//! What is normed and goes on beside the norm, as the residual stream of a transformer does, has
//! two cotangents. `norm_grad` takes the other one as its residual: the same addition, without a
//! loop of its own that reads both and writes the sum.

use std::{collections::BTreeSet, sync::Arc};

use ir::{Builder, Graph, Module, NodeId, OpError, Value};

use crate::PassError;

/// Rewrites every function.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn take_residuals(module: &mut Module) -> Result<(), PassError> {
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let mut graph = module.functions[&name].clone();
        let mut found = false;
        while let Some(sum) = Sum::of(&graph) {
            graph = sum.taken(module, graph).map_err(|e| PassError::new(&name, e))?;
            found = true;
        }
        if found {
            module.add(graph);
        }
    }
    Ok(())
}

/// A norm's gradient, and what adds the other cotangent to it.
struct Sum {
    norm: NodeId,
    add: NodeId,
    other: Value,
}

impl Sum {
    fn of(graph: &Graph) -> Option<Sum> {
        graph.topo().into_iter().find_map(|norm| {
            let node = graph.node(norm);
            let is_free = node.inputs().get(3).is_none_or(Option::is_none);
            if node.op.name() != "norm_grad" || !is_free {
                return None;
            }
            let mut v = Value { node: norm, port: 0 };
            loop {
                let reads = |user: &NodeId| graph.node(*user).inputs().contains(&Some(v));
                let users: Vec<NodeId> = graph.users(v.node).into_iter().filter(reads).collect();
                let is_output = graph.outputs.iter().any(|(_, output)| *output == v);
                let ([user], false) = (&users[..], is_output) else { return None };
                match graph.node(*user).op.name() {
                    "reshape" => v = Value { node: *user, port: 0 },
                    "add" => {
                        let add = graph.node(*user);
                        let others = add.inputs().iter().flatten().filter(|x| **x != v);
                        let [other] = others.copied().collect::<Vec<_>>()[..] else { return None };
                        let fits = graph.ty(other) == graph.ty(v);
                        let is_before = fits && !follows(graph, other, norm);
                        return is_before.then_some(Sum { norm, add: *user, other });
                    }
                    _ => return None,
                }
            }
        })
    }

    fn taken(&self, module: &Module, graph: Graph) -> Result<Graph, OpError> {
        let Sum { norm, add, other } = *self;
        let mut b = Builder::resume(module, graph);
        let (attrs, loc, mut inputs) = {
            let node = b.graph().node(norm);
            (node.attrs.clone(), node.loc.clone(), node.inputs()[..3].to_vec())
        };
        b.at(&loc);
        let sum = Value { node: add, port: 0 };
        let [shape, flat] = [sum, Value { node: norm, port: 0 }].map(|v| b.ty(v).shape.to_vec());
        inputs.push(Some(if shape == flat { other } else { b.reshape(other, flat.clone())? }));
        let new = b.op("norm_grad", attrs, &inputs)?;
        let total = if shape == flat { new[0] } else { b.reshape(new[0], shape)? };
        let mut graph = b.finish();
        graph.replace_uses(sum, total);
        for (port, value) in new.iter().enumerate().skip(1) {
            graph.replace_uses(Value { node: norm, port }, *value);
        }
        graph.remove_dead();
        Ok(graph)
    }
}

/// Whether a value depends on a node.
pub(crate) fn follows(graph: &Graph, v: Value, node: NodeId) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![v.node];
    while let Some(id) = open.pop() {
        if id == node {
            return true;
        }
        if seen.insert(id) {
            open.extend(graph.node(id).inputs().iter().flatten().map(|v| v.node));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use ir::parse_module;

    use super::*;
    use crate::testing::count;

    const TEXT: &str = r#"
module "m"
symbol B in 1..8
fn f(%x: f32[2*B, 6], %w: f32[6], %dy: f32[B, 2, 6], %dz: f32[B, 2, 6]) {
  %0 = reshape(%dy) {shape = <2*B, 6>} : f32[2*B, 6]
  %1, %2 = norm_grad(%x, %w, %0) {eps = 1e-5} : f32[2*B, 6], f32[floor_div(2*B + 63, 64), 6]
  %3 = reshape(%1) {shape = <B, 2, 6>} : f32[B, 2, 6]
  %4 = add(%dz, %3) : f32[B, 2, 6]
  %5 = exp(%4) : f32[B, 2, 6]
  return dx = %4, dw = %2, y = %5
}
fn g(%x: f32[B, 6], %w: f32[6], %dy: f32[B, 6]) {
  %0, %1 = norm_grad(%x, %w, %dy) {eps = 1e-5} : f32[B, 6], f32[floor_div(B + 63, 64), 6]
  %2 = reduce_sum(%1) {axes = [0]} : f32[6]
  %3 = broadcast_to(%2) {shape = <B, 6>} : f32[B, 6]
  %4 = add(%0, %3) : f32[B, 6]
  %5, %6 = norm_grad(%x, %w, %dy) {eps = 1e-5} : f32[B, 6], f32[floor_div(B + 63, 64), 6]
  %7 = add(%5, %w) : f32[B, 6]
  %8, %9 = norm_grad(%x, %w, %dy) {eps = 1e-5} : f32[B, 6], f32[floor_div(B + 63, 64), 6]
  %10 = add(%8, %8) : f32[B, 6]
  return a = %4, b = %7, c = %10
}
"#;

    #[test]
    fn the_other_cotangent_is_added_by_the_kernel() {
        let mut module = parse_module(TEXT).unwrap();
        take_residuals(&mut module).unwrap();
        ir::verify(&module).unwrap();
        let f = &module.functions["f"];
        assert_eq!([count(f, "add"), count(f, "norm_grad")], [0, 1], "{f}");
        let norm = f.topo().into_iter().find(|id| f.node(*id).op.name() == "norm_grad").unwrap();
        assert!(f.node(norm).inputs()[3].is_some(), "{f}");
        // What follows from the sums, what is spread, and the gradient twice.
        let g = &module.functions["g"];
        assert_eq!([count(g, "add"), count(g, "norm_grad")], [3, 3], "{g}");
    }
}
