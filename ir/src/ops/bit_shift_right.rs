//! `bit_shift_right`.

use super::elementwise::{BINARY, Domain, infer_binary, patterns};
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType, Vjp,
};

/// The bits of `a` moved right by `b` places, zeros behind them, whatever the sign; zero where `b`
/// is negative or at least the width.
///
/// Of i64, i32 and u8. ONNX `BitShift` of direction `RIGHT`.
pub(super) struct BitShiftRight;

impl OpDef for BitShiftRight {
    fn name(&self) -> &'static str {
        "bit_shift_right"
    }
    fn signature(&self) -> &'static Signature {
        &BINARY
    }
    fn is_elementwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.ty(0).dtype;
        let shift = match dtype {
            DType::I64 => shift_64,
            DType::I32 | DType::U8 => shift_32,
            _ => return Err(OpError::new(format!("takes i64, i32 and u8, got {dtype}"))),
        };
        infer_binary(cx, Domain::Int, None, None, shift)
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let shape = cx.shape(0);
            let dtype = cx.results[0].dtype;
            let [a, b] = [0, 1].map(|i| args[i].as_ref().expect("operand").broadcast_to(&shape));
            let shift = if dtype == DType::I64 { shift_64 } else { shift_32 };
            let it = a.to_i64s().into_iter().zip(b.to_i64s()).map(|(a, b)| shift(a, b));
            vec![Tensor::from_i64s(dtype, &shape, it)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let shapes: [[&[usize]; 2]; 3] = [[&[3, 37], &[3, 37]], [&[2, 1, 5], &[3, 1]], [&[4], &[]]];
        let dtypes = [DType::I64, DType::I32, DType::U8];
        let of = |dtype: DType| {
            shapes.map(|[a, b]| {
                let n = b.iter().product::<usize>() as i64;
                // From below zero to above the width.
                let places = (0..n).map(|i| (7 * i + 3) % 70 - 2);
                let places = Tensor::from_i64s(dtype, b, places);
                Sample {
                    attrs: Attrs::none(),
                    args: vec![Some(patterns(dtype, a, 0)), Some(places)],
                }
            })
        };
        dtypes.into_iter().flat_map(of).collect()
    }
}

#[allow(clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "bits, not numbers")]
fn shift_64(a: i64, b: i64) -> i64 {
    u32::try_from(b).ok().and_then(|b| (a as u64).checked_shr(b)).unwrap_or(0) as i64
}

#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "bits, not numbers")]
fn shift_32(a: i64, b: i64) -> i64 {
    u32::try_from(b).ok().and_then(|b| (a as u32).checked_shr(b)).unwrap_or(0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_come_in_whatever_the_sign() {
        assert_eq!(shift_64(-1, 60), 15);
        assert_eq!(shift_64(i64::MIN, 63), 1);
        assert_eq!([shift_64(-1, 64), shift_64(-1, -1), shift_64(7, i64::MAX)], [0; 3]);
        assert_eq!(shift_32(-1, 28), 15);
        assert_eq!([shift_32(-1, 32), shift_32(255, 4)], [0, 15]);
    }
}
