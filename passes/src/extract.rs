//! Chooses one term of each class: greedy over shared costs, then local search.
//!
//! The cost of a choice is the sum over the operators that outputs depend on, each counted once
//! however often it is read. The greedy phase follows extraction-gym's `faster-greedy-dag`: each
//! class keeps the set of classes that its best term needs. The greedy choice of a class does not
//! see what others could share with it, so a local search follows.
//!
//! Weight-only terms and views cost nothing: the former are computed when the model is compiled.
//! An operator without a kernel costs so much that any other term is better, but is never refused:
//! the original term can always be chosen. Ties go to the original term, then to the order of
//! insertion; nothing depends on time or on hashing.

mod improve;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use egg::{Id, Language};
use ir::{Attrs, DType, Env, Kernels, OpError, OpRef, TensorType};

use crate::egraph::{Data, EGraph, ENode, attrs};

/// Cost of an operator that no kernel computes.
const NO_KERNEL: f64 = 1e3;
/// Cost of any operator, so that of equal terms the smaller is chosen.
const NODE: f64 = 1e-12;
/// How much longer a general product of a weight takes than one of a packed weight: it brings the
/// weight in order while it runs.
const UNPACKED: f64 = 1.25;
/// Classes beyond which the sets of the greedy phase, a bit for each pair, would take more than
/// 2 GiB.
const MAX_CLASSES: usize = 1 << 17;

/// The chosen node of every class.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    nodes: BTreeMap<Id, ENode>,
}

impl Choice {
    /// The chosen node of a canonical class.
    pub(crate) fn node(&self, class: Id) -> Option<&ENode> {
        self.nodes.get(&class)
    }

    /// Canonical classes that the roots depend on, each after those that it reads.
    pub(crate) fn order(&self, egraph: &EGraph, roots: &[Id]) -> Vec<Id> {
        let mut done = BTreeSet::new();
        let mut order = Vec::new();
        let mut stack: Vec<(Id, bool)> = roots.iter().rev().map(|r| (*r, false)).collect();
        while let Some((id, ready)) = stack.pop() {
            let id = egraph.find(id);
            if ready {
                order.push(id);
            } else if done.insert(id) {
                stack.push((id, true));
                let children = self.nodes.get(&id).map_or(&[][..], |n| n.children());
                stack.extend(children.iter().rev().map(|c| (*c, false)));
            }
        }
        order
    }
}

/// What extraction asks of the machine.
#[derive(Clone, Copy)]
pub(crate) struct Costs<'a> {
    /// Which operators have kernels, and their speed.
    pub(crate) kernels: &'a dyn Kernels,
    /// Representative values of the symbols.
    pub(crate) env: &'a Env,
}

impl Costs<'_> {
    /// Seconds of a node; `None` where no kernel computes it.
    pub(crate) fn seconds(&self, egraph: &EGraph, class: Id, node: &ENode) -> Option<f64> {
        let Some((op, operands, attr_ids)) = node.as_op() else { return Some(0.0) };
        let weight_only = |id: &Id| match &egraph[*id].data {
            Data::Absent => true,
            d => d.weight_only(),
        };
        let attrs: Attrs = attrs(egraph, op, attr_ids)?;
        let folded = egraph[class].data.weight_only()
            && attrs.is_constant()
            && operands.iter().all(weight_only);
        if folded || is_free(op) {
            return Some(0.0);
        }
        let ty = |id: &Id| egraph[*id].data.ty().cloned();
        let args: Vec<Option<TensorType>> = operands.iter().map(ty).collect();
        let Data::Value(known) = &egraph[class].data else { return None };
        let results: Vec<TensorType> = known.facts.iter().map(|f| f.ty.clone()).collect();
        if self.kernels.asks_library() && is_rounding(op, &args, &results) {
            return Some(0.0);
        }
        let seconds = self.kernels.seconds(op, &attrs, &args, &results, self.env)?;
        let unpacked = op.name() == "matmul" && operands.get(1).is_some_and(weight_only);
        Some(if unpacked { seconds * UNPACKED } else { seconds })
    }
}

/// Whether activations are rounded as factors are: what makes them stores them so, for a library's
/// products as for those that are generated, of which `round_activations` says it later.
fn is_rounding(op: OpRef, args: &[Option<TensorType>], results: &[TensorType]) -> bool {
    let ([Some(from)], [to]) = (args, results) else { return false };
    let is_half = matches!(to.dtype, DType::Bf16 | DType::F16);
    op.name() == "cast" && from.dtype == DType::F32 && is_half
}

