//! Attention: the oracle on lengths that cross every border, and the promise of equal bits.

use ir::{Attrs, DType, Env, KernelSpec, Tensor};

use super::{
    prompt::{Heads, MEMORIES, Prompt, env, format, symbolic},
    run::{Case, Runner, assert_close, noise, type_of},
};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const KEY: usize = 40;
const VALUE: usize = 28;
const BLOCK: usize = 32;

fn sequences(lengths: &[usize]) -> Prompt {
    let heads = Heads { heads: HEADS, kv_heads: KV_HEADS, key: KEY, value: VALUE, block: BLOCK };
    Prompt::new(heads, lengths, 1)
}

#[test]
fn a_token_has_the_same_bits_in_every_batch_chunk_and_split() {
    let prompt = sequences(&[70, 1, 150, 64]);
    let plain = Attrs::none().with("scale", 0.3).with("mask", "causal");
    let window = plain.clone().with("window", 50i64).with("softcap", 3.0);
    let cache = prompt.paged(DType::F32, 0.5);
    let whole = [(0, 0, 70), (1, 0, 1), (2, 0, 150), (3, 0, 64)];
    for attrs in [plain, window] {
        let packed = prompt.packed(&attrs);
        let paged = prompt.call(&attrs, &cache, &whole);
        let (spec, want) = packed.expected();
        let (paged_spec, _) = paged.expected();
        let runner = Runner::new(vec![symbolic(spec), symbolic(paged_spec)]);
        let all = runner.run(0, &packed.args, &env(&packed), 1).remove(0);
        assert_close("packed", &all, &want[0], 2e-6);
        for parts in [2, 3] {
            assert_eq!(runner.run(0, &packed.args, &env(&packed), parts)[0], all);
        }
        let calls: [&[(usize, usize, usize)]; 7] = [
            &whole,
            &[(2, 0, 33)],
            &[(2, 33, 150), (0, 69, 70)],
            &[(2, 149, 150)],
            &[(3, 63, 64), (2, 64, 65), (1, 0, 1), (0, 63, 65)],
            &[(0, 0, 1)],
            &[(0, 1, 7), (2, 97, 98)],
        ];
        for call in calls {
            let case = prompt.call(&attrs, &cache, call);
            for parts in [1, 3] {
                let got = runner.run(1, &case.args, &env(&case), parts).remove(0);
                assert_eq!(got.to_bytes(), prompt.rows(&all, call), "{call:?} in {parts}");
            }
        }
    }
}

#[test]
fn stale_slots_do_not_show() {
    let prompt = sequences(&[40, 17]);
    let attrs = Attrs::none().with("scale", 0.3);
    let call = [(0, 39, 40), (1, 10, 17)];
    let cases = MEMORIES.map(|dtype| {
        [0.0, f64::NAN].map(|other| prompt.call(&attrs, &prompt.paged(dtype, other), &call))
    });
    let specs = cases.iter().map(|[case, _]| symbolic(case.expected().0)).collect();
    let runner = Runner::new(specs);
    for (i, cases) in cases.iter().enumerate() {
        let run = |case: &Case| runner.run(i, &case.args, &env(case), 1).remove(0);
        let results = cases.each_ref().map(run);
        let want = cases[0].expected().1;
        assert_close(MEMORIES[i].name(), &results[0], &want[0], 3e-6);
        assert_eq!(results[0], results[1], "{}", MEMORIES[i]);
    }
}

