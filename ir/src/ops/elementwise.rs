//! What the elementwise operators have in common: inference, evaluation and the macros that
//! declare one operator each.

use crate::{
    Arity, Attrs, Builder, DType, Dim, EvalCx, Fact, InferCx, OpError, Operand, Sample, Signature,
    Symbols, Tensor, TensorType, Value, op::same_dtype,
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
    Int,
    Bool,
    Any,
}

impl Domain {
    fn check(self, dtype: DType) -> Result<(), OpError> {
        let (ok, what) = match self {
            Domain::Float => (dtype.is_float(), "floats"),
            Domain::Number => (dtype != DType::Bool, "numbers"),
            Domain::Int => (dtype.is_int(), "integers"),
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
    symbolic: Option<Symbolic>,
    int: fn(i64, i64) -> i64,
) -> Result<Vec<Fact>, OpError> {
    let (a, b) = (cx.arg(0), cx.arg(1));
    let dtype = same_dtype(a.ty.dtype, b.ty.dtype)?;
    domain.check(dtype)?;
    let shape = cx.broadcast(&a.ty.shape, &b.ty.shape)?;
    let ty = TensorType::new(result.unwrap_or(dtype), shape);
    if let (Some(f), Some(x), Some(y), Some(range)) =
        (symbolic, &a.dims, &b.dims, dtype.int_range())
    {
        let n = if x.len() == 1 { y.len() } else { x.len() };
        let at = |v: &[Dim], i: usize| v.get(if v.len() == 1 { 0 } else { i }).cloned();
        let element = |i: usize| {
            let (x, y) = (at(x, i)?, at(y, i)?);
            if let (Some(x), Some(y)) = (x.as_const(), y.as_const()) {
                return Some(Dim::from(wrapped(ty.dtype, int(x, y))));
            }
            // What may leave the range of the type wraps, and no expression says how.
            let value = f(&x, &y, cx.symbols)?;
            let bounds = value.bounds(cx.symbols);
            (range.0 <= bounds.lo && bounds.hi <= range.1).then_some(value)
        };
        if let Some(dims) = (0..n).map(element).collect() {
            return Ok(vec![Fact::symbolic(ty, dims)]);
        }
    }
    Ok(vec![Fact::of(ty)])
}

/// An operator on sizes, under the symbols' bounds; `None` where no size says what it gives.
pub(super) type Symbolic = fn(&Dim, &Dim, &Symbols) -> Option<Dim>;

/// The value that an integer type keeps of `v`.
fn wrapped(dtype: DType, v: i64) -> i64 {
    Tensor::from_i64s(dtype, &[], [v]).to_i64s()[0]
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

/// Integers of all sizes and both signs, whose bits look random.
pub(super) fn patterns(dtype: DType, shape: &[usize], salt: i64) -> Tensor {
    let n = shape.iter().product::<usize>();
    let at = |i: usize| {
        let i = i64::try_from(2 * i + 1).unwrap_or(1).wrapping_add(salt);
        let x = i.wrapping_mul(0x5851_f42d_4c95_7f2d);
        x ^ (x >> 29)
    };
    Tensor::from_i64s(dtype, shape, (0..n).map(at))
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
        Domain::Int => &[DType::I64, DType::I32],
        _ => &[DType::F32, DType::I64],
    };
    let shapes: &[[&[usize]; 2]] = &[[&[3, 37], &[3, 37]], [&[2, 1, 5], &[3, 1]], [&[4], &[]]];
    let mut out = Vec::new();
    for d in dtypes {
        for [a, b] in shapes {
            let args = match domain {
                Domain::Int => [patterns(*d, a, 0), patterns(*d, b, 1)],
                _ => [spread(*d, a, lo, hi), spread(*d, b, hi, lo)],
            };
            let args = args.map(Some).to_vec();
            out.push(Sample { attrs: Attrs::none(), args });
        }
    }
    out
}

/// The derivative of `y = f(x)`: `zero`, or the cotangent of x, `|b, x, y, dy| ..`.
macro_rules! unary_vjp {
    (zero) => {
        crate::Vjp::Zero
    };
    ($rule:expr) => {
        crate::Vjp::Rule(|cx| {
            let rule: super::elementwise::UnaryRule = $rule;
            let (x, y, dy) = (cx.arg(0), cx.results[0], cx.cotangent(0)?);
            Ok(vec![Some(rule(cx.b, x, y, dy)?)])
        })
    };
}
pub(super) use unary_vjp;

/// The derivative of `c = f(a, b)`: `zero`, or the cotangents of both, each
/// `|g, [a, b, c], dc| ..`.
macro_rules! binary_vjp {
    (zero) => {
        crate::Vjp::Zero
    };
    ($by_a:expr, $by_b:expr) => {
        crate::Vjp::Rule(|cx| {
            let rules: [super::elementwise::BinaryRule; 2] = [$by_a, $by_b];
            let (values, dc) = ([cx.arg(0), cx.arg(1), cx.results[0]], cx.cotangent(0)?);
            Ok(vec![
                cx.when(0, |cx| rules[0](cx.b, values, dc))?,
                cx.when(1, |cx| rules[1](cx.b, values, dc))?,
            ])
        })
    };
}
pub(super) use binary_vjp;

/// The cotangent of x from x, y and that of y.
pub(super) type UnaryRule = fn(&mut Builder<'_>, Value, Value, Value) -> Result<Value, OpError>;

/// The cotangent of an operand from both, the result and its cotangent.
pub(super) type BinaryRule = fn(&mut Builder<'_>, [Value; 3], Value) -> Result<Value, OpError>;

/// Declares a unary primitive: type, name, ONNX names, domain, sample range, float and integer
/// functions, derivative (see [`unary_vjp`]).
macro_rules! unary {
    ($(#[$doc:meta])* $ty:ident, $name:literal, [$($onnx:literal),*], $domain:ident,
     $lo:literal..$hi:literal, $float:expr, $int:expr, $($vjp:tt)+) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::elementwise::UNARY
            }
            fn onnx(&self) -> &'static [&'static str] {
                &[$($onnx),*]
            }
            fn is_elementwise(&self) -> bool {
                true
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
            fn vjp(&self, _: &crate::Attrs, _: &[Option<crate::TensorType>]) -> crate::Vjp {
                super::elementwise::unary_vjp!($($vjp)+)
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
/// of the operands, the function on symbolic sizes, if any, and last the derivative (see
/// [`binary_vjp`]).
macro_rules! binary {
    ($(#[$doc:meta])* $ty:ident, $name:literal, [$($onnx:literal),*], $domain:ident,
     $lo:literal..$hi:literal, $result:expr, $symbolic:expr, $float:expr, $int:expr,
     $($vjp:tt)+) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::elementwise::BINARY
            }
            fn onnx(&self) -> &'static [&'static str] {
                &[$($onnx),*]
            }
            fn is_elementwise(&self) -> bool {
                true
            }
            fn infer(&self, cx: &crate::InferCx<'_>) -> Result<Vec<crate::Fact>, crate::OpError> {
                use super::elementwise::{Domain, infer_binary};
                infer_binary(cx, Domain::$domain, $result, $symbolic, $int)
            }
            fn body(&self) -> crate::Body {
                crate::Body::Primitive(|cx, args| {
                    super::elementwise::eval_binary(cx, args, $float, $int)
                })
            }
            fn vjp(&self, _: &crate::Attrs, _: &[Option<crate::TensorType>]) -> crate::Vjp {
                super::elementwise::binary_vjp!($($vjp)+)
            }
            fn samples(&self) -> Vec<crate::Sample> {
                use super::elementwise::{Domain, binary_samples};
                binary_samples(Domain::$domain, $lo, $hi)
            }
        }
    };
}
pub(super) use binary;

/// Declares a unary composite on floats: type, name, ONNX names, sample range, expansion,
/// derivative (see [`unary_vjp`]).
macro_rules! activation {
    ($(#[$doc:meta])* $ty:ident, $name:literal, [$($onnx:literal),*], $lo:literal..$hi:literal,
     $expand:expr, $($vjp:tt)+) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::elementwise::UNARY
            }
            fn onnx(&self) -> &'static [&'static str] {
                &[$($onnx),*]
            }
            fn is_elementwise(&self) -> bool {
                true
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
            fn vjp(&self, _: &crate::Attrs, _: &[Option<crate::TensorType>]) -> crate::Vjp {
                super::elementwise::unary_vjp!($($vjp)+)
            }
            fn samples(&self) -> Vec<crate::Sample> {
                use super::elementwise::{Domain, unary_samples};
                unary_samples(Domain::Float, $lo, $hi)
            }
        }
    };
}
pub(super) use activation;

#[cfg(test)]
mod tests {
    use crate::{Attrs, DType, Dim, Fact, Module, Tensor, Value};

