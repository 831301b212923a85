//! Makes one operator of what lies between a decoder's projections and its attention.
//!
//! `rope` of the queries and of the keys by the same angles, the keys' and values' rounding (to
//! eight bits too), and `kv_write` become `rope_kv_write`, where a kernel computes that: a step of
//! few tokens takes as long for each launch as for what it moves.

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

/// The one reader of a node's results, if it reads each once and that is all that happens to them.
fn only_user(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let users = graph.users(id);
    let is_output = graph.outputs.iter().any(|(_, v)| v.node == id);
    match users[..] {
        [user] if !is_output => {
            let reads = graph.node(user).inputs().iter().flatten().filter(|v| v.node == id).count();
            (reads == graph.node(id).results().len()).then_some(user)
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
    if node.op.name() != "kv_write" {
        return None;
    }
    let mut dropped = Vec::new();
    // What an operator reads that has no other reader.
    let mut through = |op: &str, (v, reader): (Value, NodeId)| {
        if graph.node(v.node).op.name() == op && only_user(graph, v.node) == Some(reader) {
            dropped.push(v.node);
            return (graph.node(v.node).input(0), v.node);
        }
        (v, reader)
    };
    let mut given = [2, 3].map(|i| (node.input(i), id));
    if node.results().len() > 2 {
        let scales = [7, 8].map(|i| node.input(i).node);
        for (given, scales) in given.iter_mut().zip(scales) {
            let of_both = given.0.node == scales;
            *given = through("quantize_heads", *given);
            if !of_both || given.1 == id {
                return None;
            }
        }
    }
    let [(key, reader), _] = given.map(|given| through("cast", given));
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
            let mut operands = vec![kc, vc, Some(q), k, v, slots, Some(cos), Some(sin)];
            operands.extend(inputs.iter().skip(5).take(2));
            let attrs = graph.node(write.rope).attrs.clone();
            let mut results = b.op("rope_kv_write", attrs, &operands)?;
            queries.insert(write.attention, results.remove(2));
            return Ok(Some(results));
        }
        if found.values().any(|write| write.dropped.contains(&id)) {
            let x = inputs[0].expect("operand");
            if let [_, Some(cos), Some(sin)] = inputs {
                rotations.insert(id, [x, *cos, *sin]);
            }
            return Ok(Some(vec![x; node.results().len()]));
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

    /// The same function, with keys and values in eight bits.
    fn scaled(text: &str) -> String {
        let memories = "bf16[NB, 2, 8, 16], bf16[NB, 2, 16, 8]";
        let scales = "f32[NB, 2, 16]";
        let f8 = memories.replace("bf16", "f8e4m3");
        let text = text.replace(memories, &format!("{f8}, {scales}, {scales}"));
        let text = text.replace(
            "%v_cache: bf16[NB, 2, 16, 8])",
            &format!("%v_cache: f8e4m3[NB, 2, 16, 8], %ks: {scales}, %vs: {scales})"),
        );
        let text = text.replace("%k_cache: bf16", "%k_cache: f8e4m3");
        let quantize = |from: &str, q: &str, scale: &str| {
            let types = "f8e4m3[T, 2, 8], f32[T, 2]";
            format!("%{q}, %{scale} = quantize_heads(%{from}) {{format = \"e4m3\"}} : {types}")
        };
        text.replace("%2 = cast(%1) {to = bf16} : bf16[T, 2, 8]", &quantize("1", "2", "10"))
            .replace("%3 = cast(%v) {to = bf16} : bf16[T, 2, 8]", &quantize("v", "3", "11"))
            .replace("%4, %5 = ", "%4, %5, %12, %13 = ")
            .replace("%2, %3, %slots)", "%2, %3, %slots, %ks, %vs, %10, %11)")
            .replace("%cu, %positions)", "%cu, %positions, %12, %13)")
    }

    #[test]
    fn keys_and_values_of_eight_bits_are_rounded_there_too() {
        let f = fused(&scaled(TEXT), true);
        let [write] = f
            .topo()
            .into_iter()
            .filter(|id| f.node(*id).op.name() == "rope_kv_write")
            .collect::<Vec<_>>()[..]
        else {
            panic!("one write")
        };
        assert_eq!((f.node(write).inputs().len(), f.node(write).results().len()), (10, 5));
        for gone in ["rope", "quantize_heads", "kv_write"] {
            assert_eq!(count(&f, gone), 0, "{gone}");
        }
        let attention = f.topo().into_iter().find(|id| f.node(*id).op.name() == "paged_attention");
        let read = f.node(attention.unwrap()).inputs().iter().flatten();
        let ports: Vec<usize> = read.filter(|v| v.node == write).map(|v| v.port).collect();
        assert_eq!(ports, [2, 0, 1, 3, 4]);
        let other = scaled(TEXT).replace("return y = %6", "return scales = %10, y = %6");
        assert_eq!(count(&fused(&other, true), "rope_kv_write"), 0);
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
