//! `slice`.

use super::adjoint::{flip, lay};
use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType,
    Vjp,
    op::{AttrKind, defaulted, normalize_axis, one, required},
};

/// Elements `range[0], range[0] + step, ..` up to, not including, `range[1]` along one axis.
///
/// With a negative step the range runs downwards, and `-1` ends it before the first element.
pub(super) struct Slice;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[
        required("axis", AttrKind::Int),
        required("range", AttrKind::Dims),
        defaulted("step", AttrKind::Int, || Attr::Int(1)),
    ],
};

impl OpDef for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_view(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        let axis = cx.axis("axis", x.rank())?;
        let [start, end] = cx.attrs.dims("range") else {
            return Err(OpError::attr("range", "must be <start, end>"));
        };
        let step = cx.attrs.int("step");
        let Some(stride) = step.checked_abs().filter(|s| *s > 0) else {
            return Err(OpError::attr("step", format_args!("is {step}, which steps nowhere")));
        };
        let (first, last) = if step > 0 { (start, end) } else { (end, start) };
        let floor = if step > 0 { 0 } else { -1 };
        let (lo, hi) = (first.bounds(cx.symbols), (x.shape[axis].clone() - last.clone()));
        if lo.hi < floor || hi.bounds(cx.symbols).hi < i64::from(step < 0) {
            let why = format!("{start}..{end} leaves the axis of {}", x.shape[axis]);
            return Err(OpError::attr("range", why));
        }
        let n = (last.clone() - first.clone()).ceil_div(stride);
        if n.bounds(cx.symbols).hi < 0 {
            return Err(OpError::attr("range", format!("{start}..{end} is empty backwards")));
        }
        let mut ty = x.clone();
        ty.shape[axis] = n;
        let known = (start.as_const(), ty.shape[axis].as_const());
        if let (Some(dims), (Some(s), Some(n)), 1) = (&cx.arg(0).dims, known, x.rank()) {
            let at = |i: i64| usize::try_from(s + i * step).ok().and_then(|i| dims.get(i));
            if let Some(dims) = (0..n).map(|i| at(i).cloned()).collect() {
                return Ok(vec![Fact::symbolic(ty, dims)]);
            }
        }
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let axis = normalize_axis(cx.attrs.int("axis"), x.rank()).expect("inferred");
            let start = cx.attrs.dims("range")[0].eval(cx.env).expect("symbols are bound");
            // A range of no elements may begin before the first.
            let start = usize::try_from(start.max(0)).expect("64-bit");
            let step = isize::try_from(cx.attrs.int("step")).expect("64-bit");
            vec![x.slice(axis, start, cx.shape(0)[axis], step)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, ty) = (cx.cotangent(0)?, cx.ty(0));
            let axis = normalize_axis(cx.attrs.int("axis"), ty.rank()).expect("inferred");
            let (start, step) = (cx.attrs.dims("range")[0].clone(), cx.attrs.int("step"));
            if step > 0 {
                return Ok(vec![Some(lay(cx.b, dy, axis, (start, step), &ty.shape[axis])?)]);
            }
            let n = cx.b.ty(dy).shape[axis].clone();
            let first = start + (n - Dim::from(1)) * Dim::from(step);
            let dy = flip(cx.b, dy, axis)?;
            Ok(vec![Some(lay(cx.b, dy, axis, (first, -step), &ty.shape[axis])?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[5, 21], -1.0, 1.0));
        let make = |axis: i64, start: i64, end: i64, step: i64| Sample {
            attrs: Attrs::none()
                .with("axis", axis)
                .with("range", vec![Dim::from(start), Dim::from(end)])
                .with("step", step),
            args: vec![x.clone()],
        };
        vec![make(0, 1, 4, 1), make(-1, 3, 20, 3), make(1, 20, -1, -1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Module, TensorType};

    #[test]
    fn steps_without_a_length_are_refused() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let x = b.param("x", TensorType::new(DType::F32, [4i64])).unwrap();
        for step in [0, i64::MIN] {
            let range = vec![Dim::from(3i64), Dim::from(-1i64)];
            let attrs = Attrs::none().with("axis", 0i64).with("range", range).with("step", step);
            let why = b.op1("slice", attrs, &[x]).unwrap_err().to_string();
            assert!(why.contains("steps nowhere"), "{why}");
        }
    }
}
