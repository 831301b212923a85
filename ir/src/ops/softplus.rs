//! `softplus`.

use super::elementwise::activation;
use crate::Attrs;

activation! {
    /// `ln(1 + eˣ)`, as `max(x, 0) + ln(1 + e^-|x|)`, which overflows for no `x`.
    ///
    /// Dugas et al. 2000, "Incorporating Second-Order Functional Knowledge".
    Softplus, "softplus", ["Softplus"], -9.0..9.0, |b, x| {
        let dtype = b.ty(x).dtype;
        let (zero, one) = (b.scalar(dtype, 0.0)?, b.scalar(dtype, 1.0)?);
        let positive = b.op1("maximum", Attrs::none(), &[x, zero])?;
        let size = b.unary("abs", x)?;
        let size = b.unary("neg", size)?;
        let e = b.unary("exp", size)?;
        let e = b.add(e, one)?;
        let rest = b.unary("log", e)?;
        b.add(positive, rest)
    },
    |b, x, _, dy| {
        let s = b.unary("sigmoid", x)?;
        b.mul(dy, s)
    }
}
