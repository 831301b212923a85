//! Builds small ONNX models, writes them to files that vanish with the test, and runs them.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use brolly_frontend::{FrontendError, ImportOptions, Imported, import};
use ir::{DType, Env, Interpreter, Precision, Tensor, verify};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

/// A folder that is removed when the test ends.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("brolly-onnx-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Types of elements, by their numbers in files.
pub(crate) const NUMBERS: [(i32, DType); 10] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (16, DType::Bf16),
];

pub(crate) fn number(dtype: DType) -> i32 {
    let found = NUMBERS.iter().find(|(_, of)| *of == dtype);
    found.unwrap_or_else(|| panic!("no number for {dtype}")).0
}

/// A stored tensor.
pub(crate) fn tensor(name: &str, t: &Tensor) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: t.shape().iter().map(|d| i64::try_from(*d).unwrap()).collect(),
        data_type: number(t.dtype()),
        raw_data: t.to_bytes(),
        ..TensorProto::default()
    }
}

pub(crate) fn ints(values: &[i64]) -> Tensor {
    Tensor::from_i64s(DType::I64, &[values.len()], values.iter().copied())
}

pub(crate) fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32s(shape, values)
}

/// An attribute's value.
pub(crate) enum A {
    Int(i64),
    Ints(&'static [i64]),
    Float(f32),
    Text(&'static str),
}

/// A node; an empty name is an absent operand.
pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str], attrs: &[(&str, A)]) -> NodeProto {
    let attribute = |(name, value): &(&str, A)| {
        let mut a = AttributeProto { name: (*name).into(), ..AttributeProto::default() };
        let kind = match value {
            A::Int(v) => {
                a.i = *v;
                AttributeType::INT
            }
            A::Ints(v) => {
                a.ints = v.to_vec();
                AttributeType::INTS
            }
            A::Float(v) => {
                a.f = *v;
                AttributeType::FLOAT
            }
            A::Text(v) => {
                a.s = v.as_bytes().to_vec();
                AttributeType::STRING
            }
        };
        a.type_ = kind.into();
        a
    };
    NodeProto {
        op_type: op.into(),
        name: format!("{op}_{}", outputs[0]),
        input: inputs.iter().map(|s| (*s).into()).collect(),
        output: outputs.iter().map(|s| (*s).into()).collect(),
        attribute: attrs.iter().map(attribute).collect(),
        ..NodeProto::default()
    }
}

/// A value with its type; sizes are numbers or names.
pub(crate) fn value(name: &str, dtype: DType, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| Dimension {
        value: Some(match d.parse() {
            Ok(v) => dimension::Value::DimValue(v),
            Err(_) => dimension::Value::DimParam((*d).into()),
        }),
        ..Dimension::default()
    };
    let shape =
        TensorShapeProto { dim: dims.iter().map(dim).collect(), ..TensorShapeProto::default() };
    let ty = type_proto::Tensor {
        elem_type: number(dtype),
        shape: Some(shape).into(),
        ..type_proto::Tensor::default()
    };
    ValueInfoProto {
        name: name.into(),
        type_: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(ty)),
            ..TypeProto::default()
        })
        .into(),
        ..ValueInfoProto::default()
    }
}

pub(crate) fn model(
    opset: i64,
    inputs: &[ValueInfoProto],
    initializers: &[(&str, Tensor)],
    nodes: &[NodeProto],
    outputs: &[&str],
) -> ModelProto {
    let graph = GraphProto {
        name: "g".into(),
        input: inputs.to_vec(),
        initializer: initializers.iter().map(|(n, t)| tensor(n, t)).collect(),
        node: nodes.to_vec(),
        output: outputs
            .iter()
            .map(|o| ValueInfoProto { name: (*o).into(), ..ValueInfoProto::default() })
            .collect(),
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: opset, ..OperatorSetIdProto::default() };
    ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph).into(),
        ..ModelProto::default()
    }
}

/// Imports a model from a file of its own.
pub(crate) fn load(
    model: &ModelProto,
    options: &ImportOptions,
) -> Result<Imported, Vec<FrontendError>> {
    let folder = Folder::new();
    import(&folder.write("model.onnx", &model.write_to_bytes().unwrap()), options)
}

/// Imports, verifies and evaluates a model.
pub(crate) fn run(model: &ModelProto, inputs: &[Tensor]) -> Vec<Tensor> {
    let imported = load(model, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e:#?}"));
    verify(&imported.module).unwrap_or_else(|e| panic!("{e:#?}"));
    let interpreter = Interpreter::new(&imported.module, &*imported.weights, Precision::F32);
    interpreter.run("main", inputs, &Env::new()).unwrap()
}

/// The messages of a model that is refused.
pub(crate) fn refusal(model: &ModelProto) -> String {
    match load(model, &ImportOptions::default()) {
        Ok(_) => panic!("imported"),
        Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}
