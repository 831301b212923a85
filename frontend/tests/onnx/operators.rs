//! Operators by their forms in different opsets, with the values that the standard gives.

use ir::{DType, Tensor};

use crate::model::{A, floats, ints, model, node, refusal, run, value};

/// One node on an operand `x` of shape `[2, 3]` (values 1 to 6), other operands stored.
fn apply(
    opset: i64,
    op: &str,
    stored: &[(&str, Tensor)],
    attrs: &[(&str, A)],
    outputs: usize,
) -> Vec<Tensor> {
    let x = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let inputs: Vec<&str> = std::iter::once("x").chain(stored.iter().map(|(n, _)| *n)).collect();
    let names = ["y", "z", "w"];
    let n = node(op, &inputs, &names[..outputs], attrs);
    let stored: Vec<_> = stored.iter().filter(|(n, _)| !n.is_empty()).cloned().collect();
    let m = model(opset, &[value("x", DType::F32, &["B", "3"])], &stored, &[n], &names[..outputs]);
    run(&m, &[x])
}

fn check(got: &[Tensor], shape: &[usize], want: &[f64]) {
    assert_eq!(got[0].shape(), shape);
    for (a, b) in got[0].to_f64s().into_iter().zip(want) {
        assert!((a - b).abs() < 1e-6, "{:?} instead of {want:?}", got[0]);
    }
}

#[test]
fn slices_by_attributes_and_by_operands() {
    let attrs = [("starts", A::Ints(&[1])), ("ends", A::Ints(&[99])), ("axes", A::Ints(&[1]))];
    check(&apply(9, "Slice", &[], &attrs, 1), &[2, 2], &[2.0, 3.0, 5.0, 6.0]);
    let operands = [("s", ints(&[1])), ("e", ints(&[i64::MAX])), ("a", ints(&[-1]))];
    check(&apply(13, "Slice", &operands, &[], 1), &[2, 2], &[2.0, 3.0, 5.0, 6.0]);
    let reverse =
        [("s", ints(&[-1])), ("e", ints(&[i64::MIN])), ("a", ints(&[1])), ("t", ints(&[-2]))];
    check(&apply(13, "Slice", &reverse, &[], 1), &[2, 2], &[3.0, 1.0, 6.0, 4.0]);
}

#[test]
fn splits_by_attribute_operand_and_count() {
    let by_attr = apply(12, "Split", &[], &[("axis", A::Int(1)), ("split", A::Ints(&[1, 2]))], 2);
    check(&by_attr, &[2, 1], &[1.0, 4.0]);
    let by_operand = apply(13, "Split", &[("l", ints(&[1, 2]))], &[("axis", A::Int(1))], 2);
    check(&by_operand[1..], &[2, 2], &[2.0, 3.0, 5.0, 6.0]);
    let uneven = [("axis", A::Int(-1)), ("num_outputs", A::Int(2))];
    check(&apply(18, "Split", &[], &uneven, 2), &[2, 2], &[1.0, 2.0, 4.0, 5.0]);
}

