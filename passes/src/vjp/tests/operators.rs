//! Every operator of the table, on its own samples.

use std::collections::BTreeSet;

use ir::{
    Attrs, Builder, DType, Dim, Env, Module, OPS, OpDef, OpRef, Sample, Tensor, TensorType, Vjp,
};

use super::{Recompute, Weights, Wrt, compare, differentiate, run};

/// Operators without a derivative to check: those that refuse one, and those of no floats.
fn is_checked(op: &dyn OpDef, sample: &Sample) -> bool {
    let types: Vec<_> = sample.args.iter().map(|t| t.as_ref().map(ty)).collect();
    let attrs = op.signature().check_attrs(&sample.attrs).unwrap();
    !matches!(op.vjp(&attrs, &types), Vjp::Refused(_) | Vjp::Structural)
}

fn ty(t: &Tensor) -> TensorType {
    TensorType::new(t.dtype(), t.shape().iter().copied())
}

/// Numbers far from each other and from zero, of both signs.
fn apart(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let at = |i: usize| 8.0 * ((i as f64 + 1.0) * 0.618_033_988_749_895).fract() - 4.1;
    Tensor::from_f64s(DType::F64, shape, (0..n).map(at))
}

/// A sample's operands in f64, moved off kinks: ties, and what is no number.
fn operands(op: &str, sample: &Sample) -> Vec<Option<Tensor>> {
    let wide = |(i, t): (usize, &Option<Tensor>)| {
        let t = t.as_ref()?;
        if !t.dtype().is_float() {
            return Some(t.clone());
        }
        if matches!(op, "topk" | "sort") {
            return Some(apart(t.shape()));
        }
        // A bias of -inf hides a key, and is where it is.
        let hides = |x: f64| op == "attention" && i == 4 && x == f64::NEG_INFINITY;
        let values = t.to_f64s().into_iter().enumerate();
        // Next to e²⁰ no difference of the other elements is seen.
        let scale = if op == "exp" { 0.2 } else { 1.0 };
        let values = values.map(|(j, x)| match x.is_finite() || hides(x) {
            true => scale * x,
            false => 0.3 + 0.01 * j as f64,
        });
        Some(Tensor::from_f64s(DType::F64, t.shape(), values))
    };
    sample.args.iter().enumerate().map(wide).collect()
}

/// Whether differences of a result say anything: not of integers, nor of what is rounded to fewer
/// bits, nor of the logarithms that `attention_lse` has no derivative by.
fn is_smooth(op: &str, port: usize, dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32) && (op, port) != ("attention_lse", 1)
}

/// `main(operands, cotangents)`, whose output `loss` is the sum of their products with the results;
/// an axis that is asked for is the symbol `N`, of the first operand and of all that are as long
/// there. Nothing, where there is no smooth result.
fn module(op: &str, attrs: &Attrs, args: &[Option<Tensor>], axis: Option<usize>) -> Option<Module> {
    let mut module = Module::new(op);
    let first = args.iter().flatten().next();
    let n = axis.and_then(|a| i64::try_from(*first?.shape().get(a)?).ok());
    if let Some(n) = n {
        module.symbol("N", n, n + 3);
    }
    let mut b = Builder::new(&module, "main");
    let mut inputs = Vec::new();
    for (i, t) in args.iter().enumerate() {
        inputs.push(t.as_ref().map(|t| {
            let mut ty = ty(t);
            let long = axis.and_then(|a| ty.shape.get_mut(a));
            if let Some(d) = long.filter(|d| n.is_some_and(|n| d.is(n))) {
                *d = Dim::symbol("N");
            }
            b.param(&format!("arg{i}"), ty).unwrap()
        }));
    }
    let results = match b.op(op, attrs.clone(), &inputs) {
        Ok(results) => results,
        // An operator may refuse what it cannot decide.
        Err(_) if n.is_some() => return None,
        Err(e) => panic!("{op}: {e}"),
    };
    let mut loss = None;
    for (i, y) in results.into_iter().enumerate() {
        let ty = b.ty(y).clone();
        if !is_smooth(op, i, ty.dtype) {
            continue;
        }
        let dy = b.param(&format!("cotangent{i}"), ty.with_dtype(DType::F64)).unwrap();
        let y = b.cast(y, DType::F64).unwrap();
        let y = b.mul(y, dy).unwrap();
        let axes: Vec<i64> = (0..ty.rank()).map(|a| a as i64).collect();
        let y = b.reduce("reduce_sum", y, &axes, false).unwrap();
        loss = Some(match loss {
            Some(sum) => b.add(sum, y).unwrap(),
            None => y,
        });
    }
    b.output("loss", loss?);
    let graph = b.finish();
    module.add(graph);
    Some(module)
}

/// The inputs of [`module`].
fn inputs(module: &Module, args: &[Option<Tensor>], env: &Env) -> Vec<Tensor> {
    let mut inputs: Vec<Tensor> = args.iter().flatten().cloned().collect();
    let main = module.function("main").unwrap();
    for (i, p) in main.param_values().enumerate().skip(inputs.len()) {
        inputs.push(crate::testing::sample(main.ty(p), env, 3 * i + 1));
    }
    inputs
}

