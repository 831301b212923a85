//! Quantises the weights of products, and the activations that meet them.
//!
//! `linear(x, w)` becomes `quantized_linear(quantize_rows(x), quantize_weight(w))` wherever `w`
//! depends on weights alone; products of one `x` share its quantised rows. The layers of a model
//! take the bits that are asked for; products of the entry itself, a language model's head above
//! all, take 8, since each of their errors reaches the output directly.
//!
//! GPUs multiply what activations are with weights in lanes: there the weights alone are quantised.
//!
//! Embeddings, norms and attention stay as they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{
    Attr, Attrs, Builder, DType, Dim, Graph, Module, Node, NodeId, OpError, QUANT_BLOCK, Target,
    Value,
};

use crate::{PassError, weight_only::weight_only, weight_params};

/// Bits of a product in an entry.
const ENTRY_BITS: i64 = 8;

/// Rewrites every function for a target; `bits` is 4 or 8.
///
/// # Errors
/// Where a rebuilt graph does not type: an internal error.
pub fn quantize(module: &mut Module, bits: i64, target: &Target) -> Result<(), PassError> {
    let rows_too = target.cuda.is_none();
    let weights = weight_params(module);
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = &module.functions[&name];
        let params = graph.params().iter().copied();
        let params: BTreeSet<NodeId> =
            params.filter(|p| weights[&name].contains(graph.param_name(*p))).collect();
        let bits = if module.entries.contains(&name) { ENTRY_BITS } else { bits };
        let how = How { bits, rows_too };
        let graph = quantize_function(module, graph, &weight_only(graph, &params), how)
            .map_err(|e| PassError::new(&name, e))?;
        module.add(graph);
    }
    Ok(())
}

/// Bits of weights, and whether activations are quantised too.
#[derive(Clone, Copy)]
struct How {
    bits: i64,
    rows_too: bool,
}

fn quantize_function(
    module: &Module,
    graph: &Graph,
    weights: &BTreeSet<NodeId>,
    How { bits, rows_too }: How,
) -> Result<Graph, OpError> {
    let mut rows: BTreeMap<Value, Value> = BTreeMap::new();
    Builder::rewrite(module, graph, |b, id, inputs| {
        let node = graph.node(id);
        let (true, [Some(x), Some(w), rest @ ..]) =
            (is_quantized(graph, node, weights, rows_too), inputs)
        else {
            return Ok(None);
        };
        let quantized = match rows.get(x) {
            Some(quantized) => *quantized,
            None if !rows_too => *x,
            None => {
                let attrs = Attrs::none().with("weight_bits", bits);
                b.op1("quantize_rows", attrs, &[*x])?
            }
        };
        rows.insert(*x, quantized);
        let layout = if rows_too { "steps" } else { "lanes" };
        let attrs = Attrs::none().with("bits", bits).with("layout", layout);
        let w = b.op1("quantize_weight", attrs, &[*w])?;
        let attrs = Attrs::none()
            .with("n", node.attrs.int("n"))
            .with("act", node.attrs.str("act"))
            .with("gated", Attr::Bool(node.op.name() == "gated_linear"));
        let inputs = [&[Some(quantized), Some(w)], rest].concat();
        b.op("quantized_linear", attrs, &inputs).map(Some)
    })
}

