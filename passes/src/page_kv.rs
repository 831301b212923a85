//! Puts keys and values of causal attention in paged memory: the serving form of a decoder.
//!
//! Every packed causal `attention` becomes `kv_write` and `paged_attention` over block tables.
//! That is the same function of each sequence only if no other operator mixes positions, which is
//! checked first; an operator of which nothing is known is refused. Attention is in layers that the
//! entry calls, and layers call nothing. Kwon et al. 2023, arXiv:2309.06180.

use std::sync::Arc;

use ir::{Attr, Attrs, Builder, DType, Dim, Graph, Module, NodeId, TensorType, Value};

use crate::PassError;

/// Names of the serving form's parameters besides the source's.
const SLOTS: &str = "slots";
const BLOCK_TABLES: &str = "block_tables";

/// How key/value memory is laid out.
#[derive(Clone, Copy, Debug)]
pub struct PageOptions {
    /// Tokens of a block; a multiple of 16.
    pub block_size: i64,
    /// Element type of keys and values.
    pub dtype: DType,
    /// Longest sequence.
    pub max_seq_len: i64,
    /// Most blocks that a runtime may supply.
    pub max_blocks: i64,
}

/// A parameter that a run updates in place: its new value is the output of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name of the parameter.
    pub param: Arc<str>,
    /// Name of the output.
    pub output: Arc<str>,
}

