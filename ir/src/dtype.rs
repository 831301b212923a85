//! Element types of tensors.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The element type of a tensor.
///
/// Storage is one value per [`DType::size`] bytes; the 4-bit integers travel one value a byte and
/// are packed only in the layouts that kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: binary32 with a 7-bit fraction.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// OCP 8-bit float, 4 exponent and 3 fraction bits, no infinities.
    F8E4M3,
    /// OCP 8-bit float, 5 exponent and 2 fraction bits.
    F8E5M2,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// 4-bit signed integer.
    I4,
    /// 4-bit unsigned integer.
    U4,
    /// Boolean, one byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every element type, in declaration order.
    pub const ALL: &'static [DType] = &[
        DType::F64,
        DType::F32,
        DType::Bf16,
        DType::F16,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::I4,
        DType::U4,
        DType::Bool,
    ];

    /// Bytes of one stored value.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 | DType::I16 => 2,
            _ => 1,
        }
    }

    /// Whether values are floating point.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64 | DType::F32 | DType::Bf16 | DType::F16 | DType::F8E4M3 | DType::F8E5M2
        )
    }

    /// Whether values are integers (booleans are not).
    pub fn is_int(self) -> bool {
        !self.is_float() && self != DType::Bool
    }

    /// The inclusive range of an integer or boolean type; `None` for floats.
    pub fn int_range(self) -> Option<(i64, i64)> {
        Some(match self {
            DType::I64 => (i64::MIN, i64::MAX),
            DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
            DType::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
            DType::I8 => (-128, 127),
            DType::U8 => (0, 255),
            DType::I4 => (-8, 7),
            DType::U4 => (0, 15),
            DType::Bool => (0, 1),
            _ => return None,
        })
    }

    /// The name used in IR text.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I16 => "i16",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::I4 => "i4",
            DType::U4 => "u4",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        DType::ALL.iter().copied().find(|d| d.name() == s).ok_or_else(|| {
            let all: Vec<_> = DType::ALL.iter().map(|d| d.name()).collect();
            format!("unknown element type `{s}`; expected one of {}", all.join(", "))
        })
    }
}
