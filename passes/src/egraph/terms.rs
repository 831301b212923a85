//! Adds graphs and terms to an e-graph.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use egg::Id;
use ir::{
    Attr, Attrs, Body, Builder, Fact, Graph, Module, NodeId, OpError, OpRef, TensorType, Value,
    normalize_axis,
};
use smallvec::SmallVec;

use super::{Data, EGraph, ENode, Facts, Known, attrs};

/// An e-graph of one function, and where its terms came from.
pub struct Function {
    /// The terms.
    pub terms: Terms,
    /// The function as it was.
    pub source: Graph,
    /// Parameters and weights by leaf number.
    pub leaves: Vec<Value>,
    /// The class of every value that an output depends on.
    pub classes: BTreeMap<Value, Id>,
    /// Source nodes in topological order, with their classes.
    pub nodes: Vec<(NodeId, Id)>,
}

impl Function {
    /// The e-graph of a function. Parameters whose names are in `weights` count as weights.
    ///
    /// # Errors
    /// Where a node does not type: an internal error.
    pub fn new(
        module: &Module,
        source: &Graph,
        weights: &BTreeSet<Arc<str>>,
    ) -> Result<Function, OpError> {
        let mut facts = Facts::new(module);
        let mut leaves = Vec::new();
        for id in source.params().iter().copied().chain(source.topo()) {
            let value = Value { node: id, port: 0 };
            let weight_only = match source.node(id).op.name() {
                "param" => weights.contains(source.param_name(id)),
                "weight" => true,
                _ => continue,
            };
            if !leaves.contains(&value) {
                let facts_of = [source.fact(value).clone()].into_iter().collect();
                facts.leaves.push(Known { facts: facts_of, weight_only });
                leaves.push(value);
            }
        }
        let mut terms = Terms { egraph: EGraph::new(facts) };
        let mut classes = BTreeMap::new();
        for (i, value) in leaves.iter().enumerate() {
            let leaf = u32::try_from(i).map_err(|_| OpError::new("too many parameters"))?;
            classes.insert(*value, terms.egraph.add(ENode::Leaf(leaf)));
        }
        let nodes = terms.add_nodes(source, &mut classes)?;
        Ok(Function { terms, source: source.clone(), leaves, classes, nodes })
    }
}

/// An e-graph that terms are added to; every operator is added in one normal form.
pub struct Terms {
    /// The e-graph.
    pub egraph: EGraph,
}

impl Terms {
    /// Adds an attribute.
    pub fn attr(&mut self, value: impl Into<Attr>) -> Id {
        self.egraph.add(ENode::Attr(value.into()))
    }

    /// Adds an operator over operands, absent ones `None`; defaults are filled in.
    ///
    /// # Errors
    /// Where operands or attributes do not fit.
    pub fn op(
        &mut self,
        name: &str,
        attrs: &Attrs,
        operands: &[Option<Id>],
    ) -> Result<Id, OpError> {
        let op = OpRef::find(name).ok_or_else(|| OpError::new(format!("no operator `{name}`")))?;
        let attrs = op.signature().check_attrs(attrs)?;
        let mut children: SmallVec<[Id; 6]> = SmallVec::new();
        for operand in operands {
            children.push(match operand {
                Some(id) => *id,
                None => self.egraph.add(ENode::Absent),
            });
        }
        for (_, value) in attrs.0 {
            children.push(self.attr(value));
        }
        let id = self.node(ENode::Op(op, children));
        match &self.egraph[id].data {
            Data::Invalid(why) => Err(OpError::new(why.clone()).within(name)),
            _ => Ok(id),
        }
    }

    /// Adds a node, its axes counted from the front.
    pub fn node(&mut self, mut node: ENode) -> Id {
        if let ENode::Op(op, children) = &mut node {
            let specs = op.signature().attrs;
            let first = children.len() - specs.len();
            let operand = children.first().filter(|_| first > 0);
            let rank = operand.and_then(|id| self.egraph[*id].data.ty()).map(TensorType::rank);
            for (i, spec) in specs.iter().enumerate() {
                let Data::Attr(attr) = &self.egraph[children[first + i]].data else { continue };
                let normal = rank.and_then(|r| count_axes_from_front(spec.name, attr, r));
                if let Some(attr) = normal {
                    children[first + i] = self.attr(attr);
                }
            }
        }
        self.egraph.add(node)
    }

    /// Adds a graph's nodes, given the classes of its parameters and weights, and returns the
    /// nodes in order with their classes.
    ///
    /// # Errors
    /// Where a node does not type: an internal error.
    pub fn add_nodes(
        &mut self,
        graph: &Graph,
        classes: &mut BTreeMap<Value, Id>,
    ) -> Result<Vec<(NodeId, Id)>, OpError> {
        let mut nodes = Vec::new();
        for id in graph.topo() {
            let node = graph.node(id);
            let first = Value { node: id, port: 0 };
            if let Some(class) = classes.get(&first) {
                nodes.push((id, *class));
                continue;
            }
            let operands: Vec<_> = node.inputs().iter().map(|v| v.map(|v| classes[&v])).collect();
            let class = self.op(node.op.name(), &node.attrs, &operands)?;
            nodes.push((id, class));
            let results = node.results().len();
            for port in 0..results {
                let value = Value { node: id, port };
                let class = match (results, u32::try_from(port)) {
                    (2.., Ok(port)) => self.egraph.add(ENode::Proj(port, class)),
                    _ => class,
                };
                classes.insert(value, class);
            }
        }
        Ok(nodes)
    }

