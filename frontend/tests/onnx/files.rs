//! Files and what they declare: external data, functions, bounds, and everything that is refused.

use brolly_frontend::{FrontendError, ImportOptions, import};
use ir::{Bounds, DType, Env, Interpreter, Precision, Tensor};
use onnx_protobuf::{
    AttributeProto, FunctionProto, Message, ModelProto, OperatorSetIdProto, StringStringEntryProto,
    attribute_proto::AttributeType, tensor_proto::DataLocation,
};

use crate::model::{A, Folder, floats, ints, load, model, node, refusal, run, value};

fn text(errors: &[FrontendError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// `y = x · w` with `w` in a file beside the model.
fn external(location: &str, offset: &str, length: Option<&str>) -> ModelProto {
    let w = floats(&[2, 2], &[0.0; 4]);
    let nodes = [node("MatMul", &["x", "w"], &["y"], &[])];
    let mut m = model(17, &[value("x", DType::F32, &["N", "2"])], &[("w", w)], &nodes, &["y"]);
    let t = &mut m.graph.as_mut().unwrap().initializer[0];
    t.raw_data.clear();
    t.data_location = DataLocation::EXTERNAL.into();
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: key.into(),
        value: value.into(),
        ..StringStringEntryProto::default()
    };
    t.external_data = vec![entry("location", location), entry("offset", offset)];
    t.external_data.extend(length.map(|l| entry("length", l)));
    m
}

fn data() -> Vec<u8> {
    [9.0f32, 1.0, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn external_data_are_read_from_the_models_folder() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.write("sub/w.bin", &data());
    for length in [None, Some("16")] {
        let m = external("sub/w.bin", "4", length);
        let path = folder.write("model.onnx", &m.write_to_bytes().unwrap());
        let imported = import(&path, &ImportOptions::default()).map_err(|e| text(&e)).unwrap();
        let x = floats(&[1, 2], &[1.0, 10.0]);
        let y = Interpreter::new(&imported.module, &*imported.weights, Precision::F32)
            .run("main", &[x], &Env::new())
            .unwrap();
        assert_eq!(y[0].to_f64s(), [31.0, 42.0]);
    }
}

#[test]
fn external_data_outside_the_folder_or_cut_off_are_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("inner")).unwrap();
    folder.write("w.bin", &data());
    std::os::unix::fs::symlink(folder.path("w.bin"), folder.path("inner/link.bin")).unwrap();
    let absolute = folder.path("w.bin");
    let absolute = absolute.to_str().unwrap();
    for (location, offset, length, why) in [
        ("../w.bin", "0", None, "outside the model's folder"),
        (absolute, "0", None, "outside the model's folder"),
        ("link.bin", "0", Some("16"), "outside the model's folder"),
        ("missing.bin", "0", None, "missing.bin"),
        ("", "0", None, "external data"),
    ] {
        let m = external(location, offset, length);
        let path = folder.write("inner/model.onnx", &m.write_to_bytes().unwrap());
        let errors = text(&import(&path, &ImportOptions::default()).err().unwrap());
        assert!(errors.contains(why) && errors.contains("tensor `w`"), "{errors}");
    }
    folder.write("inner/w.bin", &data());
    for (offset, length) in [("8", Some("16")), ("-1", None), ("0", Some("18446744073709551615"))] {
        let m = external("w.bin", offset, length);
        let path = folder.write("inner/model.onnx", &m.write_to_bytes().unwrap());
        let errors = text(&import(&path, &ImportOptions::default()).err().unwrap());
        assert!(errors.contains("tensor `w`"), "{errors}");
    }
}

