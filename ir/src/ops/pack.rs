//! `pack`: a weight in the order in which kernels read it.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    op::one,
    tensor::for_each_index,
};

/// Columns in panels of sixteen, each panel row by row, the last one padded with zeros; matrices
/// along leading axes (the experts of a layer) one by one.
///
/// `packed[.., n / 16, k, n % 16] = w[.., k, n]`.
/// # Shapes
/// `w: [.., K, N]` → `[.., ceil(N / 16), K, 16]`.
pub(super) struct Pack;

static SIGNATURE: Signature = Signature { operands: &[one("w")], attrs: &[] };

impl OpDef for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let w = cx.ty(0);
        let [lead @ .., k, n] = &*w.shape else {
            return Err(OpError::new(format!("takes a matrix, got {w}")));
        };
        let panels = [n.ceil_div(PANEL as i64), k.clone(), Dim::from(PANEL)];
        Ok(vec![Fact::of(TensorType::new(w.dtype, lead.iter().cloned().chain(panels)))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let w = args[0].as_ref().expect("operand");
            let mut out = Vec::new();
            let lead = w.rank() - 2;
            for_each_index(&w.shape()[..lead], |index| {
                let matrix = index.iter().enumerate();
                let matrix = matrix.fold(w.clone(), |w, (axis, i)| w.slice(axis, *i, 1, 1));
                let perm: Vec<usize> = (lead..lead + 2).chain(0..lead).collect();
                pack(&matrix.transpose(&perm), &mut out);
            });
            vec![Tensor::from_bytes(w.dtype(), &cx.shape(0), out)]
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let w = |shape: &[usize]| Some(spread(DType::F32, shape, -2.0, 2.0));
        let make = |shape| Sample { attrs: Attrs::none(), args: vec![w(shape)] };
        vec![make(&[5, 37]), make(&[3, 5, 18])]
    }
}

/// Appends the panels of a matrix, whose further axes have extent one.
fn pack(w: &Tensor, out: &mut Vec<u8>) {
    let (k, n, size) = (w.shape()[0], w.shape()[1], w.dtype().size());
    let panels = n.div_ceil(PANEL);
    let start = out.len();
    out.resize(start + panels * k * PANEL * size, 0);
    let out = &mut out[start..];
    // A transposed weight is read by its own rows, which are contiguous.
    let perm: Vec<usize> = [1, 0].into_iter().chain(2..w.rank()).collect();
    let columns = w.transpose(&perm);
    if columns.is_contiguous() {
        let src = columns.as_bytes().expect("contiguous");
        for c in 0..n {
            let base = (c / PANEL * k * PANEL + c % PANEL) * size;
            for r in 0..k {
                let to = base + r * PANEL * size;
                out[to..to + size].copy_from_slice(&src[(c * k + r) * size..][..size]);
            }
        }
    } else {
        let src = w.to_bytes();
        for r in 0..k {
            for p in 0..panels {
                let width = PANEL.min(n - p * PANEL) * size;
                let row = &src[(r * n + p * PANEL) * size..][..width];
                out[(p * k + r) * PANEL * size..][..width].copy_from_slice(row);
            }
        }
    }
}

/// Columns of a panel.
pub const PANEL: usize = 16;
