//! What one case is.

use cuda::Launch;
use ir::{Attrs, DType};
use serde::{Deserialize, Serialize};

/// A kernel, its operands and what it must make of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows, with sizes and architecture.
    pub name: String,
    /// The part of the suite that it is from.
    pub family: String,
    /// What the kernel was generated for, such as `sm_90a`.
    pub target: String,
    /// File in `kernels/` with a cubin or PTX.
    pub module: String,
    /// Its launch.
    pub launch: Launch,
    /// Operands; `None` for an absent optional one.
    pub operands: Vec<Option<Operand>>,
    /// Results, which are arguments behind the operands.
    pub results: Vec<Output>,
    /// What the results must be.
    pub check: Check,
    /// Bits that it must have in common with other cases.
    pub same: Vec<Same>,
    /// What a launch is measured by, if it is to be timed.
    pub timing: Option<Timing>,
}

/// An operand, by what lies in memory: of exchanged axes the bytes are exchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operand {
    /// Element.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Where its values are from.
    pub source: Source,
}

/// Where values are from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file in `data/`.
    File(String),
    /// [`crate::noise`] of this seed, in bf16 or f32.
    Noise(u64),
    /// A quantised weight in lanes, from [`crate::noise`].
    Lanes {
        /// Bits of its integers.
        bits: usize,
        /// Seed.
        seed: u64,
    },
    /// Blocks or rows of e4m3 as long as the last axis: values, then f32 scales.
    E4m3 {
        /// How many values.
        values: usize,
        /// Seed.
        seed: u64,
    },
}

/// A result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Element.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// The operand whose memory it is written to.
    pub in_place: Option<u32>,
}

/// What results must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Check {
    /// Those in files in `data/`, one a result: integers exactly, floats to `tolerance` of the
    /// larger of one and the expected value, and to one step where narrower than f32.
    Whole {
        /// The files.
        files: Vec<String>,
        /// How far off floats may be.
        tolerance: f64,
    },
    /// Some rows, and of a packed weight some panels, against the interpreter.
    Rows {
        /// The operator.
        op: String,
        /// Its attributes.
        attrs: Box<Attrs>,
        /// Operands that have the result's rows.
        rows: Vec<u32>,
        /// The packed weight whose panels are the result's columns.
        panels: Option<u32>,
        /// How far off floats may be, relative to their root mean square.
        tolerance: f64,
    },
    /// Some tokens and heads of causal attention, packed or paged, against sums in f64.
    Attention {
        /// Factor of scores.
        scale: f64,
        /// How far off floats may be, relative to their root mean square.
        tolerance: f64,
    },
}

/// A part of the first result; all cases with its name must have the same bits there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Same {
    /// What they have in common.
    pub name: String,
    /// First byte.
    pub offset: usize,
    /// How many.
    pub bytes: usize,
}

/// What a launch is measured by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Floating point operations.
    pub flops: f64,
    /// Bytes that must be read or written.
    pub bytes: f64,
    /// What a peer calls the same computation.
    pub peer: String,
}

/// Bytes of so many elements.
#[must_use]
pub(crate) fn bytes(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, extent| bytes.checked_mul(*extent))
}

impl Operand {
    /// Bytes in memory; `None` if there are too many to count.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        bytes(self.dtype, &self.shape)
    }
}

impl Output {
    /// Bytes in memory; `None` if there are too many to count.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        bytes(self.dtype, &self.shape)
    }
}
