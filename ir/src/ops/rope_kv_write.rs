//! `rope_kv_write`: queries and keys rotated, keys and values into paged memory.

use super::{
    elementwise::spread,
    kv_write::{check_scales, is_scaled, same_shape},
};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, one, optional, same_dtype},
};

/// What lies between a decoder's projections and its attention: [`Rope`](super::rope::Rope) of
/// queries and keys by the same angles, and [`KvWrite`](super::kv_write::KvWrite) of the keys and
/// of the values, each rounded to the type of its memory once; of memories in i8 and f8e4m3 by
/// [`QuantizeHeads`](super::quantize_heads::QuantizeHeads), whose scales have memories too.
/// # Shapes
/// `k_cache: [NB, Hkv, D, BS]`, `v_cache: [NB, Hkv, BS, Dv]`, `q: f32 [T, Hq, D]`, `k: f32 [T, Hkv,
/// D]`, `v: [T, Hkv, Dv]`, `slots: i32 [T]`, `cos, sin: f32 [T, R/2]` with R ≤ D → both memories
/// after the write, and the rotated queries. Memories are f32, bf16 or f16; or i8 or f8e4m3, and
/// then with `k_scales, v_scales: f32 [NB, Hkv, BS]`, which come behind the queries.
pub(super) struct RopeKvWrite;

static SIGNATURE: Signature = Signature {
    operands: &[
        one("k_cache"),
        one("v_cache"),
        one("q"),
        one("k"),
        one("v"),
        one("slots"),
        one("cos"),
        one("sin"),
        optional("k_scales"),
        optional("v_scales"),
    ],
    attrs: &[defaulted("style", AttrKind::Str, || Attr::from("half"))],
};

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::Bf16 | DType::F16)
}

impl OpDef for RopeKvWrite {
    fn name(&self) -> &'static str {
        "rope_kv_write"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1), (3, 8), (4, 9)]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let [kc, vc, q, k, v, slots, cos, sin] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| cx.ty(i));
        for rotated in [q, k, cos, sin] {
            if rotated.dtype != DType::F32 {
                return Err(OpError::new(format!("rotates f32, got {rotated}")));
            }
        }
        same_dtype(kc.dtype, vc.dtype)?;
        if !is_float(kc.dtype) && !is_scaled(kc.dtype) || !is_float(v.dtype) {
            return Err(OpError::new(format!("cannot write {v} to {vc}")));
        }
        if slots.dtype != DType::I32 {
            return Err(OpError::new(format!("slots are {}, not i32", slots.dtype)));
        }
        if cos.equal(sin, cx.symbols) != Some(true) {
            return Err(OpError::new(format!("cos is {cos} but sin is {sin}")));
        }
        let ([nb, h, d, bs], [nb2, h2, bs2, dv]) = (&*kc.shape, &*vc.shape) else {
            return Err(OpError::new(format!("{kc} and {vc} are no memories of keys and values")));
        };
        let ([t, _, d2], [t2, h3, d3], [t3, h4, dv2], [t4], [t5, r]) =
            (&*q.shape, &*k.shape, &*v.shape, &*slots.shape, &*cos.shape)
        else {
            return Err(OpError::new(format!("cannot write {k} and {v} beside {q} by {cos}")));
        };
        cx.same("blocks", nb, nb2)?;
        cx.same("block size", bs, bs2)?;
        for other in [h2, h3, h4] {
            cx.same("key/value heads", h, other)?;
        }
        for other in [d2, d3] {
            cx.same("head size", d, other)?;
        }
        cx.same("value size", dv, dv2)?;
        for other in [t2, t3, t4, t5] {
            cx.same("tokens", t, other)?;
        }
        match (d.as_const(), r.as_const()) {
            (Some(d), Some(r)) if 2 * r <= d => {}
            _ => return Err(OpError::new(format!("cannot rotate 2·{r} of {d} elements"))),
        }
        if !matches!(cx.attrs.str("style"), "half" | "interleaved") {
            return Err(OpError::attr("style", "must be `half` or `interleaved`"));
        }
        let mut results = vec![kc, vc, q];
        if check_scales(cx, &[8, 9])? {
            for scales in [8, 9] {
                same_shape(cx, "scale memory", scales, &[nb, h, bs])?;
                results.push(cx.ty(scales));
            }
        }
        Ok(results.into_iter().map(|ty| Fact::of(ty.clone())).collect())
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [kc, vc, q, k, v, slots, cos, sin] =
                [0, 1, 2, 3, 4, 5, 6, 7].map(|i| args[i].expect("operand"));
            let q = b.op1("rope", attrs.clone(), &[q, cos, sin])?;
            let k = b.op1("rope", attrs.clone(), &[k, cos, sin])?;
            let dtype = b.ty(kc).dtype;
            let write = if is_scaled(dtype) {
                let format = if dtype == DType::I8 { "integers" } else { "e4m3" };
                let mut quantize = |x| {
                    let x = b.cast(x, DType::F32)?;
                    b.op("quantize_heads", Attrs::none().with("format", format), &[Some(x)])
                };
                let (k, v) = (quantize(k)?, quantize(v)?);
                let [k_scales, v_scales] = [8, 9].map(|i| args[i].expect("checked"));
                vec![kc, vc, k[0], v[0], slots, k_scales, v_scales, k[1], v[1]]
            } else {
                vec![kc, vc, b.cast(k, dtype)?, b.cast(v, dtype)?, slots]
            };
            let write: Vec<_> = write.into_iter().map(Some).collect();
            let mut results = b.op("kv_write", Attrs::none(), &write)?;
            results.insert(2, q);
            Ok(results)
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        let rotated = args[2..4].iter().flatten();
        rotated.fold(Dim::from(0), |n, ty| n + ty.elements() * Dim::from(3))
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused(
            "writes memory that steps of serving share; differentiate the function before page_kv",
        )
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |memory: DType, style: &str, d: usize, value: DType| {
            let angles = spread(DType::F32, &[3, 4], -3.0, 3.0).to_f64s();
            let table = |f: fn(f64) -> f64| {
                Tensor::from_f64s(DType::F32, &[3, 4], angles.iter().map(|a| f(*a)))
            };
            let args = [
                spread(memory, &[2, 2, d, 16], -2.0, 2.0),
                spread(memory, &[2, 2, 16, 7], -2.0, 2.0),
                spread(DType::F32, &[3, 4, d], -2.0, 2.0),
                spread(DType::F32, &[3, 2, d], 2.0, -1.0),
                spread(value, &[3, 2, 7], -1.0, 2.0),
                Tensor::from_i64s(DType::I32, &[3], [5, 17, -1]),
                table(f64::cos),
                table(f64::sin),
            ];
            let scales = [&[2, 2, 16][..], &[2, 2, 16]].map(|s| spread(DType::F32, s, 0.0, 0.1));
            let scales = scales.into_iter().filter(|_| is_scaled(memory));
            let args: Vec<Tensor> = args.into_iter().chain(scales).collect();
            Sample {
                attrs: Attrs::none().with("style", style),
                args: args.into_iter().map(Some).collect(),
            }
        };
        vec![
            make(DType::F32, "half", 8, DType::F32),
            make(DType::Bf16, "half", 11, DType::F32),
            make(DType::F16, "interleaved", 8, DType::Bf16),
            make(DType::I8, "half", 11, DType::F32),
            make(DType::F8E4M3, "interleaved", 8, DType::Bf16),
        ]
    }
}
