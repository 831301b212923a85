//! Functions as a rank of the axis computes them.

use std::collections::BTreeMap;

use ir::{Attr, Attrs, Builder, Dim, Graph, Module, NodeId, OpError, Shard, TensorType, Value};

use super::{
    Along,
    region::{Cut, Region},
};

/// A function over parts of its weights.
pub(super) fn write(
    module: &Module,
    source: &Graph,
    regions: &[Region<'_>],
    along: Along<'_>,
) -> Result<Graph, OpError> {
    let cut = |v: Value| regions.iter().find_map(|region| region.cuts.get(&v));
    let mut b = Builder::new(module, &source.name);
    let mut args = Vec::new();
    for p in source.param_values() {
        let mut ty = source.ty(p).clone();
        if let Some(cut) = cut(p) {
            ty = TensorType::new(ty.dtype, local_shape(&ty.shape, cut, along));
        }
        args.push(b.param(source.param_name(p.node), ty)?);
    }
    let mut writer = Writer { source, regions, along, varied: BTreeMap::new() };
    let outputs = b.inline_with(source, &args, |b, id, inputs| writer.node(b, id, inputs))?;
    for ((name, _), v) in source.outputs.iter().zip(outputs) {
        b.output(name, v);
    }
    Ok(b.finish())
}

fn local_shape(shape: &[Dim], cut: &Cut, along: Along<'_>) -> Vec<Dim> {
    let mut shape = shape.to_vec();
    shape[cut.dim] = shape[cut.dim].floor_div(along.ranks);
    shape
}

struct Writer<'a> {
    source: &'a Graph,
    regions: &'a [Region<'a>],
    along: Along<'a>,
    /// What enters regions whole.
    varied: BTreeMap<Value, Value>,
}

impl Writer<'_> {
    fn attrs(&self) -> Attrs {
        let ranks = Attr::Int(self.along.ranks);
        Attrs::none().with("axis", self.along.axis).with("ranks", ranks)
    }

    /// A node of a region, or the product behind it; `None` of what is as it was.
    fn node(
        &mut self,
        b: &mut Builder<'_>,
        id: NodeId,
        inputs: &[Option<Value>],
    ) -> Result<Option<Vec<Value>>, OpError> {
        let node = self.source.node(id);
        let result = Value { node: id, port: 0 };
        let regions = self.regions;
        if regions.iter().any(|region| region.row == id) {
            let part = b.op("matmul", node.attrs.clone(), inputs)?[0];
            return Ok(Some(vec![b.op1("all_reduce", self.attrs(), &[part])?]));
        }
        let found = regions.iter().find_map(|r| Some((r, r.cuts.get(&result)?)));
        let Some((region, cut)) = found.filter(|_| node.op.name() != "weight") else {
            return Ok(None);
        };
        let mut attrs = node.attrs.clone();
        match node.op.name() {
            "reshape" => {
                let shape = local_shape(&self.source.ty(result).shape, cut, self.along);
                attrs = attrs.with("shape", shape);
            }
            "slice" if is_along(node.attrs.int("axis"), cut.dim, self.source.ty(result)) => {
                let of = &region.cuts[&node.input(0)];
                let at = |bound: &Dim| {
                    let bound = bound.as_const().expect("known where it was cut");
                    Dim::from(of.local(bound, self.along.ranks))
                };
                let range: Vec<Dim> = node.attrs.dims("range").iter().map(at).collect();
                attrs = attrs.with("range", range);
            }
            _ => {}
        }
        let mut local = Vec::with_capacity(inputs.len());
        for (was, is) in node.inputs().iter().zip(inputs) {
            local.push(match (was, is) {
                (Some(was), Some(is)) if !region.is_cut(*was) => Some(self.vary(b, *was, *is)?),
                _ => *is,
            });
        }
        if region.shared_heads.contains(&id) {
            for v in local[1..3].iter_mut().flatten() {
                *v = self.own_head(b, *v)?;
            }
        }
        Ok(Some(b.op(node.op.name(), attrs, &local)?))
    }

    /// What enters a region whole, for all that ranks do with it.
    fn vary(&mut self, b: &mut Builder<'_>, was: Value, is: Value) -> Result<Value, OpError> {
        let has_gradient = b.ty(is).dtype.is_float();
        if !has_gradient || self.source.node(was.node).op.name() == "constant" {
            return Ok(is);
        }
        if let Some(known) = self.varied.get(&was) {
            return Ok(*known);
        }
        let varied = b.op1("vary", self.attrs(), &[is])?;
        self.varied.insert(was, varied);
        Ok(varied)
    }

    /// The head of keys or values that this rank's queries read, of all.
    fn own_head(&self, b: &mut Builder<'_>, all: Value) -> Result<Value, OpError> {
        let heads = b.ty(all).shape[1].as_const().unwrap_or(1);
        if heads == 1 {
            return Ok(all);
        }
        let rank = Dim::symbol(&Shard::symbol(self.along.axis));
        let own = rank.floor_div(self.along.ranks / heads);
        b.slice(all, 1, own.clone(), own + Dim::from(1))
    }
}

/// Whether an attribute names an axis, which may count from the end.
fn is_along(axis: i64, dim: usize, ty: &TensorType) -> bool {
    let axis = if axis < 0 { axis + ty.rank() as i64 } else { axis };
    axis == dim as i64
}
