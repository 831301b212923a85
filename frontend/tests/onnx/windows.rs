//! Convolutions, poolings, norms of channels and orders of elements, as ONNX states them.

use ir::{DType, Tensor};

use crate::model::{A, floats, ints, model, node, refusal, run, value};

/// One node on an operand `x` with the numbers 1, 2, .. and stored operands.
fn apply(
    opset: i64,
    op: &str,
    shape: &[usize],
    stored: &[(&str, Tensor)],
    attrs: &[(&str, A)],
) -> Vec<f64> {
    let numbers: Vec<f32> = (1..=shape.iter().product::<usize>()).map(|v| v as f32).collect();
    let x = floats(shape, &numbers);
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    let sizes: Vec<&str> = sizes.iter().map(|s| &**s).collect();
    let inputs: Vec<&str> = std::iter::once("x").chain(stored.iter().map(|(n, _)| *n)).collect();
    let n = node(op, &inputs, &["y"], attrs);
    let m = model(opset, &[value("x", DType::F32, &sizes)], stored, &[n], &["y"]);
    run(&m, &[x])[0].to_f64s()
}

fn ones(shape: &[usize]) -> Tensor {
    floats(shape, &vec![1.0; shape.iter().product()])
}

#[test]
fn padding_follows_from_sizes_where_it_is_asked_to() {
    let conv =
        |attrs: &[(&str, A)]| apply(11, "Conv", &[1, 1, 5], &[("w", ones(&[1, 1, 2]))], attrs);
    assert_eq!(conv(&[]), [3.0, 5.0, 7.0, 9.0]);
    assert_eq!(conv(&[("auto_pad", A::Text("SAME_UPPER"))]), [3.0, 5.0, 7.0, 9.0, 5.0]);
    assert_eq!(conv(&[("auto_pad", A::Text("SAME_LOWER"))]), [1.0, 3.0, 5.0, 7.0, 9.0]);
    let strided = [("auto_pad", A::Text("SAME_UPPER")), ("strides", A::Ints(&[2]))];
    assert_eq!(conv(&strided), [3.0, 7.0, 5.0]);
    assert_eq!(conv(&[("auto_pad", A::Text("VALID")), ("pads", A::Ints(&[1, 1]))]).len(), 4);
    assert_eq!(
        conv(&[("pads", A::Ints(&[1, 0])), ("dilations", A::Ints(&[2]))]),
        [2.0, 4.0, 6.0, 8.0]
    );
}

#[test]
fn an_output_shape_decides_what_is_taken_off() {
    let w = || [("w", ones(&[1, 1, 3]))];
    let conv = |attrs: &[(&str, A)]| apply(11, "ConvTranspose", &[1, 1, 3], &w(), attrs);
    let two = || ("strides", A::Ints(&[2]));
    assert_eq!(conv(&[two()]), [1.0, 1.0, 3.0, 2.0, 5.0, 3.0, 3.0]);
    assert_eq!(conv(&[two(), ("output_shape", A::Ints(&[6]))]), [1.0, 3.0, 2.0, 5.0, 3.0, 3.0]);
    let same = [two(), ("auto_pad", A::Text("SAME_UPPER"))];
    assert_eq!(conv(&same), [1.0, 1.0, 3.0, 2.0, 5.0, 3.0]);
    let more = [two(), ("output_padding", A::Ints(&[1]))];
    assert_eq!(conv(&more), [1.0, 1.0, 3.0, 2.0, 5.0, 3.0, 3.0, 0.0]);
    // As much as is missing is added behind.
    let longer = [two(), ("output_shape", A::Ints(&[8]))];
    assert_eq!(conv(&longer), conv(&more));
}

#[test]
fn poolings_count_padding_as_they_are_told() {
    let kernel = || ("kernel_shape", A::Ints(&[3]));
    let two = || ("strides", A::Ints(&[2]));
    let pad = || ("pads", A::Ints(&[1, 1]));
    let pool = |op: &str, attrs: &[(&str, A)]| apply(19, op, &[1, 1, 4], &[], attrs);
    assert_eq!(pool("MaxPool", &[kernel(), pad()]), [2.0, 3.0, 4.0, 4.0]);
    assert_eq!(pool("MaxPool", &[kernel(), two(), ("ceil_mode", A::Int(1))]), [3.0, 4.0]);
    assert_eq!(pool("AveragePool", &[kernel(), two(), pad()]), [1.5, 3.0]);
    let padded = [kernel(), two(), pad(), ("count_include_pad", A::Int(1))];
    assert_eq!(pool("AveragePool", &padded), [1.0, 3.0]);
    assert_eq!(pool("GlobalAveragePool", &[]), [2.5]);
    assert_eq!(pool("GlobalMaxPool", &[]), [4.0]);
}

#[test]
fn scales_are_by_channel_or_by_group() {
    let by = |n: usize, values: &[f32]| floats(&[n], values);
    let half = [("num_groups", A::Int(2)), ("epsilon", A::Float(0.0))];
    let stored = [("s", by(2, &[1.0, 2.0])), ("b", by(2, &[0.0, 1.0]))];
    let groups = apply(18, "GroupNormalization", &[1, 2, 2], &stored, &half);
    assert_eq!(groups, [-1.0, 1.0, -1.0, 3.0]);
    let one = [("num_groups", A::Int(1)), ("epsilon", A::Float(0.0))];
    let channels = apply(21, "GroupNormalization", &[1, 2, 1], &stored, &one);
    assert_eq!(channels, [-1.0, 3.0]);
    let eps = [("epsilon", A::Float(0.0))];
    assert_eq!(apply(7, "InstanceNormalization", &[1, 2, 2], &stored, &eps), groups);
}

#[test]
fn the_best_elements_are_as_many_as_a_shape_says() {
    let best = |opset, stored: &[(&str, Tensor)], attrs: &[(&str, A)]| {
        apply(opset, "TopK", &[2, 3], stored, attrs)
    };
    assert_eq!(best(11, &[("k", ints(&[2]))], &[]), [3.0, 2.0, 6.0, 5.0]);
    let least = [("axis", A::Int(0)), ("largest", A::Int(0))];
    assert_eq!(best(11, &[("k", ints(&[1]))], &least), [1.0, 2.0, 3.0]);
    assert_eq!(best(9, &[], &[("k", A::Int(1))]), [3.0, 6.0]);
}

#[test]
fn strides_over_unknown_sizes_need_explicit_padding() {
    let attrs = [("auto_pad", A::Text("SAME_UPPER")), ("strides", A::Ints(&[2]))];
    let n = node("Conv", &["x", "w"], &["y"], &attrs);
    let x = value("x", DType::F32, &["1", "1", "T"]);
    let why = refusal(&model(11, &[x], &[("w", ones(&[1, 1, 2]))], &[n], &["y"]));
    assert!(why.contains("needs constant sizes with strides, got T"), "{why}");
}
