//! Philox4x32-10, a random function of a counter.
//!
//! Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3". There is no state: the same
//! key and counter give the same numbers whatever was drawn before, on every machine.

const ROUNDS: usize = 10;

/// Four random words for a key and a counter.
pub(crate) fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = halves(key);
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..ROUNDS {
        let [low0, high0] = halves(u64::from(c0) * 0xd251_1f53);
        let [low2, high2] = halves(u64::from(c2) * 0xcd9e_8d57);
        [c0, c1, c2, c3] = [high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0];
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3]
}

/// A uniform number in [0, 1) with 53 random bits, for a place in a sequence.
pub(crate) fn uniform(seed: u64, sequence: u64, position: u64) -> f64 {
    let ([p0, p1], [s0, s1]) = (halves(position), halves(sequence));
    let [a, b, _, _] = philox(seed, [p0, p1, s0, s1]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// Low and high word.
#[allow(clippy::cast_possible_truncation, reason = "takes the words apart")]
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let cases = [
            (0, [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (u64::MAX, [ones; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                0x299f_31d0_a409_3822,
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, want) in cases {
            assert_eq!(philox(key, counter), want, "{key:x}");
        }
    }

    #[test]
    fn every_coordinate_matters_and_the_mean_is_right() {
        let all = [uniform(1, 2, 3), uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4)];
        assert!((1..4).all(|i| all[i] != all[0]));
        // The standard error of the mean is 0.29 / sqrt(draws) = 0.0009.
        let mean = (0..100_000).map(|i| uniform(7, 0, i)).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.004, "{mean}");
    }
}
