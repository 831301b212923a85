//! Random sizes, values and shares of work, from a seed that a failure names.

use std::{
    ops::{Range, RangeInclusive},
    time::{Duration, Instant},
};

use ir::{DType, Tensor};

use super::{noise, subject::Share};

/// A small deterministic generator (splitmix64).
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        let count = (range.end() - range.start() + 1) as u64;
        range.start() + usize::try_from(self.next() % count).unwrap()
    }

    pub(super) fn size(&mut self, range: RangeInclusive<usize>) -> i64 {
        self.within(range).try_into().unwrap()
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub(super) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.within(0..=of.len() - 1)].clone()
    }

    /// A type of floats, as often as not the widest.
    pub(super) fn float(&mut self) -> DType {
        self.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16])
    }

    /// Numbers in -1..1.
    pub(super) fn noise(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        noise(dtype, shape, self.next())
    }

    /// Integers of a range.
    pub(super) fn ints(&mut self, dtype: DType, shape: &[usize], range: Range<i64>) -> Tensor {
        let n = shape.iter().product();
        let span = range.end.abs_diff(range.start);
        let draw = |_| range.start + i64::try_from(self.next() % span).unwrap();
        Tensor::from_i64s(dtype, shape, (0..n).map(draw).collect::<Vec<_>>())
    }

    /// `0..n` in some order.
    pub(super) fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            all.swap(i, self.within(0..=i));
        }
        all
    }

    /// `0..n` in `parts` pieces, some of them perhaps empty.
    pub(super) fn cut(&mut self, n: usize, parts: usize) -> Vec<Range<usize>> {
        let mut cuts: Vec<usize> = (1..parts).map(|_| self.within(0..=n)).collect();
        cuts.extend([0, n]);
        cuts.sort_unstable();
        cuts.windows(2).map(|w| w[0]..w[1]).collect()
    }

    /// Tiles for `threads` threads: random ranges, in no order, each by some thread.
    pub(super) fn shares(&mut self, threads: usize) -> Share {
        let mut draw = Draw(self.next());
        Box::new(move |tiles| {
            let n = usize::try_from(tiles).unwrap();
            let pieces = if threads == 1 { 1 } else { 3 * threads };
            let pieces = draw.cut(n, pieces);
            let mut shares = vec![Vec::new(); threads];
            for i in draw.shuffled(pieces.len()) {
                let range = pieces[i].start as i64..pieces[i].end as i64;
                shares[draw.within(0..=threads - 1)].push(range);
            }
            shares
        })
    }
}

/// Runs `body` on the seed of this test, or that which `BROLLY_FUZZ_SEED` sets, and on further ones
/// as long as `BROLLY_FUZZ_SECONDS` says.
pub(super) fn rounds(seed: u64, body: impl Fn(&mut Draw)) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let first = number("BROLLY_FUZZ_SEED").unwrap_or(seed);
    let limit = Duration::from_secs(number("BROLLY_FUZZ_SECONDS").unwrap_or(0));
    let start = Instant::now();
    for seed in first.. {
        let named = Named(seed);
        body(&mut Draw::new(seed));
        std::mem::forget(named);
        if start.elapsed() >= limit {
            break;
        }
    }
}

/// Names the seed if it is dropped: where a check failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("found with BROLLY_FUZZ_SEED={}", self.0);
    }
}
