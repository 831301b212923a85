//! Weights that are in no file: numbers that follow from a seed, to time a shape without a
//! checkpoint.
//!
//! Floats lie between `2^-7` and `2^-5` with either sign, about the size of a model's initial
//! weights, so that activations stay finite and multiplications toggle as many bits as those of a
//! real model. Bytes, which hold quantised blocks, are such that scales among them are small f16
//! numbers. Other integers are zero.

use std::{
    io, slice,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
};

use memmap2::MmapMut;

use super::PackedWeight;
use crate::DType;

/// Bytes that a thread makes at a time.
const PIECE_BYTES: usize = 4 << 20;

/// Memory of weights that are made when they are first asked for: where there is no device to run
/// on, nobody waits for them.
#[derive(Debug)]
pub(super) struct Made {
    seed: u64,
    reserved: Mutex<Option<MmapMut>>,
    filled: OnceLock<Arc<MmapMut>>,
}

impl Made {
    /// Reserves the memory of all weights.
    pub(super) fn reserve(weights: &[PackedWeight], seed: u64) -> io::Result<Made> {
        let too_large = |e| io::Error::new(io::ErrorKind::OutOfMemory, e);
        let bytes = weights.last().map_or(0, |w| w.offset + w.bytes - weights[0].offset);
        let map = MmapMut::map_anon(usize::try_from(bytes).map_err(too_large)?.max(1))?;
        Ok(Made { seed, reserved: Mutex::new(Some(map)), filled: OnceLock::new() })
    }

    /// All weights, at their distances from the first.
    pub(super) fn memory(&self, weights: &[PackedWeight]) -> &Arc<MmapMut> {
        self.filled.get_or_init(|| {
            let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
            let mut map = reserved.take().expect("filled once");
            fill_all(&mut map, weights, self.seed);
            Arc::new(map)
        })
    }
}

fn fill_all(map: &mut [u8], weights: &[PackedWeight], seed: u64) {
    let start = weights.first().map_or(0, |w| w.offset);
    // The memory that they lie in was reserved.
    let size = |n: u64| usize::try_from(n).expect("a size in memory");
    let mut pieces = Vec::new();
    let (mut rest, mut at) = (map, 0);
    for (number, weight) in weights.iter().enumerate() {
        let (_, own) = rest.split_at_mut(size(weight.offset - start) - at);
        let (own, behind) = own.split_at_mut(size(weight.bytes));
        at = size(weight.offset + weight.bytes - start);
        rest = behind;
        for (piece, bytes) in own.chunks_mut(PIECE_BYTES).enumerate() {
            pieces.push((number as u64, piece as u64, weight.dtype, bytes));
        }
    }
    let pieces = Mutex::new(pieces.into_iter());
    let work = || {
        loop {
            let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, piece, dtype, bytes)) = next else { break };
            let first = mix(seed.wrapping_add(mix(number))).wrapping_add(mix(piece) << 1);
            fill(bytes, dtype, first);
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        for _ in 1..threads {
            // Fewer threads make the same.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

/// What the bits of a word of elements are kept by, and what is set in it.
fn form(dtype: DType) -> (u64, u64) {
    match dtype {
        DType::Bf16 => (0x80ff_80ff_80ff_80ff, 0x3c00_3c00_3c00_3c00),
        DType::F16 => (0x87ff_87ff_87ff_87ff, 0x2000_2000_2000_2000),
        DType::F32 => (0x80ff_ffff_80ff_ffff, 0x3c00_0000_3c00_0000),
        DType::F64 => (0x801f_ffff_ffff_ffff, 0x3f80_0000_0000_0000),
        DType::U8 | DType::I8 | DType::F8E4M3 | DType::F8E5M2 | DType::I4 | DType::U4 => {
            (0x0f0f_0f0f_0f0f_0f0f, 0x1010_1010_1010_1010)
        }
        DType::I64 | DType::I32 | DType::I16 | DType::Bool => (0, 0),
    }
}

fn fill(bytes: &mut [u8], dtype: DType, first: u64) {
    let (kept, set) = form(dtype);
    let mut state = first;
    let mut next = || {
        state = state.wrapping_add(STEP);
        (mix(state) & kept | set).to_le_bytes()
    };
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&next());
    }
    let rest: slice::IterMut<'_, u8> = words.into_remainder().iter_mut();
    rest.zip(next()).for_each(|(to, byte)| *to = byte);
}

/// The increment of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele et al. 2014, doi:10.1145/2714064.2660195).
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tensor, artifact::Digest};

    #[test]
    fn numbers_are_small_finite_and_the_same_every_time() {
        let weight = |dtype: DType, elements: u64, offset| PackedWeight {
            name: format!("{dtype}"),
            dtype,
            shape: vec![elements],
            offset,
            bytes: elements * dtype.size() as u64,
            digest: Digest::default(),
            sources: Vec::new(),
        };
        let weights = [
            weight(DType::Bf16, 3_000_001, 8192),
            weight(DType::F16, 1001, 6_008_256),
            weight(DType::F32, 77, 6_010_304),
            weight(DType::I32, 5, 6_010_688),
        ];
        let made = |seed| Made::reserve(&weights, seed).unwrap().memory(&weights).clone();
        let map = made(7);
        assert_eq!(map[..], made(7)[..]);
        assert_ne!(map[..], made(8)[..]);
        for w in &weights {
            let at = usize::try_from(w.offset - 8192).unwrap();
            let bytes = map[at..][..usize::try_from(w.bytes).unwrap()].to_vec();
            let shape = [usize::try_from(w.shape[0]).unwrap()];
            let values = Tensor::from_bytes(w.dtype, &shape, bytes).to_f64s();
            if w.dtype == DType::I32 {
                assert!(values.iter().all(|v| *v == 0.0));
                continue;
            }
            assert!(values.iter().all(|v| (0.0078..0.0313).contains(&v.abs())), "{}", w.dtype);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            assert!(mean.abs() < 0.1 / (values.len() as f64).sqrt(), "{}: {mean}", w.dtype);
        }
    }
}
