//! The few calls of cuBLASLt that are used, as a trait, so that where there is no device something
//! else can multiply.
//!
//! Matrices are in row-major order here; the library's are in column-major order, so it is asked
//! for the transposed product of the transposed operands, which are the same bytes.

mod libcublaslt;

use std::fmt::Debug;

use ir::DType;
use serde::{Deserialize, Serialize};

use crate::driver::StreamHandle;

pub(crate) use libcublaslt::open;

/// cuBLAS 12.0, whose library is the first that goes with any driver that will do.
pub(crate) const OLDEST: u32 = 120_000;

/// What a call answers.
pub type LtAnswer<T = ()> = Result<T, LtError>;

/// What cuBLASLt answered to a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name}, {text}")]
pub struct LtError {
    /// The call.
    pub call: &'static str,
    /// The library's name for it, such as `CUBLAS_STATUS_INVALID_VALUE`.
    pub name: String,
    /// The library's sentence.
    pub text: String,
}

/// The library on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LtHandle(pub usize);

/// An algorithm for one product, and what describes that to the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AlgorithmHandle(pub usize);

/// A product `y = x · w + bias + residual`, all but where it lies: what an algorithm is chosen by.
///
/// Sums are f32, and rounded once to the type of `y`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matmul {
    /// Rows of `x` and `y`.
    pub m: u64,
    /// Columns of `y`.
    pub n: u64,
    /// Columns of `x`.
    pub k: u64,
    /// Type of `x` and `w`: bf16 or f16.
    pub factors: DType,
    /// Type of `bias`, `residual` and `y`: f32, or that of the factors.
    pub results: DType,
    /// Whether `w` lies in memory by its columns: `[n, k]`, not `[k, n]`.
    pub transposed: bool,
    /// Elements from a row, as it lies in memory, to the next.
    pub x_stride: u64,
    /// Of `w`.
    pub w_stride: u64,
    /// Of `residual`; `None` without one.
    pub residual_stride: Option<u64>,
    /// Of `y`.
    pub y_stride: u64,
    /// Whether there is a `bias`, `[n]`.
    pub has_bias: bool,
    /// Bytes that the library may use beside the operands.
    pub workspace_bytes: u64,
}

/// Something of each operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Places<T> {
    /// `[m, k]`.
    pub x: T,
    /// The other factor.
    pub w: T,
    /// Where there is one.
    pub bias: Option<T>,
    /// Where there is one.
    pub residual: Option<T>,
    /// `[m, n]`.
    pub y: T,
    /// [`Matmul::workspace_bytes`].
    pub workspace: T,
}

impl<T> Places<T> {
    /// The same of something else of each.
    pub fn map<U>(&self, mut of: impl FnMut(&T) -> U) -> Places<U> {
        Places {
            x: of(&self.x),
            w: of(&self.w),
            bias: self.bias.as_ref().map(&mut of),
            residual: self.residual.as_ref().map(&mut of),
            y: of(&self.y),
            workspace: of(&self.workspace),
        }
    }
}

impl Matmul {
    /// Bytes from the first to the last element of each operand.
    #[must_use]
    pub fn bytes(&self) -> Places<u64> {
        let Matmul { m, n, k, .. } = *self;
        let [factor, result] = [self.factors, self.results].map(|dtype| dtype.size() as u64);
        let rows = |rows: u64, columns: u64, stride: u64| {
            let skipped = rows.saturating_sub(1).saturating_mul(stride);
            if rows == 0 { 0 } else { skipped.saturating_add(columns) }
        };
        let w = if self.transposed { rows(n, k, self.w_stride) } else { rows(k, n, self.w_stride) };
        Places {
            x: rows(m, k, self.x_stride).saturating_mul(factor),
            w: w.saturating_mul(factor),
            bias: self.has_bias.then(|| n.saturating_mul(result)),
            residual: self.residual_stride.map(|s| rows(m, n, s).saturating_mul(result)),
            y: rows(m, n, self.y_stride).saturating_mul(result),
            workspace: self.workspace_bytes,
        }
    }
}

/// cuBLASLt. Addresses and streams are of the device whose context is the calling thread's.
#[allow(missing_docs, reason = "the calls stand for those of cuBLASLt")]
pub trait CublasLt: Debug + Send + Sync {
    /// The library on the calling thread's device.
    fn create(&self) -> LtAnswer<LtHandle>;
    fn destroy(&self, handle: LtHandle) -> LtAnswer;
    /// The algorithm that the library holds for the best where operands begin at multiples of so
    /// many bytes, a power of two up to 256; `None` where it has none.
    fn choose(
        &self,
        handle: LtHandle,
        matmul: &Matmul,
        aligned: &Places<u32>,
    ) -> LtAnswer<Option<AlgorithmHandle>>;
    fn release(&self, algorithm: AlgorithmHandle) -> LtAnswer;
    /// Gives the product to a stream. Not from two threads at once with one algorithm.
    fn multiply(
        &self,
        handle: LtHandle,
        algorithm: AlgorithmHandle,
        places: &Places<u64>,
        stream: StreamHandle,
    ) -> LtAnswer;
}
