//! `all_gather`.

use super::collective::{self, AXIS, RANKS, Shard};
use crate::{
    Attrs, Body, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType, Vjp,
    op::{AttrKind, one, optional, required},
};

/// The tensor whose [`Shard`]s the ranks of an axis hold, on each of them.
///
/// What `into` holds does not count: where it is there, the result takes its memory.
/// # Shapes
/// `shard [len]`; `into`, `shape` → `shape`, the attribute, of constant sizes.
pub(super) struct AllGather;

static SIGNATURE: Signature = Signature {
    operands: &[one("shard"), optional("into")],
    attrs: &[AXIS, RANKS, required("shape", AttrKind::Dims)],
};

impl OpDef for AllGather {
    fn name(&self) -> &'static str {
        "all_gather"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 1)]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let ranks = collective::ranks(cx)?;
        let (x, shape) = (cx.ty(0), cx.attrs.dims("shape"));
        let shard = Shard::of(collective::elements(shape)?, cx.attrs.str("axis"), ranks);
        let [len] = &*x.shape else {
            return Err(OpError::new(format!("gathers vectors, got {x}")));
        };
        cx.same("elements of a shard", len, &shard.len)?;
        let whole = TensorType::new(x.dtype, shape.iter().cloned());
        if let Some(into) = cx.args.get(1).copied().flatten()
            && into.ty != whole
        {
            return Err(OpError::new(format!("cannot write {whole} into {}", into.ty)));
        }
        Ok(vec![Fact::of(whole)])
    }
    fn body(&self) -> Body {
        Body::Collective(|cx, args| {
            let shards = collective::of_ranks(args);
            let bytes = shards.iter().flat_map(|shard| shard.to_bytes()).collect();
            let whole = Tensor::from_bytes(shards[0].dtype(), &cx.shape(0), bytes);
            args.iter().map(|_| vec![whole.clone()]).collect()
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let keep = ["axis", "ranks"].map(|name| (name, cx.attrs.get(name).cloned()));
            let attrs = keep.into_iter().fold(Attrs::none(), |attrs, (name, attr)| match attr {
                Some(attr) => attrs.with(name, attr),
                None => attrs,
            });
            let dy = cx.cotangent(0)?;
            let dx = cx.b.op1("reduce_scatter", attrs, &[dy])?;
            let none = cx.args.get(1).map(|_| None);
            Ok([Some(dx)].into_iter().chain(none).collect())
        })
    }
    fn samples(&self) -> Vec<Sample> {
        collective::samples(|attrs, shape| {
            let dims: Vec<Dim> = shape.iter().map(|n| Dim::from(*n)).collect();
            (attrs.with("shape", dims), vec![shape.iter().product()])
        })
    }
}
