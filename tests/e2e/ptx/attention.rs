//! Attention: packed and paged, causal and not, windows, groups of heads, and one result whether a
//! prompt comes whole or token by token.

use ir::{Attrs, DType, Target, Tensor};

use super::{
    case::{Case, noise},
    device::{Same, Trial, targets},
};

fn attrs(mask: &str, window: i64, softcap: f64) -> Attrs {
    Attrs::none()
        .with("scale", 0.2)
        .with("mask", mask)
        .with("window", window)
        .with("softcap", softcap)
}

fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_i64s(DType::I32, shape, values.iter().copied())
}

/// Where sequences of these lengths begin, and the end of the last.
fn offsets(lengths: impl IntoIterator<Item = usize>) -> Tensor {
    let mut at = vec![0];
    for length in lengths {
        at.push(at[at.len() - 1] + length as i64);
    }
    ints(&[at.len()], &at)
}

/// Results on every GPU, which must agree with the interpreter. Weights are rounded to the type of
/// the values, so that is how far off a mean of values in -1..1 may be.
fn check(what: &str, case: &Case) -> Vec<Tensor> {
    check_rows(what, case, &[])
}

/// As [`check`], with bits that others have too.
fn check_rows(what: &str, case: &Case, same: &[Same<'_>]) -> Vec<Tensor> {
    let (spec, want) = case.expected();
    let on = |target: &Target| {
        let kernels = case.kernels(&spec, target);
        let [kernel] = &kernels[..] else { panic!("{what}: {} kernels", kernels.len()) };
        let (family, spec, want, tolerance) = ("attention", &spec, &want[..], 4e-3);
        let trial = Trial { what, family, case, spec, target, want, tolerance, same };
        let (mut got, report) = trial.run(kernel, 3);
        assert_eq!(report.bank_conflicts, 0, "{what}: bank conflicts");
        got.remove(0)
    };
    targets().iter().map(on).collect()
}

fn packed(lengths: &[usize], heads: [usize; 2], size: usize, dtype: DType, attrs: Attrs) -> Case {
    let total: usize = lengths.iter().sum();
    let [q, kv] = heads;
    let q = noise(dtype, dtype, &[total, q, size], 1);
    let [k, v] = [2, 3].map(|seed| noise(dtype, dtype, &[total, kv, size], seed));
    let offsets = offsets(lengths.iter().copied());
    let args = [Some(&q), Some(&k), Some(&v), Some(&offsets)];
    Case::new("attention", attrs, &args).with_rows(&[0, 1, 2])
}

#[test]
fn packed_sequences() {
    let [bf16, f16] = [DType::Bf16, DType::F16];
    check("causal", &packed(&[4, 70, 1], [4, 2], 64, bf16, attrs("causal", 0, 0.0)));
    check("full", &packed(&[67, 9], [2, 2], 64, f16, attrs("full", 0, 0.0)));
    check("window", &packed(&[131], [2, 1], 128, bf16, attrs("causal", 37, 0.0)));
    check("cap", &packed(&[33], [1, 1], 64, bf16, attrs("causal", 0, 5.0)));
}

/// Tokens at these positions of sequences whose keys are in blocks in no order.
fn paged(sequences: &[&[i64]], size: usize, window: i64, q: &Tensor) -> Case {
    let blocks = sequences.len() * 6;
    let k = noise(DType::Bf16, DType::Bf16, &[blocks, 2, size, 16], 2);
    let v = noise(DType::Bf16, DType::Bf16, &[blocks, 2, 16, size], 3);
    let tables: Vec<i64> = (0..blocks as i64).map(|i| (i * 5 + 3) % blocks as i64).collect();
    let tables = ints(&[sequences.len(), 6], &tables);
    let offsets = offsets(sequences.iter().map(|s| s.len()));
    let positions = sequences.concat();
    let positions = ints(&[positions.len()], &positions);
    let args = [Some(q), Some(&k), Some(&v), Some(&tables), Some(&offsets), Some(&positions)];
    Case::new("paged_attention", attrs("causal", window, 0.0), &args).with_rows(&[0, 5])
}

fn queries(tokens: usize, size: usize) -> Tensor {
    noise(DType::F32, DType::Bf16, &[tokens, 8, size], 1)
}

#[test]
fn paged_sequences() {
    let mixed = paged(&[&[66, 67, 68], &[0, 1], &[93]], 64, 0, &queries(6, 64));
    check("mixed", &mixed);
    check("window", &paged(&[&[80, 81]], 128, 19, &queries(2, 128)));
    check("large heads", &paged(&[&[40, 41, 42]], 256, 0, &queries(3, 256)));
}

#[test]
fn a_token_is_the_same_bits_alone() {
    let q = queries(20, 64);
    let positions: Vec<i64> = (60..80).collect();
    let name = "a token alone and in its prompt";
    let whole = check_rows("prompt", &paged(&[&positions], 64, 0, &q), &[Same::Rows(name, 19, 1)]);
    let last = paged(&[&positions[19..]], 64, 0, &q.slice(0, 19, 1, 1));
    let last = check_rows("token", &last, &[Same::Rows(name, 0, 1)]);
    for (whole, last) in whole.iter().zip(&last) {
        assert_eq!(whole.slice(0, 19, 1, 1).to_bytes(), last.to_bytes());
    }
}
