//! `gelu_tanh`.

use super::adjoint::{one_minus_square, times};
use super::elementwise::activation;

activation! {
    /// GELU by its tanh approximation, `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh, "gelu_tanh", [], -5.0..5.0, |b, x| {
        let dtype = b.ty(x).dtype;
        let c = b.scalar(dtype, (2.0 / std::f64::consts::PI).sqrt())?;
        let k = b.scalar(dtype, 0.044715)?;
        let (half, one) = (b.scalar(dtype, 0.5)?, b.scalar(dtype, 1.0)?);
        let x2 = b.mul(x, x)?;
        let x3 = b.mul(x2, x)?;
        let t = b.mul(x3, k)?;
        let t = b.add(x, t)?;
        let t = b.mul(t, c)?;
        let t = b.tanh(t)?;
        let t = b.add(t, one)?;
        let h = b.mul(x, half)?;
        b.mul(h, t)
    },
    |b, x, _, dy| {
        let dtype = b.ty(x).dtype;
        let (half, one) = (b.scalar(dtype, 0.5)?, b.scalar(dtype, 1.0)?);
        let c = (2.0 / std::f64::consts::PI).sqrt();
        let x2 = b.mul(x, x)?;
        let k = times(b, x2, 0.044715)?;
        let t = b.add(k, one)?;
        let t = b.mul(x, t)?;
        let t = times(b, t, c)?;
        let t = b.tanh(t)?;
        let slope = times(b, x2, 3.0 * 0.044715)?;
        let slope = b.add(slope, one)?;
        let slope = times(b, slope, c)?;
        let outer = one_minus_square(b, t)?;
        let slope = b.mul(slope, outer)?;
        let slope = b.mul(x, slope)?;
        let sum = b.add(one, t)?;
        let sum = b.add(sum, slope)?;
        let s = b.mul(half, sum)?;
        b.mul(dy, s)
    }
}