#[test]
fn every_problem_is_reported_at_once() {
    let nodes = [
        node("Frobnicate", &["x"], &["a"], &[]),
        node("Gelu", &["x"], &["b"], &[]),
        node("Add", &["x", "t"], &["c"], &[]),
        node("Softmax", &["x"], &["d"], &[("axis", A::Int(7))]),
        node("Relu", &["x"], &["e"], &[("slope", A::Float(0.5))]),
        node("If", &["x"], &["f"], &[]),
        node("MatMul", &["x", "nowhere"], &["g"], &[]),
        node("Dropout", &["x", "ratio", "yes"], &["h"], &[]),
        node("Neg", &["a"], &["i"], &[]),
    ];
    let inputs = [value("x", DType::F32, &["N", "3"]), value("t", DType::F32, &["M", "3"])];
    let yes = Tensor::from_i64s(DType::Bool, &[], [1]);
    let stored = [("ratio", floats(&[], &[0.5])), ("yes", yes)];
    let m = model(17, &inputs, &stored, &nodes, &["i", "h"]);
    let errors = refusal(&m);
    for part in [
        "node `Frobnicate_a` (Frobnicate): is not supported",
        "node `Gelu_b` (Gelu): is not part of opset 17",
        "node `Add_c` (Add): add: broadcast axis 0: cannot decide whether N equals M",
        "node `Softmax_d` (Softmax): axis 7 is out of range for 2 axes",
        "node `Relu_e` (Relu): attribute `slope` is not supported here",
        "node `If_f` (If): holds a subgraph",
        "node `MatMul_g` (MatMul): reads `nowhere`, which nothing before it writes",
        "node `Dropout_h` (Dropout): is in training mode",
    ] {
        assert!(errors.contains(part), "no {part:?} in\n{errors}");
    }
    assert_eq!(errors.lines().count(), 8, "{errors}");
    assert!(errors.lines().all(|l| l.contains("model.onnx")));
}

#[test]
fn other_files_and_opsets_are_refused() {
    let folder = Folder::new();
    for bytes in [&b""[..], b"not a model at all", &[0xff; 64], &[8, 8]] {
        let path = folder.write("model.onnx", bytes);
        assert!(text(&import(&path, &ImportOptions::default()).err().unwrap()).contains("ONNX"));
    }
    let nodes = [node("Neg", &["x"], &["y"], &[])];
    for opset in [0, 6, 999, i64::MIN] {
        let m = model(opset, &[value("x", DType::F32, &["2"])], &[], &nodes, &["y"]);
        assert!(refusal(&m).contains(&format!("opset {opset}")));
    }
}

#[test]
fn bounds_are_defaults_given_or_fixed() {
    let nodes = [node("Add", &["x", "t"], &["y"], &[])];
    let inputs =
        [value("x", DType::F32, &["batch size", "3"]), value("t", DType::F32, &["M", "3"])];
    let m = model(17, &inputs, &[], &nodes, &["y"]);
    let bounded = |list: &[(&str, i64, i64)]| {
        let bounds = list.iter().map(|(n, lo, hi)| ((*n).into(), Bounds { lo: *lo, hi: *hi }));
        load(&m, &ImportOptions { bounds: bounds.collect(), ..ImportOptions::default() })
    };
    // Fixed to one value, two sizes are equal.
    let both = bounded(&[("batch_size", 5, 5), ("M", 5, 5)]).map_err(|e| text(&e)).unwrap();
    let main = both.module.function("main").unwrap();
    assert_eq!(main.ty(main.outputs[0].1).to_string(), "f32[5, 3]");
    let errors = text(&bounded(&[("batch size", 2, 1), ("K", 1, 2)]).err().unwrap());
    assert!(errors.contains("bounds 2..=1"), "{errors}");
    assert!(errors.contains("names `K`; the model's sizes are: M, batch size"), "{errors}");
}

#[test]
fn expressions_of_sizes_are_understood() {
    let nodes = [
        node("Concat", &["past", "x"], &["all"], &[("axis", A::Int(0))]),
        node("Add", &["all", "mask"], &["y"], &[]),
    ];
    let inputs = [
        value("past", DType::F32, &["p"]),
        value("x", DType::F32, &["n"]),
        value("mask", DType::F32, &["p + n"]),
    ];
    let m = model(17, &inputs, &[], &nodes, &["y"]);
    let imported = load(&m, &ImportOptions::default()).map_err(|e| text(&e)).unwrap();
    assert_eq!(imported.module.symbols.len(), 2);
}