/// Prompts of random lengths, cut up at random, in memories of every type: what the interpreter
/// says, and the same bits in every cut and split.
#[test]
fn narrow_memories_agree_with_the_oracle_in_every_cut() {
    let plain = Attrs::none().with("scale", 0.3);
    let window = plain.clone().with("window", 37i64).with("softcap", 2.0);
    for (attrs, seed) in [(plain, 11), (window, 12)] {
        // Three sequences, each with a token at least, in 1 to 5 blocks.
        let random = noise(DType::F64, &[12], seed).to_f64s();
        let random = Tensor::from_f64s(DType::I64, &[12], random.iter().map(|x| (x + 1.0) * 70.0));
        let random: Vec<usize> =
            random.to_i64s().into_iter().map(|n| usize::try_from(n).unwrap()).collect();
        let mut lengths: Vec<usize> = random[..3].iter().map(|n| n + 1).collect();
        if lengths.iter().map(|n| n.div_ceil(BLOCK)).sum::<usize>().is_multiple_of(7) {
            lengths[0] += BLOCK;
        }
        let prompt = sequences(&lengths);
        let whole: Vec<_> = (0..3).map(|s| (s, 0, lengths[s])).collect();
        let cases = MEMORIES.map(|dtype| prompt.call(&attrs, &prompt.paged(dtype, 1.0), &whole));
        let (specs, wanted): (Vec<_>, Vec<_>) = cases.iter().map(Case::expected).unzip();
        let runner = Runner::new(specs.into_iter().map(symbolic).collect());
        for (i, dtype) in MEMORIES.into_iter().enumerate() {
            let cache = prompt.paged(dtype, f64::NAN);
            let all = runner.run(i, &cases[i].args, &env(&cases[i]), 1).remove(0);
            assert_close(&format!("{dtype} {lengths:?}"), &all, &wanted[i][0], 3e-6);
            for cuts in random[3..].chunks(3) {
                let part = |s: usize| {
                    let first = cuts[s] % lengths[s];
                    (s, first, first + 1 + cuts[(s + 1) % 3] % (lengths[s] - first))
                };
                let call = [part(2), part(0), part(1)];
                let case = prompt.call(&attrs, &cache, &call);
                for parts in [1, 3] {
                    let got = runner.run(i, &case.args, &env(&case), parts).remove(0);
                    assert_eq!(got.to_bytes(), prompt.rows(&all, &call), "{dtype} {call:?}");
                }
            }
        }
    }
}

/// A NaN or an infinity in a key or a value is that of the tokens that see it, and of no others.
#[test]
fn what_is_not_finite_shows_where_it_is_seen() {
    let attrs = Attrs::none().with("scale", 0.3);
    let (whole, spoilt) = ([(0, 0, 90), (1, 0, 20)], 70);
    let prompt = sequences(&[90, 20]);
    let of_kind = |dtype: DType| {
        let with = |value: f64, of_keys: bool| {
            let mut prompt = sequences(&[90, 20]);
            let rows = if of_keys { &mut prompt.k } else { &mut prompt.v };
            let (shape, mut all) = (rows.shape().to_vec(), rows.to_f64s());
            all[spoilt * shape[1] * shape[2] + 3] = value;
            *rows = Tensor::from_f64s(DType::F32, &shape, all);
            prompt.call(&attrs, &prompt.paged(dtype, 0.0), &whole)
        };
        let spoilt =
            [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|v| [true, false].map(|k| with(v, k)));
        let sound = prompt.call(&attrs, &prompt.paged(dtype, 0.0), &whole);
        (sound, spoilt.into_iter().flatten().collect::<Vec<_>>())
    };
    let kinds = [DType::I8, DType::F8E4M3].map(of_kind);
    let runner = Runner::new(kinds.iter().map(|(case, _)| symbolic(case.expected().0)).collect());
    for (i, (sound, spoilt_cases)) in kinds.iter().enumerate() {
        let run = |case: &Case| runner.run(i, &case.args, &env(case), 1).remove(0);
        let sound = run(sound);
        let [tokens, heads, width] = *sound.shape() else { panic!("[T, H, D]") };
        for case in spoilt_cases {
            let got = run(case).to_f64s();
            for (at, (got, sound)) in got.iter().zip(sound.to_f64s()).enumerate() {
                let (token, head) = (at / (heads * width), at / width % heads);
                // The first key/value head, of half of the queries' heads.
                let seen = (spoilt..90).contains(&token) && head < heads / 2;
                let right = if seen { got.is_nan() } else { *got == sound };
                assert!(right && token < tokens, "token {token}, head {head}: {got}");
            }
        }
    }
}

