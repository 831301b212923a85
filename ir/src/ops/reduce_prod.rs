//! `reduce_prod`.

use super::reduction::{axes, reduction, repeated};
use crate::Attrs;

reduction! {
    /// Product over axes, kept with extent one where `keep` is set.
    ReduceProd, "reduce_prod", (1.0, |a, b| a * b), (1, i64::wrapping_mul),
    |cx| {
        // Of an element that is zero, the product of the others; of others beside it, nothing.
        let (x, dtype, dy) = (cx.arg(0), cx.ty(0).dtype, cx.cotangent(0)?);
        let axes: Vec<i64> = axes(cx).into_iter().map(|a| a as i64).collect();
        let (keep, b) = (cx.attrs.bool("keep"), &mut *cx.b);
        let (zero, one) = (b.scalar(dtype, 0.0)?, b.scalar(dtype, 1.0)?);
        let is_zero = b.op1("equal", Attrs::none(), &[x, zero])?;
        let others = b.select(is_zero, one, x)?;
        let product = b.reduce("reduce_prod", others, &axes, keep)?;
        let counted = b.cast(is_zero, dtype)?;
        let zeros = b.reduce("reduce_sum", counted, &axes, keep)?;
        let scaled = b.mul(dy, product)?;
        let (scaled, zeros) = (repeated(cx, scaled)?, repeated(cx, zeros)?);
        let beside = cx.b.sub(zeros, counted)?;
        let hidden = cx.b.op1("greater", Attrs::none(), &[beside, zero])?;
        let each = cx.b.div(scaled, others)?;
        Ok(vec![Some(cx.b.select(hidden, zero, each)?)])
    }
}