/// Structure and views, which no kernel computes.
fn is_free(op: OpRef) -> bool {
    op.is_view() || matches!(op.name(), "constant" | "size_vector" | "call" | "fused")
}

/// A choice for the classes that `roots` may depend on. `original` are the nodes of the source.
///
/// # Errors
/// Where there are more than [`MAX_CLASSES`].
pub(crate) fn extract(
    egraph: &EGraph,
    roots: &[Id],
    original: &HashSet<ENode>,
    costs: Costs<'_>,
) -> Result<Choice, OpError> {
    let mut problem = Problem::new(egraph, roots, original, costs);
    let n = problem.classes.len();
    if n > MAX_CLASSES {
        return Err(OpError::new(format!(
            "has {n} different values, more than the {MAX_CLASSES} that can be weighed against \
             each other: move what is repeated into functions that are called"
        )));
    }
    problem.greedy();
    problem.improve();
    let chosen = problem.classes.iter().zip(&problem.choice);
    let nodes = chosen.filter_map(|(c, i)| Some((c.id, c.nodes.get((*i)?)?.node.clone())));
    Ok(Choice { nodes: nodes.collect() })
}

struct Candidate {
    node: ENode,
    cost: f64,
    original: bool,
    children: Vec<usize>,
}

struct Class {
    id: Id,
    nodes: Vec<Candidate>,
    parents: Vec<usize>,
}

struct Problem {
    classes: Vec<Class>,
    roots: Vec<usize>,
    choice: Vec<Option<usize>>,
}

impl Problem {
    fn new(egraph: &EGraph, roots: &[Id], original: &HashSet<ENode>, costs: Costs<'_>) -> Problem {
        let mut index: BTreeMap<Id, usize> = BTreeMap::new();
        let mut ids = Vec::new();
        let mut stack: Vec<Id> = roots.iter().rev().map(|r| egraph.find(*r)).collect();
        while let Some(id) = stack.pop() {
            if index.contains_key(&id) {
                continue;
            }
            index.insert(id, ids.len());
            ids.push(id);
            for node in &egraph[id].nodes {
                stack.extend(node.children().iter().map(|c| egraph.find(*c)));
            }
        }
        let mut classes: Vec<Class> = Vec::with_capacity(ids.len());
        for id in &ids {
            let mut nodes = Vec::new();
            for node in &egraph[*id].nodes {
                let node = node.clone().map_children(|c| egraph.find(c));
                let mut children: Vec<usize> = node.children().iter().map(|c| index[c]).collect();
                children.sort_unstable();
                children.dedup();
                let known = original.contains(&node);
                let own = costs.seconds(egraph, *id, &node).unwrap_or(NO_KERNEL);
                let size = if node.is_leaf() { 0.0 } else { NODE };
                let cost = own + if known { size / 2.0 } else { size };
                nodes.push(Candidate { node, cost, original: known, children });
            }
            // The original term first, so that it wins ties.
            nodes.sort_by(|a, b| (!a.original, &a.node).cmp(&(!b.original, &b.node)));
            classes.push(Class { id: *id, nodes, parents: Vec::new() });
        }
        for i in 0..classes.len() {
            let children: BTreeSet<usize> =
                classes[i].nodes.iter().flat_map(|n| n.children.clone()).collect();
            children.into_iter().for_each(|c| classes[c].parents.push(i));
        }
        let roots = roots.iter().map(|r| index[&egraph.find(*r)]).collect();
        let choice = vec![None; classes.len()];
        Problem { classes, roots, choice }
    }

    /// Chooses for every class; where the result is cyclic, bars a node of the cycle and retries.
    fn greedy(&mut self) {
        let mut barred: BTreeSet<(usize, usize)> = BTreeSet::new();
        for _ in 0..64 {
            self.greedy_once(&barred);
            let Err(on_cycle) = self.total() else { return };
            let alternatives = |c: &usize| {
                let all = 0..self.classes[*c].nodes.len();
                all.filter(|n| !barred.contains(&(*c, *n))).count() > 1
            };
            let Some(class) = on_cycle.into_iter().find(alternatives) else { break };
            barred.insert((class, self.choice[class].expect("on the cycle")));
        }
        // The source itself has no cycle.
        for (class, choice) in self.classes.iter().zip(&mut self.choice) {
            *choice = class.nodes.iter().position(|n| n.original || n.node.is_leaf()).or(*choice);
        }
    }

