//! The standard's own operator cases, where `ONNX_NODE_CASES` names their folder: `data/node` of
//! the onnx package's backend tests.

use std::{collections::BTreeMap, path::Path};

use brolly_frontend::{FrontendError, ImportOptions};
use ir::{DType, Env, Interpreter, Precision, Tensor, verify};
use onnx_protobuf::{Message, ModelProto, TensorProto};

use crate::model::{NUMBERS, load, tensor};

/// Cases whose stored results were wrong before onnx 1.18: it divided the last windows by elements
/// that lie beyond the padding.
const WRONG: [&str; 1] =
    ["test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True"];

/// A stored tensor of the types that cases use, if it is one of ours.
fn read(path: &Path) -> Option<Tensor> {
    let t = TensorProto::parse_from_bytes(&std::fs::read(path).ok()?).ok()?;
    let (_, dtype) = *NUMBERS.iter().find(|(number, _)| *number == t.data_type)?;
    // A sequence or an optional value reads as a tensor of any sizes.
    let shape = t.dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<Vec<usize>>>()?;
    let bytes = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d))?;
    (t.raw_data.len() == bytes).then(|| Tensor::from_bytes(dtype, &shape, t.raw_data.clone()))
}

fn tensors(folder: &Path, prefix: &str) -> Option<Vec<Tensor>> {
    let exists = |i: &usize| folder.join(format!("{prefix}_{i}.pb")).exists();
    (0..).take_while(exists).map(|i| read(&folder.join(format!("{prefix}_{i}.pb")))).collect()
}

/// The model with integer vectors, scalars and flags but the first input stored in it.
fn store_small_integers(model: &ModelProto, inputs: &[Tensor]) -> (ModelProto, Vec<Tensor>) {
    let mut model = model.clone();
    let graph = model.graph.as_mut().unwrap();
    let small = |i: usize, t: &Tensor| {
        let first = i == 0 && inputs.len() > 1;
        !first && t.rank() <= 1 && !t.dtype().is_float()
    };
    let mut kept = Vec::new();
    let declared = std::mem::take(&mut graph.input);
    for (i, (t, info)) in inputs.iter().zip(declared).enumerate() {
        if small(i, t) {
            graph.initializer.push(tensor(&info.name, t));
        } else {
            graph.input.push(info);
            kept.push(t.clone());
        }
    }
    (model, kept)
}

#[test]
fn operator_cases_agree() {
    let Some(folder) = std::env::var_os("ONNX_NODE_CASES") else {
        println!("skipped: ONNX_NODE_CASES does not name a folder of cases");
        return;
    };
    let mut passed = 0;
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        if WRONG.contains(&&*name) {
            *refused.entry("wrong results before onnx 1.18".into()).or_default() += 1;
            continue;
        }
        let data = case.join("test_data_set_0");
        let (Some(inputs), Some(want)) = (tensors(&data, "input"), tensors(&data, "output")) else {
            *refused.entry("test data of other types".into()).or_default() += 1;
            continue;
        };
        let file = std::fs::read(case.join("model.onnx")).unwrap();
        let model = ModelProto::parse_from_bytes(&file).unwrap();
        // Shapes and axes come as inputs here; in a model they are stored or computed.
        let (stored, inputs) = store_small_integers(&model, &inputs);
        let imported = match load(&stored, &ImportOptions::default()) {
            Ok(imported) => imported,
            Err(errors) => {
                let why = match &errors[0] {
                    FrontendError::Node { op, reason, .. } => format!("{op}: {reason}"),
                    other => other.to_string().split_once(": ").unwrap().1.into(),
                };
                *refused.entry(why).or_default() += 1;
                continue;
            }
        };
        if let Err(e) = verify(&imported.module) {
            wrong.push(format!("{name}: {e:?}"));
            continue;
        }
        let run = Interpreter::new(&imported.module, &*imported.weights, Precision::F32);
        match run.run("main", &inputs, &Env::new()) {
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(got) => match got.iter().zip(&want).find_map(|(a, b)| differs(a, b)) {
                Some(why) => wrong.push(format!("{name}: {why}")),
                None => passed += 1,
            },
        }
    }
    println!("{passed} cases pass, refused: {refused:#?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(passed > 600);
}

fn differs(got: &Tensor, want: &Tensor) -> Option<String> {
    if (got.dtype(), got.shape()) != (want.dtype(), want.shape()) {
        return Some(format!("{got:?} instead of {want:?}"));
    }
    let tolerance = if want.dtype() == DType::F16 { 5e-3 } else { 1e-4 };
    let close = |a: f64, b: f64| {
        a.to_bits() == b.to_bits()
            || (a.is_nan() && b.is_nan())
            || a == b
            || (a - b).abs() <= tolerance * (1.0 + b.abs())
    };
    let bad = got.to_f64s().into_iter().zip(want.to_f64s()).find(|(a, b)| !close(*a, *b));
    bad.map(|(a, b)| format!("{a} instead of {b}"))
}
