//! Makes one operator of what lies between a decoder's projections and its attention.
//!
//! `rope` of the queries and of the keys by the same angles, the keys' and values' rounding, and
//! `kv_write` become `rope_kv_write`, where a kernel computes that: a step of few tokens takes as
//! long for each launch as for what it moves.

use std::{collections::BTreeMap, sync::Arc};

use ir::{DType, Graph, Module, NodeId, OpError, Value};

use crate::PassError;

/// Rewrites every function of the module, as far as `has_kernel` says of the new nodes.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn fuse_rope(
    module: &mut Module,
    has_kernel: &dyn Fn(&Graph, NodeId) -> bool,
) -> Result<(), PassError> {
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = &module.functions[&name];
        let found = writes(graph);
        if found.is_empty() {
            continue;
        }
        let fused = rewrite(module, graph, &found).map_err(|e| PassError::new(&name, e))?;
        let is_new = |id: &NodeId| fused.node(*id).op.name() == "rope_kv_write";
        if fused.topo().into_iter().filter(is_new).all(|id| has_kernel(&fused, id)) {
            module.add(fused);
        }
    }
    Ok(())
}

/// A `kv_write` that takes in what is before it.
struct Write {
    /// Rotations and casts, of which the operand takes the place.
    dropped: Vec<NodeId>,
    /// Of the queries, one of `dropped`.
    rope: NodeId,
    attention: NodeId,
}

/// The one reader of a node's result, if that is all that happens to it.
fn only_user(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let users = graph.users(id);
    let is_output = graph.outputs.iter().any(|(_, v)| v.node == id);
    match users[..] {
        [user] if !is_output => {
            let reads = graph.node(user).inputs().iter().flatten().filter(|v| v.node == id).count();
            (reads == 1).then_some(user)
        }
        _ => None,
    }
}

fn writes(graph: &Graph) -> BTreeMap<NodeId, Write> {
    let order: BTreeMap<NodeId, usize> = graph.topo().into_iter().zip(0..).collect();
    let found = order.keys().filter_map(|id| Some((*id, write(graph, *id, &order)?)));
    found.collect()
}

fn write(graph: &Graph, id: NodeId, order: &BTreeMap<NodeId, usize>) -> Option<Write> {
    let node = graph.node(id);
    if node.op.name() != "kv_write" || node.results().len() != 2 {
        return None;
    }
    let mut dropped = Vec::new();
    // What a cast reads that has no other reader.
    let mut through = |v: Value, reader: NodeId| {
        let is_cast = graph.node(v.node).op.name() == "cast";
        if is_cast && only_user(graph, v.node) == Some(reader) {
            dropped.push(v.node);
            return (graph.node(v.node).input(0), v.node);
        }
        (v, reader)
    };
    let (key, reader) = through(node.input(2), id);
    through(node.input(3), id);
    let rope = |v: Value, reader: NodeId| {
        let is_rope = graph.node(v.node).op.name() == "rope" && graph.ty(v).dtype == DType::F32;
        (is_rope && only_user(graph, v.node) == Some(reader)).then(|| graph.node(v.node))
    };
    let of_keys = rope(key, reader)?;
    let reads = |user: &NodeId| graph.node(*user).op.name() == "paged_attention";
    let [attention] = graph.users(id).into_iter().filter(reads).collect::<Vec<_>>()[..] else {
        return None;
    };
    let query = graph.node(attention).input(0);
    let of_queries = rope(query, attention)?;
    let same = of_queries.inputs()[1..] == of_keys.inputs()[1..]
        && of_queries.attrs == of_keys.attrs
        // What depends on the memories comes behind them.
        && order[&query.node] < order[&id];
    dropped.extend([key.node, query.node]);
    same.then_some(Write { dropped, rope: query.node, attention })
}

