//! What the reductions have in common.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, DType, EvalCx, Fact, InferCx, OpError, Sample, Signature, Tensor, TensorType,
    op::{AttrKind, defaulted, one, required},
    tensor::for_each_index,
};

pub(super) static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[
        required("axes", AttrKind::Ints),
        defaulted("keep", AttrKind::Bool, || Attr::Bool(false)),
    ],
};

pub(super) fn infer(cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
    let x = cx.ty(0);
    let axes = cx.axes("axes", x.rank())?;
    let keep = cx.attrs.bool("keep");
    let shape = x.shape.iter().enumerate().filter_map(|(i, d)| match axes.contains(&i) {
        true => keep.then(|| 1i64.into()),
        false => Some(d.clone()),
    });
    Ok(vec![Fact::of(TensorType::new(x.dtype, shape))])
}

/// Folds each group of elements, first to last in row-major order, in the operand's number system:
/// each function comes with the value to start from.
pub(super) fn eval(
    cx: &EvalCx<'_>,
    args: &[Option<Tensor>],
    (init, float): (f64, fn(f64, f64) -> f64),
    (first, int): (i64, fn(i64, i64) -> i64),
) -> Vec<Tensor> {
    let x = args[0].as_ref().expect("operand");
    let (dtype, shape) = (cx.results[0].dtype, cx.shape(0));
    vec![if x.dtype().is_float() {
        Tensor::from_f64s(dtype, &shape, folded(cx, x, &x.to_f64s(), init, float))
    } else {
        Tensor::from_i64s(dtype, &shape, folded(cx, x, &x.to_i64s(), first, int))
    }]
}

fn folded<T: Copy>(
    cx: &EvalCx<'_>,
    x: &Tensor,
    values: &[T],
    init: T,
    fold: fn(T, T) -> T,
) -> Vec<T> {
    let rank = x.rank();
    let axes: Vec<usize> = cx
        .attrs
        .ints("axes")
        .iter()
        .map(|a| crate::op::normalize_axis(*a, rank).expect("inferred"))
        .collect();
    let kept: Vec<usize> =
        x.shape().iter().enumerate().map(|(i, d)| if axes.contains(&i) { 1 } else { *d }).collect();
    let mut out = vec![init; kept.iter().product()];
    let mut next = 0;
    for_each_index(x.shape(), |index| {
        let at = index.iter().zip(&kept).fold(0, |n, (i, d)| n * d + if *d == 1 { 0 } else { *i });
        out[at] = fold(out[at], values[next]);
        next += 1;
    });
    out
}

pub(super) fn samples() -> Vec<Sample> {
    let make = |shape: &[usize], axes: &[i64], keep: bool| Sample {
        attrs: Attrs::none().with("axes", axes.to_vec()).with("keep", keep),
        args: vec![Some(spread(DType::F32, shape, -1.5, 1.5))],
    };
    vec![
        make(&[3, 37], &[-1], true),
        make(&[3, 4, 5], &[1], false),
        make(&[3, 4, 5], &[0, 2], false),
        make(&[6], &[0], false),
    ]
}

/// Declares a reducing primitive: type, name, then start value and fold of floats and of integers.
macro_rules! reduction {
    ($(#[$doc:meta])* $ty:ident, $name:literal, $float:expr, $int:expr) => {
        $(#[$doc])*
        pub(super) struct $ty;

        impl crate::OpDef for $ty {
            fn name(&self) -> &'static str {
                $name
            }
            fn signature(&self) -> &'static crate::Signature {
                &super::reduction::SIGNATURE
            }
            fn infer(&self, cx: &crate::InferCx<'_>) -> Result<Vec<crate::Fact>, crate::OpError> {
                super::reduction::infer(cx)
            }
            fn body(&self) -> crate::Body {
                crate::Body::Primitive(|cx, args| {
                    super::reduction::eval(cx, args, $float, $int)
                })
            }
            fn samples(&self) -> Vec<crate::Sample> {
                super::reduction::samples()
            }
        }
    };
}
pub(super) use reduction;

#[cfg(test)]
mod tests {
    use crate::{Attrs, DType, Env, Interpreter, Module, Precision, Tensor, TensorType};

    /// An operator on one `i64` operand, evaluated in either precision.
    fn eval(op: &str, attrs: Attrs, x: &[i64]) -> Vec<i64> {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let p = b.param("x", TensorType::new(DType::I64, [x.len()])).unwrap();
        let y = b.op1(op, attrs, &[p]).unwrap();
        b.output("y", y);
        let graph = b.finish();
        let none = indexmap::IndexMap::new();
        let x = Tensor::from_i64s(DType::I64, &[x.len()], x.iter().copied());
        let run = |p| {
            Interpreter::new(&module, &none, p).eval(&graph, std::slice::from_ref(&x), &Env::new())
        };
        let [narrow, wide] = [Precision::F32, Precision::F64].map(|p| run(p).unwrap());
        assert_eq!(narrow, wide);
        narrow[0].to_i64s()
    }

    #[test]
    fn integers_are_summed_as_integers_and_wrap() {
        const ODD: i64 = (1 << 53) + 1;
        let axes = || Attrs::none().with("axes", vec![0]);
        assert_eq!(eval("reduce_sum", axes(), &[ODD, 0]), [ODD]);
        assert_eq!(eval("reduce_sum", axes(), &[i64::MAX, 1]), [i64::MIN]);
        assert_eq!(eval("reduce_prod", axes(), &[ODD, 3]), [3 * ODD]);
        assert_eq!(eval("reduce_max", axes(), &[ODD - 1, ODD]), [ODD]);
        assert_eq!(eval("reduce_min", axes(), &[ODD + 1, ODD]), [ODD]);
        let axis = Attrs::none().with("axis", 0i64);
        assert_eq!(eval("cumsum", axis, &[ODD, 2, 4]), [ODD, ODD + 2, ODD + 6]);
    }
}
