//! Tensor maps for the emulator.

use ::ptx::{Gpu, Param};
use codegen::cuda::{Swizzle, TensorMap};
use ir::{DType, Env};

/// The 128 bytes for a map of the operand at `address`.
pub(crate) fn encode(gpu: &mut Gpu, map: &TensorMap, address: u64, env: &Env) -> Param {
    let value = |dim: &ir::Dim| u64::try_from(dim.eval(env).unwrap()).unwrap();
    let map = ::ptx::TensorMap {
        base: address,
        elem: match map.dtype {
            DType::F16 => ::ptx::Elem::F16,
            DType::Bf16 => ::ptx::Elem::Bf16,
            DType::U8 => ::ptx::Elem::U8,
            other => panic!("no maps of {other}"),
        },
        dims: map.extents.iter().map(value).collect(),
        strides: map.strides.iter().map(value).collect(),
        box_dims: map.boxes.clone(),
        element_strides: Vec::new(),
        swizzle: match map.swizzle {
            Swizzle::Bytes32 => ::ptx::Swizzle::B32,
            Swizzle::Bytes64 => ::ptx::Swizzle::B64,
            Swizzle::Bytes128 => ::ptx::Swizzle::B128,
        },
        nan_fill: false,
    };
    Param::Bytes(gpu.tensor_map(&map).to_vec())
}
