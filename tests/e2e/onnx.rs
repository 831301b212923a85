//! ONNX exports by torch: outputs as ONNX Runtime computes them, and every attention found.

use std::path::Path;

use frontend::ImportOptions;
use ir::{DType, Tensor};
use serde::Deserialize;

use crate::support::{compile_to, data, open, options};

#[derive(Deserialize)]
struct Case {
    inputs: Vec<String>,
    output: String,
    runs: usize,
    attentions: usize,
}

/// Reads the `.npy` files that the reference scripts write: version 1, little endian, C order.
pub(crate) fn npy(path: &Path) -> Tensor {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..6], b"\x93NUMPY");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..end]).unwrap();
    let dtype = match header.split("'descr': '").nth(1).unwrap().get(..3).unwrap() {
        "<f4" => DType::F32,
        "<i8" => DType::I64,
        "<i4" => DType::I32,
        "|b1" => DType::Bool,
        other => panic!("{}: type {other}", path.display()),
    };
    assert!(header.contains("'fortran_order': False"));
    let shape = header.split('(').nth(1).unwrap().split(')').next().unwrap();
    let shape: Vec<usize> = shape
        .split(',')
        .filter(|s| !s.trim().is_empty())
        .map(|s| s.trim().parse().unwrap())
        .collect();
    Tensor::from_bytes(dtype, &shape, bytes[end..].to_vec())
}

fn check(name: &str) {
    let folder = data("onnx").join(name);
    let case: Case =
        serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
    let (path, compiled) =
        compile_to(name, &folder.join("model.onnx"), &options(ImportOptions::default()));
    let mut session = open(&path, 2);
    for run in 0..case.runs {
        let inputs: Vec<(&str, Tensor)> = case
            .inputs
            .iter()
            .map(|n| (n.as_str(), npy(&folder.join(format!("{run}.{n}.npy")))))
            .collect();
        let outputs = session.run(&inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
        let got = &outputs.iter().find(|(n, _)| **n == *case.output).expect("the output").1;
        let want = npy(&folder.join(format!("{run}.{}.npy", case.output)));
        assert_eq!(got.shape(), want.shape(), "{name}");
        let far = got.to_f64s().into_iter().zip(want.to_f64s()).map(|(a, b)| (a - b).abs());
        let far = far.fold(0.0, |m: f64, d| if d <= m { m } else { d });
        assert!(far <= 1e-3, "{name}, run {run}: off by {far}");
    }
    let attentions = compiled.fusions.iter().filter(|f| f.kind == "attention");
    let (fused, unfused): (Vec<_>, Vec<_>) = attentions.partition(|f| f.fused);
    assert!(unfused.is_empty(), "{name}: {unfused:#?}");
    assert_eq!(fused.iter().map(|f| f.count).sum::<usize>(), case.attentions, "{name}");
}

macro_rules! cases {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}

cases! {
    bert_dynamo_eager: "bert-dynamo-eager",
    bert_dynamo_sdpa: "bert-dynamo-sdpa",
    bert_torchscript_eager: "bert-torchscript-eager",
    bert_torchscript_sdpa: "bert-torchscript-sdpa",
    llama_dynamo_eager: "llama-dynamo-eager",
    llama_dynamo_sdpa: "llama-dynamo-sdpa",
    llama_torchscript_eager: "llama-torchscript-eager",
    llama_torchscript_sdpa: "llama-torchscript-sdpa",
}
