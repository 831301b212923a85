//! The graph of one function: operators in static single assignment form.
//!
//! Values are results of nodes. The store is a petgraph graph, which no other module names: all
//! access goes through the methods here, which keep edges and operand lists in step.

use std::{collections::BTreeSet, fmt, sync::Arc};

use petgraph::{
    Direction,
    stable_graph::{NodeIndex, StableDiGraph},
    visit::NodeIndexable,
};
use smallvec::SmallVec;

use crate::{Attrs, Fact, OpRef, TensorType};

/// A node of a [`Graph`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(NodeIndex);

impl NodeId {
    /// The node's number, unique within its graph.
    pub fn index(self) -> usize {
        self.0.index()
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.index())
    }
}

/// One result of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    /// The node.
    pub node: NodeId,
    /// Which of its results.
    pub port: usize,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.node, self.port)
    }
}

/// An application of an operator.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operator.
    pub op: OpRef,
    /// Its attributes, defaults filled in.
    pub attrs: Attrs,
    /// Name of this node in the source model; empty where it has none.
    pub loc: Arc<str>,
    inputs: SmallVec<[Option<Value>; 4]>,
    results: Vec<Fact>,
}

impl Node {
    /// Operands; `None` for an absent optional one.
    pub fn inputs(&self) -> &[Option<Value>] {
        &self.inputs
    }

    /// Facts of the results.
    pub fn results(&self) -> &[Fact] {
        &self.results
    }

    /// A required operand.
    ///
    /// # Panics
    /// If it is absent.
    pub fn input(&self, i: usize) -> Value {
        self.inputs[i].expect("required operand")
    }
}

/// A function: parameters, nodes and named outputs.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The function's name in its module.
    pub name: Arc<str>,
    nodes: StableDiGraph<Node, ()>,
    params: Vec<NodeId>,
    /// Results, by name.
    pub outputs: Vec<(Arc<str>, Value)>,
}

impl Graph {
    /// An empty function.
    pub fn new(name: &str) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds a node. Types are not checked here; [`crate::Builder`] infers them.
    pub fn add(
        &mut self,
        op: OpRef,
        attrs: Attrs,
        inputs: &[Option<Value>],
        results: Vec<Fact>,
        loc: Arc<str>,
    ) -> NodeId {
        let id =
            NodeId(self.nodes.add_node(Node { op, attrs, loc, inputs: inputs.into(), results }));
        for v in inputs.iter().flatten() {
            self.nodes.add_edge(v.node.0, id.0, ());
        }
        if op.name() == "param" {
            self.params.push(id);
        }
        id
    }

    /// The parameters in order.
    pub fn params(&self) -> &[NodeId] {
        &self.params
    }

