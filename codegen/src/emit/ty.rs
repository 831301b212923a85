//! Types of the emitter: elements, and the scalars, 1-D vectors and pointers made of them.

use std::fmt;

/// Element type of a scalar, a vector or memory. Integers are signless, as in MLIR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Elem {
    F64,
    F32,
    Bf16,
    F16,
    I64,
    I32,
    I16,
    I8,
    /// One bit in registers; never loaded or stored.
    Bool,
}

impl Elem {
    /// Width in bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::F64 | Self::I64 => 64,
            Self::F32 | Self::I32 => 32,
            Self::Bf16 | Self::F16 | Self::I16 => 16,
            Self::I8 => 8,
            Self::Bool => 1,
        }
    }

    /// Size in memory, in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        (self.bits() as u64).div_ceil(8)
    }

    /// Whether the element is a floating-point number.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::Bf16 | Self::F16)
    }

    /// The integer element of the same width.
    #[must_use]
    pub const fn to_int(self) -> Self {
        match self {
            Self::F64 => Self::I64,
            Self::F32 => Self::I32,
            Self::Bf16 | Self::F16 => Self::I16,
            int => int,
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::Bool => "i1",
        })
    }
}

/// Type of an SSA value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    /// `!llvm.ptr`.
    Ptr,
    /// One element.
    Scalar(Elem),
    /// A 1-D vector of so many lanes.
    Vector(Elem, u32),
    /// So many scalars that one inline instruction gives together.
    Group(Elem, u32),
}

impl Ty {
    /// `lanes` elements: a scalar where that is one.
    #[must_use]
    pub const fn of(elem: Elem, lanes: u32) -> Self {
        if lanes == 1 { Self::Scalar(elem) } else { Self::Vector(elem, lanes) }
    }

    /// The element type.
    ///
    /// # Panics
    /// On a pointer.
    #[must_use]
    pub const fn elem(self) -> Elem {
        match self {
            Self::Scalar(elem) | Self::Vector(elem, _) | Self::Group(elem, _) => elem,
            Self::Ptr => panic!("a pointer has no element type"),
        }
    }

    /// Number of lanes; 1 for scalars and pointers.
    #[must_use]
    pub const fn lanes(self) -> u32 {
        match self {
            Self::Vector(_, lanes) => lanes,
            Self::Scalar(_) | Self::Group(..) | Self::Ptr => 1,
        }
    }

    /// The same shape with another element.
    #[must_use]
    pub const fn with_elem(self, elem: Elem) -> Self {
        match self {
            Self::Vector(_, lanes) => Self::Vector(elem, lanes),
            Self::Scalar(_) | Self::Group(..) | Self::Ptr => Self::Scalar(elem),
        }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ptr => f.write_str("!llvm.ptr"),
            Self::Scalar(elem) => write!(f, "{elem}"),
            Self::Vector(elem, lanes) => write!(f, "vector<{lanes}x{elem}>"),
            Self::Group(elem, count) => {
                let fields = vec![elem.to_string(); *count as usize].join(", ");
                write!(f, "!llvm.struct<({fields})>")
            }
        }
    }
}