fn rewrite(
    module: &Module,
    graph: &Graph,
    found: &BTreeMap<NodeId, Write>,
) -> Result<Graph, OpError> {
    // Of each rotation of queries its operands, and of each attention its queries, as rebuilt.
    let mut rotations = BTreeMap::new();
    let mut queries = BTreeMap::new();
    ir::Builder::rewrite(module, graph, |b, id, inputs| {
        let node = graph.node(id);
        if let Some(write) = found.get(&id) {
            let [q, cos, sin] = rotations[&write.rope];
            let [kc, vc, k, v, slots] = [0, 1, 2, 3, 4].map(|i| inputs[i]);
            let operands = [kc, vc, Some(q), k, v, slots, Some(cos), Some(sin)];
            let attrs = graph.node(write.rope).attrs.clone();
            let mut results = b.op("rope_kv_write", attrs, &operands)?;
            queries.extend(results.pop().map(|q| (write.attention, q)));
            return Ok(Some(results));
        }
        if found.values().any(|write| write.dropped.contains(&id)) {
            let x = inputs[0].expect("operand");
            if let [_, Some(cos), Some(sin)] = inputs {
                rotations.insert(id, [x, *cos, *sin]);
            }
            return Ok(Some(vec![x]));
        }
        let Some(q) = queries.get(&id) else { return Ok(None) };
        let inputs: Vec<_> = [Some(*q)].into_iter().chain(inputs[1..].iter().copied()).collect();
        b.op(node.op.name(), node.attrs.clone(), &inputs).map(Some)
    })
}

#[cfg(test)]
mod tests {
    use ir::parse_module;

    use super::*;
    use crate::testing::count;

    const TEXT: &str = r#"
module "m"
symbol T in 1..64
symbol S in 1..8
symbol NB in 1..64
fn f(%q: f32[T, 4, 8], %k: f32[T, 2, 8], %v: f32[T, 2, 8],
     %cos: f32[T, 4], %sin: f32[T, 4],
     %slots: i32[T], %tables: i32[S, 4], %cu: i32[S + 1], %positions: i32[T],
     %k_cache: bf16[NB, 2, 8, 16], %v_cache: bf16[NB, 2, 16, 8]) {
  %0 = rope(%q, %cos, %sin) : f32[T, 4, 8]
  %1 = rope(%k, %cos, %sin) : f32[T, 2, 8]
  %2 = cast(%1) {to = bf16} : bf16[T, 2, 8]
  %3 = cast(%v) {to = bf16} : bf16[T, 2, 8]
  %4, %5 = kv_write(%k_cache, %v_cache, %2, %3, %slots) : bf16[NB, 2, 8, 16], bf16[NB, 2, 16, 8]
  %6 = paged_attention(%0, %4, %5, %tables, %cu, %positions) {scale = 0.5} : f32[T, 4, 8]
  return y = %6, k_cache = %4, v_cache = %5
}
"#;

    fn fused(text: &str, has_kernel: bool) -> Graph {
        let mut module = parse_module(text).unwrap();
        fuse_rope(&mut module, &|_, _| has_kernel).unwrap();
        ir::verify(&module).unwrap();
        Graph::clone(&module.functions["f"])
    }

    #[test]
    fn rotations_and_the_write_become_one() {
        let f = fused(TEXT, true);
        assert_eq!(count(&f, "rope_kv_write"), 1);
        assert_eq!(count(&f, "paged_attention"), 1);
        for gone in ["rope", "cast", "kv_write"] {
            assert_eq!(count(&f, gone), 0, "{gone}");
        }
        let original = fused(TEXT, false);
        assert_eq!(count(&original, "rope"), 2, "without a kernel nothing changes");
    }

    #[test]
    fn what_is_read_elsewhere_stays() {
        let other = TEXT.replace("return y = %6", "return keys = %1, y = %6");
        assert_eq!(count(&fused(&other, true), "rope_kv_write"), 0);
        // Values that are read elsewhere are written as they are.
        let values = TEXT.replace("return y = %6", "return values = %3, y = %6");
        let f = fused(&values, true);
        assert_eq!((count(&f, "rope_kv_write"), count(&f, "cast")), (1, 1));
        // Keys of other angles than the queries'.
        let angles = TEXT.replace("rope(%k, %cos, %sin)", "rope(%k, %sin, %cos)");
        assert_eq!(count(&fused(&angles, true), "rope_kv_write"), 0);
    }
}
