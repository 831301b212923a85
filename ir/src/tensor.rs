//! Concrete tensors: strided views over shared bytes.
//!
//! Views (transpose, slice, broadcast, reshape of contiguous data) share the bytes, which may be a
//! memory-mapped file. Arithmetic reads values as `f64` or `i64`; the interpreter and constant
//! folding need no more.

use std::{fmt, sync::Arc};

use half::{bf16, f16};
use smallvec::SmallVec;

use crate::DType;

/// Bytes that a tensor may keep alive: a vector, a mapped file.
pub trait Bytes: AsRef<[u8]> + Send + Sync {}
impl<T: AsRef<[u8]> + Send + Sync> Bytes for T {}

/// A concrete shape.
pub type Extents = SmallVec<[usize; 4]>;

/// A concrete tensor: element type, extents, strides in elements, and shared storage.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Extents,
    strides: SmallVec<[isize; 4]>,
    /// Position of element zero, in elements from `base`.
    offset: isize,
    /// Position of the storage's first element, in bytes.
    base: usize,
    data: Arc<dyn Bytes>,
}

/// A tensor whose bytes do not fit its shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{dtype} tensor of shape {shape:?} needs {need} bytes at offset {at}, the storage has {have}"
)]
pub struct SizeError {
    dtype: DType,
    shape: Vec<usize>,
    at: usize,
    need: u128,
    have: usize,
}

impl Tensor {
    /// A contiguous tensor over `data[at..]`.
    ///
    /// # Errors
    /// [`SizeError`] where the storage is too short.
    pub fn new(
        dtype: DType,
        shape: &[usize],
        data: Arc<dyn Bytes>,
        at: usize,
    ) -> Result<Tensor, SizeError> {
        let need = shape.iter().fold(dtype.size() as u128, |n, d| n.saturating_mul(*d as u128));
        let have = (*data).as_ref().len();
        if need.saturating_add(at as u128) > have as u128 {
            return Err(SizeError { dtype, shape: shape.to_vec(), at, need, have });
        }
        Ok(Tensor {
            dtype,
            shape: shape.into(),
            strides: contiguous_strides(shape),
            offset: 0,
            base: at,
            data,
        })
    }

