//! Gradient operators against differences of what they are gradients of, in f64.

use crate::{
    Attrs, Builder, DType, Env, Interpreter, Module, OpDef, Precision, Tensor, TensorType, Value,
    ops::{OPS, elementwise::spread},
};

/// Evaluates an operator in f64.
fn eval(op: &str, attrs: &Attrs, args: &[Tensor]) -> Vec<Tensor> {
    let module = Module::new("test");
    let mut b = Builder::new(&module, "main");
    let params: Vec<Option<Value>> = args
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let dtype = if t.dtype() == DType::F64 { DType::F32 } else { t.dtype() };
            let ty = TensorType::new(dtype, t.shape().iter().copied());
            Some(b.param(&i.to_string(), ty).unwrap())
        })
        .collect();
    for (i, v) in b.op(op, attrs.clone(), &params).unwrap().into_iter().enumerate() {
        b.output(&i.to_string(), v);
    }
    let none = indexmap::IndexMap::new();
    let run = Interpreter::new(&module, &none, Precision::F64);
    run.eval(&b.finish(), args, &Env::new()).unwrap()
}

fn wide(t: &Tensor) -> Tensor {
    if t.dtype().is_float() { t.cast(DType::F64) } else { t.clone() }
}

/// Asserts that `grads[i]` is the gradient of `sum(dy · forward(args))` by argument `by[i]`.
fn check(
    what: &str,
    args: &[Tensor],
    by: &[usize],
    grads: &[Tensor],
    dy: &Tensor,
    forward: &dyn Fn(&[Tensor]) -> Tensor,
) {
    let loss = |args: &[Tensor]| {
        let y = forward(args).to_f64s();
        y.iter().zip(dy.to_f64s()).map(|(y, dy)| y * dy).sum::<f64>()
    };
    for (grad, by) in grads.iter().zip(by) {
        let (values, shape) = (args[*by].to_f64s(), args[*by].shape().to_vec());
        assert_eq!(grad.shape(), shape, "{what}");
        for (i, got) in grad.to_f64s().into_iter().enumerate() {
            let at = |step: f64| {
                let mut values = values.clone();
                values[i] += step;
                let mut args = args.to_vec();
                args[*by] = Tensor::from_f64s(DType::F64, &shape, values);
                loss(&args)
            };
            let want = (at(1e-5) - at(-1e-5)) / 2e-5;
            let close = (got - want).abs() <= 1e-7 * want.abs().max(1.0);
            assert!(close, "{what}: by operand {by}, element {i}: {got}, not {want}");
        }
    }
}

fn samples(op: &str) -> Vec<(Attrs, Vec<Tensor>)> {
    let op: &&dyn OpDef = OPS.iter().find(|o| o.name() == op).unwrap();
    let args = |args: Vec<Option<Tensor>>| args.iter().flatten().map(wide).collect();
    op.samples().into_iter().map(|s| (s.attrs, args(s.args))).collect()
}

#[test]
fn gradients_of_norms() {
    for op in ["rms_norm", "layer_norm"] {
        let grad = format!("{op}_grad");
        for (attrs, args) in samples(&grad) {
            let grads = eval(&grad, &attrs, &args);
            let mut inputs = args[..2].to_vec();
            if op == "layer_norm" {
                inputs.push(wide(&spread(DType::F32, args[1].shape(), -1.0, 1.0)));
            }
            let by: Vec<usize> = (0..grads.len()).collect();
            check(&grad, &inputs, &by, &grads, &args[2], &|args| eval(op, &attrs, args).remove(0));
        }
    }
}

#[test]
fn gradient_of_attention_under_every_mask() {
    for (attrs, args) in samples("attention_lse") {
        let out = eval("attention_lse", &attrs, &args);
        let plain = eval("attention", &attrs, &args);
        assert_eq!(out[0].to_f64s(), plain[0].to_f64s(), "the same attention");
        let dy = wide(&spread(DType::F32, out[0].shape(), 1.5, -1.0));
        let [q, k, v, cu] = args.as_slice() else { unreachable!("four operands") };
        let all = [q, k, v, &out[0], &out[1], &dy, cu].map(Clone::clone);
        let grads = eval("attention_grad", &attrs, &all);
        let what = format!("{attrs:?}");
        check(&what, &args, &[0, 1, 2], &grads, &dy, &|args| {
            eval("attention_lse", &attrs, args).remove(0)
        });
    }
}

