//! `pack`: a weight in the order in which kernels read it.

use super::adjoint::exchange;
use super::elementwise::spread;
use crate::{
    Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Value, Vjp, op::one, tensor::for_each_index,
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
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, ty) = (cx.cotangent(0)?, cx.ty(0));
            Ok(vec![Some(unpack(cx.b, dy, &ty.shape[ty.rank() - 1])?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let w = |shape: &[usize]| Some(spread(DType::F32, shape, -2.0, 2.0));
        let make = |shape| Sample { attrs: Attrs::none(), args: vec![w(shape)] };
        vec![make(&[5, 37]), make(&[3, 5, 18])]
    }
}
/// The first `n` columns of a packed matrix, or of those along leading axes.
pub(super) fn unpack(b: &mut Builder<'_>, packed: Value, n: &Dim) -> Result<Value, OpError> {
    let node = b.graph().node(packed.node);
    if node.op.name() == "pack" {
        return Ok(node.input(0));
    }
    let y = exchange(b, packed, 3, 2)?;
    let [lead @ .., k, panels, width] = &*b.ty(y).shape else {
        return Err(OpError::new(format!("takes a packed weight, got {}", b.ty(y))));
    };
    let columns = panels.clone() * width.clone();
    let shape = lead.iter().chain([k]).cloned().chain([columns]).collect();
    let y = b.reshape(y, shape)?;
    b.slice(y, -1, 0i64, n.clone())
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
        match size {
            1 => pack_columns::<1>(src, k, out),
            2 => pack_columns::<2>(src, k, out),
            4 => pack_columns::<4>(src, k, out),
            _ => pack_columns::<8>(src, k, out),
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
