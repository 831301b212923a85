//! `silu`.

use super::elementwise::activation;

activation! {
    /// `x · sigmoid(x)` (swish). Elfwing et al. 2018, arXiv:1702.03118.
    Silu, "silu", [], -9.0..9.0, |b, x| {
        let s = b.unary("sigmoid", x)?;
        b.mul(x, s)
    }
}
