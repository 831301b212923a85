//! What the reductions have in common.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, DType, Dim, EvalCx, Fact, InferCx, OpError, Sample, Signature, Tensor, TensorType,
    Value, VjpCx,
    op::{AttrKind, defaulted, normalize_axis, one, required},
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

/// A reduced value, of the reduction that is differentiated, repeated along the axes that it lacks.
pub(super) fn repeated(cx: &mut VjpCx<'_, '_>, reduced: Value) -> Result<Value, OpError> {
    let shape = cx.ty(0).shape;
    let axes = axes(cx);
    let kept = shape.iter().enumerate();
    let kept = kept.map(|(i, d)| if axes.contains(&i) { Dim::from(1) } else { d.clone() });
    let v = cx.b.reshape(reduced, kept.collect())?;
    cx.b.op1("broadcast_to", Attrs::none().with("shape", shape.to_vec()), &[v])
}

/// The reduced axes, counted from the front.
pub(super) fn axes(cx: &VjpCx<'_, '_>) -> Vec<usize> {
    let rank = cx.ty(0).rank();
    cx.attrs.ints("axes").iter().filter_map(|a| normalize_axis(*a, rank)).collect()
}

/// The derivative of an extremum: its cotangent, shared evenly among the elements that equal it.
pub(super) fn extremum(cx: &mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError> {
    let (x, dtype, dy) = (cx.arg(0), cx.ty(0).dtype, cx.cotangent(0)?);
    let y = repeated(cx, cx.results[0])?;
    let hit = cx.b.op1("equal", Attrs::none(), &[x, y])?;
    let one = cx.b.cast(hit, dtype)?;
    let axes: Vec<i64> = axes(cx).into_iter().map(|a| a as i64).collect();
    let count = cx.b.reduce("reduce_sum", one, &axes, cx.attrs.bool("keep"))?;
    let share = cx.b.div(dy, count)?;
    let share = repeated(cx, share)?;
    let zero = cx.b.scalar(dtype, 0.0)?;
    Ok(vec![Some(cx.b.select(hit, share, zero)?)])
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

/// Declares a reducing primitive: type, name, then start value and fold of floats and of
/// integers, and the rule of its derivative.
macro_rules! reduction {
    ($(#[$doc:meta])* $ty:ident, $name:literal, $float:expr, $int:expr, $vjp:expr) => {
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
            fn vjp(&self, _: &crate::Attrs, _: &[Option<crate::TensorType>]) -> crate::Vjp {
                crate::Vjp::Rule($vjp)
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
