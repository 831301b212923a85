//! `rsqrt`.

use super::elementwise::unary;

unary! {
    /// `1 / sqrt(x)`.
    Rsqrt, "rsqrt", [], Float, 0.01..50.0, |x| x.sqrt().recip(), |_| unreachable!("floats only")
}