/// Whether a node is a product that can be quantised: of rows, in f32 where they are quantised too,
/// with a weight of a block at least.
fn is_quantized(graph: &Graph, node: &Node, weights: &BTreeSet<NodeId>, rows_too: bool) -> bool {
    let (true, [Some(x), Some(w), ..]) =
        (matches!(node.op.name(), "linear" | "gated_linear"), node.inputs())
    else {
        return false;
    };
    let k = graph.ty(*x).shape.last().and_then(Dim::as_const);
    let float = |v: Value| matches!(graph.ty(v).dtype, DType::F32 | DType::Bf16 | DType::F16);
    let rows = if rows_too { graph.ty(*x).dtype == DType::F32 } else { float(*x) };
    let is_block = k.is_some_and(|k| k >= QUANT_BLOCK as i64);
    rows && float(*w) && is_block && weights.contains(&w.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer with two products of one x, and a head.
    fn model() -> Module {
        let mut module = Module::new("m");
        module.symbol("T", 1, 64);
        let f32s = |shape: &[&str]| {
            let shape = shape.iter().map(|d| d.parse::<ir::Dim>().unwrap());
            ir::TensorType::new(DType::F32, shape)
        };
        for (name, shape) in [("a", ["4", "64", "16"]), ("b", ["2", "64", "16"])] {
            module.weights.insert(name.into(), f32s(&shape));
        }
        module.weights.insert("head".into(), f32s(&["3", "64", "16"]));
        let mut b = module.builder("layer");
        let x = b.param("x", f32s(&["T", "64"])).unwrap();
        let w = b.param("w", f32s(&["4", "64", "16"])).unwrap();
        let v = b.param("v", f32s(&["2", "64", "16"])).unwrap();
        let linear = |b: &mut Builder<'_>, x, w, n: i64| {
            b.op1("linear", Attrs::none().with("n", n), &[x, w]).unwrap()
        };
        let y = linear(&mut b, x, w, 64);
        let z = linear(&mut b, x, v, 32);
        b.output("y", y);
        b.output("z", z);
        let layer = b.finish();
        module.add(layer);
        let mut b = module.builder("main");
        let x = b.param("x", f32s(&["T", "64"])).unwrap();
        let (w, v) = (b.weight("a").unwrap(), b.weight("b").unwrap());
        let y = b.call("layer", &[x, w, v]).unwrap()[0];
        let head = b.weight("head").unwrap();
        let logits = linear(&mut b, y, head, 48);
        b.output("logits", logits);
        let main = b.finish();
        module.add(main);
        module.entries.push("main".into());
        module
    }

    /// The nodes of a function that apply an operator.
    fn ops(module: &Module, name: &str, op: &str) -> Vec<Node> {
        let graph = &module.functions[name];
        let nodes = graph.topo().into_iter().map(|id| graph.node(id).clone());
        nodes.filter(|n| n.op.name() == op).collect()
    }

    #[test]
    fn products_of_one_x_share_its_rows_and_heads_keep_eight_bits() {
        let mut module = model();
        quantize(&mut module, 4, &Target::x86_64_v3()).unwrap();
        ir::verify(&module).unwrap();
        let ops = |name: &str, op: &str| ops(&module, name, op);
        assert_eq!(ops("layer", "quantize_rows").len(), 1);
        assert_eq!(ops("layer", "quantize_rows")[0].attrs.int("weight_bits"), 4);
        assert_eq!(ops("main", "quantize_rows")[0].attrs.int("weight_bits"), 8);
        assert_eq!(ops("layer", "quantized_linear").len(), 2);
        assert_eq!(ops("layer", "quantize_weight")[0].attrs.int("bits"), 4);
        assert_eq!(ops("main", "quantize_weight")[0].attrs.int("bits"), 8);
        assert!(ops("layer", "linear").is_empty() && ops("main", "linear").is_empty());
    }

    #[test]
    fn gpus_keep_activations() {
        let mut module = model();
        quantize(&mut module, 4, &Target::sm_80()).unwrap();
        ir::verify(&module).unwrap();
        let ops = |name: &str, op: &str| ops(&module, name, op);
        assert!(ops("layer", "quantize_rows").is_empty() && ops("layer", "linear").is_empty());
        assert_eq!(ops("layer", "quantized_linear").len(), 2);
        assert_eq!(ops("main", "quantized_linear").len(), 1);
        assert_eq!(ops("layer", "quantize_weight")[0].attrs.str("layout"), "lanes");
    }
}