    /// A contiguous tensor from its little-endian bytes.
    ///
    /// # Panics
    /// If the number of bytes is not that of the shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Tensor {
        assert_eq!(bytes.len(), elements(shape) * dtype.size(), "bytes of tensor");
        Tensor {
            dtype,
            shape: shape.into(),
            strides: contiguous_strides(shape),
            offset: 0,
            base: 0,
            data: Arc::new(bytes),
        }
    }

    /// A tensor from values, rounded to nearest even (floats) or truncated (integers, where values
    /// beyond the type's range give its end, and NaN zero).
    pub fn from_f64s(dtype: DType, shape: &[usize], values: impl IntoIterator<Item = f64>) -> Self {
        let mut bytes = Vec::with_capacity(elements(shape) * dtype.size());
        for v in values {
            push_f64(dtype, v, &mut bytes);
        }
        Tensor::from_bytes(dtype, shape, bytes)
    }

    /// A tensor from integers, wrapped to the type (or converted, for float types).
    pub fn from_i64s(dtype: DType, shape: &[usize], values: impl IntoIterator<Item = i64>) -> Self {
        let mut bytes = Vec::with_capacity(elements(shape) * dtype.size());
        for v in values {
            push_i64(dtype, v, &mut bytes);
        }
        Tensor::from_bytes(dtype, shape, bytes)
    }

    /// An `f32` tensor.
    pub fn from_f32s(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f64s(DType::F32, shape, values.iter().map(|v| f64::from(*v)))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        elements(&self.shape)
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let want = contiguous_strides(&self.shape);
        self.is_empty()
            || self
                .shape
                .iter()
                .zip(self.strides.iter().zip(&want))
                .all(|(d, (s, w))| *d == 1 || s == w)
    }

    /// The bytes of a contiguous tensor.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if !self.is_contiguous() {
            return None;
        }
        let size = self.dtype.size();
        let at = self.base + usize::try_from(self.offset).ok()? * size;
        (*self.data).as_ref().get(at..at + self.len() * size)
    }

    /// The elements in row-major order as little-endian bytes (copied where not contiguous).
    pub fn to_bytes(&self) -> Vec<u8> {
        if let Some(b) = self.as_bytes() {
            return b.to_vec();
        }
        let mut out = Vec::with_capacity(self.len() * self.dtype.size());
        self.for_each_run(|run| out.extend_from_slice(run));
        out
    }

    /// Calls `f` with the bytes of runs of elements that follow each other in row-major order.
    pub fn for_each_run(&self, mut f: impl FnMut(&[u8])) {
        if self.is_empty() {
            return;
        }
        let size = self.dtype.size();
        let bytes = (*self.data).as_ref();
        let (inner, stride) = match self.shape.last() {
            Some(d) => (*d, self.strides[self.shape.len() - 1]),
            None => (1, 1),
        };
        let outer = if self.shape.is_empty() { &[][..] } else { &self.shape[..self.rank() - 1] };
        for_each_index(outer, |index| {
            let row: isize = index.iter().zip(&self.strides).map(|(i, s)| *i as isize * s).sum();
            let at = |j: usize| {
                let e = self.offset + row + j as isize * stride;
                self.base + e.unsigned_abs() * size
            };
            if stride == 1 {
                f(&bytes[at(0)..at(0) + inner * size]);
            } else {
                for j in 0..inner {
                    f(&bytes[at(j)..at(j) + size]);
                }
            }
        });
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The values as `f64`, row-major.
    pub fn to_f64s(&self) -> Vec<f64> {
        let mut out = Vec::with_capacity(self.len());
        let size = self.dtype.size();
        self.for_each_run(|run| {
            out.extend(run.chunks_exact(size).map(|c| read_f64(self.dtype, c)))
        });
        out
    }

    /// The values as `f32`, row-major.
    pub fn to_f32s(&self) -> Vec<f32> {
        #[allow(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
        self.to_f64s().into_iter().map(|v| v as f32).collect()
    }

    /// The values as `i64`, row-major; floats are truncated.
    pub fn to_i64s(&self) -> Vec<i64> {
        let mut out = Vec::with_capacity(self.len());
        let size = self.dtype.size();
        self.for_each_run(|run| {
            out.extend(run.chunks_exact(size).map(|c| read_i64(self.dtype, c)))
        });
        out
    }

    /// The same bytes under another shape, copied where this is not contiguous.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Tensor {
        assert_eq!(elements(shape), self.len(), "reshape to {shape:?}");
        let base = if self.is_contiguous() {
            self.clone()
        } else {
            Tensor::from_bytes(self.dtype, &self.shape, self.to_bytes())
        };
        Tensor { shape: shape.into(), strides: contiguous_strides(shape), ..base }
    }

    /// A view with axes reordered: axis `i` of the result is axis `perm[i]` of this.
    pub fn transpose(&self, perm: &[usize]) -> Tensor {
        Tensor {
            shape: perm.iter().map(|p| self.shape[*p]).collect(),
            strides: perm.iter().map(|p| self.strides[*p]).collect(),
            ..self.clone()
        }
    }

    /// A view of `start, start + step, ..` (`len` of them) along `axis`.
    ///
    /// # Panics
    /// If the range leaves the axis.
    pub fn slice(&self, axis: usize, start: usize, len: usize, step: isize) -> Tensor {
        let last = start as isize + step * (len as isize - 1).max(0);
        assert!(
            len == 0
                || (start < self.shape[axis] && (0..self.shape[axis] as isize).contains(&last)),
            "slice {start}..{last} of axis with {}",
            self.shape[axis]
        );
        let mut out = self.clone();
        out.offset += start as isize * self.strides[axis];
        out.shape[axis] = len;
        out.strides[axis] *= step;
        out
    }

    /// A view repeated along axes of extent one and new leading axes, as NumPy broadcasts.
    ///
    /// # Panics
    /// If the shapes do not broadcast.
    pub fn broadcast_to(&self, shape: &[usize]) -> Tensor {
        let lead = shape.len().checked_sub(self.rank()).expect("broadcast to a smaller rank");
        let strides = (0..shape.len())
            .map(|i| match i.checked_sub(lead) {
                None => 0,
                Some(j) if self.shape[j] == shape[i] => self.strides[j],
                Some(j) => {
                    assert_eq!(self.shape[j], 1, "broadcast {:?} to {shape:?}", self.shape);
                    0
                }
            })
            .collect();
        Tensor { shape: shape.into(), strides, ..self.clone() }
    }

    /// The values converted to another element type, rounding to nearest even.
    pub fn cast(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype {
            return self.clone();
        }
        if self.dtype.is_float() {
            Tensor::from_f64s(dtype, &self.shape, self.to_f64s())
        } else {
            Tensor::from_i64s(dtype, &self.shape, self.to_i64s())
        }
    }

    /// blake3 of element type, shape and row-major bytes.
    pub fn digest(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(self.dtype.name().as_bytes());
        for d in &self.shape {
            h.update(&(*d as u64).to_le_bytes());
        }
        h.update(&[0xff]);
        self.for_each_run(|run| {
            h.update(run);
        });
        *h.finalize().as_bytes()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape.as_slice())?;
        if self.len() <= 16 { write!(f, " {:?}", self.to_f64s()) } else { Ok(()) }
    }
}

