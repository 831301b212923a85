//! `sigmoid`.

use super::elementwise::activation;

activation! {
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid, "sigmoid", ["Sigmoid"], -9.0..9.0, |b, x| {
        let one = b.scalar(b.ty(x).dtype, 1.0)?;
        let e = b.neg(x)?;
        let e = b.exp(e)?;
        let d = b.add(one, e)?;
        b.unary("reciprocal", d)
    },
    |b, _, y, dy| {
        let one = b.scalar(b.ty(y).dtype, 1.0)?;
        let rest = b.sub(one, y)?;
        let s = b.mul(y, rest)?;
        b.mul(dy, s)
    }
}
