//! `pow`.

use super::elementwise::binary;
use crate::Attrs;

binary! {
    /// `a` to the power `b`, of one element type.
    Pow, "pow", [], Number, 0.5..3.0, None,
    None,
    f64::powf,
    |a, b| u32::try_from(b).map_or(0, |b| a.wrapping_pow(b)),
    |g, [a, b, _], dc| {
        let dtype = g.ty(a).dtype;
        let (zero, one) = (g.scalar(dtype, 0.0)?, g.scalar(dtype, 1.0)?);
        let less = g.sub(b, one)?;
        let s = g.op1("pow", Attrs::none(), &[a, less])?;
        let s = g.mul(b, s)?;
        let s = g.mul(dc, s)?;
        let constant = g.op1("equal", Attrs::none(), &[b, zero])?;
        g.select(constant, zero, s)
    },
    |g, [a, _, c], dc| {
        // Powers of zero stay zero.
        let zero = g.scalar(g.ty(a).dtype, 0.0)?;
        let s = g.unary("log", a)?;
        let s = g.mul(c, s)?;
        let s = g.mul(dc, s)?;
        let base = g.op1("equal", Attrs::none(), &[a, zero])?;
        g.select(base, zero, s)
    }
}
