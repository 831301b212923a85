//! Kernels of training: the oracle on sizes with every kind of tail, strided operands, and the same
//! bits however tiles are shared out.

use ir::{Attrs, DType, Env, KernelSpec, Layout, Tensor, TensorType};

use super::run::{Case, Runner, assert_close, noise, strided, type_of};

/// Compiles all cases together, and compares each with the oracle and its parts with each other.
#[derive(Default)]
struct Bench {
    specs: Vec<KernelSpec>,
    cases: Vec<(String, Case, Vec<Tensor>)>,
}

impl Bench {
    fn add(&mut self, what: &str, case: Case) -> &mut KernelSpec {
        let (spec, want) = case.expected();
        self.cases.push((what.to_owned(), case, want));
        self.specs.push(spec);
        self.specs.last_mut().expect("just added")
    }

    fn check(self, tolerance: f64) {
        let runner = Runner::new(self.specs);
        for (i, (what, case, want)) in self.cases.iter().enumerate() {
            let whole = runner.run(i, &case.args, &Env::new(), 1);
            for (n, (got, want)) in whole.iter().zip(want).enumerate() {
                assert_close(&format!("{what}, result {n}"), got, want, tolerance);
            }
            for parts in [2, 5, 64] {
                let split = runner.run(i, &case.args, &Env::new(), parts);
                assert!(split == whole, "{what}: other bits in {parts} parts");
            }
        }
    }
}

fn pitch(t: &Tensor, strides: &[&str]) -> Option<Layout> {
    Some(strided(&type_of(t), strides))
}

#[test]
fn gradients_of_norms_have_one_order_of_sums() {
    let mut bench = Bench::default();
    for (rows, width) in [(1, 1), (67, 131), (193, 16), (128, 64), (260, 7)] {
        for centred in [false, true] {
            let attrs = Attrs::none().with("eps", 1e-5).with("centred", centred);
            for dtype in [DType::F32, DType::Bf16] {
                let x = noise(dtype, &[rows, width], 1);
                let w = noise(dtype, &[width], 2);
                let dy = noise(dtype, &[rows, width], 3);
                let what = format!("norm_grad {rows}x{width} {dtype}, centred: {centred}");
                bench.add(&what, Case::new("norm_grad", attrs.clone(), &[&x, &w, &dy]));
                let residual = noise(dtype, &[rows, width], 4);
                let attrs = attrs.clone().with("rounded", DType::F16);
                let case = Case::new("norm_grad", attrs, &[&x, &w, &dy, &residual]);
                bench.add(&format!("{what}, with a residual"), case);
            }
        }
    }
    let [x, dy] = [1, 3].map(|seed| noise(DType::F32, &[67, 21], seed));
    let w = noise(DType::F32, &[21], 2);
    let attrs = Attrs::none().with("eps", 1e-5).with("centred", true);
    let spec = bench.add("strided", Case::new("norm_grad", attrs, &[&x, &w, &dy]));
    spec.operands = vec![pitch(&x, &["1", "70"]), pitch(&w, &["3"]), pitch(&dy, &["29", "1"])];
    // A row of two has a variance that may be tiny; its gradient is as large as that is small.
    bench.check(2e-4);
}

#[test]
fn a_tables_gradient_adds_tokens_in_order() {
    let mut bench = Bench::default();
    for (rows, width, tokens) in [(1, 1, 3), (13, 67, 257), (300, 200, 64), (5, 64, 0)] {
        let attrs = Attrs::none().with("rows", rows);
        let ids = (0..tokens).map(|t| (t * 7919 + t * t) as i64 % (rows + 2) - 1);
        let ids = Tensor::from_i64s(DType::I64, &[tokens], ids);
        for dtype in [DType::F32, DType::F16] {
            let dy = noise(dtype, &[tokens, width], 1);
            let what = format!("embedding_grad {rows} {width} {tokens} {dtype}");
            bench.add(&what, Case::new("embedding_grad", attrs.clone(), &[&dy, &ids]));
        }
    }
    let dy = noise(DType::F32, &[31, 33], 1);
    let ids = Tensor::from_i64s(DType::I32, &[31], (0..31).map(|t| t % 4));
    let attrs = Attrs::none().with("rows", 4i64);
    let spec = bench.add("strided", Case::new("embedding_grad", attrs, &[&dy, &ids]));
    spec.operands = vec![pitch(&dy, &["1", "40"]), pitch(&ids, &["2"])];
    bench.check(1e-5);
}

