//! `gelu_tanh`.

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
    }
}