/// Adds the entry `step` beside `entry`, and returns the states that it carries.
///
/// `step` takes the source's parameters, then `slots i32[T]`, `block_tables i32[S, MB]` and two
/// memories for each attention; it returns the source's outputs, `logsumexp` of its `logits`, and
/// the memories.
///
/// # Errors
/// Names every operator that mixes positions in a way that paging does not keep.
pub fn page_kv(
    module: &mut Module,
    entry: &str,
    options: PageOptions,
) -> Result<Vec<State>, Vec<PassError>> {
    let source = module
        .function(entry)
        .ok_or_else(|| vec![PassError::new(entry, "no such function")])?
        .clone();
    let mut errors = Vec::new();
    let mut layers: Vec<Arc<str>> = Vec::new();
    for id in source.topo() {
        let node = source.node(id);
        if node.op.name() == "call" {
            let callee: Arc<str> = node.attrs.str("callee").into();
            if !layers.contains(&callee) {
                layers.push(callee);
            }
        }
    }
    check_position_wise(&source, true, &mut errors);
    for name in &layers {
        check_position_wise(&module.functions[name], false, &mut errors);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    module.symbol("NB", 1, options.max_blocks);
    for name in &layers {
        let paged = page_layer(module, &module.functions[name], options).map_err(|e| vec![e])?;
        module.add(paged);
    }
    let (step, states) = page_entry(module, &source, options).map_err(|e| vec![e])?;
    module.add(step);
    Ok(states)
}

fn paged_name(name: &str) -> String {
    format!("{name}.paged")
}

fn table_type(options: PageOptions) -> TensorType {
    let blocks = Dim::from(options.max_seq_len).ceil_div(options.block_size);
    TensorType::new(DType::I32, [Dim::symbol("S"), blocks])
}

/// A layer with memories as further parameters and outputs, two for each attention.
fn page_layer(module: &Module, layer: &Graph, options: PageOptions) -> Result<Graph, PassError> {
    let wrap = |e: ir::OpError| PassError::new(&layer.name, e);
    let mut b = Builder::new(module, &paged_name(&layer.name));
    let mut map = std::collections::BTreeMap::new();
    for p in layer.param_values() {
        let v = b.param(layer.param_name(p.node), layer.ty(p).clone()).map_err(wrap)?;
        map.insert(p, v);
    }
    let tokens = TensorType::new(DType::I32, [Dim::symbol("T")]);
    let positions = b.param("positions", tokens.clone()).map_err(wrap)?;
    let slots = b.param(SLOTS, tokens).map_err(wrap)?;
    let tables = b.param(BLOCK_TABLES, table_type(options)).map_err(wrap)?;
    let mut memories = Vec::new();
    for id in layer.topo() {
        let node = layer.node(id);
        if node.op.name() == "param" {
            continue;
        }
        b.at(&node.loc);
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        let results = if node.op.name() == "attention" {
            let (q, k, v, cu) = (inputs[0], inputs[1], inputs[2], inputs[3]);
            let (q, k, v) = (q.expect("q"), k.expect("k"), v.expect("v"));
            let [k, v] = [k, v].map(|x| b.cast(x, options.dtype));
            let (k, v) = (k.map_err(wrap)?, v.map_err(wrap)?);
            let block = Dim::from(options.block_size);
            let blocks = Dim::symbol("NB");
            let ([_, h, d], [_, _, dv]) = (&*b.ty(k).shape.clone(), &*b.ty(v).shape.clone()) else {
                return Err(PassError::new(&layer.name, "attention is not packed"));
            };
            let k_type = [blocks.clone(), h.clone(), d.clone(), block.clone()];
            let v_type = [blocks, h.clone(), block, dv.clone()];
            let n = memories.len() / 2;
            let kc = b.param(&format!("k_cache.{n}"), TensorType::new(options.dtype, k_type));
            let vc = b.param(&format!("v_cache.{n}"), TensorType::new(options.dtype, v_type));
            let (kc, vc) = (kc.map_err(wrap)?, vc.map_err(wrap)?);
            let written =
                b.op("kv_write", Attrs::none(), &[kc, vc, k, v, slots].map(Some)).map_err(wrap)?;
            memories.extend(written.iter().copied());
            let attend = [Some(q), Some(written[0]), Some(written[1]), Some(tables), cu];
            let attend = [&attend[..], &[Some(positions)]].concat();
            b.op("paged_attention", node.attrs.clone(), &attend).map_err(wrap)?
        } else {
            b.op(node.op.name(), node.attrs.clone(), &inputs).map_err(wrap)?
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (name, v) in &layer.outputs {
        b.output(name, map[v]);
    }
    for (i, v) in memories.into_iter().enumerate() {
        b.output(&format!("{}.{}", if i % 2 == 0 { "k_cache" } else { "v_cache" }, i / 2), v);
    }
    Ok(b.finish())
}

fn page_entry(
    module: &Module,
    source: &Graph,
    options: PageOptions,
) -> Result<(Graph, Vec<State>), PassError> {
    let wrap = |e: ir::OpError| PassError::new(&source.name, e);
    let mut b = Builder::new(module, "step");
    let mut map = std::collections::BTreeMap::new();
    for p in source.param_values() {
        let v = b.param(source.param_name(p.node), source.ty(p).clone()).map_err(wrap)?;
        map.insert(p, v);
    }
    let positions = b.graph().param("positions");
    let positions =
        positions.ok_or_else(|| PassError::new(&source.name, "has no parameter `positions`"))?;
    let tokens = b.ty(positions).clone();
    let slots = b.param(SLOTS, tokens).map_err(wrap)?;
    let tables = b.param(BLOCK_TABLES, table_type(options)).map_err(wrap)?;
    let mut states = Vec::new();
    let mut outputs = Vec::new();
    for id in source.topo() {
        let node = source.node(id);
        b.at(&node.loc);
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        let results = match node.op.name() {
            "param" => continue,
            "weight" => vec![b.weight(node.attrs.str("name")).map_err(wrap)?],
            "call" => {
                let callee = paged_name(node.attrs.str("callee"));
                let paged = module.functions[callee.as_str()].clone();
                let mut args: Vec<Value> = inputs.into_iter().flatten().collect();
                let own = args.len();
                args.extend([positions, slots, tables]);
                for p in paged.param_values().skip(own + 3) {
                    let kind = paged.param_name(p.node).split('.').next().unwrap_or_default();
                    let name = format!("{kind}.{}", states.len() / 2);
                    args.push(b.param(&name, paged.ty(p).clone()).map_err(wrap)?);
                    let output = format!("{name}.out");
                    states.push(State { param: name.into(), output: output.into() });
                }
                let mut results = b.call(&callee, &args).map_err(wrap)?;
                outputs.extend(results.split_off(node.results().len()));
                results
            }
            op => b.op(op, node.attrs.clone(), &inputs).map_err(wrap)?,
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (name, v) in &source.outputs {
        b.output(name, map[v]);
        if &**name == "logits" {
            let total = b.unary("logsumexp", map[v]).map_err(wrap)?;
            b.output("logsumexp", total);
        }
    }
    for (state, v) in states.iter().zip(outputs) {
        b.output(&state.output, v);
    }
    Ok((b.finish(), states))
}

/// Whether an axis carries the packed tokens.
fn has_tokens(ty: &TensorType) -> bool {
    ty.shape.iter().any(counts_tokens)
}

fn counts_tokens(d: &Dim) -> bool {
    d.symbols().iter().any(|s| &**s == "T")
}

fn check_position_wise(graph: &Graph, entry: bool, errors: &mut Vec<PassError>) {
    for id in graph.topo() {
        if let Err(why) = position_wise(graph, id, entry) {
            let node = graph.node(id);
            let loc = if node.loc.is_empty() { String::new() } else { format!(" `{}`", node.loc) };
            errors.push(PassError::new(
                &graph.name,
                format!(
                    "{:?}{loc} {why}, so the model cannot be served from paged memory; only \
                     causal attention may mix positions",
                    node.op
                ),
            ));
        }
    }
}

/// Whether a node computes each token's row from that token's rows alone, as far as is known of its
/// operator.
fn position_wise(graph: &Graph, id: NodeId, entry: bool) -> Result<(), String> {
    let node = graph.node(id);
    let inputs: Vec<&TensorType> = node.inputs().iter().flatten().map(|v| graph.ty(*v)).collect();
    let tokens: Vec<bool> = inputs.iter().map(|t| has_tokens(t)).collect();
    let result = node.results().first().map(|f| &f.ty);
    let axis = |name: &str, rank: usize| ir::normalize_axis(node.attrs.int(name), rank);
    let leading = |t: &TensorType| {
        !has_tokens(t)
            || (t.shape.first().is_some_and(|d| d.as_symbol() == Some("T"))
                && !t.shape[1..].iter().any(|d| d.symbols().iter().any(|s| &**s == "T")))
    };
    let sizes = || {
        node.attrs.0.iter().filter_map(|(_, a)| match a {
            Attr::Dims(dims) => Some(dims),
            _ => None,
        })
    };
    match node.op.name() {
        "call" if entry => return Ok(()),
        "call" => return Err("is a call within a layer".into()),
        // The number of a token in a step, or the number of tokens, is not that of its sequence.
        "iota" | "size_vector" if sizes().flatten().any(counts_tokens) => {
            return Err("numbers or counts the tokens of a step".into());
        }
        "attention" if entry && tokens.contains(&true) => {
            return Err("stands in the entry, not in a layer that it calls".into());
        }
        _ if !tokens.contains(&true) => return Ok(()),
        _ => {}
    }
    if !inputs.iter().all(|t| leading(t)) || !result.is_none_or(leading) {
        return Err("moves the token axis".into());
    }
    let ok = match node.op.name() {
        "attention" => {
            let causal = node.attrs.str("mask") == "causal";
            let packed = inputs[0].rank() == 3;
            return match (causal, packed) {
                (true, true) => Ok(()),
                (false, _) => Err("lets tokens see later ones".into()),
                (_, false) => Err("is batched, not packed".into()),
            };
        }
        "reduce_sum" | "reduce_mean" | "reduce_max" | "reduce_min" | "reduce_prod" => {
            let zero = |a: &i64| ir::normalize_axis(*a, inputs[0].rank()) == Some(0);
            !node.attrs.ints("axes").iter().any(zero)
        }
        "softmax" | "cumsum" | "slice" | "concat" => axis("axis", inputs[0].rank()) != Some(0),
        // Rows of the table for each token, or, at the end, rows of chosen tokens.
        "gather" => !tokens[0] || (entry && !tokens[1]),
        "matmul" => !tokens[1],
        "reshape" | "transpose" | "broadcast_to" => result.is_some_and(has_tokens),
        // Operands broadcast against each other: tokens must not meet a shorter token-free axis 0
        // of the same rank, which leading() and type inference have ruled out.
        _ if node.op.is_elementwise() => result.is_some_and(has_tokens),
        _ if node.op.is_rowwise() => inputs[0].rank() > 1 && result.is_some_and(has_tokens),
        _ => return Err("is not known to keep positions apart".into()),
    };
    if ok { Ok(()) } else { Err("mixes positions".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t() -> Dim {
        Dim::symbol("T")
    }

    fn attend(b: &mut Builder<'_>, x: Value, cu: Value) -> Value {
        let heads = b.reshape(x, vec![t(), 1.into(), 8.into()]).unwrap();
        let attrs = Attrs::none().with("scale", 1.0).with("mask", "causal");
        let args = [heads, heads, heads, cu].map(Some);
        let y = b.op("attention", attrs, &args).unwrap()[0];
        b.reshape(y, vec![t(), 8.into()]).unwrap()
    }

    type Build = fn(&mut Builder<'_>, Value, Value) -> Value;

    /// Pages an entry that does something to `x [T, 8]`, calls a layer that does something and
    /// attends, and returns what is wrong.
    fn problems(in_entry: Build, in_layer: Build) -> String {
        let mut m = Module::new("m");
        m.symbol("T", 1, 64);
        m.symbol("S", 1, 8);
        let x_ty = TensorType::new(DType::F32, [t(), 8.into()]);
        let cu_ty = TensorType::new(DType::I32, [Dim::symbol("S") + 1.into()]);
        let mut b = m.builder("inner");
        let x = b.param("x", x_ty.clone()).unwrap();
        b.output("y", x);
        let inner = b.finish();
        m.add(inner);
        let mut b = m.builder("layer");
        let x = b.param("x", x_ty.clone()).unwrap();
        let cu = b.param("cu_seqlens", cu_ty.clone()).unwrap();
        let y = in_layer(&mut b, x, cu);
        let y = attend(&mut b, y, cu);
        b.output("y", y);
        let layer = b.finish();
        m.add(layer);
        let mut b = m.builder("forward");
        let x = b.param("x", x_ty).unwrap();
        b.param("positions", TensorType::new(DType::I32, [t()])).unwrap();
        let cu = b.param("cu_seqlens", cu_ty).unwrap();
        let x = in_entry(&mut b, x, cu);
        let y = b.call("layer", &[x, cu]).unwrap()[0];
        b.output("y", y);
        let forward = b.finish();
        m.add(forward);
        let options =
            PageOptions { block_size: 16, dtype: DType::F32, max_seq_len: 40, max_blocks: 8 };
        match page_kv(&mut m, "forward", options) {
            Ok(_) => {
                ir::verify(&m).unwrap();
                String::new()
            }
            Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        }
    }

    #[test]
    fn what_keeps_positions_apart_is_paged() {
        let norm: Build = |b, x, _| b.unary("l2_normalize", x).unwrap();
        let gate: Build = |b, x, _| {
            let s = b.unary("silu", x).unwrap();
            b.mul(s, x).unwrap()
        };
        assert_eq!(problems(norm, gate), "");
    }

    #[test]
    fn attention_outside_of_a_layer_and_calls_within_one_are_refused() {
        let plain: Build = |_, x, _| x;
        let nested: Build = |b, x, _| b.call("inner", &[x]).unwrap()[0];
        let why = problems(attend, plain);
        assert!(why.contains("attention stands in the entry, not in a layer"), "{why}");
        let why = problems(plain, nested);
        assert!(why.contains("function `layer`: call is a call within a layer"), "{why}");
    }

    #[test]
    fn operators_that_may_mix_positions_are_refused() {
        let plain: Build = |_, x, _| x;
        // Neither of these is known to keep rows apart.
        let elements: Build = |b, x, _| {
            let at = b.cast(x, DType::I64).unwrap();
            b.op1("gather_elements", Attrs::none().with("axis", 0i64), &[x, at]).unwrap()
        };
        let why = problems(plain, elements);
        assert!(why.contains("gather_elements is not known to keep positions apart"), "{why}");
        let numbered: Build = |b, x, _| {
            let shape = Attrs::none().with("shape", vec![t(), 1.into()]).with("axis", 0i64);
            let at = b.op1("iota", shape.with("dtype", DType::F32), &[]).unwrap();
            b.add(x, at).unwrap()
        };
        assert!(problems(numbered, plain).contains("iota numbers or counts the tokens"));
        let normed: Build = |b, x, _| {
            let column = b.slice(x, 1, 0i64, 1i64).unwrap();
            let column = b.reshape(column, vec![t()]).unwrap();
            let column = b.unary("l2_normalize", column).unwrap();
            let column = b.reshape(column, vec![t(), 1.into()]).unwrap();
            b.add(x, column).unwrap()
        };
        let why = problems(plain, normed);
        assert!(why.contains("l2_normalize mixes positions"), "{why}");
    }
}
