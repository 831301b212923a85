//! `exp`.

use super::elementwise::unary;

unary! {
    /// `eˣ`.
    Exp, "exp", ["Exp"], Float, -20.0..20.0, f64::exp, |_| unreachable!("floats only"),
    |b, _, y, dy| b.mul(dy, y)
}