/// Gradients by every operand of floats, with their numbers among the operands that are there.
fn gradients(module: &Module, args: &[Option<Tensor>], env: &Env) -> Vec<(usize, Tensor)> {
    let there: Vec<&Tensor> = args.iter().flatten().collect();
    let floats: Vec<usize> = (0..there.len()).filter(|i| there[*i].dtype().is_float()).collect();
    let main = module.function("main").unwrap();
    let name = |i: &usize| main.param_name(main.params()[*i]).into();
    let wrt = Wrt { params: floats.iter().map(name).collect(), ..Wrt::default() };
    let with = differentiate(module, "main", &wrt, "loss", Recompute::None)
        .unwrap_or_else(|e| panic!("{}: {e:?}", module.name));
    let inputs = inputs(module, args, env);
    let out = run(&with, "main.grad", &Weights::new(), &inputs, env);
    floats.into_iter().zip(out.into_iter().skip(1)).collect()
}

/// Compares gradients of one module with differences of another.
fn check(
    grads: &[(usize, Tensor)],
    module: &Module,
    args: &[Option<Tensor>],
) -> Result<(), String> {
    let env = Env::new();
    let inputs = inputs(module, args, &env);
    for (i, grad) in grads {
        let mut loss = |moved: &Tensor| {
            let mut inputs = inputs.clone();
            inputs[*i] = moved.clone();
            run(module, "main", &Weights::new(), &inputs, &env)[0].to_f64s()[0]
        };
        compare(grad, &inputs[*i], &mut loss).map_err(|e| format!("by operand {i}: {e}"))?;
    }
    Ok(())
}

