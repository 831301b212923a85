//! Attention: packed and paged, causal and not, windows, groups of heads, and one result whether a
//! prompt comes whole or token by token.

use ir::{Attrs, DType, KernelSpec, Target, Tensor};

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

/// As [`check`], with bits that others have too. Every variant is tried; all have the same bits.
fn check_rows(what: &str, case: &Case, same: &[Same<'_>]) -> Vec<Tensor> {
    check_to(what, case, same, 4e-3)
}

fn check_to(what: &str, case: &Case, same: &[Same<'_>], tolerance: f64) -> Vec<Tensor> {
    let (spec, want) = case.expected();
    check_spec(what, case, (&spec, &want), same, tolerance)
}

fn check_spec(
    what: &str,
    case: &Case,
    (spec, want): (&KernelSpec, &[Tensor]),
    same: &[Same<'_>],
    tolerance: f64,
) -> Vec<Tensor> {
    let on = |target: &Target| {
        let same: Vec<Same<'_>> = same.iter().copied().chain([Same::Variants]).collect();
        let (family, same) = ("attention", &same[..]);
        let trial = Trial { what, family, case, spec, target, want, tolerance, same };
        let mut results = Vec::new();
        for (seed, kernel) in (3..).zip(case.kernels(spec, target)) {
            let (got, report) = trial.run(&kernel, seed);
            // Rows of other sizes begin within the words that a pass moves.
            if even(case) {
                assert_eq!(report.bank_conflicts, 0, "{what}: bank conflicts");
            }
            results.push(got);
        }
        for other in &results[1..] {
            for (one, other) in results[0].iter().zip(other) {
                assert_eq!(one.to_bytes(), other.to_bytes(), "{what}: variants differ");
            }
        }
        results.swap_remove(0).swap_remove(0)
    };
    targets().iter().map(on).collect()
}

/// Whether heads are of whole times 32 elements.
fn even(case: &Case) -> bool {
    let size = |i: usize| *case.args[i].as_ref().unwrap().shape().last().unwrap();
    size(0) % 32 == 0 && size(2) % 32 == 0
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

#[test]
fn heads_of_any_size_and_group() {
    let [bf16, f16] = [DType::Bf16, DType::F16];
    check("three of a group", &packed(&[30, 3], [3, 1], 80, bf16, attrs("causal", 0, 0.0)));
    check("24 elements", &packed(&[5, 40], [10, 2], 24, f16, attrs("causal", 7, 0.0)));
    check("200 elements", &packed(&[18], [2, 2], 200, bf16, attrs("full", 0, 0.0)));
    check("forty of a group", &paged(&[&[50, 51], &[3]], [40, 1, 16], 0));
}

#[test]
fn logarithms_of_sums() {
    let mut case = packed(&[70, 2], [4, 2], 64, DType::Bf16, attrs("causal", 0, 0.0));
    case.op = "attention_lse";
    check("of sums", &case);
}

#[test]
fn batched_entries() {
    let q = noise(DType::Bf16, DType::Bf16, &[2, 4, 9, 64], 1);
    let [k, v] = [2, 3].map(|seed| noise(DType::Bf16, DType::Bf16, &[2, 2, 70, 64], seed));
    let args = [Some(&q), Some(&k), Some(&v)];
    for (mask, window) in [("causal", 0), ("full", 0), ("causal", 20)] {
        check(mask, &Case::new("attention", attrs(mask, window, 0.0), &args));
    }
}

/// Tokens at these positions of sequences whose keys are in blocks in no order; heads of queries
/// and keys, and their size.
fn paged(sequences: &[&[i64]], heads: [usize; 3], window: i64) -> Case {
    let tokens = sequences.iter().map(|s| s.len()).sum();
    let q = noise(DType::F32, DType::Bf16, &[tokens, heads[0], heads[2]], 1);
    paged_of(sequences, &q, heads[1], window, DType::Bf16)
}

fn paged_of(sequences: &[&[i64]], q: &Tensor, heads: usize, window: i64, dtype: DType) -> Case {
    let last = sequences.iter().flat_map(|s| s.iter()).max().unwrap();
    let table = usize::try_from(*last).unwrap() / 16 + 1;
    let (size, blocks) = (q.shape()[2], (sequences.len() * table) | 1);
    let k = noise(dtype, DType::Bf16, &[blocks, heads, size, 16], 2);
    let v = noise(dtype, DType::Bf16, &[blocks, heads, 16, size], 3);
    let count = (sequences.len() * table) as i64;
    // A permutation of all blocks of an odd number of them.
    let tables: Vec<i64> = (0..count).map(|i| (i * 2 + 1) % blocks as i64).collect();
    let tables = ints(&[sequences.len(), table], &tables);
    let offsets = offsets(sequences.iter().map(|s| s.len()));
    let positions = sequences.concat();
    let positions = ints(&[positions.len()], &positions);
    let args = [Some(q), Some(&k), Some(&v), Some(&tables), Some(&offsets), Some(&positions)];
    Case::new("paged_attention", attrs("causal", window, 0.0), &args).with_rows(&[0, 5])
}

#[test]
fn paged_sequences() {
    check("mixed", &paged(&[&[66, 67, 68], &[0, 1], &[93]], [8, 2, 64], 0));
    check("window", &paged(&[&[80, 81]], [8, 2, 128], 19));
    check("large heads", &paged(&[&[40, 41, 42]], [8, 2, 256], 0));
}

#[test]
fn strands_are_folded() {
    // Nine spans: the first strand has two of them, and a window leaves only some.
    check("all strands", &paged(&[&[1100]], [8, 2, 64], 0));
    check("strands of a window", &paged(&[&[1100], &[700]], [2, 2, 32], 333));
    check("values of 256", &paged(&[&[300]], [2, 1, 256], 0));
}

#[test]
fn a_token_is_the_same_bits_alone() {
    for (name, last, window) in [
        ("a token alone and in its prompt", 79, 0),
        ("a token of a long context alone and in its prompt", 1103, 0),
        ("a token with a window alone and in its prompt", 1103, 500),
    ] {
        let q = noise(DType::F32, DType::Bf16, &[20, 8, 64], 1);
        let positions: Vec<i64> = (last - 19..=last).collect();
        let of = |positions: &[i64], q: &Tensor| paged_of(&[positions], q, 2, window, DType::Bf16);
        let whole = check_rows(name, &of(&positions, &q), &[Same::Rows(name, 19, 1)]);
        let last = of(&positions[19..], &q.slice(0, 19, 1, 1));
        let last = check_rows(name, &last, &[Same::Rows(name, 0, 1)]);
        for (whole, last) in whole.iter().zip(&last) {
            assert_eq!(whole.slice(0, 19, 1, 1).to_bytes(), last.to_bytes());
        }
    }
}

#[test]
fn tiles_of_two_warpgroups() {
    // Chunks of several strands, more than the ring holds; the second sequence's tiles are full.
    let of = |lengths: &[usize], size: usize, dtype: DType| {
        packed(lengths, [2, 1], size, dtype, attrs("causal", 0, 0.0))
    };
    check("two warpgroups", &of(&[9, 300], 128, DType::Bf16));
    check("two warpgroups, f16", &of(&[70, 1, 66], 64, DType::F16));
    let name = "a token alone and among two warpgroups";
    let q = noise(DType::F32, DType::Bf16, &[33, 4, 128], 1);
    let positions: Vec<i64> = (671..704).collect();
    let paged = |positions: &[i64], q: &Tensor| paged_of(&[positions], q, 1, 0, DType::Bf16);
    let whole = check_rows(name, &paged(&positions, &q), &[Same::Rows(name, 31, 1)]);
    let alone = paged(&positions[31..32], &q.slice(0, 31, 1, 1));
    let alone = check_rows(name, &alone, &[Same::Rows(name, 0, 1)]);
    for (whole, alone) in whole.iter().zip(&alone) {
        assert_eq!(whole.slice(0, 31, 1, 1).to_bytes(), alone.to_bytes());
    }
}

/// How far off f32 may be: weights are powers to two units in the last place.
const F32: f64 = 4e-6;

#[test]
fn f32_needs_no_tensor_cores() {
    let f32 = DType::F32;
    let sequences = packed(&[4, 70, 1], [4, 2], 64, f32, attrs("causal", 0, 0.0));
    check_to("f32", &sequences, &[], F32);
    let mut logarithms = sequences;
    logarithms.op = "attention_lse";
    check_to("f32 with logarithms", &logarithms, &[], F32);
    let odd = packed(&[9, 67], [6, 2], 20, f32, attrs("causal", 11, 3.0));
    check_to("f32 heads of 20", &odd, &[], F32);
    check_to("f32 heads of 7", &packed(&[35], [3, 1], 7, f32, attrs("full", 0, 0.0)), &[], F32);
    check_to("f32 heads of 200", &packed(&[37], [1, 1], 200, f32, attrs("full", 0, 0.0)), &[], F32);
    check("bf16 heads of 12", &packed(&[9], [2, 2], 12, DType::Bf16, attrs("full", 0, 0.0)));
}

#[test]
fn biases() {
    let q = noise(DType::F32, DType::F32, &[2, 4, 9, 32], 1);
    let [k, v] = [2, 3].map(|seed| noise(DType::F32, DType::F32, &[2, 2, 70, 32], seed));
    let all = noise(DType::F32, DType::F32, &[2, 4, 9, 70], 4);
    let hidden: Vec<f64> =
        (0..140).map(|i| if i % 3 == 0 { f64::NEG_INFINITY } else { 0.5 }).collect();
    let hidden = Tensor::from_f64s(DType::F32, &[2, 1, 1, 70], hidden);
    for (what, bias) in [("bias", all), ("hidden keys", hidden)] {
        let args = [Some(&q), Some(&k), Some(&v), None, Some(&bias)];
        check_to(what, &Case::new("attention", attrs("full", 0, 0.0), &args), &[], F32);
    }
}

#[test]
fn paged_keys_of_other_types() {
    let sequences: &[&[i64]] = &[&[66, 67, 68], &[0, 1], &[93]];
    let q = noise(DType::F32, DType::F32, &[6, 8, 64], 1);
    check_to("paged f32", &paged_of(sequences, &q, 2, 0, DType::F32), &[], F32);
    for (size, window) in [(64, 0), (128, 20), (256, 0), (24, 0)] {
        check("paged i8", &codes(DType::I8, sequences, size, window));
        check("paged e4m3", &codes(DType::F8E4M3, sequences, size, window));
    }
}

/// Keys and values of eight bits with scales.
fn codes(dtype: DType, sequences: &[&[i64]], size: usize, window: i64) -> Case {
    let tokens = sequences.iter().map(|s| s.len()).sum();
    let q = noise(DType::F32, DType::Bf16, &[tokens, 8, size], 1);
    let mut case = paged_of(sequences, &q, 2, window, DType::F32);
    let scales = |seed: u64| {
        let shape = case.args[1].as_ref().unwrap().shape();
        let values = noise(DType::F32, DType::F32, &[shape[0], shape[1], 16], seed);
        let values = values.to_f64s().into_iter().map(|x| x.abs() / 100.0);
        Tensor::from_f64s(DType::F32, &[shape[0], shape[1], 16], values.collect::<Vec<f64>>())
    };
    let (k_scales, v_scales) = (scales(5), scales(6));
    for i in [1, 2] {
        let values = case.args[i].as_ref().unwrap();
        let numbers = values.to_f64s().into_iter().map(|x| match dtype {
            DType::I8 => (x * 127.0).round(),
            // Small ones too, subnormal ones among them.
            _ => x.powi(5) * 127.0,
        });
        case.args[i] = Some(Tensor::from_f64s(dtype, values.shape(), numbers));
    }
    case.args.extend([Some(k_scales), Some(v_scales)]);
    case
}

#[test]
fn tokens_of_codes_are_the_same_bits_alone() {
    let name = "a token alone and in its prompt, i8";
    same_bits_alone(name, |positions| codes(DType::I8, &[positions], 64, 0));
    let name = "a token alone and in its prompt, e4m3";
    same_bits_alone(name, |positions| codes(DType::F8E4M3, &[positions], 64, 0));
}

fn same_bits_alone(name: &str, of: impl Fn(&[i64]) -> Case) {
    let positions: Vec<i64> = (1084..1104).collect();
    let whole = of(&positions);
    let mut alone = of(&positions[19..]);
    alone.args[0] = Some(whole.args[0].as_ref().unwrap().slice(0, 19, 1, 1));
    let whole = check_rows(name, &whole, &[Same::Rows(name, 19, 1)]);
    let alone = check_rows(name, &alone, &[Same::Rows(name, 0, 1)]);
    for (whole, alone) in whole.iter().zip(&alone) {
        assert_eq!(whole.slice(0, 19, 1, 1).to_bytes(), alone.to_bytes());
    }
}

/// A scale that is not finite, as a NaN or an infinity in a key or value makes it, shows where its
/// key is seen, on and off tensor cores: the second sequence's last token, not those before it.
#[test]
fn scales_that_are_not_finite_show_where_they_are_seen() {
    let sequences: &[&[i64]] = &[&[66, 67, 68], &[29, 30, 31]];
    let spoilt = [(6, f64::NAN), (6, f64::INFINITY), (7, f64::NAN)];
    for (dtype, size, spoilt) in [
        (DType::I8, 64, &spoilt[..]),
        (DType::F8E4M3, 64, &spoilt),
        // Without tensor cores values meet the weights of all rows of a tile.
        (DType::F8E4M3, 10, &spoilt[..2]),
    ] {
        for (operand, scale) in spoilt.iter().copied() {
            let mut case = codes(dtype, sequences, size, 0);
            let tables = case.args[3].as_ref().unwrap();
            let (entry, width) = (tables.shape()[1] + 1, size);
            let block = usize::try_from(tables.to_i64s()[entry]).unwrap();
            // Key 31 of both key/value heads; as `quantize_heads` does, with codes of zero.
            for (i, spoilt) in [(operand, scale), (operand - 5, 0.0)] {
                let tensor = case.args[i].as_ref().unwrap();
                let (shape, dtype) = (tensor.shape().to_vec(), tensor.dtype());
                let mut values = tensor.to_f64s();
                for (at, value) in values.iter_mut().enumerate() {
                    let (slot, block_of) = match i {
                        1 => (at % 16, at / (2 * width * 16)),
                        2 => (at / width % 16, at / (2 * width * 16)),
                        _ => (at % 16, at / 32),
                    };
                    if slot == 15 && block_of == block {
                        *value = spoilt;
                    }
                }
                case.args[i] = Some(Tensor::from_f64s(dtype, &shape, values));
            }
            for got in check(&format!("{dtype} with a scale of {scale}"), &case) {
                let row = got.len() / 6;
                let nans = |token: usize| {
                    let of = got.slice(0, token, 1, 1).to_f64s();
                    of.iter().filter(|v| v.is_nan()).count()
                };
                assert_eq!([0, 1, 2, 3, 4, 5].map(nans), [0, 0, 0, 0, 0, row]);
            }
        }
    }
}

#[test]
fn f32_tokens_are_the_same_bits_alone() {
    let q = noise(DType::F32, DType::F32, &[70, 4, 32], 1);
    let positions: Vec<i64> = (31..101).collect();
    let name = "a token alone and in its prompt, f32";
    let of = |positions: &[i64], q: &Tensor| paged_of(&[positions], q, 2, 0, DType::F32);
    let whole = check_to(name, &of(&positions, &q), &[Same::Rows(name, 69, 1)], F32);
    let last = of(&positions[69..], &q.slice(0, 69, 1, 1));
    let last = check_to(name, &last, &[Same::Rows(name, 0, 1)], F32);
    for (whole, last) in whole.iter().zip(&last) {
        assert_eq!(whole.slice(0, 69, 1, 1).to_bytes(), last.to_bytes());
    }
}

/// The gradient of packed attention, of sequences behind a first token that is in none.
fn gradient(lengths: &[usize], heads: [usize; 2], sizes: [usize; 2], attrs: Attrs) -> Case {
    gradient_of(DType::F32, lengths, heads, sizes, attrs)
}

/// The same, of numbers that are some of a narrow type.
fn gradient_of(
    exact: DType,
    lengths: &[usize],
    heads: [usize; 2],
    sizes: [usize; 2],
    attrs: Attrs,
) -> Case {
    let total: usize = lengths.iter().sum::<usize>() + 2;
    let [q, kv] = heads;
    let f32 = DType::F32;
    let [of_q, of_k, of_v, of_dy] =
        [(q, sizes[0], 1), (kv, sizes[0], 2), (kv, sizes[1], 3), (q, sizes[1], 4)]
            .map(|(heads, size, seed)| noise(f32, exact, &[total, heads, size], seed));
    let mut ends = vec![1];
    for length in lengths {
        ends.push(ends[ends.len() - 1] + *length as i64);
    }
    let offsets = ints(&[ends.len()], &ends);
    let args = [Some(&of_q), Some(&of_k), Some(&of_v), Some(&offsets)];
    let forward = Case::new("attention_lse", attrs.clone(), &args).expected().1;
    let [y, lse] = [0, 1].map(|i| forward[i].cast(f32));
    let y = y.cast(exact).cast(f32);
    let args = [&of_q, &of_k, &of_v, &y, &lse, &of_dy, &offsets].map(Some);
    Case::new("attention_grad", attrs, &args).with_rows(&[0, 1, 2, 3, 4, 5])
}

#[test]
fn gradients() {
    let grads = |what: &str, case: &Case| {
        let _ = check_to(what, case, &[], 2e-5);
    };
    let causal = || attrs("causal", 0, 0.0);
    grads("causal gradient", &gradient(&[4, 70, 1], [4, 2], [64, 64], causal()));
    grads("gradient of all", &gradient(&[67, 9], [2, 2], [32, 48], attrs("full", 0, 0.0)));
    grads("gradient in a window", &gradient(&[70], [3, 1], [20, 7], attrs("causal", 37, 0.0)));
    grads("gradient of a cap", &gradient(&[33], [1, 1], [128, 128], attrs("full", 9, 5.0)));
    grads("gradient of large heads", &gradient(&[35], [2, 1], [200, 256], causal()));
}

/// Gradients of narrow operands, as a training step has them: sums are f32, and so may results be.
fn check_narrow(what: &str, case: &Case, dtype: DType, result: DType) -> Vec<Tensor> {
    let (mut spec, want) = case.expected();
    let mut case = case.clone();
    for i in [0, 1, 2, 3, 5] {
        spec.operands[i].as_mut().expect("a factor").ty.dtype = dtype;
        case.args[i] = Some(case.args[i].as_ref().expect("a factor").cast(dtype));
    }
    for layout in &mut spec.results {
        layout.ty.dtype = result;
    }
    let want: Vec<Tensor> = want.iter().map(|want| want.cast(result)).collect();
    // Weights and gradients of scores are rounded before they are multiplied.
    let tolerance = if dtype == DType::F16 { 2e-3 } else { 1.6e-2 };
    check_spec(what, &case, (&spec, &want), &[], tolerance)
}

#[test]
fn gradients_on_tensor_cores() {
    let [f32, bf16, f16] = [DType::F32, DType::Bf16, DType::F16];
    let check = |what: &str, dtype: DType, result: DType, case: Case| {
        let _ = check_narrow(what, &case, dtype, result);
    };
    let causal = || attrs("causal", 0, 0.0);
    let case = |dtype, lengths: &[usize], heads, sizes, attrs| {
        gradient_of(dtype, lengths, heads, sizes, attrs)
    };
    check("causal", bf16, f32, case(bf16, &[4, 130, 1], [4, 2], [64, 64], causal()));
    check("narrow results", bf16, bf16, case(bf16, &[70], [2, 2], [64, 64], causal()));
    check("all", f16, f32, case(f16, &[67, 9], [2, 2], [32, 48], attrs("full", 0, 0.0)));
    check("a window", bf16, f32, case(bf16, &[140], [3, 1], [64, 32], attrs("causal", 37, 0.0)));
    check("a cap", f16, f32, case(f16, &[70], [1, 1], [128, 128], attrs("full", 9, 5.0)));
    check("128 elements", bf16, f32, case(bf16, &[100], [2, 1], [128, 128], causal()));
}

#[test]
fn gradients_of_a_sequence_are_the_same_bits_beside_others() {
    let bf16 = DType::Bf16;
    let both = gradient_of(bf16, &[67, 81], [2, 1], [64, 64], attrs("causal", 0, 0.0));
    let mut alone = both.clone();
    // The second sequence, with nothing before it but a token that is in none.
    for i in 0..6 {
        alone.args[i] = Some(both.args[i].as_ref().unwrap().slice(0, 67, 83, 1));
    }
    alone.args[6] = Some(ints(&[2], &[1, 82]));
    let both = check_narrow("two sequences", &both, bf16, DType::F32);
    let alone = check_narrow("one of them", &alone, bf16, DType::F32);
    for (both, alone) in both.iter().zip(&alone) {
        let own = |t: &Tensor, first: usize| t.slice(0, first, 81, 1).to_bytes();
        assert_eq!(own(both, 68), own(alone, 1));
    }
}
