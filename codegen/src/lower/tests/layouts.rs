//! Layouts, symbolic sizes and corner cases that the samples do not have.

use std::sync::Arc;

use ir::{
    Attr, Attrs, DType, Env, Interpreter, KernelSpec, Layout, Module, Precision, Tensor, TensorType,
};

use super::run::{Case, Runner, assert_close, noise, strided, type_of};

fn env(pairs: &[(&str, i64)]) -> Env {
    pairs.iter().map(|(name, value)| (Arc::from(*name), *value)).collect()
}

/// A layout of these sizes and strides, which may be symbolic.
fn layout(dtype: DType, shape: &[&str], strides: &[&str]) -> Layout {
    let shape = shape.iter().map(|d| d.parse::<ir::Dim>().unwrap());
    strided(&TensorType::new(dtype, shape), strides)
}

fn dense(dtype: DType, shape: &[&str]) -> Layout {
    Layout::contiguous(&layout(dtype, shape, &vec!["1"; shape.len()]).ty)
}

/// Cases with the layouts that replace their own, all compiled together.
#[derive(Default)]
struct Bench {
    specs: Vec<KernelSpec>,
    cases: Vec<(Case, Vec<Tensor>, Env)>,
}

impl Bench {
    /// Adds a case; `operands` and `results` replace the dense layouts.
    fn add(&mut self, case: Case, operands: Vec<Layout>, results: Vec<Layout>, env: Env) {
        let (mut spec, want) = case.expected();
        let mut given = operands.into_iter();
        for operand in spec.operands.iter_mut().flatten() {
            *operand = given.next().expect("a layout for every operand");
        }
        spec.results = results;
        self.specs.push(spec);
        self.cases.push((case, want, env));
    }

    fn check(self, tolerance: f64) {
        let runner = Runner::new(self.specs);
        for (i, (case, want, env)) in self.cases.iter().enumerate() {
            for parts in [1, 3] {
                for (got, want) in runner.run(i, &case.args, env, parts).iter().zip(want) {
                    assert_close(&format!("{i}: {} in {parts}", case.op), got, want, tolerance);
                }
            }
        }
    }
}

#[test]
fn moves_are_exact_between_any_layouts() {
    let mut specs = Vec::new();
    let mut inputs = Vec::new();
    for dtype in [DType::F64, DType::F32, DType::Bf16, DType::I64, DType::Bool, DType::F8E4M3] {
        let x = noise(dtype, &[5, 37, 3], 3);
        for from in [["T*3", "3", "1"], ["1", "5", "5*T"], ["0", "2", "-74"]] {
            let operand = layout(dtype, &["5", "T", "3"], &from);
            let result = layout(dtype, &["5", "T", "3"], &["4*T", "4", "1"]);
            specs.push(KernelSpec {
                op: "copy",
                attrs: Attrs::none(),
                operands: vec![Some(operand)],
                results: vec![result],
                body: None,
                symbols: Arc::default(),
            });
            let x = if from[0] == "0" {
                x.slice(0, 1, 1, 1).broadcast_to(&[5, 37, 3])
            } else {
                x.clone()
            };
            inputs.push(x);
        }
    }
    // One flat loop of more than a tile.
    let long = noise(DType::F32, &[3, 9001], 4);
    let flat = dense(DType::F32, &["3", "N"]);
    specs.push(KernelSpec {
        op: "copy",
        operands: vec![Some(flat.clone())],
        results: vec![flat],
        ..specs[0].clone()
    });
    inputs.push(long);
    let runner = Runner::new(specs);
    for (i, x) in inputs.into_iter().enumerate() {
        let got = runner.run(i, &[Some(x.clone())], &env(&[("T", 37), ("N", 9001)]), 3);
        assert_eq!(got[0].to_bytes(), x.to_bytes(), "copy {i}");
    }
}