#[test]
fn gradient_of_a_head_and_its_loss() {
    for (attrs, args) in samples("linear_cross_entropy") {
        let out = eval("linear_cross_entropy", &attrs, &args);
        let dy = wide(&spread(DType::F32, out[0].shape(), -1.0, 2.0));
        let [x, w, targets] = args.as_slice() else { unreachable!("three operands") };
        let all = [x, w, targets, &out[1], &dy].map(Clone::clone);
        let grads = eval("linear_cross_entropy_grad", &attrs, &all);
        check("linear_cross_entropy", &args, &[0, 1], &grads, &dy, &|args| {
            eval("linear_cross_entropy", &attrs, args).remove(0)
        });
        for (loss, target) in out[0].to_f64s().into_iter().zip(targets.to_i64s()) {
            let ignored = target < 0 || target >= w.shape()[0] as i64;
            assert!(if ignored { loss == 0.0 } else { loss >= 0.0 }, "{loss} at {target}");
        }
    }
}

#[test]
fn gradient_of_a_table() {
    for (attrs, args) in samples("embedding_grad") {
        let [dy, ids] = args.as_slice() else { unreachable!("two operands") };
        let grad = eval("embedding_grad", &attrs, &args).remove(0);
        let width = dy.shape()[1];
        let rows = usize::try_from(attrs.int("rows")).unwrap();
        let mut want = vec![0.0; rows * width];
        for (row, id) in dy.to_f64s().chunks(width).zip(ids.to_i64s()) {
            let id = if id < 0 { id + attrs.int("rows") } else { id };
            let Some(id) = usize::try_from(id).ok().filter(|id| *id < rows) else { continue };
            for (sum, x) in want[id * width..].iter_mut().zip(row) {
                *sum += x;
            }
        }
        assert_eq!(grad.to_f64s(), want);
    }
}

/// The formulas of `torch.optim` on one number; constants are rounded to f32.
#[test]
fn updates_follow_their_formulas() {
    let one = |x: f64| Tensor::from_f64s(DType::F64, &[1], [x]);
    let scalar = |x: f64| Tensor::from_f64s(DType::F64, &[], [x]);
    let (lr, scale, decay) = (0.1, 0.5, 0.01);
    let (mut p, mut m, mut v) = (0.7, 0.0, 0.0);
    let mut state = vec![one(p), one(m), one(v)];
    let attrs = Attrs::none().with("beta1", 0.9).with("beta2", 0.95).with("eps", 1e-8);
    let attrs = attrs.with("weight_decay", decay);
    for (t, grad) in [(1, 3.0), (2, -1.0)] {
        let (c1, c2) = (1.0 - 0.9f64.powi(t), 1.0 - 0.95f64.powi(t));
        let mut args = vec![state[0].clone(), one(grad), state[1].clone(), state[2].clone()];
        args.extend([lr, c1, c2, scale].map(scalar));
        state = eval("adamw_step", &attrs, &args);
        let g = grad * scale;
        p *= 1.0 - lr * decay;
        m = 0.9 * m + 0.1 * g;
        v = 0.95 * v + 0.05 * g * g;
        p -= lr / c1 * m / (v.sqrt() / c2.sqrt() + 1e-8);
        for (got, want) in state.iter().zip([p, m, v]) {
            assert!((got.to_f64s()[0] - want).abs() < 1e-6, "step {t}: {got:?}, not {want}");
        }
    }
    let attrs = Attrs::none().with("beta1", 0.9).with("beta2", 0.99).with("weight_decay", decay);
    let args = [one(0.7), one(3.0), one(-0.2), scalar(lr), scalar(scale)];
    let out = eval("lion_step", &attrs, &args);
    // 0.9 · -0.2 + 0.1 · 1.5 is below zero.
    assert!((out[0].to_f64s()[0] - (0.7 * (1.0 - lr * decay) + lr)).abs() < 1e-6);
    assert!((out[1].to_f64s()[0] - (0.99 * -0.2 + 0.01 * 1.5)).abs() < 1e-6);
    let attrs = Attrs::none().with("momentum", 0.9).with("nesterov", true);
    let out = eval("sgd_momentum_step", &attrs, &args);
    let buffer = 0.9 * -0.2 + 1.5;
    assert!((out[0].to_f64s()[0] - (0.7 - lr * (1.5 + 0.9 * buffer))).abs() < 1e-6);
    assert!((out[1].to_f64s()[0] - buffer).abs() < 1e-6);
}
