//! Puts keys and values of causal attention in paged memory: the serving form of a decoder.
//!
//! Every packed causal `attention` becomes `kv_write` and `paged_attention` over block tables.
//! That is the same function of each sequence only if no other operator mixes positions, which is
//! checked first; an operator of which nothing is known is refused. Attention is in layers that the
//! entry calls, and layers call nothing. Kwon et al. 2023, arXiv:2309.06180.
//!
//! Keys and values are rounded to the memory's type before they are written, by `cast` or
//! `quantize_heads`, and attention reads them from the memory alone, those of the step's own tokens
//! too. So a result does not depend on which tokens were in memory before the step.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use ir::{Attr, Attrs, Builder, DType, Dim, Graph, Module, NodeId, ShardOf, TensorType, Value};

use crate::PassError;

/// Names of the serving form's parameters besides the source's.
const SLOTS: &str = "slots";
const BLOCK_TABLES: &str = "block_tables";

/// How key/value memory is laid out.
#[derive(Clone, Copy, Debug)]
pub struct PageOptions {
    /// Tokens of a block; a multiple of 16.
    pub block_size: i64,
    /// Element type of keys and values: f32, bf16, f16, or i8 or f8e4m3 with an f32 scale for each
    /// token and head.
    pub dtype: DType,
    /// Longest sequence.
    pub max_seq_len: i64,
    /// Most blocks that a runtime may supply.
    pub max_blocks: i64,
    /// The most likely tokens of each row of logits that are returned beside it, for runtimes that
    /// do without the row then; at most a quarter of the vocabulary, 0 for none.
    pub head: i64,
}

/// A parameter whose memory outlives a run, which may update it in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name of the parameter; the entry need not have one if it makes all of the state.
    pub param: Arc<str>,
    /// Name of the output that is its new value; `None` where a run leaves it as it is.
    pub output: Option<Arc<str>>,
    /// Name of the state that it lies in, and at which byte, if it has no memory of its own.
    pub part_of: Option<(Arc<str>, Dim)>,
    /// Of what it is this rank's part, if it is one.
    pub shard_of: Option<ShardOf>,
}

/// Adds the entry `step` beside `entry`, and returns the states that it carries.
///
/// `step` takes the source's parameters, then `slots i32[T]`, `block_tables i32[S, MB]` and the
/// memories of each attention: `k_cache` and `v_cache`, in eight bits `k_scales` and `v_scales`
/// too. It returns the source's outputs, `logsumexp` of its `logits`, `head_logits` and
/// `head_tokens` of them if there are some, in order, and the memories.
///
/// # Errors
/// Names every operator that mixes positions in a way that paging does not keep; says what types
/// there are where keys and values can not be of `options.dtype`.
pub fn page_kv(
    module: &mut Module,
    entry: &str,
    options: PageOptions,
) -> Result<Vec<State>, Vec<PassError>> {
    let dtype = options.dtype;
    if !matches!(dtype, DType::F32 | DType::Bf16 | DType::F16 | DType::I8 | DType::F8E4M3) {
        let why = format!("keys and values are f32, bf16, f16, i8 or f8e4m3, not {dtype}");
        return Err(vec![PassError::new(entry, why)]);
    }
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

/// A memory of an attention, in the order of `kv_write`'s results.
const MEMORIES: [&str; 4] = ["k_cache", "v_cache", "k_scales", "v_scales"];

/// A layer with memories as further parameters and outputs.
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
    let mut attentions = 0;
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
            let ([_, h, d], [_, _, dv]) = (&*b.ty(k).shape.clone(), &*b.ty(v).shape.clone()) else {
                return Err(PassError::new(&layer.name, "attention is not packed"));
            };
            let [block, blocks] = [Dim::from(options.block_size), Dim::symbol("NB")];
            let types = [
                TensorType::new(options.dtype, [&blocks, h, d, &block].map(Clone::clone)),
                TensorType::new(options.dtype, [&blocks, h, &block, dv].map(Clone::clone)),
                TensorType::new(DType::F32, [&blocks, h, &block].map(Clone::clone)),
                TensorType::new(DType::F32, [&blocks, h, &block].map(Clone::clone)),
            ];
            let rounded = round(&mut b, [k, v], options.dtype).map_err(wrap)?;
            let n = attentions;
            attentions += 1;
            let mut caches = Vec::new();
            for (kind, ty) in MEMORIES.iter().zip(types).take(rounded.len()) {
                caches.push(b.param(&format!("{kind}.{n}"), ty).map_err(wrap)?);
            }
            let (values, scales) = (&caches[..2], &caches[2..]);
            let write = [values, &rounded[..2], &[slots], scales, &rounded[2..]].concat();
            let write: Vec<_> = write.into_iter().map(Some).collect();
            let written = b.op("kv_write", Attrs::none(), &write).map_err(wrap)?;
            let named = MEMORIES.iter().map(|kind| format!("{kind}.{n}"));
            memories.extend(named.zip(written.iter().copied()));
            let attend = [Some(q), Some(written[0]), Some(written[1]), Some(tables), cu];
            let scales = written[2..].iter().copied().map(Some);
            let attend: Vec<_> =
                attend.into_iter().chain([Some(positions)]).chain(scales).collect();
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
    for (name, v) in memories {
        b.output(&name, v);
    }
    Ok(b.finish())
}

/// Keys and values as the memory holds them, then their scales, if there are any.
fn round(b: &mut Builder<'_>, kv: [Value; 2], dtype: DType) -> Result<Vec<Value>, ir::OpError> {
    let [mut rounded, mut scales] = [Vec::new(), Vec::new()];
    for x in kv {
        let format = match dtype {
            DType::I8 => Some("integers"),
            DType::F8E4M3 => Some("e4m3"),
            _ => None,
        };
        if let Some(format) = format {
            let x = b.cast(x, DType::F32)?;
            let attrs = Attrs::none().with("format", format);
            let quantized = b.op("quantize_heads", attrs, &[Some(x)])?;
            rounded.push(quantized[0]);
            scales.push(quantized[1]);
        } else {
            rounded.push(b.cast(x, dtype)?);
        }
    }
    rounded.append(&mut scales);
    Ok(rounded)
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
    // Of each kind of memory, how many there are.
    let mut numbers = std::collections::BTreeMap::new();
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
                    let number: &mut usize = numbers.entry(kind.to_owned()).or_default();
                    let name = format!("{kind}.{number}");
                    *number += 1;
                    args.push(b.param(&name, paged.ty(p).clone()).map_err(wrap)?);
                    let output = format!("{name}.out");
                    let (param, output) = (name.into(), Some(output.into()));
                    states.push(State { param, output, part_of: None, shard_of: None });
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
            let vocabulary = b.ty(map[v]).shape.last().and_then(Dim::as_const).unwrap_or(0);
            let head = options.head.min(vocabulary / 4);
            if head > 0 {
                let attrs = Attrs::none().with("k", vec![Dim::from(head)]).with("axis", -1i64);
                let best = b.op("topk", attrs, &[Some(map[v])]).map_err(wrap)?;
                b.output("head_logits", best[0]);
                b.output("head_tokens", best[1]);
            }
        }
    }
    for (state, v) in states.iter().zip(outputs) {
        if let Some(output) = &state.output {
            b.output(output, v);
        }
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
        "reduce_sum" | "reduce_sum_square" | "reduce_mean" | "reduce_max" | "reduce_min"
        | "reduce_prod" => {
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