#[test]
fn updates_walk_their_states_once_in_place() {
    let mut bench = Bench::default();
    let scalar = |x: f64| Tensor::from_f64s(DType::F32, &[], [x]);
    let scalars = [0.01, 0.271, 0.1426, 0.5].map(scalar);
    let [lr, c1, c2, scale] = &scalars;
    for (shape, dtype) in [
        (&[20011][..], DType::F32),
        (&[37, 129], DType::Bf16),
        (&[3, 5, 7], DType::F16),
        (&[1], DType::F32),
    ] {
        let (p, g) = (noise(DType::F32, shape, 1), noise(dtype, shape, 2));
        let m = noise(DType::F32, shape, 3);
        let v = Tensor::from_f64s(DType::F32, shape, m.to_f64s().iter().map(|x| x * x + 1e-4));
        let betas = Attrs::none().with("beta1", 0.9).with("beta2", 0.95);
        let decayed = betas.with("weight_decay", 0.1);
        let adam = decayed.clone().with("eps", 1e-8);
        for keep in [0.0, 1.0, 0.9] {
            let case = Case::new("accumulate", Attrs::none(), &[&p, &g, &scalar(keep)]);
            bench.add("accumulate", case);
        }
        bench.add("adamw", Case::new("adamw_step", adam, &[&p, &g, &m, &v, lr, c1, c2, scale]));
        bench.add("lion", Case::new("lion_step", decayed, &[&p, &g, &m, lr, scale]));
        bench.add("sgd", Case::new("sgd_step", Attrs::none(), &[&p, &g, lr, scale]));
        let momentum = Attrs::none().with("momentum", 0.9).with("nesterov", true);
        let case = Case::new("sgd_momentum_step", momentum, &[&p, &g, &m, lr, scale]);
        bench.add("momentum", case);
    }
    bench.check(2e-6);
}

#[test]
fn matrices_are_packed_from_any_layout() {
    let mut bench = Bench::default();
    for (k, n) in [(1, 1), (37, 16), (64, 100), (9, 33), (300, 7)] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let what = format!("pack {k}x{n} {dtype}");
            bench.add(&what, Case::new("pack", Attrs::none(), &[&noise(dtype, &[k, n], 1)]));
            let w = noise(dtype, &[k, n], 2);
            let spec = bench.add(&what, Case::new("pack", Attrs::none(), &[&w]));
            spec.operands = vec![pitch(&w, &["1", &format!("{}", k + 3)])];
        }
    }
    let experts = noise(DType::F32, &[3, 5, 18], 3);
    bench.add("experts", Case::new("pack", Attrs::none(), &[&experts]));
    bench.check(0.0);
}

/// Sequences, heads and sizes of an attention.
struct Heads {
    lengths: &'static [usize],
    heads: usize,
    kv_heads: usize,
    key: usize,
    value: usize,
    dtype: DType,
}

impl Heads {
    /// q, k, v, dy and offsets.
    fn operands(&self) -> [Tensor; 5] {
        let tokens = self.lengths.iter().sum();
        let make =
            |heads: usize, size: usize, seed: u64| noise(self.dtype, &[tokens, heads, size], seed);
        let ends = self.lengths.iter().scan(0, |sum, n| {
            *sum += *n as i64;
            Some(*sum)
        });
        let offsets: Vec<i64> = [0].into_iter().chain(ends).collect();
        [
            make(self.heads, self.key, 1),
            make(self.kv_heads, self.key, 2),
            make(self.kv_heads, self.value, 3),
            make(self.heads, self.value, 4),
            Tensor::from_i64s(DType::I32, &[offsets.len()], offsets),
        ]
    }
}

fn masks() -> [Attrs; 5] {
    let attrs = |mask: &str, window: i64, cap: f64| {
        let attrs = Attrs::none().with("scale", 0.3).with("mask", mask);
        attrs.with("window", window).with("softcap", cap)
    };
    [
        attrs("full", 0, 0.0),
        attrs("causal", 0, 0.0),
        attrs("causal", 50, 0.0),
        attrs("full", 20, 2.0),
        attrs("causal", 0, 1.5),
    ]
}

