//! Attributes: the compile-time parameters of an operator.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{DType, Dim, Tensor};

/// A 64-bit float that is compared and hashed by its bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Float(pub f64);

impl PartialEq for Float {
    fn eq(&self, o: &Float) -> bool {
        self.0.to_bits() == o.0.to_bits()
    }
}
impl Eq for Float {}
impl PartialOrd for Float {
    fn partial_cmp(&self, o: &Float) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Float {
    fn cmp(&self, o: &Float) -> std::cmp::Ordering {
        self.0.total_cmp(&o.0)
    }
}
impl Hash for Float {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.0.to_bits().hash(h);
    }
}

/// A constant tensor, compared by its digest.
#[derive(Clone, Debug)]
pub struct TensorAttr {
    tensor: Tensor,
    digest: [u8; 32],
}

impl TensorAttr {
    /// Wraps a tensor, computing its digest.
    pub fn new(tensor: Tensor) -> TensorAttr {
        let digest = tensor.digest();
        TensorAttr { tensor, digest }
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

impl PartialEq for TensorAttr {
    fn eq(&self, o: &TensorAttr) -> bool {
        self.digest == o.digest
    }
}
impl Eq for TensorAttr {}
impl PartialOrd for TensorAttr {
    fn partial_cmp(&self, o: &TensorAttr) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for TensorAttr {
    fn cmp(&self, o: &TensorAttr) -> std::cmp::Ordering {
        self.digest.cmp(&o.digest)
    }
}
impl Hash for TensorAttr {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.digest.hash(h);
    }
}

/// One attribute's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Attr {
    /// An integer.
    Int(i64),
    /// A float.
    Float(Float),
    /// A flag.
    Bool(bool),
    /// A name: an activation, a mask kind, a function.
    Str(Arc<str>),
    /// An element type.
    DType(DType),
    /// Integers, such as axes.
    Ints(Vec<i64>),
    /// Sizes, possibly symbolic.
    Dims(Vec<Dim>),
    /// A constant tensor. Large data are weights, not attributes.
    #[serde(skip)]
    Tensor(TensorAttr),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, v: &[T]) -> fmt::Result {
            for (i, x) in v.iter().enumerate() {
                write!(f, "{}{x}", if i > 0 { ", " } else { "" })?;
            }
            Ok(())
        }
        match self {
            Attr::Int(v) => write!(f, "{v}"),
            Attr::Float(v) => write!(f, "{:?}", v.0),
            Attr::Bool(v) => write!(f, "{v}"),
            Attr::Str(v) => write!(f, "{:?}", &**v),
            Attr::DType(v) => write!(f, "{v}"),
            Attr::Ints(v) => {
                f.write_str("[")?;
                list(f, v)?;
                f.write_str("]")
            }
            Attr::Dims(v) => {
                f.write_str("<")?;
                list(f, v)?;
                f.write_str(">")
            }
            Attr::Tensor(t) => {
                let t = t.tensor();
                write!(f, "dense<{}{:?} ", t.dtype(), t.shape())?;
                for b in t.to_bytes() {
                    write!(f, "{b:02x}")?;
                }
                f.write_str(">")
            }
        }
    }
}

macro_rules! from {
    ($($t:ty => |$v:ident| $e:expr;)*) => {$(
        impl From<$t> for Attr {
            fn from($v: $t) -> Attr {
                $e
            }
        }
    )*};
}
from! {
    i64 => |v| Attr::Int(v);
    f64 => |v| Attr::Float(Float(v));
    bool => |v| Attr::Bool(v);
    &str => |v| Attr::Str(v.into());
    String => |v| Attr::Str(v.into());
    DType => |v| Attr::DType(v);
    Vec<i64> => |v| Attr::Ints(v);
    Vec<Dim> => |v| Attr::Dims(v);
    Tensor => |v| Attr::Tensor(TensorAttr::new(v));
}

/// An operator's attributes, ordered as its signature lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attrs(pub SmallVec<[(Arc<str>, Attr); 2]>);

impl Attrs {
    /// No attributes.
    pub fn none() -> Attrs {
        Attrs::default()
    }

    /// Adds or replaces an attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Attrs {
        let value = value.into();
        match self.0.iter_mut().find(|(n, _)| &**n == name) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((name.into(), value)),
        }
        self
    }

    /// Whether no size among them depends on a symbol.
    pub fn is_constant(&self) -> bool {
        let constant = |a: &Attr| match a {
            Attr::Dims(dims) => dims.iter().all(|d| d.as_const().is_some()),
            _ => true,
        };
        self.0.iter().all(|(_, a)| constant(a))
    }

    /// The attribute of that name.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| &**n == name).map(|(_, a)| a)
    }
}

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident -> $t:ty: $($pat:pat => $e:expr),+;)*) => {
        impl Attrs {$(
            $(#[$doc])*
            ///
            /// # Panics
            /// If it is missing or of another kind: [`crate::Signature::check_attrs`] has ruled
            /// that out for every node of a graph.
            pub fn $name(&self, name: &str) -> $t {
                match self.get(name) {
                    $(Some($pat) => $e,)+
                    other => panic!("attribute `{name}`: {} expected, got {other:?}",
                        stringify!($name)),
                }
            }
        )*}
    };
}
getters! {
    /// The integer of that name.
    int -> i64: Attr::Int(v) => *v;
    /// The float of that name.
    float -> f64: Attr::Float(v) => v.0;
    /// The flag of that name.
    bool -> bool: Attr::Bool(v) => *v;
    /// The string of that name.
    str -> &str: Attr::Str(v) => v;
    /// The element type of that name.
    dtype -> DType: Attr::DType(v) => *v;
    /// The integers of that name.
    ints -> &[i64]: Attr::Ints(v) => v;
    /// The sizes of that name.
    dims -> &[Dim]: Attr::Dims(v) => v;
    /// The tensor of that name.
    tensor -> &Tensor: Attr::Tensor(v) => v.tensor();
}
