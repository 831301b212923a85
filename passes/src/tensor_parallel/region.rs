//! What lies between products that make columns and the one that sums rows.

use std::collections::{BTreeMap, BTreeSet};

use ir::{Dim, Graph, Node, NodeId, Value};

use super::Along;

/// How a value is cut: along one axis, every range of which the ranks have equal parts of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) dim: usize,
    /// First element of each range, and the one behind it.
    pub(super) ranges: BTreeSet<(i64, i64)>,
}

impl Cut {
    /// Whether the ranges cover so many elements, each once.
    fn covers(&self, extent: i64) -> bool {
        let mut end = 0;
        self.ranges.iter().all(|(start, next)| std::mem::replace(&mut end, *next) == *start)
            && end == extent
    }

    /// Where a rank has what begins at an element.
    pub(super) fn local(&self, at: i64, ranks: i64) -> i64 {
        let before = self.ranges.iter().filter(|(_, end)| *end <= at);
        before.map(|(start, end)| (end - start) / ranks).sum()
    }
}

/// Values of a function of which ranks have parts, and the product that sums over these.
#[derive(Clone, Debug)]
pub(super) struct Region<'g> {
    graph: &'g Graph,
    leaves: &'g BTreeSet<Value>,
    along: Along<'g>,
    /// The product.
    pub(super) row: NodeId,
    pub(super) cuts: BTreeMap<Value, Cut>,
    /// Attentions whose keys and values every rank has all heads of.
    pub(super) shared_heads: BTreeSet<NodeId>,
}

/// Why a product is not taken apart.
enum Refusal {
    /// Something needs all of a value.
    Whole,
    /// The ranks do not divide this.
    Uneven(String),
}

/// The regions of a function, and everything that the ranks should divide and do not.
pub(super) fn find<'g>(
    graph: &'g Graph,
    leaves: &'g BTreeSet<Value>,
    along: Along<'g>,
) -> (Vec<Region<'g>>, Vec<String>) {
    let (mut found, mut uneven) = (Vec::new(), Vec::new());
    for row in graph.topo().into_iter().filter(|id| graph.node(*id).op.name() == "matmul") {
        let (cuts, shared_heads) = (BTreeMap::new(), BTreeSet::new());
        let mut region = Region { graph, leaves, along, row, cuts, shared_heads };
        match region.grow() {
            Ok(()) => found.push(region),
            Err(Refusal::Whole) => {}
            Err(Refusal::Uneven(why)) => uneven.push(why),
        }
    }
    uneven.dedup();
    (found, uneven)
}