#[test]
fn fused_loops_broadcast_stride_and_give_several_results() {
    let mut module = Module::new("test");
    module.symbol("T", 1, 100);
    let mut b = module.builder("body");
    let ty = |dtype, shape: &[&str]| layout(dtype, shape, &vec!["1"; shape.len()]).ty;
    let x = b.param("x", ty(DType::F32, &["T", "4", "H"])).unwrap();
    let w = b.param("w", ty(DType::Bf16, &["H"])).unwrap();
    let keep = b.param("keep", ty(DType::Bool, &["T", "1", "1"])).unwrap();
    let index = b.param("index", ty(DType::I32, &["T", "1", "H"])).unwrap();
    let wide = b.cast(w, DType::F32).unwrap();
    let gate = b.unary("silu", x).unwrap();
    let y = b.mul(gate, wide).unwrap();
    let two = b.scalar(DType::F32, 2.0).unwrap();
    let power = b.op1("pow", Attrs::none(), &[x, two]).unwrap();
    let y = b.select(keep, y, power).unwrap();
    let attrs = Attrs::none().with("shape", ty(DType::F32, &["T", "4", "H"]).shape.to_vec());
    let place = b.op1("iota", attrs.with("axis", 0i64).with("dtype", DType::I32), &[]).unwrap();
    let sum = b.add(place, index).unwrap();
    let size = Attrs::none().with("sizes", vec!["3*T".parse::<ir::Dim>().unwrap()]);
    let size = size.with("scalar", Attr::Bool(true)).with("dtype", DType::I32);
    let size = b.op1("size_vector", size, &[]).unwrap();
    let sum = b.add(sum, size).unwrap();
    let half = b.cast(y, DType::F16).unwrap();
    b.output("half", half);
    b.output("sum", sum);
    let body = b.finish();

    let spec = KernelSpec {
        op: "fused",
        attrs: Attrs::none(),
        operands: vec![
            Some(layout(DType::F32, &["T", "4", "H"], &["4*H + 8", "H", "1"])),
            Some(dense(DType::Bf16, &["H"])),
            Some(layout(DType::Bool, &["T", "1", "1"], &["2", "1", "1"])),
            Some(layout(DType::I32, &["T", "1", "H"], &["1", "0", "T"])),
        ],
        results: vec![
            dense(DType::F16, &["T", "4", "H"]),
            layout(DType::I32, &["T", "4", "H"], &["1", "T", "4*T"]),
        ],
        body: Some(Arc::new(body.clone())),
        symbols: Arc::new(module.symbols.clone()),
    };
    let runner = Runner::new(vec![spec]);
    let weights = indexmap::IndexMap::<Arc<str>, Tensor>::new();
    for (tokens, width) in [(1, 5), (7, 37), (3, 2000)] {
        let args = [
            noise(DType::F32, &[tokens, 4, width], 1),
            noise(DType::Bf16, &[width], 2),
            Tensor::from_i64s(DType::Bool, &[tokens, 1, 1], (0..tokens as i64).map(|i| i % 2)),
            Tensor::from_i64s(DType::I32, &[tokens, 1, width], 0..(tokens * width) as i64),
        ];
        let env = env(&[("T", tokens as i64), ("H", width as i64)]);
        let oracle = Interpreter::new(&module, &weights, Precision::F64);
        let want = oracle.eval(&body, &args, &env).unwrap();
        let args = args.map(Some);
        for parts in [1, 2] {
            for (got, want) in runner.run(0, &args, &env, parts).iter().zip(&want) {
                assert_close("fused", got, want, 1e-6);
            }
        }
    }
}

