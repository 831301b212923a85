//! The tensors that the file holds, initialisers and `Constant` nodes, and what becomes of each.
//!
//! Float tensors of more than one element are weights. Shapes, axes, flags and scale factors are
//! constants in the graph. Integer tensors that are affine in their coordinates, such as stored
//! position ids, are index grids computed from [`iota`](ir::OPS).

use std::{collections::HashMap, path::Path, sync::Arc};

use indexmap::IndexMap;
use ir::{DType, Tensor, TensorType, Weights};
use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, attribute_proto::AttributeType};

use crate::FrontendError;

use super::{external::ExternalFiles, index::Affine, proto::default_domain, tensor};

/// Largest integer tensor, in elements, that is a constant rather than a weight.
const MAX_CONSTANT: usize = 4096;
/// Largest integer vector that is always a constant: shapes and axes.
const MAX_SHAPE: usize = 64;

/// Weights by name, cast to the type that they are kept in when they are loaded.
#[derive(Default)]
pub(super) struct StoredWeights(pub(super) IndexMap<Arc<str>, StoredWeight>);

/// Tensors of the file by the name of the value that they are.
#[derive(Default)]
pub(super) struct Literals {
    pub(super) values: HashMap<String, Literal>,
    pub(super) weights: StoredWeights,
}

/// What becomes of a tensor.
pub(super) enum Literal {
    Constant(Tensor),
    Index {
        dtype: DType,
        shape: Vec<usize>,
        affine: Affine,
    },
    Weight,
    /// It could not be decoded, which has been reported.
    Broken,
}

/// A weight, and the type that it is kept in.
pub(super) struct StoredWeight {
    tensor: Tensor,
    pub(super) keep: DType,
}

impl StoredWeight {
    /// Its type in the module's weight table.
    pub(super) fn ty(&self) -> TensorType {
        TensorType::new(self.keep, self.tensor.shape().iter().copied())
    }

    /// The element type that the file stores, in which the graph computes.
    pub(super) fn computed(&self) -> DType {
        self.tensor.dtype()
    }
}

impl Weights for StoredWeights {
    fn load(&self, name: &str) -> Result<Tensor, String> {
        let w = self.0.get(name).ok_or_else(|| format!("no weight `{name}`"))?;
        Ok(w.tensor.cast(w.keep))
    }
}

impl Literals {
    fn add(&mut self, name: &str, tensor: Tensor, dtype: Option<DType>) {
        let (len, kind) = (tensor.len(), tensor.dtype());
        let literal = if kind.is_float() && len > 1 {
            let keep = dtype.filter(|_| kind == DType::F32 && tensor.rank() > 1).unwrap_or(kind);
            self.weights.0.insert(name.into(), StoredWeight { tensor, keep });
            Literal::Weight
        } else if len <= 1 || (tensor.rank() <= 1 && len <= MAX_SHAPE) {
            Literal::Constant(tensor)
        } else if let Some(affine) = Affine::of_tensor(&tensor).filter(|_| kind.is_int()) {
            Literal::Index { dtype: kind, shape: tensor.shape().to_vec(), affine }
        } else if len <= MAX_CONSTANT {
            Literal::Constant(tensor)
        } else {
            self.weights.0.insert(name.into(), StoredWeight { tensor, keep: kind });
            Literal::Weight
        };
        self.values.insert(name.into(), literal);
    }
}

/// Decodes every initialiser and every `Constant` node's tensor, taking the data out of the graph.
pub(super) fn collect(
    path: &Path,
    graph: &mut GraphProto,
    dtype: Option<DType>,
    errors: &mut Vec<FrontendError>,
) -> Literals {
    let mut literals = Literals::default();
    let mut files = ExternalFiles::of(path);
    for t in &mut graph.initializer {
        let name = t.name.clone();
        let decoded = tensor::decode(t, &mut files);
        let unique = if literals.values.contains_key(&name) {
            Err("is stored twice".into())
        } else {
            decoded
        };
        match unique {
            Ok(tensor) => literals.add(&name, tensor, dtype),
            Err(reason) => {
                errors.push(FrontendError::tensor(path, &name, reason));
                literals.values.insert(name, Literal::Broken);
            }
        }
    }
    for sparse in &graph.sparse_initializer {
        let name = &sparse.values.name;
        errors.push(FrontendError::tensor(path, name, "is sparse, which is not supported"));
        literals.values.insert(name.clone(), Literal::Broken);
    }
    for node in &mut graph.node {
        if node.op_type != "Constant" || !default_domain(&node.domain) {
            continue;
        }
        let Some(name) = node.output.first().cloned() else { continue };
        let decoded = constant(node, &mut files);
        let unique = if literals.values.contains_key(&name) {
            Err(format!("writes `{name}`, which is stored as well"))
        } else {
            decoded
        };
        match unique {
            Ok(tensor) => literals.add(&name, tensor, dtype),
            Err(reason) => {
                let node = if node.name.is_empty() { &name } else { &node.name }.clone();
                let (file, op) = (path.into(), "Constant".into());
                errors.push(FrontendError::Node { file, node, op, reason });
                literals.values.insert(name, Literal::Broken);
            }
        }
    }
    literals
}

/// The value of a `Constant` node, by whichever attribute holds it.
fn constant(node: &mut NodeProto, files: &mut ExternalFiles) -> Result<Tensor, String> {
    let [a] = &mut node.attribute[..] else {
        return Err(format!("has {} attributes instead of one value", node.attribute.len()));
    };
    let kind = a.type_.enum_value_or(AttributeType::UNDEFINED);
    let a: &mut AttributeProto = a;
    Ok(match (&*a.name, kind) {
        ("value", AttributeType::TENSOR) => match a.t.as_mut() {
            Some(t) => tensor::decode(t, files).map_err(|e| format!("its value {e}"))?,
            None => return Err("has no value".into()),
        },
        ("value_int", AttributeType::INT) => Tensor::from_i64s(DType::I64, &[], [a.i]),
        ("value_ints", AttributeType::INTS) => {
            Tensor::from_i64s(DType::I64, &[a.ints.len()], a.ints.iter().copied())
        }
        ("value_float", AttributeType::FLOAT) => Tensor::from_f32s(&[], &[a.f]),
        ("value_floats", AttributeType::FLOATS) => Tensor::from_f32s(&[a.floats.len()], &a.floats),
        (name, _) => return Err(format!("holds its value as `{name}`, which is not supported")),
    })
}
