//! `embedding_grad`.

use super::adjoint::{from_front, inside};
use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, normalize_axis, one, required},
};

/// Gradient of a table that `gather` picked rows from along axis 0: row `n` is the sum of `dy[t]`
/// over the tokens with `ids[t] = n`, from the first token on, in f32.
///
/// Negative ids count from the end; one out of range adds nothing. `rows` is one size, which may be
/// symbolic.
/// # Shapes
/// `dy: [T, D]`, `ids: [T]` i32 or i64 → `[rows, D]` f32.
pub(super) struct EmbeddingGrad;

static SIGNATURE: Signature =
    Signature { operands: &[one("dy"), one("ids")], attrs: &[required("rows", AttrKind::Dims)] };

impl OpDef for EmbeddingGrad {
    fn name(&self) -> &'static str {
        "embedding_grad"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (dy, ids) = (cx.ty(0), cx.ty(1));
        if !dy.dtype.is_float() || !matches!(ids.dtype, DType::I32 | DType::I64) {
            return Err(OpError::new(format!("takes floats and i32 or i64, got {dy} and {ids}")));
        }
        let ([t, d], [t2]) = (&*dy.shape, &*ids.shape) else {
            return Err(OpError::new(format!("takes [T, D] and [T], got {dy} and {ids}")));
        };
        cx.same("tokens", t, t2)?;
        let rows = match cx.attrs.dims("rows") {
            [rows] if rows.bounds(cx.symbols).hi >= 0 => rows.clone(),
            rows => {
                return Err(OpError::attr("rows", format_args!("is {rows:?}, not one size")));
            }
        };
        Ok(vec![Fact::of(TensorType::new(DType::F32, [rows, d.clone()]))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [dy, ids] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let [_, d] = *dy.shape() else { unreachable!("inferred") };
            let [rows, _] = *cx.shape(0) else { unreachable!("inferred") };
            let mut out = vec![0.0; rows * d];
            for (row, id) in dy.to_f64s().chunks(d.max(1)).zip(ids.to_i64s()) {
                let Some(id) = normalize_axis(id, rows) else { continue };
                for (sum, x) in out[id * d..][..d].iter_mut().zip(row) {
                    *sum += x;
                }
            }
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), out)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        args[0].as_ref().map_or(Dim::from(0), TensorType::elements)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dtable, ids, rows) =
                (cx.cotangent(0)?, cx.arg(1), cx.attrs.dims("rows")[0].clone());
            let ids = from_front(cx.b, ids, &rows)?;
            let fits = inside(cx.b, ids, &rows)?;
            let fits = cx.b.reshape(fits, vec![cx.ty(1).shape[0].clone(), Dim::from(1)])?;
            let picked = cx.b.gather(dtable, ids, 0)?;
            let zero = cx.b.scalar(cx.b.ty(picked).dtype, 0.0)?;
            Ok(vec![Some(cx.b.select(fits, picked, zero)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |dtype: DType, d: usize, ids: &[i64]| Sample {
            attrs: Attrs::none().with("rows", 7i64),
            args: vec![
                Some(spread(dtype, &[ids.len(), d], -1.0, 1.0)),
                Some(Tensor::from_i64s(DType::I32, &[ids.len()], ids.iter().copied())),
            ],
        };
        vec![
            sample(DType::F32, 37, &[3, 0, 6, 3, -1, 7, -8, 3]),
            sample(DType::Bf16, 130, &[1, 1, 2]),
            sample(DType::F32, 5, &[]),
        ]
    }
}
