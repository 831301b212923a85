//! `relu`.

use super::elementwise::activation;
use crate::Attrs;

activation! {
    /// `max(x, 0)`.
    Relu, "relu", ["Relu"], -3.0..3.0, |b, x| {
        let zero = b.scalar(b.ty(x).dtype, 0.0)?;
        b.op1("maximum", Attrs::none(), &[x, zero])
    },
    |b, _, y, dy| {
        let zero = b.scalar(b.ty(y).dtype, 0.0)?;
        let off = b.op1("less_equal", Attrs::none(), &[y, zero])?;
        b.select(off, zero, dy)
    }
}
