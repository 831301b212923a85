//! Walks the nodes of a graph in order and adds what each means.

use std::{collections::HashMap, path::Path};

use ir::{Attrs, Builder, Dim, Graph, Module, OPS, OpDef, OpError, Value};
use onnx_protobuf::{GraphProto, NodeProto};

use crate::FrontendError;

use super::{
    attributes::Attributes,
    cx::{Cx, Results},
    index::IndexForms,
    literals::{Literal, Literals},
    ops::{HANDLERS, Handler},
    proto::default_domain,
    symbols::Sizes,
};

/// What a name of the file stands for.
#[derive(Clone)]
enum Entry {
    Value(Value),
    /// Its node could not be imported, which has been reported.
    Failed,
    /// A result that is not computed; an error where something reads it.
    Missing {
        op: String,
    },
}

struct Importer<'a> {
    path: &'a Path,
    b: Builder<'a>,
    opset: i64,
    scope: HashMap<&'a str, Entry>,
    tables: Tables,
    literals: &'a Literals,
    sizes: &'a mut Sizes,
    index: IndexForms,
    errors: &'a mut Vec<FrontendError>,
}

/// Builds the entry function `main`.
pub(super) fn build(
    path: &Path,
    module: &Module,
    graph: &GraphProto,
    opset: i64,
    literals: &Literals,
    sizes: &mut Sizes,
    errors: &mut Vec<FrontendError>,
) -> Graph {
    let mut im = Importer {
        path,
        b: module.builder("main"),
        opset,
        scope: HashMap::new(),
        tables: Tables::new(),
        literals,
        sizes,
        index: IndexForms::default(),
        errors,
    };
    im.inputs(graph);
    for node in &graph.node {
        im.node(node);
    }
    im.outputs(graph);
    let mut main = im.b.finish();
    main.remove_dead();
    main
}

impl<'a> Importer<'a> {
    fn inputs(&mut self, graph: &'a GraphProto) {
        let types: HashMap<String, _> =
            std::mem::take(&mut self.sizes.inputs).into_iter().collect();
        for input in &graph.input {
            let name = &*input.name;
            if self.literals.values.contains_key(name) {
                continue;
            }
            let entry = match types.get(name).map(|ty| self.b.param(name, ty.clone())) {
                Some(Ok(v)) => Entry::Value(v),
                Some(Err(e)) => {
                    self.errors.push(FrontendError::file(self.path, format!("graph input: {e}")));
                    Entry::Failed
                }
                None => Entry::Failed,
            };
            self.scope.insert(name, entry);
        }
        for (name, literal) in &self.literals.values {
            // Added where they are first read, under the reader's name.
            if matches!(literal, Literal::Broken) {
                self.scope.insert(name, Entry::Failed);
            }
        }
    }

    fn outputs(&mut self, graph: &'a GraphProto) {
        if graph.output.is_empty() {
            self.errors.push(FrontendError::file(self.path, "the graph has no outputs"));
        }
        for (i, output) in graph.output.iter().enumerate() {
            let name = &*output.name;
            if graph.output[..i].iter().any(|o| o.name == output.name) {
                self.fail_output(name, "is declared twice");
                continue;
            }
            match self.read(name) {
                Ok(Entry::Value(v)) => self.b.output(name, v),
                Ok(Entry::Failed) => {}
                Ok(Entry::Missing { op }) => {
                    self.fail_output(name, &format!("is a result of {op} that is not supported"));
                }
                Err(e) => self.fail_output(name, &e.to_string()),
            }
        }
    }

    fn fail_output(&mut self, name: &str, reason: &str) {
        let reason = format!("graph output `{name}` {reason}");
        self.errors.push(FrontendError::file(self.path, reason));
    }

    /// What a name stands for; literals are added to the graph when first read.
    fn read(&mut self, name: &'a str) -> Result<Entry, OpError> {
        if let Some(e) = self.scope.get(name) {
            return Ok(e.clone());
        }
        let Some(literal) = self.literals.values.get(name) else {
            return Err(OpError::new(format!(
                "reads `{name}`, which nothing before it writes: the graph is not in topological \
                 order or incomplete"
            )));
        };
        let v = match literal {
            Literal::Constant(t) => self.b.constant(t.clone())?,
            Literal::Weight => {
                let w = self.b.weight(name)?;
                self.b.cast(w, self.literals.weights.0[name].computed())?
            }
            Literal::Index { dtype, shape, affine } => {
                let shape = shape.iter().map(|d| Dim::from(*d)).collect();
                self.cx(&Attributes::new(&[]), &[], 1).grid(*dtype, shape, affine)?
            }
            Literal::Broken => return Ok(Entry::Failed),
        };
        self.scope.insert(name, Entry::Value(v));
        Ok(Entry::Value(v))
    }

