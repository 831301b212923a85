//! Quantises the weights of products, and the activations that meet them.
//!
//! `linear(x, w)` becomes `quantized_linear(quantize_rows(x), quantize_weight(w))` wherever `w`
//! depends on weights alone; products of one `x` share its quantised rows. The layers of a model
//! take the bits that are asked for; products of the entry itself, a language model's head above
//! all, take 8, since each of their errors reaches the output directly.
//!
//! GPUs multiply what activations are with weights in lanes: there the weights alone are quantised.
//! In e4m3, which tensor cores of `sm_90a` multiply, both sides are; products of the entry keep
//! their weights.
//!
//! Embeddings, norms and attention stay as they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{
    Attr, Attrs, Builder, CudaArch, DType, Dim, E4M3_BLOCK, Graph, Module, Node, NodeId, OpError,
    QUANT_BLOCK, Target, Value,
};

use crate::{PassError, weight_only::weight_only, weight_params};

/// Bits of a product in an entry.
const ENTRY_BITS: i64 = 8;

/// What weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Integers of 4 or 8 bits.
    Integers(i64),
    /// e4m3.
    E4m3,
}

/// Rewrites every function for a target.
///
/// # Errors
/// For e4m3, a target that does not multiply it, and a module in which no product can be
/// quantised. Where a rebuilt graph does not type: an internal error.
pub fn quantize(
    module: &mut Module,
    format: WeightFormat,
    target: &Target,
) -> Result<(), PassError> {
    let is_e4m3 = format == WeightFormat::E4m3;
    let entry: Arc<str> = module.entries.first().cloned().unwrap_or_default();
    if is_e4m3 && target.cuda.is_none_or(|gpu| gpu.arch != CudaArch::Sm90a) {
        let why = format!("{} does not multiply fp8; compile for `cuda:sm_90a`", target.cpu);
        return Err(PassError::new(&entry, why));
    }
    let mut found = 0;
    let weights = weight_params(module);
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = &module.functions[&name];
        let params = graph.params().iter().copied();
        let params: BTreeSet<NodeId> =
            params.filter(|p| weights[&name].contains(graph.param_name(*p))).collect();
        let is_entry = module.entries.contains(&name);
        let how = match format {
            WeightFormat::E4m3 if is_entry => continue,
            WeightFormat::E4m3 => How::E4m3,
            WeightFormat::Integers(bits) => {
                let bits = if is_entry { ENTRY_BITS } else { bits };
                if target.cuda.is_some() { How::Weights { bits } } else { How::Both { bits } }
            }
        };
        let graph = quantize_function(module, graph, &weight_only(graph, &params), how)
            .map_err(|e| PassError::new(&name, e))?;
        let nodes = graph.topo().into_iter();
        found += nodes.filter(|id| graph.node(*id).op.name() == "quantized_linear").count();
        module.add(graph);
    }
    if is_e4m3 && found == 0 {
        let least = E4M3_BLOCK / 2;
        let why = format!("no product of a layer sums {least} numbers or more: none can be fp8");
        return Err(PassError::new(&entry, why));
    }
    Ok(())
}

/// What is quantised, and to what.
#[derive(Clone, Copy)]
enum How {
    /// Weights to integers of so many bits, in lanes.
    Weights { bits: i64 },
    /// Weights, and activations as they suit them.
    Both { bits: i64 },
    /// Both.
    E4m3,
}

impl How {
    /// Attributes of `quantize_rows`, if activations are quantised.
    fn rows(self) -> Option<Attrs> {
        match self {
            How::Weights { .. } => None,
            How::Both { bits } => Some(Attrs::none().with("weight_bits", bits)),
            How::E4m3 => Some(Attrs::none().with("format", "e4m3")),
        }
    }

    /// Attributes of `quantize_weight`.
    fn weight(self) -> Attrs {
        let layout =
            |bits: i64, layout: &str| Attrs::none().with("bits", bits).with("layout", layout);
        match self {
            How::Weights { bits } => layout(bits, "lanes"),
            How::Both { bits } => layout(bits, "steps"),
            How::E4m3 => layout(8, "steps").with("format", "e4m3"),
        }
    }

    /// The shortest sum worth its blocks: the last one is filled with zeros.
    fn least(self) -> usize {
        if let How::E4m3 = self { E4M3_BLOCK / 2 } else { QUANT_BLOCK }
    }
}