#[test]
fn every_derivative_agrees_with_differences() {
    let (mut wrong, mut unchecked) = (Vec::new(), Vec::new());
    for op in OPS {
        let name = op.name();
        let mut checked = 0;
        for (at, sample) in op.samples().into_iter().enumerate() {
            let args = operands(name, &sample);
            if !is_checked(*op, &sample) || args.iter().flatten().all(|t| !t.dtype().is_float()) {
                continue;
            }
            let Some(main) = module(name, &sample.attrs, &args, None) else { continue };
            checked += 1;
            let grads = gradients(&main, &args, &Env::new());
            if let Err(e) = check(&grads, &main, &args) {
                wrong.push(format!("{name}, sample {at}, {e}"));
            }
        }
        if checked == 0 {
            unchecked.push(name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let refused = |name: &&str| {
        let op = OpRef::named(name);
        let sample = op.samples().into_iter().next();
        sample.is_none_or(|sample| !is_checked(op.0, &sample))
    };
    unchecked.retain(|name| !refused(name));
    // Those without floats, and `cast`, whose samples round.
    let others = [
        "constant",
        "not",
        "is_nan",
        "equal",
        "less",
        "less_equal",
        "greater",
        "greater_equal",
        "and",
        "or",
        "xor",
        "bit_and",
        "bit_xor",
        "bit_shift_right",
        "cast",
        "shape_of",
        "size_vector",
        "iota",
        "argsort",
        "splitmix64",
        "moe_permute",
    ];
    assert_eq!(unchecked, others);
}

#[test]
fn derivatives_under_symbolic_sizes_are_the_same() {
    let mut behind = BTreeSet::new();
    for op in OPS {
        for sample in op.samples() {
            let name = op.name();
            let sized = sample.attrs.0.iter().any(|(_, a)| matches!(a, ir::Attr::Dims(_)));
            let args = operands(name, &sample);
            let shape = args.iter().flatten().next().map(|t| t.shape().to_vec());
            if !is_checked(*op, &sample) || (sized && !matches!(name, "topk" | "slice")) {
                continue;
            }
            for (axis, n) in shape.unwrap_or_default().into_iter().enumerate() {
                let Some(symbolic) = module(name, &sample.attrs, &args, Some(axis)) else {
                    continue;
                };
                if axis > 0 {
                    behind.insert(name);
                }
                let env = Env::from([("N".into(), i64::try_from(n).unwrap())]);
                let fixed = module(name, &sample.attrs, &args, None).unwrap();
                let [got, want] = [(&symbolic, &env), (&fixed, &Env::new())]
                    .map(|(m, env)| gradients(m, &args, env));
                let [got, want] =
                    [got, want].map(|g| g.into_iter().map(|(_, t)| t).collect::<Vec<_>>());
                crate::testing::assert_near(&got, &want, 1e-12);
            }
        }
    }
    let windows = ["conv", "conv_transpose", "max_pool", "average_pool"];
    let moves = ["slice", "concat", "gather", "gather_elements", "cumsum", "sort", "transpose"];
    for name in windows.into_iter().chain(moves).chain(["softmax", "reduce_max", "attention"]) {
        assert!(behind.contains(name), "{name} has no symbolic axis behind the first");
    }
}

/// Activations of few bits are not rounded before they are activated: the node stays, and what is
/// differentiated is computed again.
#[test]
fn products_of_narrow_activations_stay_as_they_are() {
    for op in ["linear", "gated_linear", "grouped_linear", "grouped_gated_linear"] {
        let activated = |s: &Sample| s.attrs.get("act") != Some(&ir::Attr::from("none"));
        let sample = OpRef::named(op).samples().into_iter().find(activated).unwrap();
        let with = |dtype: DType| {
            let cast = |t: &Tensor| if t.dtype().is_float() { t.cast(dtype) } else { t.clone() };
            let args: Vec<_> = sample.args.iter().map(|t| t.as_ref().map(cast)).collect();
            let m = narrow(op, &sample.attrs, &args);
            let wrt = Wrt { params: super::names(&["arg0", "arg1"]), ..Wrt::default() };
            let with = differentiate(&m, "main", &wrt, "loss", Recompute::None).unwrap();
            let inputs: Vec<_> = args.into_iter().flatten().collect();
            let out = run(&with, "main.grad", &Weights::new(), &inputs, &Env::new());
            (crate::testing::count(&with.functions["main.grad"], op), out)
        };
        let ((kept, narrow), (_, wide)) = (with(DType::Bf16), with(DType::F64));
        assert!(kept > 0, "{op} stays");
        for (n, w) in narrow.iter().zip(&wide).skip(1) {
            let most = w.to_f64s().into_iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            for (n, w) in n.to_f64s().into_iter().zip(w.to_f64s()) {
                assert!((n - w).abs() <= 0.05 * most, "{op}: {n}, not about {w}");
            }
        }
    }
}

/// `main`, whose loss is the sum of an operator's result.
fn narrow(op: &str, attrs: &Attrs, args: &[Option<Tensor>]) -> Module {
    let mut module = Module::new(op);
    let mut b = Builder::new(&module, "main");
    let mut inputs = Vec::new();
    for (i, t) in args.iter().enumerate() {
        inputs.push(t.as_ref().map(|t| b.param(&format!("arg{i}"), ty(t)).unwrap()));
    }
    let y = b.op(op, attrs.clone(), &inputs).unwrap()[0];
    let y = b.cast(y, DType::F64).unwrap();
    let loss = b.reduce("reduce_sum", y, &[0, 1], false).unwrap();
    b.output("loss", loss);
    let main = b.finish();
    module.add(main);
    module
}

#[test]
fn a_wrong_derivative_is_told() {
    let sample = OpRef::named("tanh").samples().remove(0);
    let args = operands("tanh", &sample);
    let [tanh, erf] = ["tanh", "erf"].map(|op| module(op, &sample.attrs, &args, None).unwrap());
    let grads = gradients(&tanh, &args, &Env::new());
    assert_eq!(check(&grads, &tanh, &args), Ok(()));
    assert!(check(&grads, &erf, &args).is_err());
    let mut off = grads[0].1.to_f64s();
    off[0] += 1e-4;
    let off = Tensor::from_f64s(DType::F64, grads[0].1.shape(), off);
    let why = check(&[(0, off)], &tanh, &args).unwrap_err();
    assert!(why.starts_with("by operand 0: element 0 is"), "{why}");
}

#[test]
fn every_refusal_has_a_reason() {
    for op in OPS {
        for sample in op.samples() {
            let types: Vec<_> = sample.args.iter().map(|t| t.as_ref().map(ty)).collect();
            let attrs = op.signature().check_attrs(&sample.attrs).unwrap();
            if let Vjp::Refused(why) = op.vjp(&attrs, &types) {
                assert!(why.len() > 20 && !why.ends_with('.'), "{}: {why}", op.name());
            }
        }
    }
}

/// A gradient that arrives in f32 leaves in the operand's type, and the other way round.
#[test]
fn cotangents_are_cast_back() {
    let text = r#"module "m"

fn main(%x: bf16[3], %dy: f32[3]) {
  %0 = cast(%x) {to = f32} : f32[3]
  %1 = mul(%0, %dy) : f32[3]
  %2 = reduce_sum(%1) {axes = [0]} : f32[]
  return loss = %2
}
"#;
    let module = ir::parse_module(text).unwrap();
    let wrt = Wrt { params: super::names(&["x", "dy"]), ..Wrt::default() };
    let with = differentiate(&module, "main", &wrt, "loss", Recompute::None).unwrap();
    let x = Tensor::from_f64s(DType::Bf16, &[3], [1.5, -2.0, 0.25]);
    let dy = Tensor::from_f64s(DType::F32, &[3], [1.0 + 1e-4, 3.0, -7.0]);
    let out = run(&with, "main.grad", &Weights::new(), &[x.clone(), dy.clone()], &Env::new());
    let [_, by_x, by_dy] = &out[..] else { panic!("{} outputs", out.len()) };
    assert_eq!((by_x.dtype(), by_x.to_f64s()), (DType::Bf16, vec![1.0, 3.0, -7.0]));
    assert_eq!(by_dy.to_f64s(), x.to_f64s());
}