#[test]
fn integers_wrap_and_never_trap() {
    let numbers = [i64::MIN, -7, -1, 0, 1, 2, 7, i64::MAX];
    let pairs: Vec<(i64, i64)> =
        numbers.iter().flat_map(|a| numbers.iter().map(|b| (*a, *b))).collect();
    let mut bench = Bench::default();
    for dtype in [DType::I64, DType::I32, DType::U8] {
        let of =
            |pick: fn(&(i64, i64)) -> i64| Tensor::from_i64s(dtype, &[64], pairs.iter().map(pick));
        let (a, b) = (of(|p| p.0), of(|p| p.1));
        for op in ["add", "mul", "div", "rem", "pow", "maximum", "less", "equal"] {
            let case = Case::new(op, Attrs::none(), &[&a, &b]);
            let to = if matches!(op, "less" | "equal") { DType::Bool } else { dtype };
            let layouts = [dense(dtype, &["64"]), dense(dtype, &["64"])];
            bench.add(case, layouts.to_vec(), vec![dense(to, &["64"])], Env::new());
        }
        for to in [DType::I64, DType::I32, DType::I16, DType::U8, DType::Bool, DType::F32] {
            let case = Case::new("cast", Attrs::none().with("to", to), &[&a]);
            bench.add(case, vec![dense(dtype, &["64"])], vec![dense(to, &["64"])], Env::new());
        }
    }
    let odd = [f64::NAN, f64::INFINITY, -0.5, -3.7, 0.0, 2.5, 1e5, f64::NEG_INFINITY];
    let odd = Tensor::from_f64s(DType::F32, &[8], odd);
    let eight = [dense(DType::F32, &["8"]), dense(DType::F32, &["8"])];
    for op in ["pow", "rem", "maximum", "minimum"] {
        let other =
            Tensor::from_f64s(DType::F32, &[8], [2.0, 3.0, -2.0, 2.0, 0.0, -1.5, 1.0, f64::NAN]);
        let case = Case::new(op, Attrs::none(), &[&odd, &other]);
        bench.add(case, eight.to_vec(), eight[..1].to_vec(), Env::new());
    }
    for op in ["sign", "round", "abs", "relu"] {
        let case = Case::new(op, Attrs::none(), &[&odd]);
        bench.add(case, eight[..1].to_vec(), eight[..1].to_vec(), Env::new());
    }
    bench.check(1e-6);
}

#[test]
fn rows_are_normalised_wherever_they_lie() {
    let mut bench = Bench::default();
    let (x, w) = (noise(DType::F32, &[6, 2, 50], 1), noise(DType::F32, &[50], 2));
    let eps = Attrs::none().with("eps", 1e-5);
    let dense_x = dense(DType::F32, &["T", "2", "50"]);
    let wide = layout(DType::F32, &["T", "2", "50"], &["150", "75", "1"]);
    let columns = layout(DType::F32, &["T", "2", "50"], &["1", "T", "2*T"]);
    let weight = dense(DType::F32, &["50"]);
    for from in [&dense_x, &wide, &columns] {
        let env = || env(&[("T", 6)]);
        let rms = Case::new("rms_norm", eps.clone(), &[&x, &w]);
        bench.add(rms, vec![from.clone(), weight.clone()], vec![dense_x.clone()], env());
        let args = [Some(x.clone()), Some(w.clone()), None];
        let norm = Case { op: "layer_norm", attrs: eps.clone(), args: args.to_vec() };
        bench.add(norm, vec![from.clone(), weight.clone()], vec![wide.clone()], env());
        let softmax = Case::new("softmax", Attrs::none().with("axis", 0i64), &[&x]);
        bench.add(softmax, vec![from.clone()], vec![dense_x.clone()], env());
        for axes in [vec![0, 2], vec![0], vec![1], vec![0, 1, 2], vec![2]] {
            let keep = axes.len() < 3;
            let attrs = Attrs::none().with("axes", axes.clone()).with("keep", keep);
            let shape: Vec<&str> = (0..3i64)
                .zip(["T", "2", "50"])
                .filter(|(i, _)| keep || !axes.contains(i))
                .map(|(i, d)| if axes.contains(&i) { "1" } else { d })
                .collect();
            for op in ["reduce_mean", "reduce_max", "reduce_sum_square"] {
                let case = Case::new(op, attrs.clone(), &[&x]);
                bench.add(case, vec![from.clone()], vec![dense(DType::F32, &shape)], env());
            }
        }
        let sums = Case::new("cumsum", Attrs::none().with("axis", 2i64), &[&x]);
        bench.add(sums, vec![from.clone()], vec![wide.clone()], env());
    }
    let ints = Tensor::from_i64s(DType::I32, &[3, 40], (0..120).map(|i| i * 977 % 131 - 60));
    let table = dense(DType::I32, &["3", "40"]);
    for op in ["reduce_sum", "reduce_sum_square", "reduce_max", "reduce_min"] {
        let attrs = Attrs::none().with("axes", vec![1]).with("keep", false);
        let case = Case::new(op, attrs, &[&ints]);
        bench.add(case, vec![table.clone()], vec![dense(DType::I32, &["3"])], Env::new());
    }
    bench.check(3e-6);
}

