//! `cublaslt_linear`: product with a weight as a checkpoint holds it, by NVIDIA's library.

use super::elementwise::spread;
use super::linear::check_added;
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType,
    Vjp,
    op::{AttrKind, defaulted, one, optional, same_dtype},
};

/// `x · wᵀ + bias + residual`, what `linear` computes of the same rounded `x`, by cuBLASLt.
///
/// The library chooses its kernel, and the order of its sums, by the number of rows: of one row it
/// may give other bits in another batch, which `linear` never does. So this is a choice of the
/// user's, and nothing rewrites to it unasked. Sums are f32. It has no derivative.
/// # Shapes
/// `x: [.., K]` and `w: [n, K]`, both bf16 or both f16, `bias: [n]`, `residual: [.., n]` →
/// `[.., n]`; `bias`, `residual` and the result are of the attribute `dtype`, f32 or that of `x`.
/// # Errors
/// [`OpError`] where inner dimensions differ, or operands are of other types.
pub(super) struct CublasltLinear;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), optional("bias"), optional("residual")],
    attrs: &[defaulted("dtype", AttrKind::DType, || Attr::from(DType::F32))],
};

impl OpDef for CublasltLinear {
    fn name(&self) -> &'static str {
        "cublaslt_linear"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (x, w, dtype) = (cx.ty(0), cx.ty(1), cx.attrs.dtype("dtype"));
        let ([lead @ .., k], [n, k2]) = (&*x.shape, &*w.shape) else {
            return Err(OpError::new(format!("takes [.., K] and [n, K], got {x} and {w}")));
        };
        if !matches!(x.dtype, DType::Bf16 | DType::F16) {
            return Err(OpError::new(format!("multiplies bf16 or f16, got {x}")));
        }
        same_dtype(x.dtype, w.dtype)?;
        cx.same("inner dimension", k, k2)?;
        if dtype != DType::F32 && dtype != x.dtype {
            return Err(OpError::attr("dtype", format_args!("is {dtype}, not f32 or {}", x.dtype)));
        }
        let ty = TensorType::new(dtype, lead.iter().cloned().chain([n.clone()]));
        check_added(cx, &ty)?;
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [x, w] = [0, 1].map(|i| args[i].expect("operand"));
            let Some(n) = b.ty(w).shape[0].as_const() else {
                return Err(OpError::new("the number of columns is not constant"));
            };
            let x = b.cast(x, attrs.dtype("dtype"))?;
            let w = b.transpose(w, &[1, 0])?;
            let w = b.op1("pack", Attrs::none(), &[w])?;
            let optional = |i: usize| args.get(i).copied().flatten();
            let operands = [Some(x), Some(w), optional(2), optional(3)];
            b.op("linear", Attrs::none().with("n", n), &operands)
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let k = args[0].as_ref().and_then(|a| a.shape.last().cloned()).unwrap_or_default();
        results[0].elements() * k * Dim::from(2i64)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is for programs that serve: a training step is compiled without a library")
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |rows: usize, half: DType, dtype: DType, is_whole: bool| {
            let f = |dtype, s: &[usize]| Some(spread(dtype, s, -1.0, 1.0));
            let mut args = vec![f(half, &[rows, 19]), Some(spread(half, &[37, 19], -0.5, 0.5))];
            if is_whole {
                args.extend([f(dtype, &[37]), f(dtype, &[rows, 37])]);
            }
            Sample { attrs: Attrs::none().with("dtype", dtype), args }
        };
        vec![
            make(1, DType::Bf16, DType::F32, false),
            make(3, DType::F16, DType::F32, true),
            make(7, DType::Bf16, DType::F32, true),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;

    /// What the operator says of operands of these types.
    fn refused(x: TensorType, w: TensorType, dtype: DType) -> String {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let (x, w) = (b.param("x", x).unwrap(), b.param("w", w).unwrap());
        let attrs = Attrs::none().with("dtype", dtype);
        b.op1("cublaslt_linear", attrs, &[x, w]).unwrap_err().to_string()
    }

    #[test]
    fn operands_that_the_library_does_not_multiply_are_refused() {
        let ty = |dtype, shape: [i64; 2]| TensorType::new(dtype, shape);
        let (x, w) = (ty(DType::Bf16, [3, 8]), ty(DType::Bf16, [16, 8]));
        let why = refused(ty(DType::F32, [3, 8]), w.clone(), DType::F32);
        assert!(why.contains("multiplies bf16 or f16"), "{why}");
        let why = refused(x.clone(), ty(DType::F16, [16, 8]), DType::F32);
        assert!(why.contains("f16"), "{why}");
        let why = refused(x.clone(), ty(DType::Bf16, [16, 9]), DType::F32);
        assert!(why.contains("inner dimension"), "{why}");
        let why = refused(x, w, DType::F16);
        assert!(why.contains("not f32 or bf16"), "{why}");
    }
}
