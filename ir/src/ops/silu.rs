//! `silu`.

use super::elementwise::activation;

activation! {
    /// `x · sigmoid(x)` (swish). Elfwing et al. 2018, arXiv:1702.03118.
    Silu, "silu", [], -9.0..9.0, |b, x| {
        let s = b.unary("sigmoid", x)?;
        b.mul(x, s)
    },
    |b, x, _, dy| {
        let one = b.scalar(b.ty(x).dtype, 1.0)?;
        let s = b.unary("sigmoid", x)?;
        let rest = b.sub(one, s)?;
        let t = b.mul(x, rest)?;
        let t = b.add(one, t)?;
        let t = b.mul(s, t)?;
        b.mul(dy, t)
    }
}
