//! `sqrt`.

use super::elementwise::unary;

unary! {
    /// Square root.
    Sqrt, "sqrt", ["Sqrt"], Float, 0.0..50.0, f64::sqrt, |_| unreachable!("floats only"),
    |b, _, y, dy| {
        let twice = b.add(y, y)?;
        b.div(dy, twice)
    }
}