#[test]
fn products_take_strided_rows_and_any_number_of_them() {
    let mut bench = Bench::default();
    for rows in [1usize, 2, 5, 13, 100] {
        let x = noise(DType::F32, &[rows, 2, 48], rows as u64);
        let w = noise(DType::Bf16, &[3, 48, 16], 2);
        let residual = noise(DType::F32, &[rows, 2, 40], 3);
        let attrs = Attrs::none().with("n", 40i64).with("act", "none");
        let args = vec![Some(x.clone()), Some(w.clone()), None, Some(residual)];
        let layouts = [
            layout(DType::F32, &["T", "2", "48"], &["128", "64", "1"]),
            dense(DType::Bf16, &["3", "48", "16"]),
            layout(DType::F32, &["T", "2", "40"], &["100", "50", "1"]),
        ];
        let y = dense(DType::F32, &["T", "2", "40"]);
        let linear = Case { op: "linear", attrs: attrs.clone(), args };
        bench.add(linear, layouts.to_vec(), vec![y.clone()], env(&[("T", rows as i64)]));
        // `[T, K] · [N, K]ᵀ` of a run-time operand, and a batch of dense ones that is broadcast.
        let (a, b) = (noise(DType::F32, &[rows, 300], 5), noise(DType::F32, &[300, 50], 6));
        let product = Case::new("matmul", Attrs::none(), &[&a, &b]);
        let transposed = layout(DType::F32, &["300", "N"], &["1", "300"]);
        let a_rows = dense(DType::F32, &["T", "300"]);
        let sizes = || env(&[("T", rows as i64), ("N", 50)]);
        bench.add(product, vec![a_rows, transposed], vec![dense(DType::F32, &["T", "N"])], sizes());
        let (a, b) = (noise(DType::F32, &[2, 3, rows, 20], 7), noise(DType::F32, &[3, 20, 50], 8));
        let product = Case::new("matmul", Attrs::none(), &[&a, &b]);
        let a_columns = layout(DType::F32, &["2", "3", "T", "20"], &["60*T", "20*T", "1", "T"]);
        let b_dense = dense(DType::F32, &["3", "20", "N"]);
        bench.add(
            product,
            vec![a_columns, b_dense],
            vec![dense(DType::F32, &["2", "3", "T", "N"])],
            sizes(),
        );
    }
    bench.check(1e-5);
}

#[test]
fn rotation_reads_a_slice_and_gather_any_axis() {
    let mut bench = Bench::default();
    for (size, half, style) in [(96, 48, "half"), (96, 48, "interleaved"), (21, 6, "interleaved")] {
        let x = noise(DType::F32, &[4, 3, size], 1);
        let (cos, sin) = (noise(DType::F32, &[4, half], 2), noise(DType::F32, &[4, half], 3));
        let case = Case::new("rope", Attrs::none().with("style", style), &[&x, &cos, &sin]);
        let d = size.to_string();
        let angles = dense(DType::F32, &["T", &half.to_string()]);
        let from = layout(DType::F32, &["T", "3", &d], &["1000", &d, "1"]);
        let to = dense(DType::F32, &["T", "3", &d]);
        bench.add(case, vec![from, angles.clone(), angles], vec![to], env(&[("T", 4)]));
    }
    let indices = Tensor::from_i64s(DType::I64, &[4], [0, -1, 9, 3]);
    for (dtype, axis) in [(DType::Bf16, 0), (DType::F32, 1), (DType::I32, 2), (DType::F16, 0usize)]
    {
        let data = noise(dtype, &[5, 6, 40], 4);
        let case = Case::new("gather", Attrs::none().with("axis", axis as i64), &[&data, &indices]);
        let mut shape = ["V", "6", "40"];
        shape[axis] = "T";
        let from = layout(dtype, &["V", "6", "40"], &["6*44", "44", "1"]);
        let at = dense(DType::I64, &["T"]);
        bench.add(case, vec![from, at], vec![dense(dtype, &shape)], env(&[("T", 4), ("V", 5)]));
    }
    bench.check(1e-6);
}

