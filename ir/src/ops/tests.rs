//! Tests that nobody writes twice: each loops over the operator table.

mod gradients;

use crate::{
    Attr, Body, Builder, DType, Env, Interpreter, Module, OPS, Precision, TensorType, Value,
};

/// A module whose `main` applies an operator to a sample's operands.
fn apply(op: &dyn crate::OpDef, sample: &crate::Sample) -> Module {
    let mut module = Module::new(op.name());
    let mut b = Builder::new(&module, "main");
    let mut inputs: Vec<Option<Value>> = Vec::new();
    for (i, arg) in sample.args.iter().enumerate() {
        inputs.push(arg.as_ref().map(|t| {
            let ty = TensorType::new(t.dtype(), t.shape().iter().copied());
            b.param(&format!("arg{i}"), ty).unwrap()
        }));
    }
    let results = b.op(op.name(), sample.attrs.clone(), &inputs);
    let results = results.unwrap_or_else(|e| panic!("sample of {}: {e}", op.name()));
    for (i, v) in results.into_iter().enumerate() {
        b.output(&format!("result{i}"), v);
    }
    let graph = b.finish();
    module.add(graph);
    module.entries.push("main".into());
    module
}

#[test]
fn names_are_unique_and_every_operator_has_samples() {
    for (i, op) in OPS.iter().enumerate() {
        assert!(OPS[i + 1..].iter().all(|o| o.name() != op.name()), "{} twice", op.name());
        if !matches!(op.body(), Body::Structural) {
            assert!(!op.samples().is_empty(), "{} has no samples", op.name());
        }
    }
}

#[test]
fn samples_evaluate_to_the_inferred_types_in_both_precisions() {
    for op in OPS {
        for sample in op.samples() {
            let module = apply(*op, &sample);
            crate::verify(&module).unwrap_or_else(|e| panic!("{}: {e:?}", op.name()));
            let inputs: Vec<_> = sample.args.iter().flatten().cloned().collect();
            let run = |precision| {
                let none = indexmap::IndexMap::new();
                let out =
                    Interpreter::new(&module, &none, precision).run("main", &inputs, &Env::new());
                out.unwrap_or_else(|e| panic!("{}: {e}", op.name()))
            };
            let (narrow, wide) = (run(Precision::F32), run(Precision::F64));
            let main = module.function("main").unwrap();
            for (i, (_, v)) in main.outputs.iter().enumerate() {
                let got = TensorType::new(narrow[i].dtype(), narrow[i].shape().iter().copied());
                assert_eq!(got, *main.ty(*v), "{}", op.name());
                if let Some(c) = &main.fact(*v).constant {
                    assert_eq!(*c, narrow[i], "{}: the inferred contents", op.name());
                }
                // Rounding to f32 at each step stays close to f64 throughout, and a narrower result
                // to its own last place.
                let tolerance = match got.dtype {
                    DType::Bf16 => 1.0 / 256.0,
                    DType::F16 => 1.0 / 2048.0,
                    _ => 1e-4,
                };
                for (a, b) in narrow[i].to_f64s().iter().zip(wide[i].to_f64s()) {
                    let close = *a == b || (a - b).abs() <= tolerance * b.abs().max(1.0);
                    assert!(close || (a.is_nan() && b.is_nan()), "{}: {a} and {b}", op.name());
                }
            }
        }
    }
}

#[test]
fn samples_round_trip_through_text() {
    for op in OPS {
        for sample in op.samples() {
            let text = apply(*op, &sample).to_string();
            let again = crate::parse_module(&text);
            let again = again.unwrap_or_else(|e| panic!("{}: {e}\n{text}", op.name()));
            assert_eq!(again.to_string(), text);
        }
    }
}

#[test]
fn symbolic_leading_axes_infer_to_the_same_extents() {
    for op in OPS {
        for sample in op.samples() {
            // Attributes that state sizes hold constants here.
            let sized = sample.attrs.0.iter().any(|(_, a)| matches!(a, Attr::Dims(_)));
            let Some(first) = sample.args.first().and_then(Option::as_ref) else { continue };
            if sized || first.rank() == 0 {
                continue;
            }
            let n = first.shape()[0];
            let mut module = Module::new(op.name());
            module.symbol("N", n as i64, n as i64);
            let mut b = Builder::new(&module, "main");
            let args: Vec<Option<Value>> = sample
                .args
                .iter()
                .enumerate()
                .map(|(i, t)| {
                    t.as_ref().map(|t| {
                        let mut ty = TensorType::new(t.dtype(), t.shape().iter().copied());
                        if let Some(d) = ty.shape.first_mut().filter(|d| d.is(n as i64)) {
                            *d = crate::Dim::symbol("N");
                        }
                        b.param(&format!("arg{i}"), ty).unwrap()
                    })
                })
                .collect();
            // An operator may refuse what it cannot decide; what it infers must be right.
            let Ok(results) = b.op(op.name(), sample.attrs.clone(), &args) else { continue };
            let fixed = apply(*op, &sample);
            let fixed = fixed.function("main").unwrap();
            let env = Env::from([("N".into(), n as i64)]);
            for (v, (_, w)) in results.iter().zip(&fixed.outputs) {
                let want = fixed.ty(*w).const_shape().unwrap();
                assert_eq!(b.ty(*v).extents(&env).unwrap(), want, "{}", op.name());
            }
        }
    }
}
