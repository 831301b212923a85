//! Attention: sequences packed with others, prompts in chunks, and tokens one at a time from paged
//! memory.

use ir::{Attrs, DType, Tensor};

use super::{
    super::prompt::{Heads, MEMORIES, Prompt, env, format, symbolic},
    Case, Draw, Runner, Subject, Units,
    families::none,
    rounds,
    subject::Along,
};

/// Lengths of sequences, some of them empty.
fn lengths(draw: &mut Draw, longest: usize) -> Vec<usize> {
    (0..draw.within(1..=5)).map(|_| draw.within(0..=longest)).collect()
}

/// Of sequences where all rows are tokens.
fn sequences(case: Case, lengths: &[usize], operands: Vec<Along>, results: usize) -> Subject {
    Subject {
        case,
        body: None,
        units: Units::Sequences(lengths.to_vec()),
        operands,
        results: vec![Along::Tokens(0); results],
    }
}

fn heads(draw: &mut Draw) -> Heads {
    let kv_heads = draw.within(1..=3);
    Heads {
        heads: kv_heads * draw.pick(&[1, 2, 3, 8]),
        kv_heads,
        key: draw.within(1..=70),
        value: draw.within(1..=70),
        block: draw.pick(&[16, 32, 64]),
    }
}

/// A mask, in some cases with a window and a cap.
fn mask(draw: &mut Draw, of: &[&str]) -> Attrs {
    let attrs = none().with("scale", 0.3).with("mask", draw.pick(of));
    let window = if draw.coin() { draw.size(1..=90) } else { 0 };
    attrs.with("window", window).with("softcap", draw.pick(&[0.0, 0.0, 2.0]))
}

/// Attention of packed sequences, and its gradient.
pub(super) fn packed(op: &'static str, draw: &mut Draw) -> Subject {
    let (lengths, dtype) = (lengths(draw, 150), draw.float());
    let Heads { heads, kv_heads, key, value, .. } = heads(draw);
    let t: usize = lengths.iter().sum();
    let mut float = |heads: usize, size: usize| draw.noise(dtype, &[t, heads, size]);
    let qkv = [float(heads, key), float(kv_heads, key), float(kv_heads, value)];
    let (y, dy) = (float(heads, value), float(heads, value));
    let lse = draw.noise(DType::F32, &[t, heads]);
    let offsets = Prompt::offsets(lengths.iter().copied());
    let [q, k, v] = &qkv;
    let attrs = mask(draw, &["causal", "full"]);
    let (args, results) = match op {
        "attention_grad" => (vec![q, k, v, &y, &lse, &dy, &offsets], 3),
        "attention_lse" => (vec![q, k, v, &offsets], 2),
        _ => (vec![q, k, v, &offsets], 1),
    };
    let mut operands = vec![Along::Tokens(0); args.len() - 1];
    operands.push(Along::Offsets);
    sequences(Case::new(op, attrs, &args), &lengths, operands, results)
}

/// Pools of sequences: one row for each.
pub(super) fn segment(op: &'static str, draw: &mut Draw) -> Subject {
    let lengths = lengths(draw, 60);
    let (width, dtype) = (draw.within(1..=300), draw.float());
    let x = draw.noise(dtype, &[lengths.iter().sum(), width]);
    let offsets = Prompt::offsets(lengths.iter().copied());
    let case = Case::new(op, none(), &[&x, &offsets]);
    let subject = sequences(case, &lengths, vec![Along::Tokens(0), Along::Offsets], 0);
    Subject { results: vec![Along::Units(0)], ..subject }
}

/// Attention from memory that sequences share, and writes to it.
pub(super) fn memory(op: &'static str, draw: &mut Draw) -> Subject {
    let Heads { heads, kv_heads, key, value, block } = heads(draw);
    let (blocks, width) = (draw.within(1..=9), draw.within(1..=4));
    let dtype = draw.pick(&MEMORIES);
    let scaled = format(dtype).is_some();
    let mut memory = |shape: &[usize]| match dtype {
        DType::I8 => draw.ints(dtype, shape, -127..128),
        _ => draw.noise(dtype, shape),
    };
    let k = memory(&[blocks, kv_heads, key, block]);
    let v = memory(&[blocks, kv_heads, block, value]);
    let t = 30;
    let (k_new, v_new) = (memory(&[t, kv_heads, key]), memory(&[t, kv_heads, value]));
    let mut scale = |shape: &[usize]| draw.noise(DType::F32, shape);
    let scales = [scale(&[blocks, kv_heads, block]), scale(&[blocks, kv_heads, block])];
    let new_scales = [scale(&[t, kv_heads]), scale(&[t, kv_heads])];
    if op == "kv_write" {
        let slots = slots(draw, t, blocks * block);
        let mut args = vec![&k, &v, &k_new, &v_new, &slots];
        if scaled {
            args.extend(scales.iter().chain(&new_scales));
        }
        return Subject::whole(Case::new(op, none(), &args), "a move into one memory");
    }
    let room = width * block;
    let parts: Vec<(usize, usize)> = (0..draw.within(1..=5))
        .map(|_| {
            let first = draw.within(0..=room - 1);
            (first, draw.within(0..=(room - first).min(70)))
        })
        .collect();
    let lengths: Vec<usize> = parts.iter().map(|p| p.1).collect();
    let positions: Vec<i64> =
        parts.iter().flat_map(|(first, n)| (*first..first + n).map(|p| p as i64)).collect();
    let positions = Tensor::from_i64s(DType::I32, &[positions.len()], positions);
    let tables = draw.ints(DType::I32, &[parts.len(), width], 0..blocks as i64);
    let q = draw.noise(DType::F32, &[positions.len(), heads, key]);
    let offsets = Prompt::offsets(lengths.iter().copied());
    let mut args = vec![&q, &k, &v, &tables, &offsets, &positions];
    if scaled {
        args.extend(&scales);
    }
    let window = if draw.coin() { draw.size(1..=90) } else { 0 };
    let attrs = none().with("scale", 0.3).with("window", window);
    let attrs = attrs.with("softcap", draw.pick(&[0.0, 2.0]));
    let operands = vec![
        Along::Tokens(0),
        Along::Shared,
        Along::Shared,
        Along::Units(0),
        Along::Offsets,
        Along::Tokens(0),
    ];
    sequences(Case::new(op, attrs, &args), &lengths, operands, 1)
}