    /// The parameters' values in order.
    pub fn param_values(&self) -> impl Iterator<Item = Value> + '_ {
        self.params.iter().map(|n| Value { node: *n, port: 0 })
    }

    /// The name of a parameter.
    pub fn param_name(&self, node: NodeId) -> &str {
        self.node(node).attrs.str("name")
    }

    /// The parameter of that name.
    pub fn param(&self, name: &str) -> Option<Value> {
        self.param_values().find(|v| self.param_name(v.node) == name)
    }

    /// The node.
    ///
    /// # Panics
    /// If it has been removed.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The node's attributes and source name, to change.
    pub fn attrs_mut(&mut self, id: NodeId) -> &mut Attrs {
        &mut self.nodes[id.0].attrs
    }

    /// Replaces what is known of a node's results.
    pub fn set_results(&mut self, id: NodeId, results: Vec<Fact>) {
        self.nodes[id.0].results = results;
    }

    /// Every node, in order of creation.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.node_indices().map(NodeId).collect()
    }

    /// The nodes numbered `first` or more, in order of creation.
    pub fn nodes_from(&self, first: usize) -> Vec<NodeId> {
        let numbers = (first..self.bound()).map(NodeIndex::new);
        numbers.filter(|n| self.nodes.contains_node(*n)).map(NodeId).collect()
    }

    /// A number that no node has reached: that of the next, where none has been removed.
    pub fn bound(&self) -> usize {
        self.nodes.node_bound()
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fact of a value.
    pub fn fact(&self, v: Value) -> &Fact {
        &self.node(v.node).results[v.port]
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        &self.fact(v).ty
    }

    /// Types of parameters and outputs.
    pub fn signature(&self) -> (Vec<TensorType>, Vec<TensorType>) {
        (
            self.param_values().map(|v| self.ty(v).clone()).collect(),
            self.outputs.iter().map(|(_, v)| self.ty(*v).clone()).collect(),
        )
    }

    /// The nodes that read any result of `id`, each once, in order of creation.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let set: BTreeSet<_> =
            self.nodes.neighbors_directed(id.0, Direction::Outgoing).map(NodeId).collect();
        set.into_iter().collect()
    }

    /// Nodes in an order in which operands precede their readers: a depth-first walk from the
    /// outputs, so that dead nodes are left out; parameters come first.
    pub fn topo(&self) -> Vec<NodeId> {
        let mut done: BTreeSet<NodeId> = self.params.iter().copied().collect();
        let mut order = self.params.clone();
        // Nodes of the stack.
        let mut open = BTreeSet::new();
        for (_, v) in &self.outputs {
            let mut stack = vec![(v.node, 0)];
            open.insert(v.node);
            while let Some((id, next)) = stack.pop() {
                if done.contains(&id) {
                    open.remove(&id);
                    continue;
                }
                let node = self.node(id);
                match node.inputs[next..]
                    .iter()
                    .position(|v| v.is_some_and(|v| !done.contains(&v.node)))
                {
                    Some(i) => {
                        stack.push((id, next + i));
                        let child = node.inputs[next + i].expect("found above").node;
                        assert!(open.insert(child), "cycle at {child:?}");
                        stack.push((child, 0));
                    }
                    None => {
                        done.insert(id);
                        open.remove(&id);
                        order.push(id);
                    }
                }
            }
        }
        order
    }

    /// Replaces operand `i` of a node.
    pub fn set_input(&mut self, id: NodeId, i: usize, value: Option<Value>) {
        if let Some(old) = self.nodes[id.0].inputs[i] {
            let edge = self.nodes.find_edge(old.node.0, id.0).expect("edge of an operand");
            self.nodes.remove_edge(edge);
        }
        if let Some(new) = value {
            self.nodes.add_edge(new.node.0, id.0, ());
        }
        self.nodes[id.0].inputs[i] = value;
    }

    /// Makes every reader of `old` read `new` instead, outputs included.
    pub fn replace_uses(&mut self, old: Value, new: Value) {
        for user in self.users(old.node) {
            for i in 0..self.node(user).inputs.len() {
                if self.node(user).inputs[i] == Some(old) {
                    self.set_input(user, i, Some(new));
                }
            }
        }
        for (_, v) in &mut self.outputs {
            if *v == old {
                *v = new;
            }
        }
    }

    /// Removes nodes that no output depends on; parameters stay. Returns how many went.
    pub fn remove_dead(&mut self) -> usize {
        let live: BTreeSet<_> = self.topo().into_iter().collect();
        let dead: Vec<_> = self.node_ids().into_iter().filter(|n| !live.contains(n)).collect();
        for id in &dead {
            self.nodes.remove_node(id.0);
        }
        dead.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Module};

    #[test]
    fn topological_order_skips_dead_nodes_and_replacement_rewires() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let x = b.param("x", TensorType::new(DType::F32, [2i64])).unwrap();
        let y = b.op1("neg", Attrs::none(), &[x]).unwrap();
        let _dead = b.op1("exp", Attrs::none(), &[y]).unwrap();
        let z = b.op1("add", Attrs::none(), &[y, y]).unwrap();
        b.output("z", z);
        let mut g = b.finish();
        assert_eq!(g.topo(), [x.node, y.node, z.node]);
        assert_eq!(g.remove_dead(), 1);
        g.replace_uses(y, x);
        assert_eq!(g.topo(), [x.node, z.node]);
        assert_eq!(g.users(x.node), [y.node, z.node]);
    }

    #[test]
    fn a_deep_graph_is_ordered_in_little_time() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let mut x = b.param("x", TensorType::new(DType::F32, [2i64])).unwrap();
        for _ in 0..100_000 {
            x = b.op1("neg", Attrs::none(), &[x]).unwrap();
        }
        b.output("y", x);
        let begin = std::time::Instant::now();
        assert_eq!(b.finish().topo().len(), 100_001);
        assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    }
}
