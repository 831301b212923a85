//! `moe_route`: which experts a token goes to.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType,
    Vjp,
    op::{AttrKind, defaulted, one, required},
};

/// The `k` experts of each token and their weights, from a router's logits.
///
/// With `softmax = "before"` the `k` largest probabilities are taken (Shazeer et al. 2017,
/// arXiv:1701.06538, as Mixtral and Qwen do), with `"after"` the softmax is over the `k` largest
/// logits. `renormalise` divides the weights by their sum. The experts of a token come in order of
/// their weight, of equal ones the lower number first.
/// # Shapes
/// `logits: [T, E]` → `weights: [T, k]` of the same element type, `experts: [T, k]` i32.
/// # Errors
/// Where there are fewer than `k` experts.
pub(super) struct MoeRoute;

static SIGNATURE: Signature = Signature {
    operands: &[one("logits")],
    attrs: &[
        required("k", AttrKind::Int),
        defaulted("softmax", AttrKind::Str, || Attr::from("before")),
        defaulted("renormalise", AttrKind::Bool, || false.into()),
    ],
};

impl OpDef for MoeRoute {
    fn name(&self) -> &'static str {
        "moe_route"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let logits = cx.ty(0);
        let ([t, e], true) = (&*logits.shape, logits.dtype.is_float()) else {
            return Err(OpError::new(format!("takes floats [T, E], got {logits}")));
        };
        let k = cx.attrs.int("k");
        if k < 1 || e.bounds(cx.symbols).lo < k {
            return Err(OpError::attr("k", format_args!("is {k}, of {e} experts")));
        }
        if !matches!(cx.attrs.str("softmax"), "before" | "after") {
            return Err(OpError::attr("softmax", "is neither \"before\" nor \"after\""));
        }
        let shape = [t.clone(), Dim::from(k)];
        let types = [logits.dtype, DType::I32].map(|d| TensorType::new(d, shape.clone()));
        Ok(types.map(Fact::of).to_vec())
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let logits = args[0].expect("operand");
            let before = attrs.str("softmax") == "before";
            let softmax = Attrs::none().with("axis", -1i64);
            let from = if before { b.op1("softmax", softmax.clone(), &[logits])? } else { logits };
            let k = Attrs::none().with("k", vec![Dim::from(attrs.int("k"))]);
            let top = b.op("topk", k, &[Some(from)])?;
            let mut weights = top[0];
            if !before {
                weights = b.op1("softmax", softmax, &[weights])?;
            }
            if attrs.bool("renormalise") {
                let sum = b.reduce("reduce_sum", weights, &[-1], true)?;
                weights = b.div(weights, sum)?;
            }
            Ok(vec![weights, b.cast(top[1], DType::I32)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Expansion
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |softmax: &str, renormalise: bool| Sample {
            attrs: Attrs::none()
                .with("k", 3i64)
                .with("softmax", softmax)
                .with("renormalise", renormalise),
            args: vec![Some(spread(DType::F32, &[5, 11], -2.0, 2.0))],
        };
        vec![make("before", true), make("before", false), make("after", false)]
    }
}
