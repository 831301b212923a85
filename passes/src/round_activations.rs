//! States how a GPU rounds what it multiplies.
//!
//! Tensor cores multiply activations in the type of the weights. Where a value is read by such
//! products alone, this rounds it in the graph, `cast` to that type and back, so that what makes it
//! may store it so and products read half of the bytes; the bits of their results stay the same.
//! What becomes e4m3 is rounded to bf16 on the way, as models of that type have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Attrs, Builder, DType, Graph, Module, NodeId, OpError, Target, Value};

use crate::{PassError, plan_memory::cast_of};

/// Rewrites every function for a target; nothing where it is no GPU.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn round_activations(module: &mut Module, target: &Target) -> Result<(), PassError> {
    if target.cuda.is_none() {
        return Ok(());
    }
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = &module.functions[&name];
        let rounded = rounded(module, graph);
        if rounded.is_empty() {
            continue;
        }
        let mut graph = rewrite(module, graph, &rounded).map_err(|e| PassError::new(&name, e))?;
        graph.remove_dead();
        module.add(graph);
    }
    Ok(())
}

/// The type that a product rounds its first operand to.
fn rounds_to(graph: &Graph, id: NodeId) -> Option<DType> {
    let node = graph.node(id);
    if node.op.name() == "quantize_rows" && node.attrs.str("format") == "e4m3" {
        return Some(DType::Bf16);
    }
    let products = ["linear", "gated_linear", "quantized_linear"];
    if !products.contains(&node.op.name()) || graph.ty(node.input(0)).dtype != DType::F32 {
        return None;
    }
    match graph.ty(node.input(1)).dtype {
        half @ (DType::Bf16 | DType::F16) => Some(half),
        // Integers become bf16 where activations are f32.
        DType::U8 => Some(DType::Bf16),
        _ => None,
    }
}

/// Values that products alone read, perhaps reshaped, all of which round them to one type.
fn rounded(module: &Module, graph: &Graph) -> BTreeMap<Value, DType> {
    let outputs: BTreeSet<Value> = graph.outputs.iter().map(|(_, v)| *v).collect();
    // Readers come before what they read, so that views are known.
    let mut found: BTreeMap<Value, DType> = BTreeMap::new();
    for id in graph.topo().into_iter().rev() {
        let node = graph.node(id);
        let v = Value { node: id, port: 0 };
        if node.results().len() != 1 || outputs.contains(&v) {
            continue;
        }
        let mut types = graph.users(id).into_iter().map(|user| {
            let inputs = graph.node(user).inputs();
            let once = inputs.iter().filter(|input| **input == Some(v)).count() == 1;
            let first = inputs[0] == Some(v) && once;
            match graph.node(user).op.name() {
                "reshape" => found.get(&Value { node: user, port: 0 }).copied(),
                _ => rounds_to(graph, user).filter(|_| first),
            }
        });
        let Some(Some(dtype)) = types.next() else { continue };
        if types.all(|other| other == Some(dtype)) {
            found.insert(v, dtype);
        }
    }
    // What is given, or computed by nothing that stores, or narrow as it is.
    found.retain(|v, _| {
        let node = graph.node(v.node);
        let is_given = matches!(node.op.name(), "param" | "weight" | "constant");
        let is_narrow = cast_of(module, graph, v.node).is_some() && {
            let from = graph.ty(node.input(0)).dtype;
            matches!(from, DType::Bf16 | DType::F16)
        };
        !is_given && !is_narrow
    });
    found
}

fn rewrite(
    module: &Module,
    graph: &Graph,
    rounded: &BTreeMap<Value, DType>,
) -> Result<Graph, OpError> {
    // Of each value, its narrow form.
    let mut narrow: BTreeMap<Value, Value> = BTreeMap::new();
    Builder::rewrite(module, graph, |b, id, inputs| {
        let node = graph.node(id);
        let v = Value { node: id, port: 0 };
        let first = node.inputs().first().copied().flatten();
        let (mut inputs, mut is_changed) = (inputs.to_vec(), false);
        if let Some(half) = first.and_then(|x| narrow.get(&x)).copied() {
            if node.op.name() == "reshape" && rounded.contains_key(&v) {
                let reshaped = b.op1("reshape", node.attrs.clone(), &[half])?;
                narrow.insert(v, reshaped);
            } else if rounds_to(graph, id).is_some() {
                inputs[0] = Some(b.cast(half, DType::F32)?);
                is_changed = true;
            }
        }
        let Some(dtype) = rounded.get(&v).filter(|_| !narrow.contains_key(&v)) else {
            return match is_changed {
                true => b.op(node.op.name(), node.attrs.clone(), &inputs).map(Some),
                false => Ok(None),
            };
        };
        let results = match node.op.name() {
            "weight" => return Ok(None),
            _ => b.op(node.op.name(), node.attrs.clone(), &inputs)?,
        };
        let half = b.op1("cast", Attrs::none().with("to", *dtype), &[results[0]])?;
        narrow.insert(v, half);
        Ok(Some(results))
    })
}

#[cfg(test)]
mod tests {
    use ir::parse_module;

    use super::*;

    const TEXT: &str = r#"
module "m"
symbol T in 1..64
fn f(%x: f32[T, 2, 8], %g: f32[16], %w: bf16[2, 16, 16], %u: bf16[1, 16, 16]) {
  %0 = reshape(%x) {shape = <T, 16>} : f32[T, 16]
  %1 = rms_norm(%0, %g) {eps = 1e-5} : f32[T, 16]
  %2 = linear(%1, %w, _, _) {n = 32} : f32[T, 32]
  %3 = reshape(%2) {shape = <2*T, 16>} : f32[2*T, 16]
  %4 = linear(%3, %u, _, _) {n = 16} : f32[2*T, 16]
  %5 = linear(%4, %u, _, %4) {n = 16} : f32[2*T, 16]
  return y = %5
}
"#;

    #[test]
    fn what_products_alone_read_is_rounded_where_it_is_made() {
        let mut module = parse_module(TEXT).unwrap();
        round_activations(&mut module, &Target::x86_64_v3()).unwrap();
        assert_eq!(module.functions["f"].topo().len(), 10, "not on a CPU");
        round_activations(&mut module, &Target::sm_90a()).unwrap();
        ir::verify(&module).unwrap();
        let text = module.to_string();
        let body: Vec<&str> = text.lines().filter(|l| l.trim_start().starts_with('%')).collect();
        let ops: Vec<&str> = body
            .iter()
            .map(|l| l.split(" = ").nth(1).unwrap().split('(').next().unwrap())
            .collect();
        // The norm and the first product are rounded; the second, which is added too, is not.
        assert_eq!(
            ops,
            [
                "reshape", "rms_norm", "cast", "cast", "linear", "cast", "reshape", "cast",
                "linear", "linear"
            ],
            "{text}"
        );
    }
}