    fn cx<'c>(
        &'c mut self,
        attrs: &'c Attributes<'c>,
        args: &'c [Option<Value>],
        outputs: usize,
    ) -> Cx<'c, 'a> {
        let (sizes, index) = (&mut *self.sizes, &mut self.index);
        Cx { b: &mut self.b, args, attrs, opset: self.opset, outputs, sizes, index }
    }

    fn node(&mut self, node: &'a NodeProto) {
        let loc = name_of(node);
        if node.op_type == "Constant" && default_domain(&node.domain) {
            // Its value is among the literals.
            return;
        }
        self.b.at(loc);
        let how = match self.tables.find(node, self.opset) {
            Ok(how) => how,
            Err(reason) => {
                self.fail(node, reason);
                return self.define_failed(node);
            }
        };
        let mut args = Vec::with_capacity(node.input.len());
        let mut ready = true;
        for name in &node.input {
            match if name.is_empty() { Ok(None) } else { self.read(name).map(Some) } {
                Ok(None) => args.push(None),
                Ok(Some(Entry::Value(v))) => args.push(Some(v)),
                Ok(Some(Entry::Failed)) => ready = false,
                Ok(Some(Entry::Missing { op })) => {
                    self.fail(node, format!("reads `{name}`, a result of {op} not supported"));
                    ready = false;
                }
                Err(e) => {
                    self.fail(node, e.to_string());
                    ready = false;
                }
            }
        }
        // A trailing absent operand is as good as none.
        while args.last().is_some_and(Option::is_none) {
            args.pop();
        }
        if !ready {
            return self.define_failed(node);
        }
        match self.import(node, how, &args) {
            Ok(results) => self.define(node, &results),
            Err(e) => {
                let here = format!(" (node `{loc}`)");
                self.fail(node, e.to_string().replace(&here, ""));
                self.define_failed(node);
            }
        }
    }

    fn import(&mut self, node: &NodeProto, how: How, args: &[Option<Value>]) -> Results {
        let attributes = Attributes::new(&node.attribute);
        let mut cx = self.cx(&attributes, args, node.output.len());
        let results = match how {
            How::Handler(handler) => handler(&mut cx)?,
            How::Table(op) => by_table(&mut cx, op)?,
        };
        let results = results.into_iter().map(|v| cx.settle(v)).collect::<Result<_, _>>()?;
        match attributes.unread()[..] {
            [] => Ok(results),
            ref names => Err(OpError::attr(&names.join("`, `"), "is not supported here")),
        }
    }

    fn define(&mut self, node: &'a NodeProto, results: &[Value]) {
        for (i, name) in node.output.iter().enumerate() {
            let entry = match results.get(i) {
                Some(v) => Entry::Value(*v),
                None => Entry::Missing { op: node.op_type.clone() },
            };
            self.bind(node, name, entry);
        }
    }

    fn define_failed(&mut self, node: &'a NodeProto) {
        for name in &node.output {
            self.bind(node, name, Entry::Failed);
        }
    }

    fn bind(&mut self, node: &NodeProto, name: &'a str, entry: Entry) {
        if name.is_empty() {
            return;
        }
        if self.literals.values.contains_key(name) || self.scope.insert(name, entry).is_some() {
            self.fail(node, format!("writes `{name}`, which is written or stored elsewhere too"));
        }
    }

    fn fail(&mut self, node: &NodeProto, reason: impl Into<String>) {
        let domain = if default_domain(&node.domain) { "" } else { &*node.domain };
        let separator = if domain.is_empty() { "" } else { "::" };
        self.errors.push(FrontendError::Node {
            file: self.path.into(),
            node: name_of(node).into(),
            op: format!("{domain}{separator}{}", node.op_type),
            reason: reason.into(),
        });
    }
}

/// A node's name, or its first result's where it has none.
fn name_of(node: &NodeProto) -> &str {
    let output = node.output.first().map_or("", |o| o);
    if node.name.is_empty() { output } else { &node.name }
}

/// How an operator is imported.
#[derive(Clone, Copy)]
enum How {
    Handler(Handler),
    Table(&'static dyn OpDef),
}

/// Importers by operator type of the default domain.
struct Tables {
    by_type: HashMap<&'static str, Vec<(i64, i64, How)>>,
}

impl Tables {
    /// Handlers first: they refine what the operator table maps.
    fn new() -> Tables {
        let mut t = Tables { by_type: HashMap::new() };
        for h in HANDLERS {
            let entry = (h.since, h.until, How::Handler(h.import));
            t.by_type.entry(h.op_type).or_default().push(entry);
        }
        for op in OPS {
            for op_type in op.onnx() {
                let entry = (1, i64::MAX, How::Table(*op));
                t.by_type.entry(op_type).or_default().push(entry);
            }
        }
        t
    }

    fn find(&self, node: &NodeProto, opset: i64) -> Result<How, String> {
        if !default_domain(&node.domain) {
            let why = "is not supported: export the model with the standard operators only";
            return Err(why.into());
        }
        let Some(entries) = self.by_type.get(&*node.op_type) else {
            return Err("is not supported: export the model so that it uses other operators, for \
                        instance with another opset"
                .into());
        };
        let current = entries.iter().find(|(since, until, _)| (*since..*until).contains(&opset));
        current.map(|(_, _, how)| *how).ok_or_else(|| {
            let since = entries.iter().map(|e| e.0).min().unwrap_or(0);
            format!("is not part of opset {opset}, which the model asks for, but of {since}")
        })
    }
}

/// Imports a node attribute by attribute, under their names in the operator table.
fn by_table(cx: &mut Cx<'_, '_>, op: &'static dyn OpDef) -> Results {
    let mut attrs = Attrs::none();
    for spec in op.signature().attrs {
        if let Some(value) = cx.attrs.plain(spec.name)? {
            attrs = attrs.with(spec.name, value);
        }
    }
    cx.b.op(op.name(), attrs, cx.args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_the_operator_table_is_hidden_by_another() {
        for (op_type, entries) in Tables::new().by_type {
            let table = entries.iter().filter(|(.., how)| matches!(how, How::Table(_))).count();
            assert!(table == 0 || entries.len() == 1, "{op_type}");
        }
    }
}
