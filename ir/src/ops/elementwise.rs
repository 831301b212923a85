//! What the elementwise operators have in common: inference, evaluation and the macros that
//! declare one operator each.

use crate::{
    Arity, Attrs, DType, Dim, EvalCx, Fact, InferCx, OpError, Operand, Sample, Signature, Tensor,
    TensorType, op::same_dtype,
};

pub(super) static UNARY: Signature =
    Signature { operands: &[Operand { name: "x", arity: Arity::One }], attrs: &[] };

pub(super) static BINARY: Signature = Signature {
    operands: &[Operand { name: "a", arity: Arity::One }, Operand { name: "b", arity: Arity::One }],
    attrs: &[],
};

/// Which element types an operator takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Domain {
    Float,
    Number,
    Bool,
    Any,
}

impl Domain {
    fn check(self, dtype: DType) -> Result<(), OpError> {
        let (ok, what) = match self {
            Domain::Float => (dtype.is_float(), "floats"),
            Domain::Number => (dtype != DType::Bool, "numbers"),
            Domain::Bool => (dtype == DType::Bool, "booleans"),
            Domain::Any => (true, ""),
        };
        if ok { Ok(()) } else { Err(OpError::new(format!("takes {what}, got {dtype}"))) }
    }
}

pub(super) fn infer_unary(cx: &InferCx<'_>, domain: Domain) -> Result<Vec<Fact>, OpError> {
    domain.check(cx.ty(0).dtype)?;
    Ok(vec![Fact::of(cx.ty(0).clone())])
}

pub(super) fn infer_binary(
    cx: &InferCx<'_>,
    domain: Domain,
    result: Option<DType>,
    symbolic: Option<fn(&Dim, &Dim) -> Option<Dim>>,
) -> Result<Vec<Fact>, OpError> {
    let (a, b) = (cx.arg(0), cx.arg(1));
    let dtype = same_dtype(a.ty.dtype, b.ty.dtype)?;
    domain.check(dtype)?;
    let shape = cx.broadcast(&a.ty.shape, &b.ty.shape)?;
    let ty = TensorType::new(result.unwrap_or(dtype), shape);
    if let (Some(f), Some(x), Some(y)) = (symbolic, &a.dims, &b.dims) {
        let n = x.len().max(y.len());
        let at = |v: &Vec<Dim>, i: usize| if v.len() == 1 { v[0].clone() } else { v[i].clone() };
        if let Some(dims) = (0..n).map(|i| f(&at(x, i), &at(y, i))).collect() {
            return Ok(vec![Fact::symbolic(ty, dims)]);
        }
    }
    Ok(vec![Fact::of(ty)])
}

pub(super) fn eval_unary(
    cx: &EvalCx<'_>,
    args: &[Option<Tensor>],
    float: fn(f64) -> f64,
    int: fn(i64) -> i64,
) -> Vec<Tensor> {
    let x = args[0].as_ref().expect("operand");
    let dtype = cx.results[0].dtype;
    vec![if x.dtype().is_float() {
        Tensor::from_f64s(dtype, x.shape(), x.to_f64s().into_iter().map(float))
    } else {
        Tensor::from_i64s(dtype, x.shape(), x.to_i64s().into_iter().map(int))
    }]
}

/// Evaluates over broadcast operands, in the operands' number system.
pub(super) fn eval_binary(
    cx: &EvalCx<'_>,
    args: &[Option<Tensor>],
    float: fn(f64, f64) -> f64,
    int: fn(i64, i64) -> i64,
) -> Vec<Tensor> {
    let shape = cx.shape(0);
    let [a, b] = [0, 1].map(|i| args[i].as_ref().expect("operand").broadcast_to(&shape));
    let dtype = cx.results[0].dtype;
    vec![if a.dtype().is_float() {
        let it = a.to_f64s().into_iter().zip(b.to_f64s()).map(|(x, y)| float(x, y));
        Tensor::from_f64s(dtype, &shape, it)
    } else {
        let it = a.to_i64s().into_iter().zip(b.to_i64s()).map(|(x, y)| int(x, y));
        Tensor::from_i64s(dtype, &shape, it)
    }]
}

/// Values that exercise an elementwise operator: spread over `lo..hi`.
pub(super) fn spread(dtype: DType, shape: &[usize], lo: f64, hi: f64) -> Tensor {
    let n = shape.iter().product::<usize>();
    // A low-discrepancy sequence: no two alike, signs and sizes mixed.
    let at = |i: usize| lo + (hi - lo) * ((i as f64 + 1.0) * 0.618_033_988_749_895).fract();
    Tensor::from_f64s(dtype, shape, (0..n).map(at))
}