    /// Adds the expansion of a composite operator and joins it with the operator.
    ///
    /// # Errors
    /// Where the expansion does not type: an internal error.
    pub fn expand(&mut self, class: Id, node: &ENode) -> Result<(), OpError> {
        let Some((op, operands, attr_ids)) = node.as_op() else { return Ok(()) };
        let Body::Composite(expand) = op.body() else { return Ok(()) };
        let Some(attrs) = attrs(&self.egraph, op, attr_ids) else { return Ok(()) };
        let facts = self.egraph.analysis.module.clone();
        let mut b = Builder::new(&facts, op.name());
        let mut classes = BTreeMap::new();
        let mut args = Vec::new();
        for (i, id) in operands.iter().enumerate() {
            args.push(match &self.egraph[*id].data {
                Data::Value(known) => {
                    let param = b.param(&i.to_string(), known.facts[0].ty.clone())?;
                    classes.insert(param, *id);
                    Some(param)
                }
                _ => None,
            });
        }
        let results = expand(&mut b, &attrs, &args)?;
        let graph = {
            for (i, v) in results.iter().enumerate() {
                b.output(&i.to_string(), *v);
            }
            b.finish()
        };
        self.add_nodes(&graph, &mut classes)?;
        for (i, v) in results.iter().enumerate() {
            let whole = match (results.len(), u32::try_from(i)) {
                (2.., Ok(i)) => self.egraph.add(ENode::Proj(i, class)),
                _ => class,
            };
            self.join(whole, classes[v]);
        }
        Ok(())
    }

    /// Joins two classes if their types are equal. Returns whether they were apart.
    pub fn join(&mut self, a: Id, b: Id) -> bool {
        let types = |id: Id| match &self.egraph[id].data {
            Data::Value(k) => k.facts.iter().map(|f: &Fact| f.ty.clone()).collect(),
            _ => Vec::new(),
        };
        let (x, y) = (types(a), types(b));
        if x.is_empty() || x != y {
            tracing::debug!(?x, ?y, "types of a rewrite differ");
            return false;
        }
        self.egraph.union(a, b)
    }
}

/// An axis attribute counted from the front, where it is not yet; axes also sorted.
pub(crate) fn count_axes_from_front(name: &str, attr: &Attr, rank: usize) -> Option<Attr> {
    let front = |a: &i64| normalize_axis(*a, rank).and_then(|a| i64::try_from(a).ok());
    let new = match (name, attr) {
        ("axis", Attr::Int(a)) => Attr::Int(front(a)?),
        ("perm", Attr::Ints(p)) => Attr::Ints(p.iter().map(front).collect::<Option<_>>()?),
        ("axes", Attr::Ints(p)) => {
            let mut axes = p.iter().map(front).collect::<Option<Vec<_>>>()?;
            axes.sort_unstable();
            Attr::Ints(axes)
        }
        _ => return None,
    };
    (new != *attr).then_some(new)
}

/// Adds a closed term to a graph, its leaves bound to `leaves`.
///
/// # Errors
/// Where the term does not type.
#[cfg(test)]
pub(crate) fn build_term(
    b: &mut Builder<'_>,
    expr: &egg::RecExpr<ENode>,
    leaves: &[Value],
) -> Result<Value, OpError> {
    enum Part {
        Value(Value),
        Attr(Attr),
        Absent,
    }
    let mut parts: Vec<Part> = Vec::new();
    for node in expr.as_ref() {
        parts.push(match node {
            ENode::Leaf(i) => Part::Value(leaves[*i as usize]),
            ENode::Attr(a) => Part::Attr(a.clone()),
            ENode::Absent => Part::Absent,
            ENode::Proj(..) => return Err(OpError::new("results of several are not supported")),
            ENode::Op(op, _) => {
                let (_, operands, attr_ids) = node.as_op().expect("an operator");
                let inputs: Vec<_> = operands
                    .iter()
                    .map(|c| match &parts[usize::from(*c)] {
                        Part::Value(v) => Some(*v),
                        _ => None,
                    })
                    .collect();
                let mut attrs = Attrs::none();
                for (spec, c) in op.signature().attrs.iter().zip(attr_ids) {
                    if let Part::Attr(a) = &parts[usize::from(*c)] {
                        attrs = attrs.with(spec.name, a.clone());
                    }
                }
                Part::Value(b.op(op.name(), attrs, &inputs)?[0])
            }
        });
    }
    match parts.pop() {
        Some(Part::Value(v)) => Ok(v),
        _ => Err(OpError::new("the term is not a value")),
    }
}
