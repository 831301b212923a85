//! `kv_write`: keys and values into paged memory.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{one, optional, same_dtype},
};

/// Writes keys and values of tokens to their slots and returns the memories after the write.
///
/// Slot `s` is entry `s % BS` of block `s / BS`; a negative slot writes nothing. Keys lie
/// transposed within a block, so that sixteen of them load as one vector. Kwon et al. 2023,
/// arXiv:2309.06180.
///
/// Keys and values are of their memory's type. Those in i8 or f8e4m3 come with the scales of
/// [`QuantizeHeads`](super::quantize_heads::QuantizeHeads), which have memories of their own; all
/// four scale operands are there or none.
/// # Shapes
/// `k_cache: [NB, Hkv, D, BS]`, `v_cache: [NB, Hkv, BS, Dv]`, `k: [T, Hkv, D]`, `v: [T, Hkv, Dv]`,
/// `slots: [T]` i32 → both memories. With scales: `k_scales, v_scales: f32 [NB, Hkv, BS]`,
/// `k_scale, v_scale: f32 [T, Hkv]` → all four memories.
pub(super) struct KvWrite;

static SIGNATURE: Signature = Signature {
    operands: &[
        one("k_cache"),
        one("v_cache"),
        one("k"),
        one("v"),
        one("slots"),
        optional("k_scales"),
        optional("v_scales"),
        optional("k_scale"),
        optional("v_scale"),
    ],
    attrs: &[],
};

impl OpDef for KvWrite {
    fn name(&self) -> &'static str {
        "kv_write"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1), (2, 5), (3, 6)]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (kc, vc, k, v) = (cx.ty(0), cx.ty(1), cx.ty(2), cx.ty(3));
        same_dtype(kc.dtype, k.dtype)?;
        same_dtype(vc.dtype, v.dtype)?;
        if cx.ty(4).dtype != DType::I32 {
            return Err(OpError::new(format!("slots are {}, not i32", cx.ty(4))));
        }
        let ([nb, h, d, bs], [nb2, h2, bs2, dv], [t, h3, d3], [t4, h4, dv4], [t5]) =
            (&*kc.shape, &*vc.shape, &*k.shape, &*v.shape, &*cx.ty(4).shape)
        else {
            return Err(OpError::new(format!("cannot write {k} and {v} to {kc} and {vc}")));
        };
        cx.same("blocks", nb, nb2)?;
        cx.same("block size", bs, bs2)?;
        for other in [h2, h3, h4] {
            cx.same("key/value heads", h, other)?;
        }
        cx.same("key size", d, d3)?;
        cx.same("value size", dv, dv4)?;
        cx.same("tokens", t, t4)?;
        cx.same("tokens", t, t5)?;
        let mut results = vec![Fact::of(kc.clone()), Fact::of(vc.clone())];
        if check_scales(cx, &[5, 6, 7, 8])? {
            for (memory, scale) in [(5, 7), (6, 8)] {
                same_shape(cx, "scale memory", memory, &[nb, h, bs])?;
                same_shape(cx, "scales", scale, &[t, h])?;
                results.push(Fact::of(cx.ty(memory).clone()));
            }
        }
        Ok(results)
    }
    fn body(&self) -> Body {
        Body::Primitive(|_, args| {
            let [kc, vc, k, v, slots] = [0, 1, 2, 3, 4].map(|i| args[i].as_ref().expect("operand"));
            let [_, heads, d, bs] = *kc.shape() else { unreachable!("inferred") };
            let dv = v.shape()[2];
            let (mut ko, mut vo) = (kc.to_f64s(), vc.to_f64s());
            let (k, v) = (k.to_f64s(), v.to_f64s());
            for (t, slot) in slots.to_i64s().into_iter().enumerate() {
                let Ok(slot) = usize::try_from(slot) else { continue };
                for h in 0..heads {
                    let block = (slot / bs) * heads + h;
                    for e in 0..d {
                        ko[(block * d + e) * bs + slot % bs] = k[(t * heads + h) * d + e];
                    }
                    let row = &v[(t * heads + h) * dv..][..dv];
                    vo[(block * bs + slot % bs) * dv..][..dv].copy_from_slice(row);
                }
            }
            let mut results = vec![
                Tensor::from_f64s(kc.dtype(), kc.shape(), ko),
                Tensor::from_f64s(vc.dtype(), vc.shape(), vo),
            ];
            let scales = [5, 6, 7, 8].map(|i| args.get(i).and_then(Option::as_ref));
            if let [Some(ks), Some(vs), Some(k), Some(v)] = scales {
                for (memory, new) in [(ks, k), (vs, v)] {
                    let (mut all, new) = (memory.to_f64s(), new.to_f64s());
                    for (t, slot) in slots.to_i64s().into_iter().enumerate() {
                        let Ok(slot) = usize::try_from(slot) else { continue };
                        for h in 0..heads {
                            all[((slot / bs) * heads + h) * bs + slot % bs] = new[t * heads + h];
                        }
                    }
                    results.push(Tensor::from_f64s(memory.dtype(), memory.shape(), all));
                }
            }
            results
        })
    }
    fn flops(&self, _: &Attrs, _: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        Dim::from(0)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused(
            "writes memory that steps of serving share; differentiate the function before page_kv",
        )
    }
    fn samples(&self) -> Vec<Sample> {
        let slots = Tensor::from_i64s(DType::I32, &[3], [5, 17, -1]);
        let memories = |dtype: DType| {
            let args = [&[2, 3, 5, 16][..], &[2, 3, 16, 7], &[3, 3, 5], &[3, 3, 7]]
                .map(|s| Some(spread(dtype, s, -100.0, 100.0)));
            args.into_iter().chain([Some(slots.clone())]).collect()
        };
        let scales = [&[2, 3, 16][..], &[2, 3, 16], &[3, 3], &[3, 3]]
            .map(|s| Some(spread(DType::F32, s, 0.0, 0.1)));
        let sample = |args| Sample { attrs: Attrs::none(), args };
        let quantized = [DType::I8, DType::F8E4M3].map(|d| [memories(d), scales.to_vec()].concat());
        let floats = [DType::F32, DType::Bf16, DType::F16].map(memories);
        floats.into_iter().chain(quantized).map(sample).collect()
    }
}

