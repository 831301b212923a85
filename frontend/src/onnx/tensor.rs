//! Tensors of the file: element types, raw, typed and external data.

use std::sync::Arc;

use ir::{Bytes, DType, Tensor};
use onnx_protobuf::{
    TensorProto,
    tensor_proto::{DataLocation, DataType},
};
use protobuf::Enum;

use super::external::{ExternalFiles, Span};

/// The element type of that ONNX number.
///
/// # Errors
/// Names the type.
pub(super) fn dtype(number: i32) -> Result<DType, String> {
    Ok(match DataType::from_i32(number) {
        Some(DataType::FLOAT) => DType::F32,
        Some(DataType::DOUBLE) => DType::F64,
        Some(DataType::FLOAT16) => DType::F16,
        Some(DataType::BFLOAT16) => DType::Bf16,
        Some(DataType::FLOAT8E4M3FN) => DType::F8E4M3,
        Some(DataType::FLOAT8E5M2) => DType::F8E5M2,
        Some(DataType::INT64) => DType::I64,
        Some(DataType::INT32) => DType::I32,
        Some(DataType::INT16) => DType::I16,
        Some(DataType::INT8) => DType::I8,
        Some(DataType::UINT8) => DType::U8,
        Some(DataType::BOOL) => DType::Bool,
        Some(DataType::INT4) => DType::I4,
        Some(DataType::UINT4) => DType::U4,
        Some(other) => return Err(format!("element type {other:?} is not supported")),
        None => return Err(format!("element type number {number} is not supported")),
    })
}

/// Decodes a tensor. Raw data are moved out of it, external data stay in their mapped file.
///
/// # Errors
/// A sentence that reads on after the tensor's name.
pub(super) fn decode(t: &mut TensorProto, files: &mut ExternalFiles) -> Result<Tensor, String> {
    let dtype = dtype(t.data_type).map_err(|e| format!("has an {e}"))?;
    if t.segment.is_some() {
        return Err("is stored in segments, which is not supported".into());
    }
    let shape: Vec<usize> = t
        .dims
        .iter()
        .map(|d| usize::try_from(*d).map_err(|_| format!("has a negative size {d}")))
        .collect::<Result<_, _>>()?;
    let count = shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .filter(|n| n.checked_mul(dtype.size()).is_some())
        .ok_or_else(|| format!("has shape {shape:?}, which overflows"))?;
    let stored = match dtype {
        DType::I4 | DType::U4 => count.div_ceil(2),
        _ => count * dtype.size(),
    };
    let span = if t.data_location.enum_value() == Ok(DataLocation::EXTERNAL) {
        files.span(&t.external_data)?
    } else if !t.raw_data.is_empty() || (count == 0 && typed_len(t) == 0) {
        let data = std::mem::take(&mut t.raw_data);
        Span { len: data.len(), data: Arc::new(data), at: 0 }
    } else {
        let data = typed(t, dtype, count)?;
        Span { len: data.len(), data: Arc::new(data), at: 0 }
    };
    if span.len != stored {
        let got = span.len;
        return Err(format!("is {dtype}{shape:?}, {stored} bytes, but {got} are stored"));
    }
    let (data, at): (Arc<dyn Bytes>, usize) = match dtype {
        DType::I4 | DType::U4 => {
            let packed = &(*span.data).as_ref()[span.at..span.at + span.len];
            (Arc::new(unpack_nibbles(packed, dtype, count)), 0)
        }
        DType::Bool => {
            let bytes = &(*span.data).as_ref()[span.at..span.at + span.len];
            if bytes.iter().any(|b| *b > 1) {
                return Err("is bool but holds bytes other than 0 and 1".into());
            }
            (span.data, span.at)
        }
        _ => (span.data, span.at),
    };
    Tensor::new(dtype, &shape, data, at).map_err(|e| format!("cannot be read: {e}"))
}

fn typed_len(t: &TensorProto) -> usize {
    t.float_data.len()
        + t.int32_data.len()
        + t.int64_data.len()
        + t.double_data.len()
        + t.uint64_data.len()
        + t.string_data.len()
}

/// The little-endian bytes of the typed field that belongs to an element type.
fn typed(t: &TensorProto, dtype: DType, count: usize) -> Result<Vec<u8>, String> {
    let have = match dtype {
        DType::F32 => t.float_data.len(),
        DType::F64 => t.double_data.len(),
        DType::I64 => t.int64_data.len(),
        _ => t.int32_data.len(),
    };
    let want = if matches!(dtype, DType::I4 | DType::U4) { count.div_ceil(2) } else { count };
    if have != want || typed_len(t) != have {
        let all = typed_len(t);
        return Err(format!("is {dtype} with {want} values to store, but {all} are stored"));
    }
    let mut out = Vec::with_capacity(have * dtype.size());
    match dtype {
        DType::F32 => t.float_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::F64 => t.double_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::I64 => t.int64_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        // Narrow integers, booleans and the bits of narrow floats travel in 32-bit integers.
        _ => {
            for v in &t.int32_data {
                out.extend_from_slice(&v.to_le_bytes()[..dtype.size()]);
            }
        }
    }
    Ok(out)
}

/// One value a byte, sign-extended, from two a byte, low nibble first.
fn unpack_nibbles(packed: &[u8], dtype: DType, count: usize) -> Vec<u8> {
    let wide = |n: u8| if dtype == DType::I4 && n & 8 != 0 { n | 0xf0 } else { n };
    packed.iter().flat_map(|b| [wide(b & 15), wide(b >> 4)]).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(mut t: TensorProto) -> Result<Tensor, String> {
        decode(&mut t, &mut ExternalFiles::of(std::path::Path::new("model.onnx")))
    }

    #[test]
    fn raw_and_typed_data_agree() {
        let raw = TensorProto {
            dims: vec![2],
            data_type: DataType::BFLOAT16 as i32,
            raw_data: vec![0x80, 0x3f, 0x00, 0xc0],
            ..TensorProto::default()
        };
        let typed =
            TensorProto { raw_data: vec![], int32_data: vec![0x3f80, 0xc000], ..raw.clone() };
        assert_eq!(decode_all(raw).unwrap().to_f64s(), [1.0, -2.0]);
        assert_eq!(decode_all(typed).unwrap().to_f64s(), [1.0, -2.0]);
        let nibbles = TensorProto {
            dims: vec![3],
            data_type: 22,
            raw_data: vec![0xf1, 0x08],
            ..TensorProto::default()
        };
        assert_eq!(decode_all(nibbles).unwrap().to_i64s(), [1, -1, -8]);
    }

    #[test]
    fn declarations_that_do_not_fit_are_errors() {
        let ok = TensorProto {
            dims: vec![2],
            data_type: DataType::FLOAT as i32,
            float_data: vec![1.0, 2.0],
            ..TensorProto::default()
        };
        assert!(decode_all(ok.clone()).is_ok());
        for bad in [
            TensorProto { dims: vec![3], ..ok.clone() },
            TensorProto { dims: vec![-1], ..ok.clone() },
            TensorProto { dims: vec![i64::MAX, i64::MAX], ..ok.clone() },
            TensorProto { int64_data: vec![1], ..ok.clone() },
            TensorProto { data_type: DataType::STRING as i32, ..ok.clone() },
            TensorProto { data_type: 999, ..ok.clone() },
            TensorProto { float_data: vec![], ..ok },
        ] {
            assert!(decode_all(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
