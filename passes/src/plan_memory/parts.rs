//! Parts of a `concat` that kernels compute where they belong.
//!
//! A value that nothing but a `concat` reads, perhaps reshaped, is written into its part of the
//! whole at once, if its kernel writes such a layout and the part begins at a multiple of sixteen
//! bytes, which kernels that write several elements at once count on.

use std::collections::BTreeMap;

use ir::{Dim, Graph, KernelSpec, Layout, Node, NodeId, Value};

use super::{Memory, Planner, Storage, views::reshape_view};

/// Part `i` of the whole of a `concat`.
pub(super) fn part_of(graph: &Graph, concat: &Node, whole: &Storage, i: usize) -> Storage {
    let axis = axis_of(concat);
    let parts = concat.inputs().iter().flatten();
    let before =
        parts.clone().take(i).fold(Dim::from(0), |at, v| at + graph.ty(*v).shape[axis].clone());
    let ty = whole.layout.ty.clone();
    let mut ty = ir::TensorType { shape: ty.shape.clone(), ..ty };
    let own = parts.clone().nth(i).expect("a part");
    ty.shape[axis] = graph.ty(*own).shape[axis].clone();
    let skip = before * whole.layout.strides[axis].clone() * Dim::from(ty.dtype.size());
    let layout = Layout { ty, strides: whole.layout.strides.clone() };
    Storage { memory: whole.memory, offset: whole.offset.clone() + skip, layout }
}

fn axis_of(concat: &Node) -> usize {
    let rank = concat.results()[0].ty.rank();
    ir::normalize_axis(concat.attrs.int("axis"), rank).expect("inferred")
}

impl Planner<'_> {
    /// Where the result of a `concat` is.
    pub(super) fn whole_of(&mut self, id: NodeId) -> Storage {
        if let Some(whole) = self.wholes.get(&id) {
            return whole.clone();
        }
        let made = self.made_in(Value { node: id, port: 0 });
        let ty = &self.graph.node(id).results()[0].ty;
        let whole = made.unwrap_or_else(|| self.fresh(&self.label(id), ty));
        self.wholes.insert(id, whole.clone());
        whole
    }

    /// Gives results of a kernel the layouts of parts that they are, if it writes them so; returns
    /// the `concat` and the number of the part by the results' numbers. `narrow` has the casts that
    /// the kernel takes over.
    pub(super) fn compute_parts(
        &self,
        id: NodeId,
        spec: &mut KernelSpec,
        narrow: &BTreeMap<usize, Value>,
    ) -> BTreeMap<usize, (NodeId, usize)> {
        let mut found = BTreeMap::new();
        for port in 0..spec.results.len() {
            let value = narrow.get(&port).copied().unwrap_or(Value { node: id, port });
            let is_updated = self.graph.node(id).op.in_place().iter().any(|(r, _)| *r == port);
            let Some((concat, i)) = self.part(value).filter(|_| !is_updated) else { continue };
            let ty = &self.graph.node(concat).results()[0].ty;
            let whole = Storage {
                memory: Memory::Buffer(0),
                offset: Dim::from(0),
                layout: Layout::contiguous(ty),
            };
            let part = part_of(self.graph, self.graph.node(concat), &whole, i);
            let own = &spec.results[port].ty;
            let is_one = own.elements().is(1);
            if part.layout.ty.dtype != own.dtype
                || !(is_one || part.offset.exact_div(&Dim::from(16)).is_some())
            {
                continue;
            }
            let Some(layout) = reshape_view(&part.layout, own) else { continue };
            let mut other = spec.clone();
            other.results[port] = layout;
            if self.kernels.converts(&other) {
                *spec = other;
                found.insert(port, (concat, i));
            }
        }
        found
    }

    /// The `concat` that alone reads a value, and the number of the part.
    fn part(&self, value: Value) -> Option<(NodeId, usize)> {
        let mut v = value;
        loop {
            let reads = |user: &NodeId| self.graph.node(*user).inputs().contains(&Some(v));
            let users: Vec<NodeId> = self.graph.users(v.node).into_iter().filter(reads).collect();
            let is_output = self.graph.outputs.iter().any(|(_, output)| *output == v);
            let ([user], false) = (&users[..], is_output) else { return None };
            let node = self.graph.node(*user);
            match node.op.name() {
                "reshape" => v = Value { node: *user, port: 0 },
                "concat" if self.made_in(Value { node: *user, port: 0 }).is_none() => {
                    let parts = node.inputs().iter().flatten();
                    let mut numbers = parts.enumerate().filter(|(_, x)| **x == v);
                    let (number, _) = numbers.next()?;
                    return numbers.next().is_none().then_some((*user, number));
                }
                _ => return None,
            }
        }
    }
}
