//! Types of values, and what is known of a value at compile time.

use std::fmt;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{DType, Dim, DimError, Env, OpError, Symbols, Tensor, tensor::Extents};

/// A shape of possibly symbolic dimensions.
pub type Shape = SmallVec<[Dim; 4]>;

/// Element type and shape.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Shape,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> TensorType {
        TensorType { dtype, shape: shape.into_iter().map(Into::into).collect() }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> Dim {
        self.shape.iter().fold(Dim::from(1), |n, d| n * d.clone())
    }

    /// Stored bytes.
    pub fn bytes(&self) -> Dim {
        self.elements() * Dim::from(self.dtype.size())
    }

    /// The same shape with another element type.
    pub fn with_dtype(&self, dtype: DType) -> TensorType {
        TensorType { dtype, shape: self.shape.clone() }
    }

    /// Asserts that every extent may be zero or more.
    ///
    /// # Errors
    /// Names the first that is negative whatever the symbols are.
    pub fn check_extents(&self, symbols: &Symbols) -> Result<(), OpError> {
        match self.shape.iter().find(|d| d.bounds(symbols).hi < 0) {
            None => Ok(()),
            Some(d) => Err(OpError::new(format!("{self} has a negative extent, {d}"))),
        }
    }

    /// The extents where all are constant.
    pub fn const_shape(&self) -> Option<Extents> {
        self.shape.iter().map(|d| d.as_const().and_then(|v| usize::try_from(v).ok())).collect()
    }

    /// The extents under `env`.
    ///
    /// # Errors
    /// [`DimError`] for an unbound symbol, an overflow or a negative extent.
    pub fn extents(&self, env: &Env) -> Result<Extents, DimError> {
        self.shape
            .iter()
            .map(|d| {
                let v = d.eval(env)?;
                usize::try_from(v).map_err(|_| DimError::Overflow(d.clone()))
            })
            .collect()
    }

    /// Whether both are equal for every value of the symbols, see [`Dim::equal`].
    pub fn equal(&self, other: &TensorType, symbols: &Symbols) -> Option<bool> {
        if self.dtype != other.dtype || self.rank() != other.rank() {
            return Some(false);
        }
        let mut all = Some(true);
        for (a, b) in self.shape.iter().zip(&other.shape) {
            match a.equal(b, symbols) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What is known of a value: its type, and for small integer tensors and constants, its contents.
///
/// Contents let shape arithmetic (`Shape -> Gather -> Concat -> Reshape`) resolve to types.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Element type and shape.
    pub ty: TensorType,
    /// The elements of an integer tensor of rank 0 or 1, as symbolic values.
    pub dims: Option<Vec<Dim>>,
    /// The contents, where constant.
    pub constant: Option<Tensor>,
}

impl Fact {
    /// A fact that knows the type only.
    pub fn of(ty: TensorType) -> Fact {
        Fact { ty, dims: None, constant: None }
    }

    /// A fact of a constant.
    pub fn constant(value: &Tensor) -> Fact {
        let ty = TensorType::new(value.dtype(), value.shape().iter().copied());
        let small = value.rank() <= 1 && value.len() <= 64 && value.dtype().is_int();
        let dims = small.then(|| value.to_i64s().into_iter().map(Dim::from).collect());
        Fact { ty, dims, constant: Some(value.clone()) }
    }

    /// A fact of a symbolic integer vector (or scalar, for rank 0).
    pub fn symbolic(ty: TensorType, dims: Vec<Dim>) -> Fact {
        let values: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
        let constant = values.map(|v| {
            let n = v.len();
            let shape: &[usize] = if ty.rank() == 0 { &[] } else { &[n] };
            Tensor::from_i64s(ty.dtype, shape, v)
        });
        Fact { ty, dims: Some(dims), constant }
    }
}

impl From<TensorType> for Fact {
    fn from(ty: TensorType) -> Fact {
        Fact::of(ty)
    }
}
