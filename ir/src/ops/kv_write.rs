//! `kv_write`: keys and values into paged memory.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    op::{one, same_dtype},
};

/// Writes keys and values of tokens to their slots and returns the memories after the write.
///
/// Slot `s` is entry `s % BS` of block `s / BS`; a negative slot writes nothing. Keys lie
/// transposed within a block, so that sixteen of them load as one vector. Kwon et al. 2023,
/// arXiv:2309.06180.
/// # Shapes
/// `k_cache: [NB, Hkv, D, BS]`, `v_cache: [NB, Hkv, BS, Dv]`, `k: [T, Hkv, D]`, `v: [T, Hkv, Dv]`,
/// `slots: [T]` i32 → both memories.
pub(super) struct KvWrite;

static SIGNATURE: Signature = Signature {
    operands: &[one("k_cache"), one("v_cache"), one("k"), one("v"), one("slots")],
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
        &[(0, 0), (1, 1)]
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
        Ok(vec![Fact::of(kc.clone()), Fact::of(vc.clone())])
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
            vec![
                Tensor::from_f64s(kc.dtype(), kc.shape(), ko),
                Tensor::from_f64s(vc.dtype(), vc.shape(), vo),
            ]
        })
    }
    fn flops(&self, _: &Attrs, _: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        Dim::from(0)
    }
    fn samples(&self) -> Vec<Sample> {
        let slots = Tensor::from_i64s(DType::I32, &[3], [5, 17, -1]);
        let args = [&[2, 3, 5, 16][..], &[2, 3, 16, 7], &[3, 3, 5], &[3, 3, 7]]
            .map(|s| Some(spread(DType::F32, s, -2.0, 2.0)));
        let args = args.into_iter().chain([Some(slots)]).collect();
        vec![Sample { attrs: Attrs::none(), args }]
    }
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
}