#[test]
fn codes_and_their_scales_are_written_to_their_slots() {
    [DType::I8, DType::F8E4M3].into_iter().for_each(written);
}

fn written(dtype: DType) {
    let prompt = sequences(&[45, 20]);
    let cache = prompt.paged(dtype, 3.0);
    let slots: Vec<i64> = prompt.slots(&cache.tables).map(|s| s as i64).collect();
    let slots = Tensor::from_i64s(DType::I32, &[65], slots);
    let quantize = [&prompt.k, &prompt.v]
        .map(|rows| Case::new("quantize_heads", format(dtype).unwrap(), &[rows]));
    let filled = |t: &Tensor| {
        let values = vec![3.0; t.shape().iter().product()];
        Tensor::from_f64s(t.dtype(), t.shape(), values)
    };
    let memories = [&cache.k, &cache.v, &cache.scales[0], &cache.scales[1]];
    let [k, v, ks, vs] = memories.map(filled);
    let write = |[[k_new, k_scale], [v_new, v_scale]]: [&[Tensor; 2]; 2]| {
        let args = [&k, &v, k_new, v_new, &slots, &ks, &vs, k_scale, v_scale];
        Case::new("kv_write", Attrs::none(), &args)
    };
    let expected = quantize.each_ref().map(|case| {
        let (spec, values) = case.expected();
        let pair: [Tensor; 2] = values.try_into().unwrap();
        // The interpreter keeps f64 where the scales are f32.
        (spec, [pair[0].clone(), Tensor::from_f64s(DType::F32, pair[1].shape(), pair[1].to_f64s())])
    });
    let [(k_spec, k_new), (v_spec, v_new)] = &expected;
    let case = write([k_new, v_new]);
    let runner = Runner::new(vec![k_spec.clone(), v_spec.clone(), case.expected().0]);
    for (i, quantize) in quantize.iter().enumerate() {
        let got = runner.run(i, &quantize.args, &Env::new(), 3);
        assert_eq!(got, expected[i].1, "the codes and scales of the interpreter");
    }
    let got = runner.run(2, &case.args, &Env::new(), 3);
    for (got, want) in got.iter().zip(memories) {
        assert_eq!(got.to_bytes(), want.to_bytes());
    }
}

/// Rotating, rounding to eight bits and writing at once gives the bits of one after the other.
#[test]
fn a_fused_write_has_the_bits_of_its_parts() {
    let none = Attrs::none;
    let (t, slots) = (7, [17, 3, -1, 63, 0, 90, 5]);
    for (dtype, style, key, half) in [
        (DType::I8, "half", 64, 32),
        (DType::F8E4M3, "half", 43, 9),
        (DType::F8E4M3, "interleaved", 48, 24),
    ] {
        let x = |heads: usize, width: usize, seed| noise(DType::F32, &[t, heads, width], seed);
        let (q, k, v) = (x(6, key, 1), x(2, key, 2), x(2, VALUE, 3));
        let [cos, sin] = [4, 5].map(|seed| noise(DType::F32, &[t, half], seed));
        let memory = |dtype, shape: &[usize], seed| noise(dtype, shape, seed);
        let k_cache = memory(dtype, &[4, 2, key, 16], 6);
        let v_cache = memory(dtype, &[4, 2, 16, VALUE], 7);
        let scales = [8, 9].map(|seed| memory(DType::F32, &[4, 2, 16], seed));
        let slots = Tensor::from_i64s(DType::I32, &[t], slots);
        let style = none().with("style", style);
        let [ks, vs] = &scales;
        let args = [&k_cache, &v_cache, &q, &k, &v, &slots, &cos, &sin, ks, vs];
        let fused = Case::new("rope_kv_write", style.clone(), &args);
        let rope = |x| Case::new("rope", style.clone(), &[x, &cos, &sin]);
        let quantize = |x| Case::new("quantize_heads", format(dtype).unwrap(), &[x]);
        let run = |case: Case| Runner::new(vec![case.spec()]).run(0, &case.args, &Env::new(), 2);
        let [rotated_q, rotated_k] = [&q, &k].map(|x| run(rope(x)).remove(0));
        let [k_new, v_new] = [&rotated_k, &v].map(|x| run(quantize(x)));
        let args = [&k_cache, &v_cache, &k_new[0], &v_new[0], &slots, ks, vs, &k_new[1], &v_new[1]];
        let mut want = run(Case::new("kv_write", none(), &args));
        want.insert(2, rotated_q);
        let got = run(fused);
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.to_bytes(), want.to_bytes(), "{dtype}: result {i}");
        }
    }
}

