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
                match size {
                    1 => pack_columns::<1>(src, k, &mut out),
                    2 => pack_columns::<2>(src, k, &mut out),
                    4 => pack_columns::<4>(src, k, &mut out),
                    _ => pack_columns::<8>(src, k, &mut out),
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

/// Rows that are packed together: the lines of a column are read once, though those of all sixteen
/// may fall into one set of the cache.
const ROWS: usize = 32;

/// Panels from columns of `k` elements of `S` bytes that follow each other.
fn pack_columns<const S: usize>(src: &[u8], k: usize, out: &mut [u8]) {
    let (src, out) = (src.as_chunks::<S>().0, out.as_chunks_mut::<S>().0);
    let panel = (k * PANEL).max(1);
    for (columns, out) in src.chunks(panel).zip(out.chunks_exact_mut(panel)) {
        let (blocks, rest) = out.as_chunks_mut::<PANEL>().0.as_chunks_mut::<ROWS>();
        let first_rest = blocks.len() * ROWS;
        for (block, rows) in blocks.iter_mut().enumerate() {
            for (c, column) in columns.chunks_exact(k).enumerate() {
                let column = column[block * ROWS..].first_chunk::<ROWS>().expect("k rows");
                for (row, value) in rows.iter_mut().zip(column) {
                    row[c] = *value;
                }
            }
        }
        for (c, column) in columns.chunks_exact(k).enumerate() {
            for (row, value) in rest.iter_mut().zip(&column[first_rest..]) {
                row[c] = *value;
            }
        }
    }
}

/// Columns of a panel.
pub const PANEL: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_packed_whole_and_in_part() {
        for (k, n) in [(70, 37), (32, 16), (1, 5), (100, 1)] {
            let value = |c: usize, r: usize| u16::try_from(c * k + r + 1).unwrap();
            let src = (0..n).flat_map(|c| (0..k).flat_map(move |r| value(c, r).to_le_bytes()));
            let panels = n.div_ceil(PANEL);
            let mut out = vec![0; panels * k * PANEL * 2];
            pack_columns::<2>(&src.collect::<Vec<u8>>(), k, &mut out);
            for (i, got) in out.as_chunks().0.iter().enumerate() {
                let (panel, r, c) = (i / (k * PANEL), i / PANEL % k, i % PANEL);
                let column = panel * PANEL + c;
                let want = if column < n { value(column, r) } else { 0 };
                assert_eq!(u16::from_le_bytes(*got), want, "{k} x {n}: {column}, {r}");
            }
        }
    }
}
