//! Products of the training step.

use ir::{Attrs, DType};

use super::{
    case::{Case, noise},
    products::check,
};

/// Rows, columns and inner dimension; the type of the weight, which f32 rows are rounded to.
fn linear_grad(what: &str, [t, n, k]: [usize; 3], x: DType, w: DType) {
    let dy = noise(x, w, &[t, n], 1);
    let x = noise(x, w, &[t, k], 2);
    let w = noise(w, w, &[n, k], 3);
    let case = Case::new("linear_grad", Attrs::none(), &[Some(&dy), Some(&x), Some(&w)]);
    let _ = check(&format!("{what}, {}", w.dtype()), &case.with_rows(&[0, 1]).with_fixed(&[1]));
}

#[test]
fn gradients_of_products() {
    use DType::{Bf16, F16, F32};
    for w in [F32, Bf16, F16] {
        linear_grad("whole", [96, 64, 72], F32, w);
        linear_grad("odd", [37, 41, 19], F32, w);
        linear_grad("one row", [1, 16, 8], F32, w);
    }
    linear_grad("several tiles", [70, 136, 200], F32, Bf16);
    linear_grad("narrow rows", [40, 48, 80], Bf16, Bf16);
}
