//! `linear_grad`.

use super::{adjoint::exchange, elementwise::spread};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::one,
};

/// Both gradients of `y = x · wᵀ`: `dx = dy · w` and `dw = dyᵀ · x`, in f32.
///
/// One operator, so that what `dy` takes is free once both are there.
/// # Shapes
/// `dy: [T, N]`, `x: [T, K]`, `w: [N, K]`, any floats → `dx: [T, K]` f32, `dw: [N, K]` f32.
pub(super) struct LinearGrad;

static SIGNATURE: Signature = Signature { operands: &[one("dy"), one("x"), one("w")], attrs: &[] };

impl OpDef for LinearGrad {
    fn name(&self) -> &'static str {
        "linear_grad"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (dy, x, w) = (cx.ty(0), cx.ty(1), cx.ty(2));
        if ![dy, x, w].into_iter().all(|ty| ty.dtype.is_float()) {
            return Err(OpError::new(format!("takes floats, got {dy}, {x} and {w}")));
        }
        let ([t, n], [t2, k], [n2, k2]) = (&*dy.shape, &*x.shape, &*w.shape) else {
            let got = format!("takes [T, N], [T, K] and [N, K], got {dy}, {x} and {w}");
            return Err(OpError::new(got));
        };
        cx.same("rows of dy and x", t, t2)?;
        cx.same("columns of dy and rows of w", n, n2)?;
        cx.same("columns of x and w", k, k2)?;
        let f32s = |shape: &[Dim]| Fact::of(TensorType::new(DType::F32, shape.iter().cloned()));
        Ok(vec![f32s(&x.shape), f32s(&w.shape)])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, _, args| {
            let [dy, x, w] = [0, 1, 2].map(|i| args[i].expect("operand"));
            let [dy, x, w] =
                [b.cast(dy, DType::F32)?, b.cast(x, DType::F32)?, b.cast(w, DType::F32)?];
            let dx = b.matmul(dy, w)?;
            let dy = exchange(b, dy, 2, 1)?;
            Ok(vec![dx, b.matmul(dy, x)?])
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        let [Some(dy), Some(x), ..] = args else { return Dim::from(0) };
        dy.elements() * x.shape[1].clone() * Dim::from(4)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Expansion
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |w: DType, [t, n, k]: [usize; 3]| Sample {
            attrs: Attrs::none(),
            args: vec![
                Some(spread(DType::F32, &[t, n], -1.0, 2.0)),
                Some(spread(DType::F32, &[t, k], -1.0, 1.5)),
                Some(spread(w, &[n, k], 1.0, -1.0)),
            ],
        };
        vec![
            sample(DType::F32, [7, 37, 19]),
            sample(DType::F32, [1, 3, 1]),
            sample(DType::Bf16, [20, 5, 33]),
        ]
    }
}
