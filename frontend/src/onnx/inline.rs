//! Model-local functions, expanded where they are called.
//!
//! The body's values are renamed under the call's first output, which is unique in a graph.

use std::{collections::HashMap, path::Path};

use onnx_protobuf::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto};

use crate::FrontendError;

use super::proto::default_domain;

/// Most nodes and calls that are expanded, and most functions that call each other.
const MAX_NODES: usize = 1 << 18;
const MAX_DEPTH: usize = 32;

/// Takes the graph out of the model, its calls of model-local functions expanded.
///
/// # Errors
/// Where functions recurse or expand beyond bounds, or are written for another opset.
pub(super) fn expand(
    path: &Path,
    model: &mut ModelProto,
    opset: i64,
) -> Result<GraphProto, Vec<FrontendError>> {
    let mut graph = model.graph.take().unwrap_or_default();
    if model.functions.is_empty() {
        return Ok(graph);
    }
    let mut inliner = Inliner { path, opset, functions: HashMap::new(), out: Vec::new(), steps: 0 };
    for f in &model.functions {
        inliner.functions.insert((&f.domain, &f.name, &f.overload), f);
    }
    for node in std::mem::take(&mut graph.node) {
        inliner.add(node, 0).map_err(|e| vec![e])?;
    }
    graph.node = inliner.out;
    Ok(graph)
}

struct Inliner<'a> {
    path: &'a Path,
    opset: i64,
    functions: HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    out: Vec<NodeProto>,
    /// Nodes and calls so far: calls of empty functions leave no nodes.
    steps: usize,
}

impl Inliner<'_> {
    fn add(&mut self, node: NodeProto, depth: usize) -> Result<(), FrontendError> {
        self.steps += 1;
        let key = (&*node.domain, &*node.op_type, &*node.overload);
        let reason = match self.functions.get(&key) {
            _ if self.steps > MAX_NODES => format!("expands beyond {MAX_NODES} nodes and calls"),
            None => {
                self.out.push(node);
                return Ok(());
            }
            Some(f) if other_opset(f, self.opset) => {
                format!("is a function for another opset than the model's, {}", self.opset)
            }
            Some(_) if depth == MAX_DEPTH => {
                format!("functions call each other more than {MAX_DEPTH} deep, or themselves")
            }
            Some(f) => {
                let f = *f;
                return f
                    .node
                    .iter()
                    .try_for_each(|inner| self.add(instance(f, inner, &node), depth + 1));
            }
        };
        let file = self.path.into();
        let name = node.output.first().cloned().unwrap_or(node.name);
        Err(FrontendError::Node { file, node: name, op: node.op_type, reason })
    }
}

fn other_opset(f: &FunctionProto, opset: i64) -> bool {
    f.opset_import.iter().any(|o| default_domain(&o.domain) && o.version != opset)
}

/// One node of a function's body as `call` instantiates it.
fn instance(f: &FunctionProto, inner: &NodeProto, call: &NodeProto) -> NodeProto {
    let prefix = call.output.iter().find(|o| !o.is_empty()).unwrap_or(&call.name);
    let rename = |v: &String| {
        let at = |formal: &[String]| formal.iter().position(|n| n == v);
        if v.is_empty() {
            String::new()
        } else if let Some(i) = at(&f.input) {
            call.input.get(i).cloned().unwrap_or_default()
        } else {
            match at(&f.output).and_then(|i| call.output.get(i)).filter(|o| !o.is_empty()) {
                Some(actual) => actual.clone(),
                None => format!("{prefix}/{v}"),
            }
        }
    };
    let name = match (call.name.is_empty(), inner.name.is_empty()) {
        (true, _) => inner.name.clone(),
        (_, true) => String::new(),
        _ => format!("{}/{}", call.name, inner.name),
    };
    NodeProto {
        input: inner.input.iter().map(rename).collect(),
        output: inner.output.iter().map(rename).collect(),
        attribute: inner.attribute.iter().filter_map(|a| attribute(f, a, call)).collect(),
        name,
        ..inner.clone()
    }
}

/// An attribute of a body's node: its own, or the call's that it refers to, or that one's default.
fn attribute(
    f: &FunctionProto,
    inner: &AttributeProto,
    call: &NodeProto,
) -> Option<AttributeProto> {
    if inner.ref_attr_name.is_empty() {
        return Some(inner.clone());
    }
    let mut given = call.attribute.iter().chain(&f.attribute_proto);
    let given = given.find(|a| a.name == inner.ref_attr_name)?;
    Some(AttributeProto { name: inner.name.clone(), ..given.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_double_and_leave_nothing_are_bounded() {
        let call = |i: usize, output: &str| NodeProto {
            domain: "local".into(),
            op_type: format!("f{i}"),
            output: vec![output.into()],
            ..NodeProto::default()
        };
        let function = |i: usize| FunctionProto {
            domain: "local".into(),
            name: format!("f{i}"),
            node: if i < 30 { vec![call(i + 1, "a"), call(i + 1, "b")] } else { Vec::new() },
            ..FunctionProto::default()
        };
        let mut model = ModelProto {
            graph: Some(GraphProto { node: vec![call(0, "y")], ..GraphProto::default() }).into(),
            functions: (0..31).map(function).collect(),
            ..ModelProto::default()
        };
        let errors = expand(Path::new("m.onnx"), &mut model, 20).unwrap_err();
        assert!(errors[0].to_string().contains("expands beyond"), "{errors:?}");
    }
}
