//! `reduce_mean`.

use crate::{
    Attrs, Body, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::normalize_axis,
};

/// Mean over axes, kept with extent one where `keep` is set.
pub(super) struct ReduceMean;

impl OpDef for ReduceMean {
    fn name(&self) -> &'static str {
        "reduce_mean"
    }
    fn signature(&self) -> &'static Signature {
        &super::reduction::SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        super::reduction::infer(cx)
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let x = args[0].expect("operand");
            let sum = b.op1("reduce_sum", attrs.clone(), &[x])?;
            let (dtype, rank) = (b.ty(x).dtype, b.ty(x).rank());
            let axes = attrs.ints("axes").iter().filter_map(|a| normalize_axis(*a, rank));
            let n = axes.fold(Dim::from(1i64), |n, a| n * b.ty(x).shape[a].clone());
            let n = match n.as_const() {
                Some(n) => b.scalar(dtype, n as f64)?,
                None => {
                    let size = Attrs::none().with("sizes", vec![n]).with("scalar", true);
                    let size = b.op1("size_vector", size, &[])?;
                    b.cast(size, dtype)?
                }
            };
            Ok(vec![b.div(sum, n)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Expansion
    }
    fn samples(&self) -> Vec<Sample> {
        super::reduction::samples()
    }
}