#[test]
fn reductions_take_axes_either_way() {
    let attrs = || [("axes", A::Ints(&[1])), ("keepdims", A::Int(0))];
    check(&apply(11, "ReduceSum", &[], &attrs(), 1), &[2], &[6.0, 15.0]);
    check(&apply(13, "ReduceMean", &[], &attrs(), 1), &[2], &[2.0, 5.0]);
    check(&apply(18, "ReduceMax", &[("a", ints(&[-1]))], &[], 1), &[2, 1], &[3.0, 6.0]);
    check(&apply(18, "ReduceMean", &[], &[], 1), &[1, 1], &[3.5]);
    let noop = [("noop_with_empty_axes", A::Int(1))];
    check(&apply(18, "ReduceSum", &[], &noop, 1), &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    check(&apply(13, "ReduceL2", &[], &attrs(), 1), &[2], &[14f64.sqrt(), 77f64.sqrt()]);
}

#[test]
fn softmax_covered_all_trailing_axes_before_opset_13() {
    let row: f64 = [1.0f64, 2.0, 3.0].iter().map(|v| v.exp()).sum();
    let all: f64 = (1..=6).map(|v| f64::from(v).exp()).sum();
    let new = apply(13, "Softmax", &[], &[("axis", A::Int(1))], 1);
    check(&new[..1], &[2, 3], &[1f64.exp() / row, 2f64.exp() / row]);
    let old = apply(12, "Softmax", &[], &[("axis", A::Int(0))], 1);
    check(&old[..1], &[2, 3], &[1f64.exp() / all, 2f64.exp() / all]);
    let log = apply(12, "LogSoftmax", &[], &[("axis", A::Int(0))], 1);
    check(&log, &[2, 3], &[1.0 - all.ln(), 2.0 - all.ln()]);
}

#[test]
fn shapes_follow_from_symbolic_sizes() {
    let merge = apply(13, "Reshape", &[("s", ints(&[-1, 1]))], &[], 1);
    check(&merge, &[6, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let copy = apply(13, "Reshape", &[("s", ints(&[0, -1, 1]))], &[], 1);
    assert_eq!(copy[0].shape(), [2, 3, 1]);
    assert_eq!(apply(13, "Flatten", &[], &[("axis", A::Int(0))], 1)[0].shape(), [1, 6]);
    let up = apply(13, "Unsqueeze", &[("a", ints(&[0, -1]))], &[], 1);
    assert_eq!(up[0].shape(), [1, 2, 3, 1]);
    assert_eq!(apply(11, "Unsqueeze", &[], &[("axes", A::Ints(&[1]))], 1)[0].shape(), [2, 1, 3]);
    check(
        &apply(13, "Tile", &[("r", ints(&[1, 2]))], &[], 1),
        &[2, 6],
        &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0],
    );
    check(&apply(13, "Transpose", &[], &[], 1), &[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    check(&apply(13, "Size", &[], &[], 1), &[], &[6.0]);
}

#[test]
fn elementwise_forms() {
    let gelu = apply(20, "Gelu", &[], &[("approximate", A::Text("tanh"))], 1);
    check(&gelu[..1], &[2, 3], &[0.841_191_99, 1.954_597_7]);
    let attrs = [("min", A::Float(2.0)), ("max", A::Float(5.0))];
    check(&apply(7, "Clip", &[], &attrs, 1), &[2, 3], &[2.0, 2.0, 3.0, 4.0, 5.0, 5.0]);
    let only_max = [("", ints(&[])), ("m", floats(&[], &[4.0]))];
    check(&apply(13, "Clip", &only_max, &[], 1), &[2, 3], &[1.0, 2.0, 3.0, 4.0, 4.0, 4.0]);
    let square = Tensor::from_i64s(DType::I64, &[], [2]);
    check(&apply(13, "Pow", &[("e", square)], &[], 1), &[2, 3], &[1.0, 4.0, 9.0, 16.0]);
    let pair = [("a", floats(&[], &[3.0])), ("b", floats(&[3], &[0.0, 4.0, 9.0]))];
    check(&apply(13, "Max", &pair, &[], 1), &[2, 3], &[3.0, 4.0, 9.0, 4.0, 5.0, 9.0]);
    check(&apply(13, "Mean", &pair, &[], 1), &[2, 3], &[4.0 / 3.0, 3.0, 5.0]);
    let w = floats(&[2, 3], &[1.0, 0.0, 1.0, 0.0, 2.0, 0.0]);
    let gemm = [("transB", A::Int(1)), ("alpha", A::Float(0.5)), ("beta", A::Float(2.0))];
    let c = floats(&[2], &[1.0, -1.0]);
    check(&apply(13, "Gemm", &[("w", w), ("c", c)], &gemm, 1), &[2, 2], &[4.0, 0.0, 7.0, 3.0]);
    check(
        &apply(14, "Trilu", &[], &[("upper", A::Int(0))], 1),
        &[2, 3],
        &[1.0, 0.0, 0.0, 4.0, 5.0],
    );
    let axis = Tensor::from_i64s(DType::I64, &[], [1]);
    let flags = [("reverse", A::Int(1)), ("exclusive", A::Int(1))];
    let sums = apply(14, "CumSum", &[("axis", axis)], &flags, 1);
    check(&sums, &[2, 3], &[5.0, 3.0, 0.0, 11.0, 6.0, 0.0]);
}

#[test]
fn norms_over_several_axes() {
    let attrs = [("axis", A::Int(0)), ("epsilon", A::Float(0.0))];
    let n = node("LayerNormalization", &["x", "w"], &["y"], &attrs);
    let w = [("w", floats(&[2, 3], &[1.0; 6]))];
    let m = model(17, &[value("x", DType::F32, &["2", "3"])], &w, &[n], &["y"]);
    let y = run(&m, &[floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]);
    let std = (35f64 / 12.0).sqrt();
    check(&y, &[2, 3], &[-2.5 / std, -1.5 / std, -0.5 / std, 0.5 / std, 1.5 / std, 2.5 / std]);
}

#[test]
fn gathers_by_computed_grids_are_views_and_by_data_are_lookups() {
    // y[b, s] = x[b, s] as a lookup of b·S + s in the flattened operand.
    let nodes = |last: &str| {
        vec![
            node("Shape", &["x"], &["shape"], &[]),
            node("Gather", &["shape", "zero"], &["B"], &[]),
            node("Gather", &["shape", "one"], &["S"], &[]),
            node("Range", &["zero", "B", "one"], &["rows"], &[]),
            node("Range", &["zero", "S", "one"], &["columns"], &[]),
            node("Unsqueeze", &["rows", "axis"], &["row"], &[]),
            node("Mul", &["row", last], &["start"], &[]),
            node("Add", &["start", "columns"], &["index"], &[]),
            node("Reshape", &["x", "flat"], &["line"], &[]),
            node("Gather", &["line", "index"], &["y"], &[]),
        ]
    };
    let scalar = |v| Tensor::from_i64s(DType::I64, &[], [v]);
    let stored =
        [("zero", scalar(0)), ("one", scalar(1)), ("axis", ints(&[1])), ("flat", ints(&[-1]))];
    let x = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let inputs = [value("x", DType::F32, &["B", "S"])];
    let ops = |last: &str| {
        let m = model(17, &inputs, &stored, &nodes(last), &["y"]);
        let imported = crate::model::load(&m, &brolly_frontend::ImportOptions::default()).unwrap();
        let main = imported.module.function("main").unwrap();
        main.node_ids().into_iter().map(|n| main.node(n).op.name()).collect::<Vec<_>>()
    };
    let m = model(17, &inputs, &stored, &nodes("S"), &["y"]);
    check(&run(&m, std::slice::from_ref(&x)), &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(ops("S"), ["param"]);
    // Overlapping rows are no view.
    assert!(ops("one").contains(&"gather"));
    let m = model(17, &inputs, &stored, &nodes("one"), &["y"]);
    check(&run(&m, &[x]), &[2, 3], &[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]);
}

#[test]
fn gather_elements_and_nd_by_data() {
    let index = Tensor::from_i64s(DType::I64, &[2, 2], [2, 0, 1, -1]);
    let gather = |rows: &str| {
        let n = node("GatherElements", &["x", "i"], &["y"], &[("axis", A::Int(1))]);
        let x = value("x", DType::F32, &[rows, "3"]);
        model(13, &[x], &[("i", index.clone())], &[n], &["y"])
    };
    let y = run(&gather("2"), &[floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]);
    check(&y, &[2, 2], &[3.0, 1.0, 5.0, 6.0]);
    // One row of data would be too few.
    let why = refusal(&gather("B"));
    assert!(why.contains("axis 0: cannot decide whether indices of 2 fit B"), "{why}");
    let index = Tensor::from_i64s(DType::I64, &[2, 2], [1, 2, 0, -2]);
    check(&apply(13, "GatherND", &[("i", index.clone())], &[], 1), &[2], &[6.0, 2.0]);
    let updates = floats(&[2], &[-1.0, -2.0]);
    let y = apply(16, "ScatterND", &[("i", index), ("u", updates)], &[], 1);
    check(&y, &[2, 3], &[1.0, -2.0, 3.0, 4.0, 5.0, -1.0]);
}

#[test]
fn one_hot_rows_and_numbered_elements() {
    let depth = Tensor::from_i64s(DType::I64, &[], [3]);
    let y = apply(11, "OneHot", &[("d", depth), ("v", floats(&[2], &[-1.0, 5.0]))], &[], 1);
    check(&y, &[2, 3, 3], &[-1.0, 5.0, -1.0, -1.0, -1.0, 5.0, -1.0, -1.0, -1.0]);
    let nodes = [
        node("Shape", &["x"], &["shape"], &[("end", A::Int(1))]),
        node("Expand", &["one", "shape"], &["ones"], &[]),
        node("NonZero", &["ones"], &["y"], &[]),
    ];
    let one = [("one", floats(&[1], &[1.0]))];
    let m = model(15, &[value("x", DType::F32, &["B", "3"])], &one, &nodes, &["y"]);
    check(&run(&m, &[floats(&[2, 3], &[0.0; 6])]), &[1, 2], &[0.0, 1.0]);
}

#[test]
fn exclusive_sums_never_hold_the_element_itself() {
    for (values, want) in [
        ([1.0, 1e20, 1.0], [0.0, 1.0, 1e20]),
        ([f32::INFINITY, 1.0, -1.0], [0.0, f32::INFINITY, f32::INFINITY]),
    ] {
        let axis = Tensor::from_i64s(DType::I64, &[], [0]);
        let n = node("CumSum", &["x", "axis"], &["y"], &[("exclusive", A::Int(1))]);
        let m = model(14, &[value("x", DType::F32, &["N"])], &[("axis", axis)], &[n], &["y"]);
        assert_eq!(run(&m, &[floats(&[3], &values)])[0].to_f32s(), want);
        assert_eq!(run(&m, &[floats(&[0], &[])])[0].shape(), [0]);
    }
}

#[test]
fn limits_are_attributes_or_operands_by_opset_and_never_ignored() {
    let n = node("Clip", &["x"], &["y"], &[("min", A::Float(2.0))]);
    let m = model(11, &[value("x", DType::F32, &["N"])], &[], &[n], &["y"]);
    let why = refusal(&m);
    assert!(why.contains("attribute `min` is not supported here"), "{why}");
}

#[test]
fn a_constant_is_sliced_from_a_symbolic_start() {
    let nodes = [
        node("Shape", &["x"], &["n"], &[("end", A::Int(1))]),
        node("Add", &["n", "one"], &["end"], &[]),
        node("Slice", &["c", "n", "end"], &["y"], &[]),
    ];
    let stored = [("c", ints(&[1, 2, 3, 4])), ("one", ints(&[1]))];
    let m = model(15, &[value("x", DType::F32, &["B", "3"])], &stored, &nodes, &["y"]);
    assert_eq!(run(&m, &[floats(&[2, 3], &[0.0; 6])])[0].to_i64s(), [3]);
}

#[test]
fn tensors_that_fit_nowhere_are_refused() {
    let n = node("Neg", &["x"], &["y"], &[]);
    let m = model(13, &[value("x", DType::F32, &["140737488355328"])], &[], &[n], &["y"]);
    assert!(refusal(&m).contains("more than the 140737488355328 that fit anywhere"));
}

#[test]
fn constants_fold_as_integers_of_64_bits() {
    let stored = [("a", ints(&[i64::MIN, -7, 1 << 62])), ("b", ints(&[i64::MIN, 2, 4]))];
    let fold = |op: &str| {
        let x = value("x", DType::F32, &["N"]);
        let m = model(13, &[x], &stored, &[node(op, &["a", "b"], &["y"], &[])], &["y"]);
        run(&m, &[floats(&[1], &[0.0])])[0].to_i64s()
    };
    assert_eq!(fold("Equal"), [1, 0, 0]);
    assert_eq!(fold("Less"), [0, 1, 0]);
    assert_eq!(fold("Mul"), [0, -14, 0]);
    assert_eq!(fold("Div"), [1, -3, 1 << 60]);
    assert_eq!(fold("Sub"), [0, -9, (1 << 62) - 4]);
}

#[test]
fn bits_of_integers() {
    let apply = |opset: i64, op: &str, dtype: DType, operands: [&[i64]; 2], attrs: &[(&str, A)]| {
        let [x, b] = operands.map(|v| Tensor::from_i64s(dtype, &[v.len()], v.iter().copied()));
        let shape = x.shape()[0].to_string();
        let n = node(op, &["x", "b"], &["y"], attrs);
        let m = model(opset, &[value("x", dtype, &[&shape])], &[("b", b)], &[n], &["y"]);
        run(&m, &[x])[0].to_i64s()
    };
    let pair: [&[i64]; 2] = [&[-1, 12, 1 << 62], &[10, 10, -1]];
    assert_eq!(apply(18, "BitwiseAnd", DType::I64, pair, &[]), [10, 8, 1 << 62]);
    assert_eq!(apply(18, "BitwiseXor", DType::I64, pair, &[]), [-11, 6, -1 ^ (1 << 62)]);
    let shifts: [&[i64]; 2] = [&[16, 255, 200, 1], &[1, 4, 8, 7]];
    let by = |direction| [("direction", A::Text(direction))];
    assert_eq!(apply(11, "BitShift", DType::U8, shifts, &by("RIGHT")), [8, 15, 0, 0]);
    assert_eq!(apply(11, "BitShift", DType::U8, shifts, &by("LEFT")), [32, 240, 0, 128]);
}
