//! Finds the regions of a function that have a fused form, and what became of them.
//!
//! A region is recognised by its heart: a softmax for attention, a root of a mean of squares for a
//! norm, an activation of a product with a weight for an MLP. It is fused where no kernel computes
//! the heart by itself any more.

use std::collections::{BTreeMap, BTreeSet};

use egg::Id;
use ir::NodeId;

use super::Fusion;
use crate::{
    egraph::{Data, EGraph, ENode, Function},
    extract::{Choice, Costs},
};

/// Views and guards that may stand between a softmax and its product with values.
const BETWEEN: &[&str] = &["select", "cast", "reshape", "transpose", "broadcast_to"];

pub(crate) fn regions(
    function: &Function,
    choice: &Choice,
    roots: &[Id],
    costs: Costs<'_>,
) -> Vec<Fusion> {
    let egraph = &function.terms.egraph;
    let mut source = BTreeMap::new();
    for (node, id) in &function.nodes {
        source.entry(egraph.find(*id)).or_insert(*node);
    }
    let used = choice.order(egraph, roots).into_iter().collect();
    let finder = Finder { function, egraph, choice, used, source, costs };
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (node, id) in &function.nodes {
        let class = egraph.find(*id);
        let Some(region) = finder.region(*node, class).filter(|_| seen.insert(class)) else {
            continue;
        };
        let loc = function.source.node(*node).loc.clone();
        let name = function.source.name.clone();
        let (kind, why_not) = region;
        let fused = why_not.is_none();
        out.push(Fusion { kind, function: name, loc, count: 1, fused, why_not });
    }
    out
}

struct Finder<'a> {
    function: &'a Function,
    egraph: &'a EGraph,
    choice: &'a Choice,
    used: BTreeSet<Id>,
    source: BTreeMap<Id, NodeId>,
    costs: Costs<'a>,
}

