//! What collectives are to compute, one element after the other, with none of their code.

use brolly_exec::collectives::{Reduce, Shards};
use half::{bf16, f16};
use ir::DType;

/// The types that can be reduced, and how.
pub(crate) const REDUCTIONS: &[(DType, &[Reduce])] = &[
    (DType::F32, &[Reduce::Sum, Reduce::Max, Reduce::Min]),
    (DType::F64, &[Reduce::Sum, Reduce::Max]),
    (DType::Bf16, &[Reduce::Sum, Reduce::Max]),
    (DType::F16, &[Reduce::Sum, Reduce::Min]),
    (DType::I64, &[Reduce::Sum, Reduce::And]),
    (DType::I32, &[Reduce::Sum, Reduce::Max, Reduce::Or]),
    (DType::U8, &[Reduce::Sum, Reduce::And, Reduce::Or]),
    (DType::Bool, &[Reduce::And, Reduce::Or]),
];

/// Numbers that follow from where they are.
pub(crate) fn random(seed: u64, rank: usize, index: usize) -> u64 {
    let mut z = seed ^ (rank as u64) << 48 ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A rank's vector: floats of sizes from 2⁻²⁰ to 2²⁰ and both signs, so that their sum depends on
/// its order.
pub(crate) fn vector(seed: u64, rank: usize, dtype: DType, elements: usize) -> Vec<u8> {
    let value = |index: usize| {
        let bits = random(seed, rank, index);
        let exponent = i32::try_from(bits % 41).unwrap() - 20;
        let fraction = (bits >> 8 & 0xff_ffff) as f64 / f64::from(1 << 23) - 1.0;
        let float = fraction * 2f64.powi(exponent);
        match dtype {
            DType::F32 => (float as f32).to_ne_bytes().to_vec(),
            DType::F64 => float.to_ne_bytes().to_vec(),
            DType::Bf16 => bf16::from_f64(float).to_ne_bytes().to_vec(),
            DType::F16 => f16::from_f64(float / 256.0).to_ne_bytes().to_vec(),
            DType::Bool => vec![u8::from(!bits.is_multiple_of(3))],
            // Zeros are wanted as well.
            _ if bits.is_multiple_of(5) => vec![0; dtype.size()],
            _ => bits.to_ne_bytes()[..dtype.size()].to_vec(),
        }
    };
    (0..elements).flat_map(value).collect()
}

/// The reduction of vectors, in the order in which they are given.
pub(crate) fn reduce(reduce: Reduce, dtype: DType, vectors: &[Vec<u8>]) -> Vec<u8> {
    let size = dtype.size();
    let element = |at: usize| {
        let values = vectors.iter().map(|vector| &vector[at * size..(at + 1) * size]);
        match dtype {
            DType::F32 => {
                let values = values.map(|b| f32::from_ne_bytes(b.try_into().unwrap()));
                floats(reduce, values).to_ne_bytes().to_vec()
            }
            DType::F64 => {
                let mut values = values.map(|b| f64::from_ne_bytes(b.try_into().unwrap()));
                let first = values.next().unwrap();
                let result = match reduce {
                    Reduce::Sum => values.fold(first, |a, b| a + b),
                    _ => values.fold(first, |a, b| if b > a { b } else { a }),
                };
                result.to_ne_bytes().to_vec()
            }
            DType::Bf16 => {
                let values = values.map(|b| bf16::from_ne_bytes(b.try_into().unwrap()).to_f32());
                bf16::from_f32(floats(reduce, values)).to_ne_bytes().to_vec()
            }
            DType::F16 => {
                let values = values.map(|b| f16::from_ne_bytes(b.try_into().unwrap()).to_f32());
                f16::from_f32(floats(reduce, values)).to_ne_bytes().to_vec()
            }
            _ => {
                let values = values.map(|b| match dtype {
                    DType::I64 => i64::from_ne_bytes(b.try_into().unwrap()),
                    DType::I32 => i64::from(i32::from_ne_bytes(b.try_into().unwrap())),
                    _ => i64::from(b[0]),
                });
                let result = integers(reduce, values);
                result.to_ne_bytes()[..size].to_vec()
            }
        }
    };
    (0..vectors[0].len() / size).flat_map(element).collect()
}

fn floats(reduce: Reduce, mut values: impl Iterator<Item = f32>) -> f32 {
    let first = values.next().unwrap();
    match reduce {
        Reduce::Sum => values.fold(first, |a, b| a + b),
        Reduce::Max => values.fold(first, |a, b| if b > a { b } else { a }),
        _ => values.fold(first, |a, b| if b < a { b } else { a }),
    }
}

fn integers(reduce: Reduce, values: impl Iterator<Item = i64>) -> i64 {
    let values: Vec<i64> = values.collect();
    match reduce {
        Reduce::Sum => values.iter().fold(0, |a, b| a.wrapping_add(*b)),
        Reduce::Max => *values.iter().max().unwrap(),
        Reduce::Min => *values.iter().min().unwrap(),
        Reduce::And => i64::from(values.iter().all(|value| *value != 0)),
        _ => i64::from(values.iter().any(|value| *value != 0)),
    }
}

/// A shard's bytes.
pub(crate) fn shard(shards: &Shards, index: usize, dtype: DType, vector: &[u8]) -> Vec<u8> {
    let range = shards.range(index);
    vector[range.start * dtype.size()..range.end * dtype.size()].to_vec()
}

/// Shards of random lengths, some of them empty.
pub(crate) fn ragged(seed: u64, elements: usize, ranks: usize) -> Shards {
    let mut cuts: Vec<usize> = (1..ranks)
        .map(|index| usize::try_from(random(seed, 99, index)).unwrap() % (elements + 1))
        .collect();
    cuts.sort_unstable();
    cuts.push(elements);
    let mut start = 0;
    let counts: Vec<usize> = cuts
        .into_iter()
        .map(|cut| {
            let count = cut - start;
            start = cut;
            count
        })
        .collect();
    Shards::of(&counts).unwrap()
}
