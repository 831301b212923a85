//! A random order of n rows that nobody has to write down.
//!
//! A Feistel network is a bijection of the numbers of an even count of bits, whatever its round
//! function does. Numbers of n and above are sent through again until they fall below it, which
//! keeps it a bijection: cycle walking, Black & Rogaway 2002, "Ciphers with Arbitrary Finite
//! Domains". The domain is less than four times n, so that takes less than four passes on average.

const ROUNDS: usize = 8;

/// An order of the rows of a source in an epoch.
#[derive(Clone, Debug)]
pub(super) struct Shuffle {
    n: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Shuffle {
    /// The order of `n` rows that follows from seed, source and epoch.
    pub(super) fn new(n: u64, seed: u64, source: u64, epoch: u64) -> Shuffle {
        let mut hasher = blake3::Hasher::new_derive_key("brolly train: order of rows, version 1");
        for number in [seed, source, epoch] {
            hasher.update(&number.to_le_bytes());
        }
        let mut bytes = [0; 8 * ROUNDS];
        hasher.finalize_xof().fill(&mut bytes);
        let mut keys = [0; ROUNDS];
        for (key, bytes) in keys.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *key = u64::from_le_bytes(*bytes);
        }
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Shuffle { n, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// The row at a place; both are below n.
    pub(super) fn row(&self, place: u64) -> u64 {
        debug_assert!(place < self.n);
        let mut x = self.pass(place);
        while x >= self.n {
            x = self.pass(x);
        }
        x
    }

    fn pass(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finalizer of SplitMix64: Steele, Lea & Flood 2014.
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn order(n: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let shuffle = Shuffle::new(n, seed, 0, epoch);
        (0..n).map(|place| shuffle.row(place)).collect()
    }

    #[test]
    fn small_orders_are_bijections() {
        for n in 1..300 {
            let rows: BTreeSet<u64> = order(n, 7, 0).into_iter().collect();
            assert_eq!((rows.len() as u64, rows.last()), (n, Some(&(n - 1))));
        }
    }

    #[test]
    fn orders_are_fixed_by_seed_and_epoch() {
        assert_eq!(order(100, 1, 0), order(100, 1, 0));
        assert_ne!(order(100, 1, 0), order(100, 1, 1));
        assert_ne!(order(100, 1, 0), order(100, 2, 0));
        assert_ne!(order(100, 1, 0), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn all_orders_of_four_come_up_about_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..24_000 {
            *counts.entry(order(4, seed, 0)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|n| (850..1150).contains(n)), "{counts:?}");
    }

    #[test]
    fn rows_land_anywhere() {
        // The place of one row over many seeds, in tenths: 1000 each, give or take.
        let mut tenths = [0; 10];
        for seed in 0..10_000 {
            tenths[usize::try_from(Shuffle::new(1000, seed, 0, 0).row(17) / 100).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|n| (850..1150).contains(n)), "{tenths:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_order_is_a_bijection(n in 1..5_000u64, seed: u64, source: u64, epoch: u64) {
            let shuffle = Shuffle::new(n, seed, source, epoch);
            let rows: BTreeSet<u64> = (0..n).map(|place| shuffle.row(place)).collect();
            prop_assert_eq!((rows.len() as u64, rows.last().copied()), (n, Some(n - 1)));
        }

        /// Not all rows of a large source, but each of the looked at ones in bounds and once.
        #[test]
        fn large_orders_do_not_collide(n in 1u64 << 30..1 << 62, seed: u64) {
            let shuffle = Shuffle::new(n, seed, 0, 0);
            let rows: BTreeSet<u64> = (0..2_000).map(|i| shuffle.row(n / 2_000 * i)).collect();
            prop_assert!(rows.len() == 2_000 && rows.iter().all(|row| *row < n));
        }
    }
}
