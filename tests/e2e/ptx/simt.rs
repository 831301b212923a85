//! f32 products, and products of matrices in any layout: every variant, shapes with tails in every
//! direction, and of f32 the very bits of one chain of fused multiply-adds.

use ir::{Attrs, DType, Tensor};

use super::{
    case::{Case, noise},
    products::check,
};

fn floats(shape: &[usize], seed: u64) -> Tensor {
    noise(DType::F32, DType::F32, shape, seed)
}

#[allow(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
fn f32s(t: &Tensor) -> Vec<f32> {
    t.to_f64s().into_iter().map(|v| v as f32).collect()
}

/// The sums over k of rows of `a` and columns of `b`, from `k = 0` on.
fn in_order(a: &Tensor, b: &Tensor) -> Vec<f32> {
    let (k, n) = (b.shape()[0], b.shape()[1]);
    let (a, b) = (f32s(a), f32s(b));
    let sum = |row: &[f32], j: usize| {
        row.iter().enumerate().fold(0.0f32, |sum, (i, a)| a.mul_add(b[i * n + j], sum))
    };
    a.chunks_exact(k)
        .flat_map(|row| (0..n).map(move |j| (row, j)))
        .map(|(r, j)| sum(r, j))
        .collect()
}

/// A packed weight as a matrix of `n` columns.
fn unpacked(w: &Tensor, n: usize) -> Tensor {
    let (k, values) = (w.shape()[1], w.to_f64s());
    let at = |i: usize, j: usize| values[(j / 16 * k + i) * 16 + j % 16];
    let all = (0..k).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| at(i, j));
    Tensor::from_f64s(w.dtype(), &[k, n], all.collect::<Vec<f64>>())
}

fn linear(what: &str, [rows, k, n]: [usize; 3]) {
    let (x, w) = (floats(&[rows, k], 1), floats(&[n.div_ceil(16), k, 16], 2));
    let attrs = Attrs::none().with("n", n as i64);
    let case = Case::new("linear", attrs.clone(), &[Some(&x), Some(&w)]).with_rows(&[0]);
    let got = check(what, &case);
    assert_eq!(f32s(&got[0]), in_order(&x, &unpacked(&w, n)), "{what}: another order of sums");
    let (bias, residual) = (floats(&[n], 3), floats(&[rows, n], 4));
    let args = [Some(&x), Some(&w), Some(&bias), Some(&residual)];
    let case = Case::new("linear", attrs.with("act", "gelu"), &args).with_rows(&[0, 3]);
    let _ = check(&format!("{what}, fused"), &case);
}

#[test]
fn packed_weights() {
    linear("a row", [1, 132, 50]);
    linear("an odd row", [1, 131, 50]);
    linear("four rows", [4, 64, 32]);
    linear("ten rows", [10, 200, 96]);
    linear("tiles", [70, 72, 80]);
    linear("several tiles", [131, 40, 271]);
    linear("odd k and n", [3, 19, 37]);
}

#[test]
fn gates() {
    for (what, [rows, k, n]) in [("few rows", [3, 72, 40]), ("odd rows", [67, 53, 37])] {
        let (x, w) = (floats(&[rows, k], 1), floats(&[2 * n.div_ceil(16), k, 16], 2));
        let attrs = Attrs::none().with("n", n as i64).with("act", "silu");
        let case = Case::new("gated_linear", attrs, &[Some(&x), Some(&w)]).with_rows(&[0]);
        let _ = check(what, &case);
    }
}

fn matmul(a: &[usize], b: &[usize], dtype: DType) -> Case {
    let (a, b) = (noise(dtype, dtype, a, 1), noise(dtype, dtype, b, 2));
    Case::new("matmul", Attrs::none(), &[Some(&a), Some(&b)])
}

#[test]
fn plain_matrices() {
    let check_order = |what: &str, case: Case| {
        let got = check(what, &case);
        let want = in_order(case.args[0].as_ref().unwrap(), case.args[1].as_ref().unwrap());
        assert_eq!(f32s(&got[0]), want, "{what}: another order of sums");
    };
    let shapes = |rows, k, n| matmul(&[rows, k], &[k, n], DType::F32);
    check_order("dense rows", shapes(5, 72, 40).with_rows(&[0]));
    check_order("dense columns", shapes(67, 72, 136).with_rows(&[0]).transposed(&[1]));
    check_order("odd both", shapes(9, 37, 41).with_rows(&[0]));
    check_order(
        "turned rows of a size that is not known",
        shapes(72, 40, 48).with_rows(&[0]).transposed(&[0]),
    );
    check_order("turned rows", shapes(136, 40, 48).transposed(&[0]));
    check_order("odd, both turned", shapes(35, 37, 41).transposed(&[0, 1]));
}

#[test]
fn batches() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let name = |what: &str| format!("{what}, {dtype}");
        let case = matmul(&[3, 40, 72], &[3, 72, 80], dtype);
        let _ = check(&name("a batch"), &case.clone().with_rows(&[0, 1]));
        let _ = check(&name("a batch of turned matrices"), &case.transposed(&[1]));
        let case = matmul(&[2, 3, 33, 24], &[3, 24, 40], dtype).transposed(&[0, 1]);
        let _ = check(&name("odd batches over one another"), &case);
        let case = matmul(&[3, 140, 48], &[1, 48, 136], dtype).transposed(&[0]);
        let _ = check(&name("one matrix for a batch of turned ones"), &case);
        let case = matmul(&[2, 5, 19], &[2, 19, 7], dtype).with_rows(&[0, 1]);
        let _ = check(&name("odd small batch"), &case);
    }
}