/// Whether keys and values of this type have scales.
pub(super) fn is_scaled(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::F8E4M3)
}

/// Whether the operands `scales` are there: all of them where the memory that is operand 1 is of
/// eight bits, and none elsewhere.
pub(super) fn check_scales(cx: &InferCx<'_>, scales: &[usize]) -> Result<bool, OpError> {
    let given = |i: &usize| cx.args.get(*i).copied().flatten().is_some();
    let scaled = is_scaled(cx.ty(1).dtype);
    if scales.iter().all(given) == scaled && scales.iter().any(given) == scaled {
        return Ok(scaled);
    }
    Err(OpError::new("keys and values have scales where they are i8 or f8e4m3, and only there"))
}

/// Checks that an operand is f32 of this shape.
pub(super) fn same_shape(
    cx: &InferCx<'_>,
    what: &str,
    operand: usize,
    shape: &[&Dim],
) -> Result<(), OpError> {
    let ty = cx.ty(operand);
    if ty.dtype != DType::F32 || ty.rank() != shape.len() {
        return Err(OpError::new(format!("{what} {ty} must be f32 of {} axes", shape.len())));
    }
    ty.shape.iter().zip(shape).try_for_each(|(a, b)| cx.same(what, a, b))
}

#[cfg(test)]
mod tests {
    use crate::{Attrs, DType, Module, TensorType};

    #[test]
    fn slots_must_be_of_the_type_that_kernels_read() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let shapes: [&[i64]; 4] = [&[2, 3, 5, 16], &[2, 3, 16, 7], &[3, 3, 5], &[3, 3, 7]];
        let mut args: Vec<_> = (0..4)
            .map(|i| {
                let ty = TensorType::new(DType::F32, shapes[i].iter().copied());
                b.param(&i.to_string(), ty).ok()
            })
            .collect();
        args.push(b.param("slots", TensorType::new(DType::I64, [3i64])).ok());
        let why = b.op("kv_write", Attrs::none(), &args).unwrap_err().to_string();
        assert_eq!(why, "kv_write: slots are i64[3], not i32");
    }

    #[test]
    fn eight_bits_have_scales_and_nothing_else_has() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let mut param = |name: &str, dtype, shape: &[i64]| {
            b.param(name, TensorType::new(dtype, shape.iter().copied())).ok()
        };
        let shapes: [&[i64]; 4] = [&[2, 3, 5, 16], &[2, 3, 16, 7], &[4, 3, 5], &[4, 3, 7]];
        let mut memories = |dtype: DType| {
            let mut args: Vec<_> =
                shapes.iter().map(|s| param(&format!("{dtype}{s:?}"), dtype, s)).collect();
            args.push(param(&format!("slots.{dtype}"), DType::I32, &[4]));
            args
        };
        let (ints, floats) = (memories(DType::I8), memories(DType::Bf16));
        let fp8 = memories(DType::F8E4M3);
        let scales = [&[2, 3, 16][..], &[2, 3, 16], &[4, 3], &[4, 3]];
        let scales: Vec<_> =
            (0..4).map(|i| param(&format!("scale{i}"), DType::F32, scales[i])).collect();
        let wide = param("wide", DType::F32, &[2, 3, 32]);
        let mut write = |args: &[_]| b.op("kv_write", Attrs::none(), args);
        assert_eq!(write(&[&ints[..], &scales].concat()).map(|r| r.len()), Ok(4));
        assert_eq!(write(&[&fp8[..], &scales].concat()).map(|r| r.len()), Ok(4));
        assert_eq!(write(&floats).map(|r| r.len()), Ok(2));
        let only = "keys and values have scales where they are i8 or f8e4m3, and only there";
        let some = [&ints[..], &scales[..3]].concat();
        for wrong in [ints.clone(), fp8, [&floats[..], &scales].concat(), some] {
            assert_eq!(write(&wrong).unwrap_err().to_string(), format!("kv_write: {only}"));
        }
        let why = write(&[&ints[..], &[wide], &scales[1..]].concat()).unwrap_err();
        assert_eq!(why.to_string(), "kv_write: scale memory: 32 and 16 differ");
    }
}
