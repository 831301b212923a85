//! Functions with adapters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use indexmap::IndexSet;
use ir::{Builder, DType, Graph, Module, OpError, TensorType, Value};

use super::{
    Lora, LowRank,
    products::{product_weight, weight_name},
};

/// For each function, which of its parameters are adapted, in each way in which it is called.
pub(super) type Patterns = BTreeMap<Arc<str>, IndexSet<Vec<bool>>>;

/// Walks from callers to callees.
pub(super) fn patterns(module: &Module, targets: &BTreeSet<Arc<str>>) -> Patterns {
    let mut patterns = Patterns::new();
    for entry in &module.entries {
        let params = module.function(entry).map_or(0, |graph| graph.params().len());
        patterns.entry(entry.clone()).or_default().insert(vec![false; params]);
    }
    for (name, graph) in module.functions.iter().rev() {
        let own = patterns.entry(name.clone()).or_default();
        if own.is_empty() {
            own.insert(vec![false; graph.params().len()]);
        }
        for pattern in own.clone() {
            let adapted = adapted_values(graph, &pattern, targets);
            for id in graph.topo().into_iter().filter(|id| graph.node(*id).op.name() == "call") {
                let node = graph.node(id);
                let given = node.inputs().iter().map(|v| v.is_some_and(|v| adapted.contains(&v)));
                let callee: Arc<str> = node.attrs.str("callee").into();
                patterns.entry(callee).or_default().insert(given.collect());
            }
        }
    }
    patterns
}

/// Values of a function that are adapted weights, cast or transposed.
fn adapted_values(
    graph: &Graph,
    pattern: &[bool],
    targets: &BTreeSet<Arc<str>>,
) -> BTreeSet<Value> {
    let params = graph.param_values().zip(pattern).filter(|(_, adapted)| **adapted);
    let mut out: BTreeSet<Value> = params.map(|(p, _)| p).collect();
    for id in graph.topo() {
        let node = graph.node(id);
        let is_adapted = match node.op.name() {
            "weight" => targets.contains(node.attrs.str("name")),
            "cast" | "transpose" => out.contains(&node.input(0)),
            _ => false,
        };
        if is_adapted {
            out.insert(Value { node: id, port: 0 });
        }
    }
    out
}

/// The name of a function as calls of that pattern have it.
fn name_of(patterns: &Patterns, function: &str, pattern: &[bool]) -> String {
    match patterns[function].get_index_of(pattern) {
        None | Some(0) => function.to_owned(),
        Some(i) => format!("{function}.{i}"),
    }
}

/// How functions are written anew.
pub(super) struct Writer<'a> {
    pub(super) source: &'a Module,
    pub(super) patterns: &'a Patterns,
    pub(super) lora: &'a Lora,
    pub(super) options: LowRank,
}

impl Writer<'_> {
    /// A function as calls of that pattern have it, and the names of its further parameters: two
    /// for each that is adapted, in their order.
    pub(super) fn write(
        &self,
        module: &Module,
        source: &Graph,
        pattern: &[bool],
    ) -> Result<(Graph, BTreeSet<Arc<str>>), OpError> {
        let mut b = Builder::new(module, &name_of(self.patterns, &source.name, pattern));
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for p in source.param_values() {
            map.insert(p, b.param(source.param_name(p.node), source.ty(p).clone())?);
        }
        // Factors by the value of the source that they adapt.
        let mut factors: BTreeMap<Value, [Value; 2]> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for (p, _) in source.param_values().zip(pattern).filter(|(_, adapted)| **adapted) {
            let weight = product_weight(self.source, source.ty(p), &[(source, p)]);
            let weight = weight.ok_or_else(|| OpError::new("reads an adapted weight otherwise"))?;
            let mut pair = [p; 2];
            let kinds = ["A", "B"].into_iter().zip(self.options.shapes(&weight));
            for (slot, (kind, shape)) in pair.iter_mut().zip(kinds) {
                let name = format!("{}_lora_{kind}", source.param_name(p.node));
                *slot = b.param(&name, TensorType::new(DType::F32, shape))?;
                names.insert(name.into());
            }
            factors.insert(p, pair);
        }
        for id in source.topo() {
            let node = source.node(id);
            let first = Value { node: id, port: 0 };
            if node.op.name() == "param" {
                continue;
            }
            b.at(&node.loc);
            if let Some(name) = weight_name(source, id) {
                map.insert(first, b.weight(name)?);
                if let Some([down, up]) = self.lora.factors.get(name) {
                    factors.insert(first, [b.weight(down)?, b.weight(up)?]);
                }
                continue;
            }
            let given: Vec<Option<[Value; 2]>> =
                node.inputs().iter().map(|v| v.and_then(|v| factors.get(&v).copied())).collect();
            let mut inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
            let mut attrs = node.attrs.clone();
            if node.op.name() == "call" {
                let pattern: Vec<bool> = given.iter().map(Option::is_some).collect();
                let callee = name_of(self.patterns, node.attrs.str("callee"), &pattern);
                attrs = attrs.with("callee", callee.as_str());
                inputs.extend(given.iter().flatten().flatten().copied().map(Some));
            }
            let mut results = b.op(node.op.name(), attrs, &inputs)?;
            match (node.op.name(), &given[..], &inputs[..]) {
                ("cast" | "transpose", [Some(pair)], _) => {
                    factors.insert(first, *pair);
                }
                ("matmul", [_, Some(pair)], [Some(x), _]) => {
                    results[0] = self.adapt(&mut b, *x, results[0], *pair)?;
                }
                _ => {}
            }
            for (port, v) in results.into_iter().enumerate() {
                map.insert(Value { node: id, port }, v);
            }
        }
        for (name, v) in &source.outputs {
            b.output(name, map[v]);
        }
        Ok((b.finish(), names))
    }

    /// `y + (scale · (x · Aᵀ)) · Bᵀ`.
    fn adapt(
        &self,
        b: &mut Builder<'_>,
        x: Value,
        y: Value,
        [down, up]: [Value; 2],
    ) -> Result<Value, OpError> {
        let dtype = b.ty(y).dtype;
        let x = b.cast(x, DType::F32)?;
        let down = b.transpose(down, &[1, 0])?;
        let h = b.matmul(x, down)?;
        let scale = b.scalar(DType::F32, self.options.scale)?;
        let h = b.mul(h, scale)?;
        let up = b.transpose(up, &[1, 0])?;
        let update = b.matmul(h, up)?;
        let update = b.cast(update, dtype)?;
        b.add(y, update)
    }
}