#[test]
fn every_mask_agrees_with_the_oracle() {
    let mut specs: Vec<KernelSpec> = Vec::new();
    let mut runs = Vec::new();
    for (i, lengths) in [&[5, 0, 100, 16][..], &[1], &[129, 63]].into_iter().enumerate() {
        let prompt = sequences(lengths);
        for (kernel, window) in [(0, 0i64), (1, 20)] {
            let attrs = Attrs::none().with("scale", 0.3).with("window", window);
            let case = prompt.packed(&attrs);
            let (spec, want) = case.expected();
            if i == 0 {
                specs.push(symbolic(spec));
            }
            runs.push((kernel, env(&case), case, want));
        }
    }
    let shapes = [(4, 4, 70, 70, 64, 64), (8, 1, 3, 90, 16, 33), (3, 3, 20, 131, 7, 8)];
    for (i, (heads, kv_heads, queries, keys, key, value)) in shapes.into_iter().enumerate() {
        let q = noise(DType::F32, &[2, heads, queries, key], 1);
        let k = noise(DType::F32, &[2, kv_heads, keys, key], 2);
        let v = noise(DType::F32, &[2, kv_heads, keys, value], 3);
        // The last bias hides what it is added to: a key, an entry of the mask, or a whole query.
        let bias = [[2, 1, 1, keys], [1, heads, queries, keys], [1, 1, queries, 1]][i];
        let mut values = noise(DType::F32, &bias, 4).to_f64s();
        *values.last_mut().unwrap() = f64::NEG_INFINITY;
        let bias = Tensor::from_f64s(DType::F32, &bias, values);
        for (mask, bias) in [("causal", None), ("full", Some(bias))] {
            let args = [&q, &k, &v].map(|t| Some(t.clone())).into_iter();
            let attrs = Attrs::none().with("scale", 0.4).with("mask", mask);
            let args = args.chain([None, bias]).collect();
            let case = Case { op: "attention", attrs, args };
            let (spec, want) = case.expected();
            runs.push((specs.len(), Env::new(), case, want));
            specs.push(spec);
        }
    }
    let runner = Runner::new(specs);
    for (kernel, env, case, want) in &runs {
        let got = runner.run(*kernel, &case.args, env, 2);
        let shapes: Vec<_> = case.args.iter().flatten().map(type_of).collect();
        assert_close(&format!("{:?} {shapes:?}", case.attrs), &got[0], &want[0], 3e-6);
    }
}