impl Finder<'_> {
    /// The kind of the region that a source node ends, and why it is not fused.
    fn region(&self, node: NodeId, class: Id) -> Option<(&'static str, Option<String>)> {
        let op = self.function.source.node(node).op.name();
        match op {
            "attention" => Some(("attention", self.kept(class, &["attention"]))),
            "rms_norm" | "layer_norm" => {
                Some(("norm", self.kept(class, &["rms_norm", "layer_norm"])))
            }
            "matmul" => self.attention(class).map(|why| ("attention", why)),
            "sqrt" | "rsqrt" | "pow" => self.norm(class).map(|why| ("norm", why)),
            _ => self.mlp(class).map(|why| ("mlp", why)),
        }
    }

    /// Why none of the operators was chosen for a class that the source has one for.
    fn kept(&self, class: Id, names: &[&str]) -> Option<String> {
        let chosen = self.choice.node(class).and_then(ENode::as_op);
        let same = chosen.is_some_and(|(op, ..)| names.contains(&op.name()));
        let absorbed = !self.used.contains(&class);
        (!same && !absorbed).then(|| self.rejected(class, names[0]))
    }

    /// Why a form that the class has was not chosen.
    fn rejected(&self, class: Id, name: &str) -> String {
        let nodes = &self.egraph[class].nodes;
        let candidate = nodes.iter().find(|n| n.op(name).is_some());
        match candidate.and_then(|n| self.costs.seconds(self.egraph, class, n)) {
            None => format!("no kernel of the target computes this `{name}`"),
            Some(_) => format!("computing its parts costs less than `{name}`"),
        }
    }

    /// For a product of a softmax with values.
    fn attention(&self, class: Id) -> Option<Option<String>> {
        let (p, v) = self.operands(class, "matmul")?;
        let heart = self.softmax(p, 4)?;
        if self.egraph[v].data.weight_only() {
            return None;
        }
        if !self.used.contains(&heart) {
            return Some(None);
        }
        if self.has(class, "attention") {
            return Some(Some(self.rejected(class, "attention")));
        }
        let scores = self.children(heart, "softmax").and_then(|c| c.first().copied())?;
        if self.has(scores, "score") {
            let ty = |id: Id| match self.egraph[id].data.ty() {
                Some(ty) => ty.to_string(),
                None => "unknown".into(),
            };
            let (s, v) = (ty(scores), ty(v));
            return Some(Some(format!("scores {s} and values {v} fit no form of `attention`")));
        }
        Some(Some(self.obstacle(scores)))
    }

    /// The node that keeps scores from being a product of queries and keys.
    fn obstacle(&self, scores: Id) -> String {
        let mut at = scores;
        for _ in 0..16 {
            let Some(node) = self.source.get(&at) else { break };
            let node = self.function.source.node(*node);
            let inputs = node.inputs().iter().flatten();
            let below: Vec<Id> = inputs
                .filter_map(|v| Some(self.egraph.find(*self.function.classes.get(v)?)))
                .collect();
            let here = || {
                let loc =
                    if node.loc.is_empty() { String::new() } else { format!(" `{}`", node.loc) };
                format!("{}{loc}", node.op.name())
            };
            if below.iter().any(|c| self.has(*c, "score")) {
                return format!(
                    "{} is not a scale, softcap, bias or mask that attention takes",
                    here()
                );
            }
            let Some(next) = below.iter().find(|c| !self.egraph[**c].data.weight_only()) else {
                return format!("{} is not a product of queries and keys", here());
            };
            at = *next;
        }
        "the softmax is not taken over a product of queries and keys".into()
    }

    /// For a root of a mean of squares plus a constant.
    fn norm(&self, class: Id) -> Option<Option<String>> {
        let nodes = self.egraph[class].nodes.iter();
        let sum = nodes.filter_map(|n| {
            let (operands, _) = n.op("sqrt").or_else(|| n.op("rsqrt"))?;
            operands.first().map(|c| self.egraph.find(*c))
        });
        let sum = sum.into_iter().find(|c| {
            self.children(*c, "add").is_some_and(|terms| {
                let mean =
                    terms.iter().find_map(|t| self.children(self.egraph.find(*t), "reduce_mean"));
                let square = mean.and_then(|m| self.children(self.egraph.find(m[0]), "mul"));
                square.is_some_and(|s| self.egraph.find(s[0]) == self.egraph.find(s[1]))
            })
        })?;
        let absorbed = !self.used.contains(&class) && !self.used.contains(&sum);
        Some((!absorbed).then(|| {
            let wholes = self.egraph.classes().filter(|c| {
                let norm = c.nodes.iter().any(|n| n.op("rms_norm").is_some());
                norm && c.nodes.iter().any(|n| {
                    egg::Language::children(n).iter().any(|x| self.egraph.find(*x) == class)
                })
            });
            // The classes are in a hash map.
            match wholes.min_by_key(|c| c.id) {
                Some(c) => self.rejected(c.id, "rms_norm"),
                None => "it is not followed by a product with what was squared".into(),
            }
        }))
    }

    /// For an activation of a product with a weight.
    fn mlp(&self, class: Id) -> Option<Option<String>> {
        const ACTIVATIONS: &[&str] = &["relu", "silu", "gelu", "gelu_tanh"];
        let product = |c: Id| {
            let c = self.egraph.find(c);
            let sliced = self.children(c, "slice").map(|s| self.egraph.find(s[0]));
            self.has(c, "linear") || sliced.is_some_and(|s| self.has(s, "linear"))
        };
        let heart = ACTIVATIONS.iter().find_map(|a| {
            let operand = *self.children(class, a)?.first()?;
            product(operand).then_some(*a)
        })?;
        let chosen = self.choice.node(class).and_then(ENode::as_op);
        let fused = chosen.is_some_and(|(op, ..)| op.name() == "linear");
        let absorbed = !self.used.contains(&class);
        Some((!fused && !absorbed).then(|| {
            let reason = if self.has(class, "linear") {
                self.rejected(class, "linear")
            } else {
                "it is taken of a part of the product".into()
            };
            format!("{heart}: {reason}")
        }))
    }

    /// The class of the softmax that a class of probabilities comes from.
    fn softmax(&self, class: Id, depth: usize) -> Option<Id> {
        let class = self.egraph.find(class);
        if self.has(class, "softmax") {
            return Some(class);
        }
        let below = depth.checked_sub(1)?;
        BETWEEN
            .iter()
            .find_map(|op| self.children(class, op)?.iter().find_map(|c| self.softmax(*c, below)))
    }

    fn has(&self, class: Id, op: &str) -> bool {
        self.children(class, op).is_some()
    }

    /// Operands of the class's first node of that operator.
    fn children(&self, class: Id, op: &str) -> Option<&[Id]> {
        let data = &self.egraph[class].data;
        let nodes = matches!(data, Data::Value(_)).then(|| self.egraph[class].nodes.iter());
        nodes?.find_map(|n| n.op(op).map(|(operands, _)| operands))
    }

    fn operands(&self, class: Id, op: &str) -> Option<(Id, Id)> {
        match self.children(class, op)? {
            [a, b, ..] => Some((*a, *b)),
            _ => None,
        }
    }
}