pub(super) fn unary_samples(domain: Domain, lo: f64, hi: f64) -> Vec<Sample> {
    let dtypes: &[DType] = match domain {
        Domain::Bool => &[DType::Bool],
        Domain::Float => &[DType::F32],
        _ => &[DType::F32, DType::I32],
    };
    dtypes
        .iter()
        .map(|d| Sample { attrs: Attrs::none(), args: vec![Some(spread(*d, &[3, 37], lo, hi))] })
        .collect()
}

pub(super) fn binary_samples(domain: Domain, lo: f64, hi: f64) -> Vec<Sample> {
    let dtypes: &[DType] = match domain {
        Domain::Bool => &[DType::Bool],
        Domain::Float => &[DType::F32],
        _ => &[DType::F32, DType::I64],
    };
    let shapes: &[[&[usize]; 2]] = &[[&[3, 37], &[3, 37]], [&[2, 1, 5], &[3, 1]], [&[4], &[]]];
    let mut out = Vec::new();
    for d in dtypes {
        for [a, b] in shapes {
            let args = vec![Some(spread(*d, a, lo, hi)), Some(spread(*d, b, hi, lo))];
            out.push(Sample { attrs: Attrs::none(), args });
        }
    }
    out
}

/// Declares a unary primitive: type, name, ONNX names, domain, sample range, float and integer
/// functions.
macro_rules! unary {
    ($(#[$doc:meta])* $ty:ident, $name:literal, [$($onnx:expr),*], $domain:ident,
     $lo:literal..$hi:literal, $float:expr, $int:expr) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::elementwise::UNARY
            }
            fn onnx(&self) -> &'static [crate::OnnxName] {
                const { &[$($onnx),*] }
            }
            fn infer(&self, cx: &crate::InferCx<'_>) -> Result<Vec<crate::Fact>, crate::OpError> {
                use super::elementwise::{Domain, infer_unary};
                infer_unary(cx, Domain::$domain)
            }
            fn body(&self) -> crate::Body {
                crate::Body::Primitive(|cx, args| {
                    super::elementwise::eval_unary(cx, args, $float, $int)
                })
            }
            fn samples(&self) -> Vec<crate::Sample> {
                use super::elementwise::{Domain, unary_samples};
                unary_samples(Domain::$domain, $lo, $hi)
            }
        }
    };
}
pub(super) use unary;

/// Declares a binary primitive: as [`unary`], with the result's element type where it is not that
/// of the operands, and the function on symbolic sizes, if any.
macro_rules! binary {
    ($(#[$doc:meta])* $ty:ident, $name:literal, [$($onnx:expr),*], $domain:ident,
     $lo:literal..$hi:literal, $result:expr, $symbolic:expr, $float:expr, $int:expr) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::elementwise::BINARY
            }
            fn onnx(&self) -> &'static [crate::OnnxName] {
                const { &[$($onnx),*] }
            }
            fn infer(&self, cx: &crate::InferCx<'_>) -> Result<Vec<crate::Fact>, crate::OpError> {
                use super::elementwise::{Domain, infer_binary};
                infer_binary(cx, Domain::$domain, $result, $symbolic)
            }
            fn body(&self) -> crate::Body {
                crate::Body::Primitive(|cx, args| {
                    super::elementwise::eval_binary(cx, args, $float, $int)
                })
            }
            fn samples(&self) -> Vec<crate::Sample> {
                use super::elementwise::{Domain, binary_samples};
                binary_samples(Domain::$domain, $lo, $hi)
            }
        }
    };
}
pub(super) use binary;

/// Declares a unary composite on floats: type, name, ONNX names, sample range, expansion.
macro_rules! activation {
    ($(#[$doc:meta])* $ty:ident, $name:literal, [$($onnx:expr),*], $lo:literal..$hi:literal,
     $expand:expr) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::elementwise::UNARY
            }
            fn onnx(&self) -> &'static [crate::OnnxName] {
                const { &[$($onnx),*] }
            }
            fn infer(&self, cx: &crate::InferCx<'_>) -> Result<Vec<crate::Fact>, crate::OpError> {
                use super::elementwise::{Domain, infer_unary};
                infer_unary(cx, Domain::Float)
            }
            fn body(&self) -> crate::Body {
                crate::Body::Composite(|b, _, args| {
                    let x = args[0].expect("operand");
                    let expand: fn(
                        &mut crate::Builder<'_>,
                        crate::Value,
                    ) -> Result<crate::Value, crate::OpError> = $expand;
                    Ok(vec![expand(b, x)?])
                })
            }
            fn samples(&self) -> Vec<crate::Sample> {
                use super::elementwise::{Domain, unary_samples};
                unary_samples(Domain::Float, $lo, $hi)
            }
        }
    };
}
pub(super) use activation;
