//! Results against what they must be.

use ir::{DType, Tensor};

/// How far results are from what they must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distance {
    /// The largest error, as a fraction of what is allowed.
    pub worst: f64,
    /// The first element that is too far off.
    pub wrong: Option<String>,
}

/// How far one element may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// A part of the larger of one and the expected value.
    OfValue(f64),
    /// A part of this root mean square.
    OfScale(f64, f64),
}

/// One step of a type narrower than f32, as a part of the value.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 0.0,
    }
}

/// Root mean square.
#[must_use]
pub fn scale(values: &[f64]) -> f64 {
    let squares: f64 = values.iter().map(|v| v * v).sum();
    (squares / values.len().max(1) as f64).sqrt()
}

impl Distance {
    /// Adds elements of type `dtype`, which `name` names by their numbers.
    pub fn add(
        &mut self,
        dtype: DType,
        got: &[f64],
        want: &[f64],
        bound: Bound,
        name: impl Fn(usize) -> String,
    ) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            if got == want || (got.is_nan() && want.is_nan()) {
                continue;
            }
            let allowed = match bound {
                _ if !dtype.is_float() => 0.0,
                Bound::OfValue(part) => part * want.abs().max(1.0),
                Bound::OfScale(part, scale) => part * scale,
            };
            let allowed = allowed + rounding(dtype) * want.abs();
            let part = (got - want).abs() / allowed;
            // Not a number is larger than all of them; JSON knows nothing larger than this.
            let part = if part.is_nan() { f64::MAX } else { part.min(f64::MAX) };
            self.worst = self.worst.max(part);
            if part > 1.0 && self.wrong.is_none() {
                self.wrong = Some(format!("{} is {got:e}, not {want:e}", name(i)));
            }
        }
    }

    /// All elements of a result.
    pub fn add_all(&mut self, index: usize, got: &Tensor, want: &Tensor, tolerance: f64) {
        let (dtype, got, want) = (got.dtype(), got.to_f64s(), want.to_f64s());
        let name = |i| format!("element {i} of result {index}");
        self.add(dtype, &got, &want, Bound::OfValue(tolerance), name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(dtype: DType, got: f64, want: f64) -> Distance {
        let mut distance = Distance::default();
        distance.add(dtype, &[got], &[want], Bound::OfValue(1e-3), |i| i.to_string());
        distance
    }

    #[test]
    fn errors_are_parts_of_what_is_allowed() {
        let near = distance(DType::F32, 2.001, 2.0);
        assert!((near.worst - 0.5).abs() < 1e-9 && near.wrong.is_none(), "{near:?}");
        assert!(distance(DType::F32, 2.003, 2.0).wrong.is_some());
        assert!(distance(DType::Bf16, 2.003, 2.0).wrong.is_none(), "one step is allowed");
        assert!(distance(DType::F32, f64::NAN, 2.0).wrong.is_some());
        assert!(distance(DType::F32, f64::NAN, f64::NAN).wrong.is_none());
        assert!(distance(DType::I32, 3.0, 2.0).wrong.is_some());
    }
}
