//! Sums of parts of one tensor, as one `concat`.
//!
//! The cotangent of a `slice` is zero but for a part. Where a tensor is sliced into parts, as one
//! product's result into queries, keys and values, its cotangent is the sum of such: this puts the
//! parts side by side instead. `x + 0` is `x`, but for the sign of a zero.

use std::{collections::VecDeque, sync::Arc};

use ir::{Attrs, Builder, Graph, Module, OpError, Value};

use crate::PassError;

/// Rewrites every function.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn join_parts(module: &mut Module) -> Result<(), PassError> {
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = &module.functions[&name];
        let adds = graph.topo().into_iter().any(|id| {
            let node = graph.node(id);
            let is_concat = |v: &Value| graph.node(v.node).op.name() == "concat";
            node.op.name() == "add" && node.inputs().iter().flatten().any(is_concat)
        });
        if !adds {
            continue;
        }
        let mut graph = joined(module, graph).map_err(|e| PassError::new(&name, e))?;
        graph.remove_dead();
        module.add(graph);
    }
    Ok(())
}

fn joined(module: &Module, graph: &Graph) -> Result<Graph, OpError> {
    Builder::rewrite(module, graph, |b, id, inputs| {
        let ([Some(x), Some(y)], "add") = (inputs, graph.node(id).op.name()) else {
            return Ok(None);
        };
        let (Some((axis, x)), Some((other, y))) = (parts(b, *x), parts(b, *y)) else {
            return Ok(None);
        };
        if axis != other {
            return Ok(None);
        }
        let Some(pairs) = aligned(x, y) else { return Ok(None) };
        let mut joined = Vec::new();
        for (x, y) in pairs {
            joined.push(match (x.value, y.value) {
                (Some(x), Some(y)) => b.add(x, y)?,
                (Some(x), None) | (None, Some(x)) => x,
                (None, None) => {
                    let mut ty = b.ty(inputs[0].expect("operand")).clone();
                    let axis = ir::normalize_axis(axis, ty.rank()).expect("inferred");
                    ty.shape[axis] = x.size.into();
                    let zero = b.scalar(ty.dtype, 0.0)?;
                    let attrs = Attrs::none().with("shape", ty.shape.to_vec());
                    b.op1("broadcast_to", attrs, &[zero])?
                }
            });
        }
        Ok(Some(vec![b.concat(&joined, axis)?]))
    })
}

/// A part along an axis: so long, and its value unless that is zero.
#[derive(Clone, Copy)]
struct Part {
    size: i64,
    value: Option<Value>,
}

/// The parts of a `concat` of constant sizes, some of which are zero, and its axis.
fn parts(b: &Builder<'_>, v: Value) -> Option<(i64, VecDeque<Part>)> {
    let graph = b.graph();
    let node = graph.node(v.node);
    if node.op.name() != "concat" {
        return None;
    }
    let axis = node.attrs.int("axis");
    let at = ir::normalize_axis(axis, b.ty(v).rank())?;
    let part = |v: &Value| {
        let size = b.ty(*v).shape[at].as_const()?;
        Some(Part { size, value: (!is_zero(graph, *v)).then_some(*v) })
    };
    let parts: Option<VecDeque<Part>> = node.inputs().iter().flatten().map(part).collect();
    let parts = parts?;
    parts.iter().any(|part| part.value.is_none()).then_some((axis, parts))
}

fn is_zero(graph: &Graph, v: Value) -> bool {
    let node = graph.node(v.node);
    match node.op.name() {
        "broadcast_to" => is_zero(graph, node.input(0)),
        "constant" => node.attrs.tensor("value").to_f64s().into_iter().all(|x| x == 0.0),
        _ => false,
    }
}

/// Parts of both side by side, of equal sizes; zeros are cut as need be.
fn aligned(mut x: VecDeque<Part>, mut y: VecDeque<Part>) -> Option<Vec<(Part, Part)>> {
    let mut pairs = Vec::new();
    while let (Some(first), Some(second)) = (x.pop_front(), y.pop_front()) {
        let size = first.size.min(second.size);
        for (part, rest) in [(first, &mut x), (second, &mut y)] {
            if part.size > size {
                if part.value.is_some() {
                    return None;
                }
                rest.push_front(Part { size: part.size - size, value: None });
            }
        }
        pairs.push((Part { size, ..first }, Part { size, ..second }));
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use ir::parse_module;

    use super::*;

    const TEXT: &str = r#"
module "m"
symbol T in 1..64
fn f(%q: f32[T, 2], %k: f32[T, 3], %v: f32[T, 4]) {
  %0 = constant() {value = dense<f32[] 00000000>} : f32[]
  %1 = broadcast_to(%0) {shape = <T, 5>} : f32[T, 5]
  %2 = concat(%1, %v) {axis = 1} : f32[T, 9]
  %3 = broadcast_to(%0) {shape = <T, 2>} : f32[T, 2]
  %4 = broadcast_to(%0) {shape = <T, 4>} : f32[T, 4]
  %5 = concat(%3, %k, %4) {axis = 1} : f32[T, 9]
  %6 = add(%2, %5) : f32[T, 9]
  %7 = broadcast_to(%0) {shape = <T, 7>} : f32[T, 7]
  %8 = concat(%q, %7) {axis = 1} : f32[T, 9]
  %9 = add(%6, %8) : f32[T, 9]
  %10 = concat(%k, %q, %4) {axis = 1} : f32[T, 9]
  %11 = add(%9, %10) : f32[T, 9]
  return y = %9, z = %11
}
"#;

    #[test]
    fn parts_are_put_side_by_side() {
        let mut module = parse_module(TEXT).unwrap();
        join_parts(&mut module).unwrap();
        ir::verify(&module).unwrap();
        let text = module.to_string();
        assert!(text.contains("concat(%q, %k, %v)"), "{text}");
        // What overlaps is added as it was.
        assert_eq!(text.matches(" add(").count(), 1, "{text}");
    }
}