impl PartialEq for Tensor {
    /// Same type, shape and bits.
    fn eq(&self, o: &Tensor) -> bool {
        self.dtype == o.dtype && self.shape == o.shape && self.to_bytes() == o.to_bytes()
    }
}

/// Number of elements of a shape that fits in memory, or that has none.
fn elements(shape: &[usize]) -> usize {
    if shape.contains(&0) { 0 } else { shape.iter().product() }
}

/// Row-major strides of a shape, in elements; they saturate, which only shapes without elements
/// reach.
pub fn contiguous_strides(shape: &[usize]) -> SmallVec<[isize; 4]> {
    let mut strides: SmallVec<[isize; 4]> = SmallVec::from_elem(1, shape.len());
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1).cast_signed());
    }
    strides
}

/// Calls `f` with every index of `shape` in row-major order (once, empty, for rank zero).
pub fn for_each_index(shape: &[usize], mut f: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index: Extents = SmallVec::from_elem(0, shape.len());
    loop {
        f(&index);
        let Some(axis) = (0..shape.len()).rev().find(|a| index[*a] + 1 < shape[*a]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

fn read_f64(dtype: DType, c: &[u8]) -> f64 {
    match dtype {
        DType::F64 => f64::from_le_bytes(array(c)),
        DType::F32 => f64::from(f32::from_le_bytes(array(c))),
        DType::Bf16 => bf16::from_le_bytes(array(c)).to_f64(),
        DType::F16 => f16::from_le_bytes(array(c)).to_f64(),
        DType::F8E4M3 => f8_to_f64(c[0], 4, 3),
        DType::F8E5M2 => f8_to_f64(c[0], 5, 2),
        _ => read_i64(dtype, c) as f64,
    }
}

#[allow(clippy::cast_possible_truncation, reason = "floats are truncated by contract")]
fn read_i64(dtype: DType, c: &[u8]) -> i64 {
    match dtype {
        DType::I64 => i64::from_le_bytes(array(c)),
        DType::I32 => i64::from(i32::from_le_bytes(array(c))),
        DType::I16 => i64::from(i16::from_le_bytes(array(c))),
        DType::I8 | DType::I4 => i64::from(c[0].cast_signed()),
        DType::U8 | DType::U4 | DType::Bool => i64::from(c[0]),
        _ => read_f64(dtype, c) as i64,
    }
}

fn array<const N: usize>(c: &[u8]) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&c[..N]);
    a
}

#[allow(clippy::cast_possible_truncation, reason = "rounding and wrapping are by contract")]
fn push_f64(dtype: DType, v: f64, out: &mut Vec<u8>) {
    match dtype {
        DType::F64 => out.extend_from_slice(&v.to_le_bytes()),
        DType::F32 => out.extend_from_slice(&(v as f32).to_le_bytes()),
        DType::Bf16 => out.extend_from_slice(&bf16::from_f32(to_odd(v)).to_le_bytes()),
        DType::F16 => out.extend_from_slice(&f16::from_f32(to_odd(v)).to_le_bytes()),
        DType::F8E4M3 => out.push(f64_to_f8(v, 4, 3)),
        DType::F8E5M2 => out.push(f64_to_f8(v, 5, 2)),
        DType::Bool => out.push(u8::from(v != 0.0)),
        _ => {
            let (lo, hi) = dtype.int_range().unwrap_or((i64::MIN, i64::MAX));
            push_i64(dtype, (v as i64).clamp(lo, hi), out);
        }
    }
}

/// One of the two `f32` around a value: itself if it is one, else the one with an odd last bit, so
/// that rounding it to a narrower type rounds the value once.
#[allow(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
fn to_odd(v: f64) -> f32 {
    let nearest = v as f32;
    let back = f64::from(nearest);
    if back == v || v.is_nan() {
        return nearest;
    }
    let towards_zero = nearest.to_bits() - u32::from(back.abs() > v.abs());
    f32::from_bits(towards_zero | 1)
}

#[allow(clippy::cast_possible_truncation, reason = "wrapping is by contract")]
fn push_i64(dtype: DType, v: i64, out: &mut Vec<u8>) {
    match dtype {
        DType::I64 => out.extend_from_slice(&v.to_le_bytes()),
        DType::I32 => out.extend_from_slice(&(v as i32).to_le_bytes()),
        DType::I16 => out.extend_from_slice(&(v as i16).to_le_bytes()),
        DType::I8 => out.extend_from_slice(&(v as i8).to_le_bytes()),
        DType::U8 => out.push(v as u8),
        DType::I4 => out.extend_from_slice(&(((v as i8) << 4) >> 4).to_le_bytes()),
        DType::U4 => out.push(v as u8 & 15),
        DType::Bool => out.push(u8::from(v != 0)),
        _ => push_f64(dtype, v as f64, out),
    }
}

/// OCP FP8: E4M3 has no infinities and one NaN pattern, E5M2 follows IEEE 754.
fn f8_to_f64(bits: u8, exp_bits: i32, frac_bits: i32) -> f64 {
    let sign = if bits & 0x80 != 0 { -1.0 } else { 1.0 };
    let exp = i32::from((bits & 0x7f) >> frac_bits);
    let frac = f64::from(bits & ((1 << frac_bits) - 1)) / f64::from(1 << frac_bits);
    let bias = (1 << (exp_bits - 1)) - 1;
    let top = exp == (1 << exp_bits) - 1;
    sign * match (top, exp_bits) {
        (true, 5) if frac == 0.0 => f64::INFINITY,
        (true, 5) => f64::NAN,
        (true, _) if bits & 7 == 7 => f64::NAN,
        _ if exp == 0 => frac * f64::powi(2.0, 1 - bias),
        _ => (1.0 + frac) * f64::powi(2.0, exp - bias),
    }
}

/// Rounds to nearest even; E4M3 saturates to its largest value, E5M2 overflows to infinity.
fn f64_to_f8(v: f64, exp_bits: i32, frac_bits: i32) -> u8 {
    let sign = if v.is_sign_negative() { 0x80 } else { 0 };
    if v.is_nan() {
        return sign | 0x7f;
    }
    let a = v.abs();
    let top: u8 = if exp_bits == 4 { 0x7e } else { 0x7c };
    // Codes of finite values are ordered like the values: search the nearest, ties to even.
    let mut best = 0u8;
    for code in 0..=(if exp_bits == 4 { top } else { top - 1 }) {
        let (d, b) = (
            (f8_to_f64(code, exp_bits, frac_bits) - a).abs(),
            (f8_to_f64(best, exp_bits, frac_bits) - a).abs(),
        );
        if d < b || (d == b && code & 1 == 0) {
            best = code;
        }
    }
    if exp_bits == 5 && a >= 61440.0 {
        best = top;
    }
    sign | best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_storage_and_read_in_order() {
        let t = Tensor::from_i64s(DType::I32, &[2, 3], 0..6);
        assert_eq!(t.transpose(&[1, 0]).to_i64s(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(t.slice(1, 2, 2, -1).to_i64s(), [2, 1, 5, 4]);
        assert_eq!(t.slice(0, 1, 1, 1).broadcast_to(&[2, 3]).to_i64s(), [3, 4, 5, 3, 4, 5]);
        assert_eq!(t.transpose(&[1, 0]).reshape(&[6]).to_i64s(), [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn every_type_round_trips_small_integers() {
        for dtype in DType::ALL {
            let v = if *dtype == DType::Bool { 1.0 } else { 4.0 };
            assert_eq!(Tensor::from_f64s(*dtype, &[1], [v]).to_f64s(), [v], "{dtype}");
        }
        let f8 = Tensor::from_f64s(DType::F8E4M3, &[3], [448.0, 1e9, -0.3]).to_f64s();
        assert_eq!(f8, [448.0, 448.0, -0.3125]);
        assert_eq!(Tensor::from_f64s(DType::F8E5M2, &[1], [1e9]).to_f64s(), [f64::INFINITY]);
    }

    #[test]
    fn short_storage_is_an_error() {
        let data: Arc<dyn Bytes> = Arc::new(vec![0u8; 10]);
        assert!(Tensor::new(DType::F32, &[2], data.clone(), 4).is_err());
        assert!(Tensor::new(DType::F32, &[usize::MAX, 8], data.clone(), 0).is_err());
        assert!(Tensor::new(DType::F32, &[2], data, 2).is_ok());
    }

    #[test]
    fn nothing_has_any_shape() {
        const LARGE: usize = 1 << 40;
        for shape in [[0, LARGE, LARGE], [LARGE, LARGE, 0]] {
            let t = Tensor::from_f32s(&shape, &[]);
            assert!(t.is_empty() && t.is_contiguous());
            assert_eq!(t.reshape(&[0]).to_f64s(), [0.0; 0]);
        }
    }
}
