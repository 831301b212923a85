//! `reduce_sum`.

use super::reduction::{reduction, repeated};

reduction! {
    /// Sum over axes, kept with extent one where `keep` is set.
    ReduceSum, "reduce_sum", (0.0, |a, b| a + b), (0, i64::wrapping_add),
    |cx| {
        let dy = cx.cotangent(0)?;
        Ok(vec![Some(repeated(cx, dy)?)])
    }
}
