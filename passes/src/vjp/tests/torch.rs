//! Derivatives against those of torch.autograd, stored by `tests/reference/gradients.py`.

use std::{fs, path::Path};

use ir::{Attr, Attrs, Builder, DType, Env, Module, Tensor, TensorType};
use serde_json::Value as Json;

use super::{Recompute, Weights, Wrt, differentiate, run};

/// Both compute in f64, but sum in other orders.
const TOLERANCE: f64 = 1e-9;

fn tensor(json: &Json) -> Option<Tensor> {
    let shape = ints(&json["shape"])?.into_iter().map(|d| usize::try_from(d).ok());
    let shape: Vec<usize> = shape.collect::<Option<_>>()?;
    let dtype: DType = json["dtype"].as_str()?.parse().ok()?;
    Some(match dtype.is_float() {
        true => {
            let values = json["values"].as_array()?.iter().filter_map(Json::as_f64);
            Tensor::from_f64s(dtype, &shape, values)
        }
        false => Tensor::from_i64s(dtype, &shape, ints(&json["values"])?),
    })
}

fn ints(json: &Json) -> Option<Vec<i64>> {
    json.as_array()?.iter().map(Json::as_i64).collect()
}

fn attrs(json: &Json) -> Attrs {
    let attr = |v: &Json| match v {
        Json::Bool(b) => Attr::from(*b),
        Json::String(s) => Attr::from(s.as_str()),
        Json::Array(_) => Attr::Ints(ints(v).unwrap()),
        _ => v.as_i64().map_or_else(|| Attr::from(v.as_f64().unwrap()), Attr::Int),
    };
    let all = json.as_object().unwrap().iter();
    all.fold(Attrs::none(), |attrs, (name, v)| attrs.with(name, attr(v)))
}

fn tensors(json: &Json) -> Vec<Option<Tensor>> {
    json.as_array().unwrap().iter().map(tensor).collect()
}

/// Results and gradients of a case, as far as they differ from what is stored.
fn differences(case: &Json) -> Vec<String> {
    let op = case["op"].as_str().unwrap();
    let (args, cotangents) = (tensors(&case["args"]), tensors(&case["cotangents"]));
    let ty = |t: &Tensor| TensorType::new(t.dtype(), t.shape().iter().copied());
    let mut module = Module::new(op);
    let mut b = Builder::new(&module, "main");
    let mut inputs = Vec::new();
    let mut operands = Vec::new();
    for (i, t) in args.iter().enumerate() {
        operands.push(t.as_ref().map(|t| b.param(&i.to_string(), ty(t)).unwrap()));
        inputs.extend(t.clone());
    }
    let results = b.op(op, attrs(&case["attrs"]), &operands).unwrap();
    let mut loss = b.scalar(DType::F64, 0.0).unwrap();
    for (i, (y, dy)) in results.iter().zip(&cotangents).enumerate() {
        b.output(&format!("result{i}"), *y);
        let Some(dy) = dy else { continue };
        let name = format!("cotangent{i}");
        let (y, dy) = (b.cast(*y, DType::F64).unwrap(), b.param(&name, ty(dy)).unwrap());
        let y = b.mul(y, dy).unwrap();
        let axes: Vec<i64> = (0..b.ty(y).rank()).map(|a| a as i64).collect();
        let y = b.reduce("reduce_sum", y, &axes, false).unwrap();
        loss = b.add(loss, y).unwrap();
    }
    inputs.extend(cotangents.iter().flatten().cloned());
    b.output("loss", loss);
    let main = b.finish();
    module.add(main);
    let floats =
        args.iter().enumerate().filter(|(_, t)| t.as_ref().is_some_and(|t| t.dtype().is_float()));
    let wrt = Wrt { params: floats.map(|(i, _)| i.to_string().into()).collect(), ..Wrt::default() };
    let with = differentiate(&module, "main", &wrt, "loss", Recompute::None).unwrap();
    let out = run(&with, "main.grad", &Weights::new(), &inputs, &Env::new());
    let stored = tensors(&case["results"]).into_iter().take(results.len());
    let grads = tensors(&case["grads"]).into_iter().filter(Option::is_some);
    let want: Vec<_> = stored.chain([None]).chain(grads).collect();
    assert_eq!(out.len(), want.len(), "{op}");
    let mut wrong = Vec::new();
    for (i, (got, want)) in out.iter().zip(want).enumerate() {
        let Some(want) = want else { continue };
        let close = |(g, w): (f64, f64)| (g - w).abs() <= TOLERANCE * w.abs().max(1.0);
        let all = got.to_f64s().into_iter().zip(want.to_f64s());
        let name = &with.functions["main.grad"].outputs[i].0;
        if got.shape() != want.shape() || !all.clone().all(close) {
            wrong.push(format!("{op} {}: {name} is {got:?}, not {want:?}", case["attrs"]));
        }
    }
    wrong
}

#[test]
fn derivatives_are_those_of_torch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/gradients/operators.json");
    let text = fs::read_to_string(path).unwrap();
    let all: Json = serde_json::from_str(&text).unwrap();
    let cases = all["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    let wrong: Vec<String> = cases.iter().flat_map(differences).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