#[test]
fn attention_that_keeps_its_logarithms_has_the_same_bits() {
    let heads = Heads {
        lengths: &[70, 1, 0, 150],
        heads: 6,
        kv_heads: 2,
        key: 40,
        value: 28,
        dtype: DType::F32,
    };
    let [q, k, v, _, offsets] = heads.operands();
    let mut bench = Bench::default();
    let mut specs = Vec::new();
    for attrs in &masks()[2..4] {
        let case = |op| Case::new(op, attrs.clone(), &[&q, &k, &v, &offsets]);
        bench.add(&format!("{attrs:?}"), case("attention_lse"));
        specs.extend(["attention", "attention_lse"].map(|op| case(op).expected().0));
    }
    let runner = Runner::new(specs);
    let args = [&q, &k, &v, &offsets].map(|t| Some(t.clone()));
    for kernel in [0, 2] {
        let run = |kernel: usize| runner.run(kernel, &args, &Env::new(), 1).remove(0);
        assert!(run(kernel) == run(kernel + 1), "kernel {kernel}");
    }
    bench.check(3e-6);
}

#[test]
fn gradient_of_attention_agrees_with_the_oracle() {
    let heads = |lengths, heads, kv_heads, key, value, dtype| Heads {
        lengths,
        heads,
        kv_heads,
        key,
        value,
        dtype,
    };
    let all = [
        heads(&[70, 1, 0, 150], 6, 2, 40, 28, DType::F32),
        heads(&[149], 1, 1, 16, 32, DType::F32),
        heads(&[70, 1, 150], 2, 1, 20, 12, DType::F32),
        heads(&[33, 90], 8, 1, 24, 20, DType::Bf16),
        heads(&[64, 72, 3], 4, 4, 7, 1, DType::F32),
    ];
    let mut bench = Bench::default();
    for (heads, attrs) in all.iter().zip(masks()) {
        let [q, k, v, dy, offsets] = heads.operands();
        let forward = Case::new("attention_lse", attrs.clone(), &[&q, &k, &v, &offsets]);
        let mut out = forward.expected().1;
        let lse = out.remove(1).cast(DType::F32);
        let y = out.remove(0).cast(heads.dtype);
        let args = [&q, &k, &v, &y, &lse, &dy, &offsets];
        let what = format!("{:?} {attrs:?}", type_of(&q));
        bench.add(&what, Case::new("attention_grad", attrs, &args));
    }
    // Heads before tokens, and elements that are apart.
    let [q, k, v, dy, offsets] = heads(&[45, 30], 4, 2, 10, 6, DType::F32).operands();
    let attrs = masks()[1].clone();
    let forward = Case::new("attention_lse", attrs.clone(), &[&q, &k, &v, &offsets]).expected().1;
    let [y, lse] = [0, 1].map(|i| forward[i].cast(DType::F32));
    let args = [&q, &k, &v, &y, &lse, &dy, &offsets];
    let spec = bench.add("strided", Case::new("attention_grad", attrs, &args));
    spec.operands[0] = pitch(&q, &["10", "800", "1"]);
    spec.operands[1] = pitch(&k, &["1", "900", "80"]);
    spec.operands[4] = pitch(&lse, &["1", "75"]);
    spec.operands[5] = pitch(&dy, &["30", "7", "1"]);
    spec.results[1] = pitch(&k, &["10", "760", "1"]).expect("strides");
    bench.check(2e-5);
}

