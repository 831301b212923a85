//! `pack`: a weight in the order in which kernels read it.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    op::one,
};

/// Columns in panels of sixteen, each panel row by row, the last one padded with zeros.
///
/// `packed[n / 16, k, n % 16] = w[k, n]`.
/// # Shapes
/// `w: [K, N]` → `[ceil(N / 16), K, 16]`.
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
        let [k, n] = &*w.shape else {
            return Err(OpError::new(format!("takes a matrix, got {w}")));
        };
        let shape = [n.ceil_div(PANEL as i64), k.clone(), Dim::from(PANEL)];
        Ok(vec![Fact::of(TensorType::new(w.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|_, args| {
            let w = args[0].as_ref().expect("operand");
            let [k, n] = *w.shape() else { unreachable!("inferred") };
            let size = w.dtype().size();
            let panels = n.div_ceil(PANEL);
            let mut out = vec![0u8; panels * k * PANEL * size];
            // A transposed weight is read by its own rows, which are contiguous.
            let columns = w.transpose(&[1, 0]);
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
            vec![Tensor::from_bytes(w.dtype(), &[panels, k, PANEL], out)]
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let w = spread(DType::F32, &[5, 37], -2.0, 2.0);
        vec![Sample { attrs: Attrs::none(), args: vec![Some(w)] }]
    }
}

/// Columns of a panel.
pub const PANEL: usize = 16;
