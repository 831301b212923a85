//! How a program keeps keys and values.

use ir::{DType, Dim, Port, Program};
use serde::Serialize;

/// Memory of keys and values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct KeysValues {
    /// The type, by its name on the command line.
    pub(crate) dtype: &'static str,
    /// Bytes of one position of a sequence, in all layers, scales included.
    pub(crate) bytes_per_token: u64,
}

impl KeysValues {
    /// Of a program's states; `None` where it keeps no keys.
    pub(crate) fn of(program: &Program) -> Option<KeysValues> {
        let keys = program.states.iter().find(|port| port.name.starts_with("k_cache"))?;
        let dtype = match keys.ty.dtype {
            DType::I8 => "int8",
            DType::F8E4M3 => "fp8",
            dtype => dtype.name(),
        };
        // Blocks are the first axis of a state, and positions of a block the last one of keys.
        let block_bytes = |port: &Port| -> u64 {
            let elements =
                port.ty.shape[1..].iter().filter_map(Dim::as_const).map(i64::unsigned_abs);
            elements.product::<u64>() * port.ty.dtype.size() as u64
        };
        let block_size = keys.ty.shape.last()?.as_const()?.unsigned_abs().max(1);
        let block: u64 = program.states.iter().map(block_bytes).sum();
        Some(KeysValues { dtype, bytes_per_token: block / block_size })
    }
}

#[cfg(test)]
mod tests {
    use ir::{Place, Region, TensorType};

    use super::*;

    #[test]
    fn scales_count() {
        let port = |dtype: DType, name: &str, shape: &[&str]| Port {
            name: name.into(),
            ty: TensorType::new(dtype, shape.iter().map(|d| d.parse::<Dim>().unwrap())),
            place: Place { region: Region::State(0), offset: Dim::from(0) },
        };
        let caches = |dtype| {
            let keys = port(dtype, "k_cache.0", &["NB", "2", "8", "16"]);
            vec![keys, port(dtype, "v_cache.0", &["NB", "2", "16", "6"])]
        };
        let of = |states| KeysValues::of(&Program { states, ..Program::default() });
        let kept = |dtype, bytes_per_token| Some(KeysValues { dtype, bytes_per_token });
        assert_eq!(of(Vec::new()), None);
        assert_eq!(of(caches(DType::F32)), kept("f32", 2 * (8 + 6) * 4));
        assert_eq!(of(caches(DType::Bf16)), kept("bf16", 2 * (8 + 6) * 2));
        let scales = ["k_scales.0", "v_scales.0"].map(|s| port(DType::F32, s, &["NB", "2", "16"]));
        for (dtype, name) in [(DType::I8, "int8"), (DType::F8E4M3, "fp8")] {
            let quantized = [caches(dtype), scales.to_vec()].concat();
            assert_eq!(of(quantized), kept(name, 2 * (8 + 6 + 2 * 4)));
        }
    }
}