    fn greedy_once(&mut self, barred: &BTreeSet<(usize, usize)>) {
        let n = self.classes.len();
        self.choice = vec![None; n];
        let mut best: Vec<Option<(f64, Bits)>> = vec![None; n];
        let mut queued = vec![true; n];
        let mut queue: std::collections::VecDeque<usize> = (0..n).rev().collect();
        let mut budget = 64 * n;
        while let (Some(i), 1..) = (queue.pop_front(), budget) {
            budget -= 1;
            queued[i] = false;
            let mut changed = false;
            for (j, node) in self.classes[i].nodes.iter().enumerate() {
                if barred.contains(&(i, j)) {
                    continue;
                }
                let Some(mut set) = union(n, &node.children, &best) else { continue };
                if set.contains(i) {
                    continue;
                }
                set.insert(i);
                let own = |c: usize| match self.choice[c] {
                    _ if c == i => node.cost,
                    Some(k) => self.classes[c].nodes[k].cost,
                    None => 0.0,
                };
                let cost: f64 = set.iter().map(own).sum();
                let better = match &best[i] {
                    Some((old, _)) => cost < *old * (1.0 - 1e-12),
                    None => true,
                };
                let stale = self.choice[i] == Some(j)
                    && best[i].as_ref().is_some_and(|(_, old)| *old != set);
                if better || stale {
                    best[i] = Some((cost, set));
                    self.choice[i] = Some(j);
                    changed = true;
                }
            }
            if changed {
                for p in &self.classes[i].parents {
                    if !queued[*p] {
                        queued[*p] = true;
                        queue.push_back(*p);
                    }
                }
            }
        }
    }

    /// Cost of the present choice, or the classes on a cycle.
    fn total(&self) -> Result<f64, Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.classes.len()];
        let mut stack: Vec<(usize, usize)> = Vec::new();
        let mut total = 0.0;
        for root in &self.roots {
            if marks[*root] != Mark::New {
                continue;
            }
            marks[*root] = Mark::Open;
            stack.push((*root, 0));
            while let Some((i, next)) = stack.last_mut() {
                let i = *i;
                let Some(choice) = self.choice[i] else { return Err(vec![i]) };
                let node = &self.classes[i].nodes[choice];
                match node.children.get(*next) {
                    None => {
                        total += node.cost;
                        marks[i] = Mark::Done;
                        stack.pop();
                    }
                    Some(c) => {
                        *next += 1;
                        match marks[*c] {
                            Mark::Done => {}
                            Mark::New => {
                                marks[*c] = Mark::Open;
                                stack.push((*c, 0));
                            }
                            Mark::Open => {
                                let path = stack.iter().map(|(i, _)| *i);
                                return Err(path.skip_while(|i| i != c).collect());
                            }
                        }
                    }
                }
            }
        }
        Ok(total)
    }
}

/// Classes that any of `children` needs; `None` while one has no term.
fn union(n: usize, children: &[usize], best: &[Option<(f64, Bits)>]) -> Option<Bits> {
    let mut set = Bits(vec![0; n.div_ceil(64)]);
    for c in children {
        let (_, other) = best[*c].as_ref()?;
        set.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
    Some(set)
}

/// A set of small integers.
#[derive(Clone, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(w, bits)| {
            let mut bits = *bits;
            std::iter::from_fn(move || {
                let i = bits.trailing_zeros() as usize;
                (bits != 0).then(|| {
                    bits &= bits - 1;
                    64 * w + i
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{egraph::Facts, testing::Roofline};

    #[test]
    fn what_cannot_be_weighed_is_refused() {
        let mut egraph = EGraph::new(Facts::new(&ir::Module::new("m")));
        let number = |i: i64| ENode::Attr(ir::Attr::Int(i));
        let roots: Vec<Id> = (0..).take(MAX_CLASSES + 1).map(|i| egraph.add(number(i))).collect();
        egraph.rebuild();
        let costs = Costs { kernels: &Roofline, env: &Env::new() };
        let why = extract(&egraph, &roots, &HashSet::new(), costs).unwrap_err();
        assert!(why.to_string().contains("more than the 131072 that can be weighed"), "{why}");
    }
}