impl Region<'_> {
    fn grow(&mut self) -> Result<(), Refusal> {
        let node = self.graph.node(self.row);
        let [x, w] = [node.input(0), node.input(1)];
        if !self.is_weight(w) || self.graph.ty(w).rank() != 2 {
            return Err(Refusal::Whole);
        }
        let last = self.graph.ty(x).rank().checked_sub(1).ok_or(Refusal::Whole)?;
        let inner = self.graph.ty(w).shape[0].as_const().ok_or(Refusal::Whole)?;
        self.demand(x, last, (0, inner))?;
        self.demand(w, 0, (0, inner))?;
        let is_whole = |(v, cut): (&Value, &Cut)| {
            let extent = self.graph.ty(*v).shape[cut.dim].as_const();
            extent.is_some_and(|extent| cut.covers(extent))
        };
        match self.cuts.iter().all(is_whole) && self.is_closed() {
            true => Ok(()),
            false => Err(Refusal::Whole),
        }
    }

    /// Whether nothing outside reads what ranks have parts of.
    fn is_closed(&self) -> bool {
        let is_inside = |id: NodeId| id == self.row || self.is_cut(Value { node: id, port: 0 });
        let is_read_inside = |v: &Value| self.graph.users(v.node).into_iter().all(is_inside);
        let outputs: BTreeSet<Value> = self.graph.outputs.iter().map(|(_, v)| *v).collect();
        self.cuts.keys().all(|v| is_read_inside(v) && !outputs.contains(v))
    }

    pub(super) fn is_cut(&self, v: Value) -> bool {
        self.cuts.contains_key(&v)
    }

    /// Whether a value is a weight, cast or transposed at most.
    fn is_weight(&self, v: Value) -> bool {
        let node = self.graph.node(v.node);
        self.leaves.contains(&v)
            || matches!(node.op.name(), "cast" | "transpose") && self.is_weight(node.input(0))
    }

    /// Asks for a value in parts: an equal one of a range along an axis.
    fn demand(&mut self, v: Value, dim: usize, range: (i64, i64)) -> Result<(), Refusal> {
        let graph = self.graph;
        let cut = self.cuts.entry(v).or_insert(Cut { dim, ranges: BTreeSet::new() });
        if cut.dim != dim {
            return Err(Refusal::Whole);
        }
        if !cut.ranges.insert(range) || self.leaves.contains(&v) {
            return self.divide(range, || format!("{} elements of a weight", range.1 - range.0));
        }
        let node = graph.node(v.node);
        match node.op.name() {
            "matmul" => self.demand_columns(node, v, dim, range),
            "reshape" => self.demand_reshaped(node, v, dim, range),
            "transpose" => {
                let axis = node.attrs.ints("perm").get(dim).copied();
                let axis = axis.and_then(|axis| usize::try_from(axis).ok());
                self.demand(node.input(0), axis.ok_or(Refusal::Whole)?, range)
            }
            "slice" => {
                let rank = graph.ty(v).rank();
                let axis = node.attrs.int("axis");
                let axis = if axis < 0 { axis + rank as i64 } else { axis };
                let bounds: Vec<_> =
                    node.attrs.dims("range").iter().filter_map(Dim::as_const).collect();
                let [start, end] = bounds[..] else { return Err(Refusal::Whole) };
                if axis != dim as i64 {
                    return self.demand(node.input(0), dim, range);
                }
                // Ranks have a part of a slice if the slice is one of the ranges.
                if range != (0, end - start) || node.attrs.int("step") != 1 {
                    return Err(Refusal::Whole);
                }
                self.demand(node.input(0), dim, (start, end))
            }
            "rope" if dim + 1 < graph.ty(v).rank() => self.demand(node.input(0), dim, range),
            "rms_norm" | "layer_norm" if dim + 1 < graph.ty(v).rank() => {
                self.demand(node.input(0), dim, range)
            }
            "attention" => self.demand_heads(v.node, dim, range),
            _ if node.op.0.is_elementwise() => {
                let rank = graph.ty(v).rank();
                for operand in node.inputs().iter().flatten() {
                    // What is broadcast along the axis comes whole.
                    let ty = graph.ty(*operand);
                    let Some(axis) = (dim + ty.rank()).checked_sub(rank) else { continue };
                    if !ty.shape[axis].is(1) {
                        self.demand(*operand, axis, range)?;
                    }
                }
                Ok(())
            }
            _ => Err(Refusal::Whole),
        }
    }

    /// Whether the ranks divide a range.
    fn divide(&self, (start, end): (i64, i64), what: impl Fn() -> String) -> Result<(), Refusal> {
        let Along { axis, ranks } = self.along;
        match (end - start) % ranks == 0 {
            true => Ok(()),
            false => {
                let what = what();
                Err(Refusal::Uneven(format!("`{axis} = {ranks}` does not divide its {what}")))
            }
        }
    }

    /// A product's columns: those of its matrix, and all of what it multiplies.
    fn demand_columns(
        &mut self,
        node: &Node,
        v: Value,
        dim: usize,
        range: (i64, i64),
    ) -> Result<(), Refusal> {
        let [x, w] = [node.input(0), node.input(1)];
        let is_column = dim + 1 == self.graph.ty(v).rank();
        if !is_column || !self.is_weight(w) || self.graph.ty(w).rank() != 2 || self.is_cut(x) {
            return Err(Refusal::Whole);
        }
        self.demand(w, 1, range)
    }

    fn demand_reshaped(
        &mut self,
        node: &Node,
        v: Value,
        dim: usize,
        (start, end): (i64, i64),
    ) -> Result<(), Refusal> {
        let x = node.input(0);
        let [from, to] = [x, v].map(|v| self.graph.ty(v).shape.to_vec());
        let size = |shape: &[Dim]| shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
        let before = size(&to[..dim]);
        // Of axes with as much before them, the last: those before it have one element.
        let axis = (0..from.len()).rev().find(|axis| size(&from[..*axis]) == before);
        let axis = axis.ok_or(Refusal::Whole)?;
        let extents = from[axis].as_const().zip(to[dim].as_const());
        let (had, has) = extents.filter(|(had, _)| *had > 0).ok_or(Refusal::Whole)?;
        if had % has == 0 {
            let inner = had / has;
            return self.demand(x, axis, (start * inner, end * inner));
        }
        let inner = has / had;
        match has % had == 0 && start % inner == 0 && end % inner == 0 {
            true => self.demand(x, axis, (start / inner, end / inner)),
            false => Err(Refusal::Whole),
        }
    }

    /// Heads of attention over packed tokens: those of queries, and of keys and values.
    fn demand_heads(&mut self, id: NodeId, dim: usize, range: (i64, i64)) -> Result<(), Refusal> {
        let node = self.graph.node(id);
        let [q, k, v] = [0, 1, 2].map(|i| node.input(i));
        let heads = |v: Value| self.graph.ty(v).shape[1].as_const();
        let (Some(own), Some(shared)) = (heads(q), heads(k)) else { return Err(Refusal::Whole) };
        if self.graph.ty(q).rank() != 3 || dim != 1 || range != (0, own) {
            return Err(Refusal::Whole);
        }
        self.divide(range, || format!("{own} heads"))?;
        self.demand(q, 1, range)?;
        let Along { ranks, .. } = self.along;
        if shared % ranks != 0 && ranks % shared == 0 {
            self.shared_heads.insert(id);
            return Ok(());
        }
        self.divide((0, shared), || format!("{shared} key and value heads"))?;
        self.demand(k, 1, (0, shared))?;
        self.demand(v, 1, (0, shared))
    }
}
