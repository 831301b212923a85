//! Inlines every call of an entry function.

use std::collections::BTreeMap;

use ir::{Attrs, Graph, Module, Value};

use crate::PassError;

/// The entry as one graph. Nodes are named after the call that they come from: `layer.3/mlp.down`.
pub(crate) fn flatten(module: &Module, entry: &str) -> Result<Graph, PassError> {
    let source = module.function(entry).ok_or_else(|| PassError::new(entry, "no such function"))?;
    let mut out = Graph::new(entry);
    let mut args = Vec::new();
    for p in source.param_values() {
        let node = source.node(p.node);
        let results = node.results().to_vec();
        let node = out.add(node.op, node.attrs.clone(), &[], results, node.loc.clone());
        args.push(Value { node, port: 0 });
    }
    let mut counts = BTreeMap::new();
    let results = inline(module, source, &args, "", &mut out, &mut counts)?;
    for ((name, _), v) in source.outputs.iter().zip(results) {
        out.outputs.push((name.clone(), v));
    }
    Ok(out)
}

fn inline(
    module: &Module,
    graph: &Graph,
    args: &[Value],
    prefix: &str,
    out: &mut Graph,
    counts: &mut BTreeMap<String, usize>,
) -> Result<Vec<Value>, PassError> {
    let mut map: BTreeMap<Value, Value> = graph.param_values().zip(args.iter().copied()).collect();
    for id in graph.topo() {
        let node = graph.node(id);
        if node.op.name() == "param" {
            continue;
        }
        let inputs: Vec<Option<Value>> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        let results: Vec<Value> = if node.op.name() == "call" {
            let callee = node.attrs.str("callee");
            let function = module
                .function(callee)
                .ok_or_else(|| PassError::new(&graph.name, format!("no function `{callee}`")))?;
            let stem = callee.trim_end_matches(".paged");
            let count = counts.entry("call".into()).or_insert(0);
            let prefix = format!("{prefix}{stem}.{count}/");
            *count += 1;
            let args: Vec<Value> = inputs.into_iter().flatten().collect();
            inline(module, function, &args, &prefix, out, counts)?
        } else {
            let loc = format!("{prefix}{}", node.loc);
            let attrs: Attrs = node.attrs.clone();
            let results = node.results().to_vec();
            let ports = results.len();
            let new = out.add(node.op, attrs, &inputs, results, loc.as_str().into());
            (0..ports).map(|port| Value { node: new, port }).collect()
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    Ok(graph.outputs.iter().map(|(_, v)| map[v]).collect())
}