#[test]
fn initialisers_are_not_inputs_and_small_ones_are_constants() {
    let nodes = [
        node("Reshape", &["x", "shape"], &["r"], &[]),
        node("Mul", &["r", "scale"], &["s"], &[]),
        node("Add", &["s", "w"], &["y"], &[]),
    ];
    let stored = [
        ("shape", ints(&[2, 2])),
        ("scale", floats(&[1], &[3.0])),
        ("w", floats(&[2], &[1.0, -1.0])),
        ("unused", floats(&[3], &[0.0; 3])),
    ];
    let inputs = [value("w", DType::F32, &["2"]), value("x", DType::F32, &["4"])];
    let m = model(17, &inputs, &stored, &nodes, &["y"]);
    assert_eq!(
        run(&m, &[floats(&[4], &[1.0, 2.0, 3.0, 4.0])])[0].to_f64s(),
        [4.0, 5.0, 10.0, 11.0]
    );
    let imported = load(&m, &ImportOptions::default()).map_err(|e| text(&e)).unwrap();
    let weights: Vec<_> = imported.module.weights.keys().map(|k| &**k).collect();
    assert_eq!(weights, ["w"]);
    assert_eq!(imported.info.parameters, 2);
}

#[test]
fn matrices_can_be_stored_narrower_than_they_compute() {
    let nodes = [node("MatMul", &["x", "w"], &["y"], &[])];
    let stored = [("w", floats(&[2, 1], &[1.001, 2.0]))];
    let m = model(17, &[value("x", DType::F32, &["1", "2"])], &stored, &nodes, &["y"]);
    let options = ImportOptions { dtype: Some(DType::Bf16), ..ImportOptions::default() };
    let imported = load(&m, &options).map_err(|e| text(&e)).unwrap();
    assert_eq!(imported.module.weights["w"].dtype, DType::Bf16);
    assert_eq!(imported.weights.load("w").unwrap().to_f64s(), [1.0, 2.0]);
    let main = imported.module.function("main").unwrap();
    assert_eq!(main.ty(main.outputs[0].1).dtype, DType::F32);
}

#[test]
fn model_local_functions_are_expanded() {
    let mut leaky = node("Mul", &["v", "slope"], &["low"], &[]);
    leaky.name = String::new();
    let mut slope = node("Constant", &[], &["slope"], &[]);
    slope.attribute = vec![AttributeProto {
        name: "value_float".into(),
        ref_attr_name: "alpha".into(),
        type_: AttributeType::FLOAT.into(),
        ..AttributeProto::default()
    }];
    let function = FunctionProto {
        domain: "local".into(),
        name: "Leaky".into(),
        input: vec!["v".into()],
        output: vec!["out".into()],
        attribute: vec!["alpha".into()],
        node: vec![slope, leaky, node("Max", &["v", "low"], &["out"], &[])],
        opset_import: vec![OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() }],
        ..FunctionProto::default()
    };
    let mut first = node("Leaky", &["x"], &["a"], &[("alpha", A::Float(0.5))]);
    let mut second = node("Leaky", &["a"], &["y"], &[("alpha", A::Float(0.25))]);
    (first.domain, second.domain) = ("local".into(), "local".into());
    let mut m = model(17, &[value("x", DType::F32, &["2"])], &[], &[first, second], &["y"]);
    m.functions = vec![function];
    assert_eq!(run(&m, &[floats(&[2], &[-8.0, 8.0])])[0].to_f64s(), [-1.0, 8.0]);
    // A function that calls itself ends in an error.
    let mut call = node("Leaky", &["v"], &["out"], &[]);
    call.domain = "local".into();
    m.functions[0].node = vec![call];
    assert!(refusal(&m).contains("call each other"));
}
