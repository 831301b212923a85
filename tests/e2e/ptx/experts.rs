//! Products of rows sorted by expert: groups of all sizes, none among them, and rows of no expert.

use ir::{Attrs, DType, Tensor};

use super::{
    case::{Case, noise},
    products::check,
};

struct Experts<'a> {
    offsets: &'a [i64],
    rows: usize,
    k: usize,
    n: usize,
    x: DType,
    w: DType,
}

impl Experts<'_> {
    fn args(&self, halves: usize) -> [Tensor; 3] {
        let count = self.offsets.len() - 1;
        let offsets = Tensor::from_i64s(DType::I32, &[count + 1], self.offsets.iter().copied());
        let panels = halves * self.n.div_ceil(16);
        [
            noise(self.x, self.w, &[self.rows, self.k], 1),
            noise(self.w, self.w, &[count, panels, self.k, 16], 2),
            offsets,
        ]
    }

    fn check(&self, what: &str) {
        let what = format!("{what}, {} by {}", self.x, self.w);
        let attrs = |act: &str| Attrs::none().with("n", self.n as i64).with("act", act);
        let [x, w, offsets] = self.args(1);
        let bias = noise(self.x, self.x, &[self.offsets.len() - 1, self.n], 3);
        let args = [Some(&x), Some(&w), Some(&offsets), Some(&bias)];
        let case = Case::new("grouped_linear", attrs("sigmoid"), &args).with_rows(&[0]);
        let _ = check(&what, &case);
        let [x, w, offsets] = self.args(2);
        let args = [Some(&x), Some(&w), Some(&offsets)];
        let case = Case::new("grouped_gated_linear", attrs("silu"), &args).with_rows(&[0]);
        let _ = check(&format!("{what}, gated"), &case);
    }
}

#[test]
fn experts() {
    use DType::{Bf16, F16, F32};
    for (x, w) in [(F32, F32), (F32, Bf16), (Bf16, Bf16), (F16, F16)] {
        let few = Experts { offsets: &[0, 1, 1, 4], rows: 4, k: 64, n: 48, x, w };
        few.check("few rows");
        let some = Experts { offsets: &[2, 2, 37, 70], rows: 75, k: 40, n: 80, x, w };
        some.check("rows of none");
    }
    let odd = Experts { offsets: &[0, 7, 7, 30], rows: 31, k: 19, n: 37, x: F32, w: Bf16 };
    odd.check("odd");
}

#[test]
fn more_experts_than_lanes() {
    let offsets: Vec<i64> = (0..=70).map(|i| (i * i) / 60).collect();
    let rows = usize::try_from(offsets[70]).unwrap();
    let (x, w) = (DType::F32, DType::Bf16);
    Experts { offsets: &offsets, rows, k: 16, n: 16, x, w }.check("seventy experts");
}