    /// What is known of an operator's result on integers, some of them symbolic.
    fn known(op: &str, dtype: DType, a: &[&str], b: &[&str], scalar: bool) -> Fact {
        let mut module = Module::new("m");
        module.symbol("T", 1, 64);
        let mut builder = module.builder("f");
        let mut sizes = |text: &[&str], scalar: bool| -> Value {
            let sizes: Vec<Dim> = text.iter().map(|t| t.parse().unwrap()).collect();
            let attrs = Attrs::none().with("sizes", sizes).with("scalar", scalar);
            builder.op1("size_vector", attrs.with("dtype", dtype), &[]).unwrap()
        };
        let args = [sizes(a, false), sizes(b, scalar)];
        let y = builder.op1(op, Attrs::none(), &args).unwrap();
        builder.fact(y).clone()
    }

    fn dims(op: &str, dtype: DType, a: &str, b: &str) -> Option<String> {
        known(op, dtype, &[a], &[b], true).dims.map(|d| d[0].to_string())
    }

    #[test]
    fn constants_fold_as_the_operator_computes() {
        let is = |v: &str| Some(v.to_string());
        assert_eq!(dims("mul", DType::I64, "4611686018427387904", "4"), is("0"));
        assert_eq!(dims("mul", DType::I32, "1073741824", "6"), is("-2147483648"));
        assert_eq!(dims("div", DType::I64, "-7", "2"), is("-3"));
        assert_eq!(dims("div", DType::I64, "7", "0"), is("0"));
        assert_eq!(dims("sub", DType::U8, "3", "5"), is("254"));
        assert_eq!(dims("mul", DType::I64, "3*T", "2"), is("6*T"));
    }

    #[test]
    fn symbolic_results_that_may_wrap_or_round_otherwise_are_unknown() {
        assert_eq!(dims("mul", DType::I64, "4611686018427387904*T", "4"), None);
        assert_eq!(dims("mul", DType::I32, "1073741824", "T"), None);
        assert_eq!(dims("div", DType::I64, "T - 5", "2"), None, "truncates below zero");
        let half = dims("div", DType::I64, "T", "2");
        assert_eq!(half.as_deref(), Some("floor_div(T, 2)"));
    }

    #[test]
    fn an_empty_vector_meets_a_scalar() {
        let sum = known("add", DType::I64, &[], &["1"], true);
        assert_eq!(sum.constant, Some(Tensor::from_i64s(DType::I64, &[0], [])));
    }
}