#[test]
fn equal_texts_share_code_and_unsupported_ones_say_why() {
    use ir::Kernels as _;
    let codegen = crate::Codegen::new(ir::Target::x86_64_v3());
    let spec = |size: &str| {
        let x = dense(DType::F32, &[size, "64"]);
        KernelSpec {
            op: "exp",
            attrs: Attrs::none(),
            operands: vec![Some(x.clone())],
            results: vec![x],
            body: None,
            symbols: Arc::default(),
        }
    };
    let specs = [spec("T"), spec("2*T"), spec("T")];
    let compiled = codegen.compile(&specs, &|_, _| {}).unwrap();
    let offsets: Vec<u64> = compiled.kernels.iter().map(|k| k.code_offset).collect();
    assert_eq!(offsets, [offsets[0]; 3]);
    assert_ne!(compiled.kernels[0].dims, compiled.kernels[1].dims);
    assert_eq!(codegen.compile(&specs, &|_, _| {}).unwrap(), compiled);

    let mut bad = spec("T");
    bad.operands[0].as_mut().unwrap().ty.dtype = DType::F64;
    bad.results[0].ty.dtype = DType::F64;
    assert!(codegen.supports(&bad).unwrap_err().contains("f64"));
    bad.op = "no_such_operator";
    let bad = [bad.clone(), bad];
    assert_eq!(codegen.check(&bad).unwrap_err().len(), 2);
    assert!(codegen.check(&specs).is_ok());
    let errors = codegen.compile(&bad, &|_, _| {}).unwrap_err();
    assert_eq!(errors.len(), 2);
    let seconds = |t: usize| {
        let exp = ir::OpRef::named("exp");
        let ty = Some(type_of(&noise(DType::F32, &[t, 64], 1)));
        let results = [ty.clone().unwrap()];
        codegen.seconds(exp, &Attrs::none(), &[ty], &results, &Env::new()).unwrap()
    };
    assert!(seconds(1 << 20) > 100.0 * seconds(1));
}

#[test]
fn every_target_gives_the_same_bits() {
    let target = match crate::native_target() {
        Ok(target) if target != ir::Target::x86_64_v3() => target,
        _ => return,
    };
    let x = noise(DType::F32, &[40, 96], 1);
    let packed = noise(DType::Bf16, &[3, 96, 16], 2);
    let [q, k] = [3, 4].map(|seed| noise(DType::F32, &[40, 2, 48], seed));
    let offsets = Tensor::from_i64s(DType::I32, &[3], [0, 7, 40]);
    let eps = Attrs::none().with("eps", 1e-5);
    let linear = Attrs::none().with("n", 40i64).with("act", "gelu");
    let scale = Attrs::none().with("scale", 0.3);
    let cases = [
        Case::new("linear", linear, &[&x, &packed]),
        Case::new("l2_normalize", eps, &[&x]),
        Case::new("softmax", Attrs::none(), &[&x]),
        Case::new("gelu_tanh", Attrs::none(), &[&x]),
        Case::new("matmul", Attrs::none(), &[&x, &noise(DType::F32, &[96, 30], 5)]),
        Case::new("attention", scale, &[&q, &k, &k, &offsets]),
    ];
    let specs: Vec<KernelSpec> = cases.iter().map(|case| case.expected().0).collect();
    let (here, baseline) = (Runner::on(target, specs.clone()), Runner::new(specs));
    for (i, case) in cases.iter().enumerate() {
        let [a, b] = [&here, &baseline].map(|r| r.run(i, &case.args, &Env::new(), 1));
        assert_eq!(a[0].to_bytes(), b[0].to_bytes(), "{}", case.op);
    }
}