#[test]
fn the_head_and_its_loss_agree_with_the_oracle() {
    let mut bench = Bench::default();
    for (tokens, width, rows, dtype) in [
        (79, 61, 157, DType::F32),
        (1, 300, 65, DType::F32),
        (150, 16, 73, DType::Bf16),
        (13, 1030, 19, DType::F32),
    ] {
        let (x, w) = (noise(dtype, &[tokens, width], 1), noise(dtype, &[rows, width], 2));
        let w = Tensor::from_f64s(dtype, w.shape(), w.to_f64s().iter().map(|v| v * 0.3));
        let targets = (0..tokens).map(|t| (t * 31 % (rows + 3)) as i64 - 2);
        let targets = Tensor::from_i64s(DType::I32, &[tokens], targets);
        let what = format!("{tokens}x{width}x{rows} {dtype}");
        let forward = Case::new("linear_cross_entropy", Attrs::none(), &[&x, &w, &targets]);
        let lse = forward.expected().1.remove(1).cast(DType::F32);
        bench.add(&what, forward);
        let dloss = noise(DType::F32, &[tokens], 3);
        let args = [&x, &w, &targets, &lse, &dloss];
        let case = Case::new("linear_cross_entropy_grad", Attrs::none(), &args);
        bench.add(&format!("gradient of {what}"), case);
        let args = [&x, &w, &targets, &dloss];
        let case = Case::new("linear_cross_entropy_dlogits", Attrs::none(), &args);
        bench.add(&format!("gradient of the logits of {what}"), case);
        let logits = noise(DType::F32, &[tokens, rows], 5);
        let case = Case::new("cross_entropy", Attrs::none(), &[&logits, &targets]);
        bench.add(&format!("losses of {what}"), case);
        let case = Case::new("cross_entropy", Attrs::none(), &[&logits, &targets, &dloss]);
        bench.add(&format!("losses of {what} and gradients"), case);
        let dlogits = noise(DType::F32, &[tokens, rows], 4);
        let case = Case::new("linear_grad", Attrs::none(), &[&dlogits, &x, &w]);
        bench.add(&format!("both products of {what}"), case);
    }
    let (x, w) = (noise(DType::F32, &[30, 21], 1), noise(DType::F32, &[40, 21], 2));
    let targets = Tensor::from_i64s(DType::I32, &[30], 0..30);
    let case = Case::new("linear_cross_entropy", Attrs::none(), &[&x, &w, &targets]);
    let lse = case.expected().1.remove(1).cast(DType::F32);
    let args = [&x, &w, &targets, &lse, &lse];
    let spec = bench.add("strided", Case::new("linear_cross_entropy_grad", Attrs::none(), &args));
    spec.operands[0] = pitch(&x, &["1", "31"]);
    spec.operands[1] = pitch(&w, &["50", "2"]);
    spec.operands[2] = pitch(&targets, &["3"]);
    spec.results[1] = pitch(&w, &["1", "44"]).expect("strides");
    let args = [&x, &w, &targets, &lse];
    let case = Case::new("linear_cross_entropy_dlogits", Attrs::none(), &args);
    let dlogits = case.expected().1.remove(1).cast(DType::F32);
    let spec = bench.add("strided logits", case);
    spec.operands[0] = pitch(&x, &["1", "31"]);
    spec.operands[2] = pitch(&targets, &["3"]);
    spec.results[1] = pitch(&dlogits, &["2", "61"]).expect("strides");
    let case = Case::new("linear_grad", Attrs::none(), &[&dlogits, &x, &w]);
    let spec = bench.add("strided products", case);
    spec.operands[0] = pitch(&dlogits, &["1", "31"]);
    spec.operands[1] = pitch(&x, &["1", "31"]);
    spec.operands[2] = pitch(&w, &["50", "2"]);
    spec.results[1] = pitch(&w, &["1", "44"]).expect("strides");
    bench.check(2e-5);
}

/// What is trained is what is scored.
#[test]
fn losses_have_the_same_bits_with_and_without_gradients() {
    let (x, w) = (noise(DType::F32, &[130, 70], 1), noise(DType::F32, &[150, 70], 2));
    let targets = Tensor::from_i64s(DType::I32, &[130], (0..130).map(|t| t * 7 % 153 - 2));
    let dloss = noise(DType::F32, &[130], 3);
    let cases = [
        Case::new("linear_cross_entropy", Attrs::none(), &[&x, &w, &targets]),
        Case::new("linear_cross_entropy_dlogits", Attrs::none(), &[&x, &w, &targets, &dloss]),
    ];
    let runner = Runner::new(cases.iter().map(|case| case.expected().0).collect());
    let [plain, both] = [0, 1].map(|i| runner.run(i, &cases[i].args, &Env::new(), 3).remove(0));
    assert!(plain == both, "other losses where gradients are computed");
}

/// Memory that padding leaves as it is may hold anything.
#[test]
fn ignored_tokens_add_nothing_whatever_is_in_them() {
    let mut bench = Bench::default();
    let (tokens, width, rows) = (140, 37, 70);
    let mut x = noise(DType::F32, &[tokens, width], 1).to_f64s();
    for (token, value) in [(3, f64::NAN), (100, f64::INFINITY)] {
        x[token * width..][..width].fill(value);
    }
    let x = Tensor::from_f64s(DType::F32, &[tokens, width], x);
    let w = noise(DType::F32, &[rows, width], 2);
    let targets = (0..tokens as i64).map(|t| match t {
        3 => -1,
        100 => 70,
        _ => t % 70,
    });
    let targets = Tensor::from_i64s(DType::I32, &[tokens], targets);
    let mut lse = vec![4.0; tokens];
    (lse[3], lse[100]) = (f64::NAN, f64::NAN);
    let lse = Tensor::from_f64s(DType::F32, &[tokens], lse);
    let dloss = noise(DType::F32, &[tokens], 3);
    let args = [&x, &w, &targets, &lse, &dloss];
    bench.add("ignored", Case::new("linear_cross_entropy_grad", Attrs::none(), &args));
    bench.check(2e-5);
}

