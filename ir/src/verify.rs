//! The verifier: checks a module against the operator table and reports everything at once.
//!
//! Invariants: operands precede their readers and exist; attributes and operands fit the operator's
//! signature; results have the types that inference gives; weights and callees exist; a function
//! does not call itself, directly or not; entries are functions; the outputs of a function have
//! distinct names; symbols that types and attributes mention are declared, with sensible bounds; no
//! extent is negative.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{Attr, Dim, Graph, InferCx, Module, NodeId};

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", place(function, node, loc))]
pub struct VerifyError {
    /// The function.
    pub function: String,
    /// The node's operator and number, where the error is about a node.
    pub node: Option<String>,
    /// The node's name in the source model.
    pub loc: String,
    /// What is wrong.
    pub message: String,
}

fn place(function: &str, node: &Option<String>, loc: &str) -> String {
    let mut s = String::new();
    if !function.is_empty() {
        s += &format!("function `{function}`: ");
    }
    if let Some(n) = node {
        s += &format!("{n}: ");
    }
    if !loc.is_empty() {
        s += &format!("(source node `{loc}`) ");
    }
    s
}

/// Checks a module.
///
/// # Errors
/// Every violation found.
pub fn verify(module: &Module) -> Result<(), Vec<VerifyError>> {
    let mut errors = Vec::new();
    for (name, b) in &module.symbols {
        if b.lo < 0 || b.hi < b.lo {
            let message = format!("symbol `{name}` has bounds {}..{}", b.lo, b.hi);
            errors.push(VerifyError {
                function: String::new(),
                node: None,
                loc: String::new(),
                message,
            });
        }
    }
    for entry in &module.entries {
        if module.function(entry).is_none() {
            errors.push(VerifyError {
                function: entry.to_string(),
                node: None,
                loc: String::new(),
                message: "is an entry but no function".into(),
            });
        }
    }
    for graph in module.functions.values() {
        check_graph(module, graph, &mut errors);
    }
    check_recursion(module, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn check_graph(module: &Module, graph: &Graph, errors: &mut Vec<VerifyError>) {
    let mut fail = |node: Option<NodeId>, message: String| {
        errors.push(VerifyError {
            function: graph.name.to_string(),
            node: node.map(|n| format!("{:?} {:?}", n, graph.node(n).op)),
            loc: node.map(|n| graph.node(n).loc.to_string()).unwrap_or_default(),
            message,
        });
    };
    let callee = |name: &str| module.function(name).map(Graph::signature);
    let ids: BTreeSet<NodeId> = graph.node_ids().into_iter().collect();
    for id in &ids {
        let node = graph.node(*id);
        let bad = |v: &&crate::Value| {
            !ids.contains(&v.node) || graph.node(v.node).results().len() <= v.port
        };
        if let Some(v) = node.inputs().iter().flatten().find(bad) {
            fail(Some(*id), format!("operand {v:?} does not exist"));
            continue;
        }
        let attrs = node.attrs.0.iter().filter_map(|(_, a)| match a {
            Attr::Dims(dims) => Some(dims.as_slice()),
            _ => None,
        });
        let shapes = node.results().iter().map(|f| f.ty.shape.as_slice());
        let unknown: BTreeSet<Arc<str>> =
            shapes.chain(attrs).flatten().flat_map(Dim::symbols).collect();
        for s in unknown.iter().filter(|s| !module.symbols.contains_key(*s)) {
            fail(Some(*id), format!("symbol `{s}` is not declared"));
        }
        for f in node.results() {
            if let Err(e) = f.ty.check_extents(&module.symbols) {
                fail(Some(*id), e.to_string());
            }
        }
        match node.op.name() {
            "param" => continue,
            "weight" => {
                let name = node.attrs.str("name");
                match module.weights.get(name) {
                    Some(ty) if *ty == node.results()[0].ty => {}
                    Some(ty) => fail(Some(*id), format!("weight `{name}` is {ty}")),
                    None => fail(Some(*id), format!("no weight `{name}`")),
                }
                continue;
            }
            _ => {}
        }
        let signature = node.op.signature();
        let present: Vec<bool> = node.inputs().iter().map(Option::is_some).collect();
        let checked = signature
            .check_attrs(&node.attrs)
            .and_then(|attrs| signature.check_operands(&present).map(|()| attrs));
        let attrs = match checked {
            Ok(attrs) => attrs,
            Err(e) => {
                fail(Some(*id), e.to_string());
                continue;
            }
        };
        let args: Vec<_> = node.inputs().iter().map(|v| v.map(|v| graph.fact(v))).collect();
        let cx = InferCx { attrs: &attrs, args: &args, symbols: &module.symbols, callee: &callee };
        match node.op.infer(&cx) {
            Err(e) => fail(Some(*id), e.to_string()),
            Ok(facts) if facts.len() != node.results().len() => {
                let (want, got) = (facts.len(), node.results().len());
                fail(Some(*id), format!("has {got} results, inference gives {want}"));
            }
            Ok(facts) => {
                for (i, (want, got)) in facts.iter().zip(node.results()).enumerate() {
                    if want.ty != got.ty {
                        let (want, got) = (&want.ty, &got.ty);
                        fail(Some(*id), format!("result {i} is {got}, inference gives {want}"));
                    }
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    for (name, v) in &graph.outputs {
        if !names.insert(name) {
            fail(None, format!("two outputs are called `{name}`"));
        }
        if !ids.contains(&v.node) || graph.node(v.node).results().len() <= v.port {
            fail(None, format!("output `{name}` reads {v:?}, which does not exist"));
        }
    }
}

fn check_recursion(module: &Module, errors: &mut Vec<VerifyError>) {
    fn depth<'a>(
        module: &'a Module,
        name: &'a Arc<str>,
        state: &mut BTreeMap<&'a str, bool>,
    ) -> bool {
        match state.get(&**name) {
            Some(done) => return *done,
            None => state.insert(name, false),
        };
        let Some(graph) = module.function(name) else { return true };
        for id in graph.node_ids() {
            if let Some(Attr::Str(callee)) = graph.node(id).attrs.get("callee") {
                let Some((callee, _)) = module.functions.get_key_value(callee) else { continue };
                if !depth(module, callee, state) {
                    return false;
                }
            }
        }
        state.insert(name, true);
        true
    }
    let mut state = BTreeMap::new();
    for name in module.functions.keys() {
        if !depth(module, name, &mut state) {
            errors.push(VerifyError {
                function: name.to_string(),
                node: None,
                loc: String::new(),
                message: "calls itself".into(),
            });
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> String {
        let module = crate::parse_module(text).unwrap();
        verify(&module).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn symbols_of_attributes_must_be_declared() {
        let mut module = Module::new("m");
        let mut b = module.builder("f");
        let attrs = crate::Attrs::none().with("sizes", vec![Dim::symbol("T")]);
        let y = b.op1("size_vector", attrs, &[]).unwrap();
        b.output("y", y);
        let graph = b.finish();
        module.add(graph);
        let text = module.to_string();
        assert!(errors(&text).contains("symbol `T` is not declared"), "{text}");
    }

    #[test]
    fn negative_extents_are_refused() {
        let mut module = Module::new("m");
        module.symbol("T", 1, 8);
        let mut b = module.builder("f");
        let ty = |d: &str| crate::TensorType::new(crate::DType::F32, [d.parse::<Dim>().unwrap()]);
        for d in ["-5", "T - 9"] {
            assert!(b.param("x", ty(d)).unwrap_err().to_string().contains("negative"), "{d}");
        }
        let x = b.param("x", ty("T - 8")).unwrap();
        let attrs = crate::Attrs::none().with("shape", vec![Dim::from(-3i64)]);
        assert!(b.op1("broadcast_to", attrs, &[x]).is_err());
        module.weight("w", ty("-1"));
        let mut b = module.builder("f");
        assert!(b.weight("w").is_err());
    }
}
