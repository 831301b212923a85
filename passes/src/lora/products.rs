//! Weights that matrix products alone read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use indexmap::IndexMap;
use ir::{Attr, Dim, Graph, Module, NodeId, TensorType, Value};

/// A weight that matrix products alone read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductWeight {
    /// Rows of the matrix that operands are multiplied with.
    pub inputs: i64,
    /// Its columns.
    pub outputs: i64,
    /// Whether it is stored as `[outputs, inputs]`.
    pub is_turned: bool,
    /// Whether it is in functions that are called alone, as those of layers are.
    pub is_in_layer: bool,
}

/// The matrices of a module that products alone read, in the module's order.
#[must_use]
pub fn product_weights(module: &Module) -> IndexMap<Arc<str>, ProductWeight> {
    let mut nodes: BTreeMap<&str, Vec<(&Graph, Value)>> = BTreeMap::new();
    for graph in module.functions.values() {
        for id in graph.topo() {
            if let Some(name) = weight_name(graph, id) {
                nodes.entry(name).or_default().push((graph, Value { node: id, port: 0 }));
            }
        }
    }
    let product = |(name, ty): (&Arc<str>, &TensorType)| {
        let read = nodes.get(&**name)?;
        Some((name.clone(), product_weight(module, ty, read)?))
    };
    module.weights.iter().filter_map(product).collect()
}

/// What is known of a matrix that is read at these places, if products alone read it, all in one
/// order.
pub(super) fn product_weight(
    module: &Module,
    ty: &TensorType,
    places: &[(&Graph, Value)],
) -> Option<ProductWeight> {
    let mut reads = BTreeSet::new();
    for (graph, v) in places {
        find_reads(module, graph, *v, false, &mut reads);
    }
    let extents: Option<Vec<i64>> = ty.shape.iter().map(Dim::as_const).collect();
    let &[rows, columns] = extents.as_deref()? else { return None };
    let orders: BTreeSet<Option<bool>> = reads.iter().map(|(_, order)| *order).collect();
    let is_turned = orders.first().copied().flatten().filter(|_| orders.len() == 1)?;
    let (inputs, outputs) = if is_turned { (columns, rows) } else { (rows, columns) };
    let is_in_layer = !reads.iter().any(|(function, _)| module.entries.contains(function));
    Some(ProductWeight { inputs, outputs, is_turned, is_in_layer })
}

/// Follows a value through casts, transpositions and calls to what reads it: in which function, and
/// whether it is transposed as the second operand of a product; `None` for any other reader.
fn find_reads(
    module: &Module,
    graph: &Graph,
    v: Value,
    is_turned: bool,
    out: &mut BTreeSet<(Arc<str>, Option<bool>)>,
) {
    if graph.outputs.iter().any(|(_, output)| *output == v) {
        out.insert((graph.name.clone(), None));
    }
    for id in graph.users(v.node) {
        let node = graph.node(id);
        let result = Value { node: id, port: 0 };
        let reads: Vec<bool> = node.inputs().iter().map(|input| *input == Some(v)).collect();
        match (node.op.name(), &reads[..]) {
            ("cast", _) => find_reads(module, graph, result, is_turned, out),
            ("transpose", _) if node.attrs.ints("perm") == [1, 0] => {
                find_reads(module, graph, result, !is_turned, out);
            }
            ("matmul", [false, true]) => {
                out.insert((graph.name.clone(), Some(is_turned)));
            }
            ("call", reads) => {
                let callee = module.function(node.attrs.str("callee"));
                let params = callee.into_iter().flat_map(|f| f.param_values().map(move |p| (f, p)));
                for ((callee, p), _) in params.zip(reads).filter(|(_, is_read)| **is_read) {
                    find_reads(module, callee, p, is_turned, out);
                }
            }
            _ => {
                out.insert((graph.name.clone(), None));
            }
        }
    }
}

pub(super) fn weight_name(graph: &Graph, id: NodeId) -> Option<&str> {
    let node = graph.node(id);
    match node.attrs.get("name") {
        Some(Attr::Str(name)) if node.op.name() == "weight" => Some(name),
        _ => None,
    }
}
