//! `log`.

use super::elementwise::unary;

unary! {
    /// Natural logarithm.
    Log, "log", ["Log"], Float, 0.01..50.0, f64::ln, |_| unreachable!("floats only"),
    |b, x, _, dy| b.div(dy, x)
}
