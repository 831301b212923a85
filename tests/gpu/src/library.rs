//! The products that are timed, by cuBLASLt as programs use it: checked in samples against sums in
//! f64, and timed as the generated kernels are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use cuda::{
    CudaError, Device, Memory, Multiplier, Stream,
    cublaslt::{Matmul, Places},
};
use half::bf16;
use ir::DType;

use crate::{Operand, Source, noise, timing};

/// Beginnings of operands are multiples of it.
const ALIGN: u64 = 256;
/// Bytes of a pinned buffer.
const STAGING: usize = 16 << 20;
/// Columns of a row that are checked, at most.
const COLUMNS: u64 = 64;
/// How far off a result may be: of its size, for it is rounded to bf16, and of the root mean square
/// of all.
const TOLERANCE: [f64; 2] = [1.0 / 128.0, 1e-3];

/// Rows, columns and terms of `linear bf16 MxNxK`.
fn sizes(name: &str) -> Option<[u64; 3]> {
    let numbers = name.strip_prefix("linear bf16 ")?.split('x').map(|n| n.parse().ok());
    numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()
}

/// Computes the products of these names, says a line of each, and returns microseconds by names;
/// `None` if one is wrong. There is nothing to do where the machine has no cuBLASLt.
///
/// # Errors
/// What the device, or the library, says.
pub fn run<'a>(
    names: impl Iterator<Item = &'a str>,
    limit: Duration,
    mut say: impl FnMut(String),
) -> Result<Option<BTreeMap<String, f64>>, CudaError> {
    let (device, end) = (Device::open(0)?, Instant::now() + limit);
    let multiplier = match Multiplier::new(&device) {
        Err(why @ CudaError::NoCublasLt { .. }) => {
            say(format!("skipped: {why}"));
            return Ok(Some(BTreeMap::new()));
        }
        made => made?,
    };
    let (mut times, mut right) = (BTreeMap::new(), true);
    for name in names.collect::<BTreeSet<&str>>() {
        let Some(sizes) = sizes(name) else { continue };
        if Instant::now() > end {
            say(format!("{name}: no time is left"));
            continue;
        }
        let is_hopper = device.facts().capability >= (9, 0);
        let (us, worst) = Product::new(sizes, is_hopper).run(&device, &multiplier)?;
        right &= worst <= 1.0;
        let verdict = if worst <= 1.0 { "right" } else { "WRONG" };
        say(format!("{name}: {verdict}, {worst:.2} of the bound, {us:.1} us by cuBLASLt"));
        times.insert(name.to_owned(), us);
    }
    Ok(right.then_some(times))
}

/// A product, its operands one behind the other.
struct Product {
    matmul: Matmul,
    x: Vec<u8>,
    w: Vec<u8>,
    starts: [u64; 3],
    bytes: u64,
}

impl Product {
    fn new([m, n, k]: [u64; 3], is_hopper: bool) -> Product {
        let matmul = Matmul {
            m,
            n,
            k,
            factors: DType::Bf16,
            results: DType::Bf16,
            transposed: true,
            x_stride: k,
            w_stride: k,
            residual_stride: None,
            y_stride: n,
            has_bias: false,
            workspace_bytes: if is_hopper { 32 << 20 } else { 4 << 20 },
        };
        let operand = |rows: u64, seed: u64| {
            let shape = [rows, k].map(|size| usize::try_from(size).unwrap_or(usize::MAX)).to_vec();
            let mut bytes = vec![0; 2 * shape[0] * shape[1]];
            let operand = Operand { dtype: DType::Bf16, shape, source: Source::Noise(seed) };
            noise::fill(&operand, 0, &mut bytes);
            bytes
        };
        let (x, w) = (operand(m, 1), operand(n, 2));
        let second = (x.len() as u64).next_multiple_of(ALIGN);
        let third = second + (w.len() as u64).next_multiple_of(ALIGN);
        let bytes = third + (2 * m * n).next_multiple_of(ALIGN);
        Product { matmul, x, w, starts: [0, second, third], bytes }
    }

    /// Microseconds, and the largest error as a share of what is allowed.
    fn run(&self, device: &Device, multiplier: &Multiplier) -> Result<(f64, f64), CudaError> {
        let stream = Stream::new(device)?;
        let mut staging = device.staging(STAGING)?;
        let operands = device.allocate(self.bytes)?;
        let workspace = device.allocate(self.matmul.workspace_bytes)?;
        staging.upload(&stream, &operands.at(self.starts[0]), &self.x)?;
        staging.upload(&stream, &operands.at(self.starts[1]), &self.w)?;
        // Numbers that are none, until there are others.
        stream.fill(&operands.at(self.starts[2]), 0xff, 2 * self.matmul.m * self.matmul.n)?;
        let multiply = |stream: &Stream, memory: &Memory, base: u64| {
            let [x, w, y] = self.starts.map(|start| memory.at(base + start));
            let workspace = workspace.at(0);
            let places = Places { x, w, bias: None, residual: None, y, workspace };
            stream.multiply(multiplier, &self.matmul, &places)
        };
        multiply(&stream, &operands, 0)?;
        let Matmul { m, n, .. } = self.matmul;
        let mut row = vec![0; usize::try_from(2 * n).unwrap_or(usize::MAX)];
        let mut pairs = Vec::new();
        for number in BTreeSet::from([0, m / 2, m - 1]) {
            let from = operands.at(self.starts[2] + 2 * n * number);
            staging.download(&stream, &from, &mut row)?;
            for column in (0..n).step_by(usize::try_from(n.div_ceil(COLUMNS)).unwrap_or(1)) {
                pairs.push((value(&row, column), self.sum(number, column)));
            }
        }
        let squares: f64 = pairs.iter().map(|(_, want)| want * want).sum();
        let scale = (squares / pairs.len().max(1) as f64).sqrt();
        let error = |(got, want): &(f64, f64)| {
            (got - want).abs() / (TOLERANCE[0] * want.abs() + TOLERANCE[1] * scale)
        };
        // What is no number must count as far.
        let far = |worst: f64, error: f64| if error <= worst { worst } else { error };
        let worst = pairs.iter().map(error).fold(0.0, far);
        let worst = if worst.is_nan() { f64::INFINITY } else { worst };
        let us = timing::launches(device, &stream, (&operands, self.bytes), multiply)?;
        Ok((us, worst))
    }

    /// An element, in f64.
    fn sum(&self, row: u64, column: u64) -> f64 {
        let k = self.matmul.k;
        (0..k).map(|i| value(&self.x, row * k + i) * value(&self.w, column * k + i)).sum()
    }
}

/// Element `index` of bf16.
fn value(bytes: &[u8], index: u64) -> f64 {
    let at = 2 * usize::try_from(index).unwrap_or(usize::MAX);
    bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_products_are_read() {
        assert_eq!(sizes("linear bf16 16x4096x14336"), Some([16, 4096, 14336]));
        assert_eq!(sizes("linear f32 16x4096x4096"), None);
        assert_eq!(sizes("linear bf16 16x4096"), None);
    }

    /// Values of elements follow from the seeds, row by row.
    #[test]
    fn sums_are_of_rows_and_columns() {
        let product = Product::new([2, 3, 8], true);
        let of = |seed: u64, index: u64| noise::value(seed, index).to_f64();
        let want: f64 = (0..8).map(|i| of(1, 8 + i) * of(2, 16 + i)).sum();
        assert_eq!(product.sum(1, 2).to_bits(), want.to_bits());
    }
}