fn quantize_function(
    module: &Module,
    graph: &Graph,
    weights: &BTreeSet<NodeId>,
    how: How,
) -> Result<Graph, OpError> {
    let mut rows: BTreeMap<Value, Value> = BTreeMap::new();
    Builder::rewrite(module, graph, |b, id, inputs| {
        let node = graph.node(id);
        let (true, [Some(x), Some(w), rest @ ..]) =
            (is_quantized(graph, node, weights, how), inputs)
        else {
            return Ok(None);
        };
        let quantized = match (rows.get(x), how.rows()) {
            (Some(quantized), _) => *quantized,
            (None, None) => *x,
            (None, Some(attrs)) => b.op1("quantize_rows", attrs, &[*x])?,
        };
        rows.insert(*x, quantized);
        let w = b.op1("quantize_weight", how.weight(), &[*w])?;
        let attrs = Attrs::none()
            .with("n", node.attrs.int("n"))
            .with("act", node.attrs.str("act"))
            .with("gated", Attr::Bool(node.op.name() == "gated_linear"));
        let inputs = [&[Some(quantized), Some(w)], rest].concat();
        b.op("quantized_linear", attrs, &inputs).map(Some)
    })
}

/// Whether a node is a product that can be quantised: of rows, in f32 where they are quantised too,
/// with a weight of a block at least, or of half of one of e4m3.
fn is_quantized(graph: &Graph, node: &Node, weights: &BTreeSet<NodeId>, how: How) -> bool {
    let (true, [Some(x), Some(w), ..]) =
        (matches!(node.op.name(), "linear" | "gated_linear"), node.inputs())
    else {
        return false;
    };
    let k = graph.ty(*x).shape.last().and_then(Dim::as_const);
    let float = |v: Value| matches!(graph.ty(v).dtype, DType::F32 | DType::Bf16 | DType::F16);
    let rows = if how.rows().is_some() { graph.ty(*x).dtype == DType::F32 } else { float(*x) };
    let is_block = k.is_some_and(|k| k >= how.least() as i64);
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
        quantize(&mut module, WeightFormat::Integers(4), &Target::x86_64_v3()).unwrap();
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
        quantize(&mut module, WeightFormat::Integers(4), &Target::sm_80()).unwrap();
        ir::verify(&module).unwrap();
        let ops = |name: &str, op: &str| ops(&module, name, op);
        assert!(ops("layer", "quantize_rows").is_empty() && ops("layer", "linear").is_empty());
        assert_eq!(ops("layer", "quantized_linear").len(), 2);
        assert_eq!(ops("main", "quantized_linear").len(), 1);
        assert_eq!(ops("layer", "quantize_weight")[0].attrs.str("layout"), "lanes");
    }

    #[test]
    fn layers_multiply_e4m3_and_heads_do_not() {
        let mut module = model();
        quantize(&mut module, WeightFormat::E4m3, &Target::sm_90a()).unwrap();
        ir::verify(&module).unwrap();
        let ops = |name: &str, op: &str| ops(&module, name, op);
        let rows = ops("layer", "quantize_rows");
        assert_eq!(rows.len(), 1, "products of one x share its rows");
        assert_eq!(rows[0].results()[0].ty.to_string(), "u8[T, 144]");
        assert_eq!(
            ops("layer", "quantize_weight")[0].results()[0].ty.to_string(),
            "u8[4, 1, 2112]"
        );
        assert_eq!(ops("layer", "quantized_linear").len(), 2);
        assert!(ops("main", "quantized_linear").is_empty() && ops("main", "linear").len() == 1);
        let text = module.to_string();
        assert_eq!(ir::parse_module(&text).unwrap().to_string(), text);
    }

    #[test]
    fn e4m3_is_refused_where_it_is_not_multiplied() {
        for target in [Target::x86_64_v3(), Target::sm_80()] {
            let error = quantize(&mut model(), WeightFormat::E4m3, &target).unwrap_err();
            assert!(error.to_string().contains("cuda:sm_90a"), "{error}");
        }
        // Without its layer the model is a head.
        let mut module = Module::new("m");
        module.symbol("T", 1, 64);
        let f32s = |shape: [Dim; 2]| ir::TensorType::new(DType::F32, shape);
        let packed = ir::TensorType::new(DType::F32, [4usize, 64, 16]);
        module.weights.insert("w".into(), packed);
        let mut b = module.builder("main");
        let x = b.param("x", f32s([Dim::symbol("T"), Dim::from(64)])).unwrap();
        let w = b.weight("w").unwrap();
        let y = b.op1("linear", Attrs::none().with("n", 64i64), &[x, w]).unwrap();
        b.output("y", y);
        let main = b.finish();
        module.add(main);
        module.entries.push("main".into());
        let error = quantize(&mut module, WeightFormat::E4m3, &Target::sm_90a()).unwrap_err();
        assert!(error.to_string().contains("none can be fp8"), "{error}");
    }
}
