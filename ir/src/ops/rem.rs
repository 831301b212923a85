//! `rem`.

use super::elementwise::binary;

binary! {
    /// Remainder with the sign of the divisor for integers (ONNX `Mod`), of the dividend for
    /// floats.
    Rem, "rem", [], Number, 1.0..9.0, None,
    None,
    |a, b| a % b,
    floor_mod,
    |_, _, dc| Ok(dc),
    |g, [a, b, c], dc| {
        let n = g.sub(a, c)?;
        let n = g.div(n, b)?;
        let n = g.unary("round", n)?;
        let n = g.neg(n)?;
        g.mul(dc, n)
    }
}

/// The remainder that has the divisor's sign; zero for a divisor of zero.
fn floor_mod(a: i64, b: i64) -> i64 {
    match a.checked_rem(b) {
        Some(r) if r != 0 && (r < 0) != (b < 0) => r + b,
        r => r.unwrap_or(0),
    }
}