#[test]
fn what_a_token_does_not_see_is_not_in_its_gradient() {
    let mut bench = Bench::default();
    let heads =
        Heads { lengths: &[150], heads: 6, kv_heads: 2, key: 17, value: 20, dtype: DType::F32 };
    let operands = heads.operands();
    let y = noise(DType::F32, operands[3].shape(), 7);
    let lse = Tensor::from_f64s(DType::F32, &[150, 6], vec![5.0; 150 * 6]);
    // Of each operand one token is no number.
    for (bad, token) in [(0, 69), (1, 70), (2, 64), (3, 5)] {
        for attrs in [masks()[1].clone(), masks()[2].clone()] {
            let mut operands = operands.clone();
            let mut values = operands[bad].to_f64s();
            let width = values.len() / 150;
            values[token * width..][..width].fill(f64::NAN);
            operands[bad] = Tensor::from_f64s(DType::F32, operands[bad].shape(), values);
            let [q, k, v, dy, offsets] = &operands;
            let case = Case::new("attention_grad", attrs, &[q, k, v, &y, &lse, dy, offsets]);
            let finite = |t: &Tensor| t.to_f64s().iter().filter(|x| x.is_finite()).count();
            assert!(case.expected().1.iter().all(|t| finite(t) > 0));
            bench.add(&format!("operand {bad}"), case);
        }
    }
    bench.check(1e-4);
}

#[test]
fn tokens_in_no_sequence_have_no_gradient() {
    let mut bench = Bench::default();
    for (bounds, group) in [(&[0, 30, 30, 110][..], 1), (&[7, 20], 3), (&[0], 2)] {
        let heads = Heads {
            lengths: &[150],
            heads: 2 * group,
            kv_heads: 2,
            key: 17,
            value: 20,
            dtype: DType::F32,
        };
        let [q, k, v, dy, _] = heads.operands();
        let offsets = Tensor::from_i64s(DType::I32, &[bounds.len()], bounds.iter().copied());
        let y = noise(DType::F32, dy.shape(), 7);
        let lse = noise(DType::F32, &dy.shape()[..2], 8);
        let args = [&q, &k, &v, &y, &lse, &dy, &offsets];
        let case = Case::new("attention_grad", masks()[1].clone(), &args);
        let want = case.expected().1;
        assert!(want.iter().all(|d| d.slice(0, 110, 40, 1).to_f64s().iter().all(|x| *x == 0.0)));
        bench.add(&format!("{bounds:?}"), case);
    }
    // The weights of random logarithms are not below one.
    bench.check(1e-3);
}

#[test]
fn kernels_of_training_take_any_number_of_tokens() {
    let attrs = masks()[1].clone();
    let symbolic = |t: &Tensor, n: usize, dim: &str| {
        let mut ty: TensorType = type_of(t);
        for d in ty.shape.iter_mut().take(1).filter(|d| d.is(n as i64)) {
            *d = dim.parse().unwrap();
        }
        Some(Layout::contiguous(&ty))
    };
    let mut runs = Vec::new();
    let mut specs = Vec::new();
    for lengths in [&[9, 80][..], &[200], &[3, 3, 3]] {
        let heads = Heads { lengths, heads: 4, kv_heads: 2, key: 16, value: 16, dtype: DType::F32 };
        let [q, k, v, dy, offsets] = heads.operands();
        let tokens = q.shape()[0];
        let forward = Case::new("attention_lse", attrs.clone(), &[&q, &k, &v, &offsets]);
        let out = forward.expected().1;
        let [y, lse] = [0, 1].map(|i| out[i].cast(DType::F32));
        let args = [&q, &k, &v, &y, &lse, &dy, &offsets];
        let case = Case::new("attention_grad", attrs.clone(), &args);
        let (mut spec, want) = case.expected();
        spec.operands = args[..6].iter().map(|t| symbolic(t, tokens, "T")).collect();
        spec.operands.push(symbolic(&offsets, offsets.len(), "S + 1"));
        spec.results = [&q, &k, &v].map(|t| symbolic(t, tokens, "T").expect("a layout")).into();
        let env = [("T", tokens as i64), ("S", lengths.len() as i64)];
        let env: Env = env.into_iter().map(|(name, n)| (name.into(), n)).collect();
        specs.push(spec);
        runs.push((case, want, env));
    }
    let runner = Runner::new(specs[..1].to_vec());
    for (case, want, env) in &runs {
        for (got, want) in runner.run(0, &case.args, env, 3).iter().zip(want) {
            assert_close("attention_grad", got, want, 1e-5);
        }
    }
}