/// Rotated queries and keys, and values, of which the latter two are written to memory.
pub(super) fn rotated(op: &'static str, draw: &mut Draw) -> Subject {
    let Heads { heads, kv_heads, key, value, block } = heads(draw);
    let (blocks, half) = (draw.within(1..=9), draw.within(1..=key / 2));
    let dtype = draw.pick(&MEMORIES);
    let of_values = draw.float();
    let t = 30;
    let args = [
        draw.noise(dtype, &[blocks, kv_heads, key, block]),
        draw.noise(dtype, &[blocks, kv_heads, block, value]),
        draw.noise(DType::F32, &[t, heads, key]),
        draw.noise(DType::F32, &[t, kv_heads, key]),
        draw.noise(of_values, &[t, kv_heads, value]),
        slots(draw, t, blocks * block),
        draw.noise(DType::F32, &[t, half]),
        draw.noise(DType::F32, &[t, half]),
    ];
    let attrs = none().with("style", draw.pick(&["half", "interleaved"]));
    let scales = [0, 1].map(|_| draw.noise(DType::F32, &[blocks, kv_heads, block]));
    let scales = scales.iter().filter(|_| format(dtype).is_some());
    let args: Vec<&Tensor> = args.iter().chain(scales).collect();
    Subject::whole(Case::new(op, attrs, &args), "a move into one memory")
}

/// A slot of so many for each token.
fn slots(draw: &mut Draw, tokens: usize, all: usize) -> Tensor {
    // Each slot once: of two tokens for one slot, the order would count.
    let slots = draw.shuffled(all);
    let slots = (0..tokens).map(|i| slots.get(i).map_or(-1, |s| *s as i64));
    Tensor::from_i64s(DType::I32, &[tokens], slots)
}

/// Prompts in one launch, in chunks that are cut anywhere and share launches, and token by token.
#[test]
fn fuzz_prompts_have_the_same_bits_however_they_are_cut() {
    rounds(4, |draw| {
        for dtype in MEMORIES {
            let heads = heads(draw);
            let lengths: Vec<usize> = loop {
                let lengths: Vec<usize> = (0..3).map(|_| draw.within(1..=150)).collect();
                let blocks: usize = lengths.iter().map(|n| n.div_ceil(heads.block)).sum();
                if !blocks.is_multiple_of(7) {
                    break lengths;
                }
            };
            cut(&Prompt::new(heads, &lengths, draw.next() >> 1), dtype, draw);
        }
    });
}

/// Chunks of a prompt.
const CHUNKS: usize = 4;

fn cut(prompt: &Prompt, dtype: DType, draw: &mut Draw) {
    let attrs = mask(draw, &["causal"]);
    let cache = prompt.paged(dtype, f64::NAN);
    let whole: Vec<_> = prompt.lengths.iter().enumerate().map(|(s, n)| (s, 0, *n)).collect();
    let paged = prompt.call(&attrs, &cache, &whole);
    let packed = prompt.packed(&attrs);
    let runner = Runner::new(vec![symbolic(packed.spec()), symbolic(paged.spec())]);
    let run = |kernel: usize, case: &Case, threads: usize, draw: &mut Draw| {
        runner.run_shared(kernel, &case.args, &env(case), draw.shares(threads)).remove(0)
    };
    // Memories of f32 hold what packed attention reads.
    let all = run(
        usize::from(dtype != DType::F32),
        if dtype == DType::F32 { &packed } else { &paged },
        1,
        draw,
    );
    let mut calls = vec![whole.clone()];
    // Chunks of all sequences side by side.
    let cuts: Vec<Vec<_>> = prompt.lengths.iter().map(|n| draw.cut(*n, CHUNKS)).collect();
    calls.extend((0..CHUNKS).map(|step| {
        let chunk = |s: usize| (s, cuts[s][step].start, cuts[s][step].end);
        [2, 0, 1].map(chunk).into_iter().filter(|(_, a, b)| a < b).collect()
    }));
    // Single tokens: alone, and a decode step of a batch.
    for _ in 0..4 {
        let token = |s: usize, draw: &mut Draw| {
            let at = draw.within(0..=prompt.lengths[s] - 1);
            (s, at, at + 1)
        };
        calls.push(vec![token(draw.within(0..=2), draw)]);
        calls.push((0..3).map(|s| token(s, draw)).collect());
    }
    for call in calls.iter().filter(|call| !call.is_empty()) {
        let case = prompt.call(&attrs, &cache, call);
        let threads = draw.within(1..=3);
        let got = run(1, &case, threads, draw);
        let wanted = prompt.rows(&all, call);
        assert!(got.to_bytes() == wanted, "{dtype} {:?} {attrs:?} {call:?}", prompt.heads);
    }
}
