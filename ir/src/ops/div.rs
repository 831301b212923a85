//! `div`.

use super::elementwise::binary;
use crate::{Dim, Symbols};

binary! {
    /// `a / b`; integers truncate towards zero, and division by zero gives zero.
    Div, "div", ["Div"], Number, 1.0..9.0, None,
    Some(quotient),
    |a, b| a / b,
    |a, b| if b == 0 { 0 } else { a.wrapping_div(b) },
    |g, [_, b, _], dc| g.div(dc, b),
    |g, [_, b, c], dc| {
        let s = g.div(c, b)?;
        let s = g.neg(s)?;
        g.mul(dc, s)
    }
}

/// Where nothing is divided by zero, and nothing negative is rounded.
fn quotient(a: &Dim, b: &Dim, symbols: &Symbols) -> Option<Dim> {
    let positive = b.bounds(symbols).lo > 0;
    let exact = a.exact_div(b).filter(|_| positive || b.as_const().is_some());
    exact.or_else(|| {
        let n = b.as_const().filter(|n| *n > 0 && a.bounds(symbols).lo >= 0)?;
        Some(a.floor_div(n))
    })
}