#[test]
fn values_that_a_row_does_not_see_do_not_show() {
    let prompt = sequences(&[70, 150]);
    let attrs = Attrs::none().with("scale", 0.3).with("mask", "causal").with("window", 50i64);
    let whole = [(0, 0, 70), (1, 0, 150)];
    let (spec, _) = prompt.packed(&attrs).expected();
    let clean = prompt.paged(DType::F32, 0.0);
    let (paged, _) = prompt.call(&attrs, &clean, &whole).expected();
    let runner = Runner::new(vec![symbolic(spec), symbolic(paged)]);
    let run = |prompt: &Prompt, paged: bool| {
        let case = match paged {
            false => prompt.packed(&attrs),
            true => prompt.call(&attrs, &prompt.paged(DType::F32, 0.0), &whole),
        };
        runner.run(usize::from(paged), &case.args, &env(&case), 2).remove(0)
    };
    // Token 61 of the second sequence: seen by tokens 61 to 110.
    let bad = 70 + 61;
    for value in [f64::NAN, f64::INFINITY] {
        let mut v = prompt.v.to_f64s();
        v[bad * KV_HEADS * VALUE..][..KV_HEADS * VALUE].fill(value);
        let v = Tensor::from_f64s(DType::F32, prompt.v.shape(), v);
        let broken = Prompt { v, lengths: prompt.lengths.clone(), ..sequences(&[70, 150]) };
        for paged in [false, true] {
            let [good, bad_rows] = [&prompt, &broken].map(|p| run(p, paged));
            for row in 0..220 {
                let [a, b] = [&good, &bad_rows].map(|t| t.slice(0, row, 1, 1));
                if (bad..bad + 50).contains(&row) {
                    assert!(b.to_f64s().iter().all(|x| !x.is_finite()), "row {row} of {paged}");
                } else {
                    assert_eq!(a.to_bytes(), b.to_bytes(), "row {row}, paged: {paged}");
                }
            }
        }
    }
}

#[test]
fn indices_never_lead_out_of_the_memory() {
    let prompt = sequences(&[40, 17]);
    let attrs = Attrs::none().with("scale", 0.3);
    let cache = prompt.paged(DType::F32, 0.0);
    let good = prompt.call(&attrs, &cache, &[(0, 30, 40), (1, 10, 17)]);
    let slots = Tensor::from_i64s(DType::I32, &[4], [3, -5, i64::from(i32::MAX), 3 * 32]);
    let [k, v] = [KEY, VALUE].map(|size| noise(DType::F32, &[4, KV_HEADS, size], 7));
    let write =
        |slots: &Tensor| Case::new("kv_write", Attrs::none(), &[&cache.k, &cache.v, &k, &v, slots]);
    // The interpreter takes no slot beyond the memory.
    let within = Tensor::from_i64s(DType::I32, &[4], [3, -5, -1, -1]);
    let (spec, _) = write(&within).expected();
    let runner = Runner::new(vec![symbolic(good.expected().0), spec]);
    assert_eq!(cache.k.shape()[0], 3, "so the last slot is the first beyond the memory");
    let [want, got] = [&within, &slots].map(|s| runner.run(1, &write(s).args, &Env::new(), 1));
    assert_eq!(got, want);

    let run = |case: &Case| runner.run(0, &case.args, &env(case), 1).remove(0);
    let right = run(&good);
    let wild = |operand: usize, values: &[i64]| {
        let mut case = prompt.call(&attrs, &cache, &[(0, 30, 40), (1, 10, 17)]);
        let shape = case.args[operand].as_ref().unwrap().shape().to_vec();
        case.args[operand] = Some(Tensor::from_i64s(DType::I32, &shape, values.iter().copied()));
        run(&case)
    };
    let far = i64::from(i32::MAX);
    let of_first = |all: &Tensor| all.slice(0, 0, 10, 1).to_bytes();
    let [a, b] = [cache.tables[0][0], cache.tables[0][1]];
    let tables = wild(3, &[a, b, far, -far]);
    assert_eq!(of_first(&tables), of_first(&right));
    let positions: Vec<i64> = (30..40).chain([far, 100_000, 64, -1, -far, 12, 13]).collect();
    let positions = wild(5, &positions);
    assert_eq!(of_first(&positions), of_first(&right));
    let last = |all: &Tensor| all.slice(0, 15, 2, 1).to_bytes();
    assert!(last(&positions) != last(&right) && positions.to_f64s().iter().all(|x| x.is_finite()));
}
