//! Every export under `tests/data/onnx`, evaluated and compared with the model it came from.

use std::path::{Path, PathBuf};

use brolly_frontend::{ImportOptions, Imported, import};
use ir::{Env, Interpreter, ModelKind, Precision, verify};

use crate::npy;

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/onnx")
}

pub(crate) fn load(path: &Path) -> Imported {
    let imported = import(path, &ImportOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e:#?}", path.display()));
    verify(&imported.module).unwrap_or_else(|e| panic!("{}: {e:#?}", path.display()));
    imported
}

/// Names of the operators in the entry.
fn operators(imported: &Imported) -> Vec<&'static str> {
    let main = imported.module.function("main").unwrap();
    main.node_ids().into_iter().map(|n| main.node(n).op.name()).collect()
}

fn check(name: &str) {
    let folder = folder().join(name);
    let case = std::fs::read_to_string(folder.join("case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&case).unwrap();
    let imported = load(&folder.join("model.onnx"));
    assert_eq!(imported.info.kind, ModelKind::Graph);
    let main = imported.module.function("main").unwrap();
    let inputs: Vec<&str> = main.params().iter().map(|p| main.param_name(*p)).collect();
    let wanted: Vec<&str> =
        case["inputs"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(inputs, wanted);
    for run in 0..case["runs"].as_u64().unwrap() {
        let at = |name: &str| npy::read(&folder.join(format!("{run}.{name}.npy")));
        let args: Vec<_> = inputs.iter().map(|n| at(n)).collect();
        let interpreter = Interpreter::new(&imported.module, &*imported.weights, Precision::F32);
        let out = interpreter.run("main", &args, &Env::new()).unwrap();
        let want = at(case["output"].as_str().unwrap());
        assert_eq!(out[0].shape(), want.shape());
        let pairs = out[0].to_f64s().into_iter().zip(want.to_f64s());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{name}, run {run}: off by {worst}");
    }
    // Shapes, masks and positions are computed without reading memory at computed places, but for
    // the lookup of tokens and token types.
    let ops = operators(&imported);
    let tables = case["inputs"].as_array().unwrap().len() - 1;
    assert_eq!(ops.iter().filter(|o| **o == "gather").count(), tables, "{ops:?}");
    for op in ["gather_nd", "gather_elements", "shape_of", "concat_shape"] {
        assert!(!ops.contains(&op), "{name} keeps {op}");
    }
}

macro_rules! exports {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}
exports! {
    bert_dynamo_eager: "bert-dynamo-eager",
    bert_dynamo_sdpa: "bert-dynamo-sdpa",
    bert_torchscript_eager: "bert-torchscript-eager",
    bert_torchscript_sdpa: "bert-torchscript-sdpa",
    llama_dynamo_eager: "llama-dynamo-eager",
    llama_dynamo_sdpa: "llama-dynamo-sdpa",
    llama_torchscript_eager: "llama-torchscript-eager",
    llama_torchscript_sdpa: "llama-torchscript-sdpa",
}

#[test]
fn position_tables_bound_the_sequence() {
    let bert = load(&folder().join("bert-dynamo-eager/model.onnx"));
    assert_eq!(bert.module.symbols["sequence"].hi, 40);
    assert_eq!(bert.module.symbols["batch"].hi, brolly_frontend::onnx::DEFAULT_BOUND);
}

#[test]
fn large_exports_import_in_seconds() {
    let Some(folder) = std::env::var_os("MINILM_ONNX") else {
        println!("skipped: MINILM_ONNX does not name a folder of exports");
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path().join("model.onnx");
        let start = std::time::Instant::now();
        let imported = load(&path);
        println!("{}: {:?}, {} nodes", path.display(), start.elapsed(), operators(&imported).len());
        assert!(start.elapsed().as_secs() < 10);
    }
}
