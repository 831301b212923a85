//! A decoder in packed form, as the decoder frontend builds it.

use ir::{Attrs, DType, Dim, Tensor, TensorType};

use super::*;
use crate::{
    FoldLimits, canonicalize,
    testing::{Roofline, assert_near, count, eval, sample},
};

const H: i64 = 48;
const HEADS: i64 = 4;
const KV_HEADS: i64 = 2;
const D: i64 = 16;
const F: i64 = 75;

fn t() -> Dim {
    Dim::symbol("T")
}

fn product(b: &mut Builder<'_>, x: Value, w: Value) -> Value {
    let w = b.cast(w, DType::F32).unwrap();
    let w = b.transpose(w, &[1, 0]).unwrap();
    b.matmul(x, w).unwrap()
}

/// A Llama layer as the decoder frontend builds it, called twice.
fn decoder() -> Module {
    let mut module = Module::new("decoder");
    module.symbol("T", 1, 64);
    module.symbol("S", 1, 8);
    let shapes = [
        ("norm", vec![H]),
        ("q", vec![HEADS * D, H]),
        ("k", vec![KV_HEADS * D, H]),
        ("v", vec![KV_HEADS * D, H]),
        ("o", vec![H, HEADS * D]),
        ("norm2", vec![H]),
        ("gate", vec![F, H]),
        ("up", vec![F, H]),
        ("down", vec![H, F]),
    ];
    let mut b = module.builder("layer");
    let f32s = |s: &[Dim]| TensorType::new(DType::F32, s.to_vec());
    let x = b.param("x", f32s(&[t(), H.into()])).unwrap();
    let [cos, sin] = ["cos", "sin"].map(|n| b.param(n, f32s(&[t(), (D / 2).into()])).unwrap());
    let cu_ty = TensorType::new(DType::I32, [Dim::symbol("S") + 1.into()]);
    let cu = b.param("cu_seqlens", cu_ty.clone()).unwrap();
    let w: BTreeMap<&str, Value> = shapes
        .iter()
        .map(|(n, s)| {
            let dtype = if s.len() == 1 { DType::F32 } else { DType::Bf16 };
            (*n, b.param(n, TensorType::new(dtype, s.clone())).unwrap())
        })
        .collect();
    let eps = || Attrs::none().with("eps", 1e-5);
    let y = b.op1("rms_norm", eps(), &[x, w["norm"]]).unwrap();
    let heads = |name: &str, n: i64, b: &mut Builder<'_>| {
        let p = product(b, y, w[name]);
        b.reshape(p, vec![t(), n.into(), D.into()]).unwrap()
    };
    let (q, k) = (heads("q", HEADS, &mut b), heads("k", KV_HEADS, &mut b));
    let v = heads("v", KV_HEADS, &mut b);
    let [q, k] = [q, k].map(|x| b.op1("rope", Attrs::none(), &[x, cos, sin]).unwrap());
    let attrs = Attrs::none().with("scale", 0.25).with("mask", "causal");
    let a = b.op("attention", attrs, &[Some(q), Some(k), Some(v), Some(cu), None]).unwrap()[0];
    let a = b.reshape(a, vec![t(), (HEADS * D).into()]).unwrap();
    b.at("o_proj");
    let o = product(&mut b, a, w["o"]);
    let x = b.add(x, o).unwrap();
    let y = b.op1("rms_norm", eps(), &[x, w["norm2"]]).unwrap();
    let gate = product(&mut b, y, w["gate"]);
    let gate = b.unary("silu", gate).unwrap();
    let up = product(&mut b, y, w["up"]);
    let y = b.mul(gate, up).unwrap();
    let y = product(&mut b, y, w["down"]);
    let x = b.add(x, y).unwrap();
    b.output("x", x);
    let layer = b.finish();
    module.add(layer);
    for layer in 0..2 {
        for (n, s) in &shapes {
            let dtype = if s.len() == 1 { DType::F32 } else { DType::Bf16 };
            module.weight(&format!("{layer}.{n}"), TensorType::new(dtype, s.clone()));
        }
    }
    let mut b = module.builder("forward");
    let mut x = b.param("x", f32s(&[t(), H.into()])).unwrap();
    let [cos, sin] = ["cos", "sin"].map(|n| b.param(n, f32s(&[t(), (D / 2).into()])).unwrap());
    let cu = b.param("cu_seqlens", cu_ty).unwrap();
    for layer in 0..2 {
        let mut args = vec![x, cos, sin, cu];
        args.extend(shapes.iter().map(|(n, _)| b.weight(&format!("{layer}.{n}")).unwrap()));
        x = b.call("layer", &args).unwrap()[0];
    }
    b.output("x", x);
    let forward = b.finish();
    module.add(forward);
    module.entries.push("forward".into());
    module
}

fn env(t: i64) -> Env {
    [("T".into(), t), ("S".into(), 2)].into_iter().collect()
}

pub(crate) fn optimized(module: &Module, env: &Env) -> (Module, Report) {
    let mut out = module.clone();
    canonicalize(&mut out, FoldLimits::default()).unwrap();
    let params = weight_params(&out);
    let report = optimize(&mut out, &params, &Roofline, env).unwrap();
    ir::verify(&out).unwrap();
    (out, report)
}

#[test]
fn a_decoder_layer_becomes_a_handful_of_kernels() {
    let module = decoder();
    let (out, _) = optimized(&module, &env(5));
    let layer = &out.functions["layer"];
    let names = ["rms_norm", "linear", "gated_linear", "rope", "attention", "interleave"];
    assert_eq!(names.map(|n| count(layer, n)), [2, 3, 1, 2, 1, 1]);
    assert_eq!(["matmul", "cast", "add", "mul", "silu"].map(|n| count(layer, n)), [0; 5]);
    let linears: Vec<_> = layer
        .topo()
        .into_iter()
        .map(|n| layer.node(n))
        .filter(|n| n.op.name() == "linear")
        .collect();
    let widths: Vec<i64> = linears.iter().map(|n| n.attrs.int("n")).collect();
    assert_eq!(widths, [128, H, H], "query, key and value are one product");
    assert!(linears[1..].iter().all(|n| n.inputs()[3].is_some()), "residuals are fused");
    let types = linears.iter().map(|n| layer.ty(n.input(1)).dtype);
    assert!(types.eq([DType::Bf16; 3]), "weights are read as they are stored");
    assert_eq!(&*linears[1].loc, "o_proj");
}

#[test]
fn an_optimised_decoder_computes_what_its_source_does() {
    let module = decoder();
    let env = env(5);
    let (out, _) = optimized(&module, &env);
    let params = module.functions["forward"].param_values().enumerate();
    let inputs: Vec<Tensor> = params
        .map(|(i, p)| match module.functions["forward"].ty(p) {
            ty if ty.dtype == DType::I32 => Tensor::from_i64s(ty.dtype, &[3], [0, 2, 5]),
            ty => sample(ty, &env, i),
        })
        .collect();
    let [got, want] = [&out, &module].map(|m| eval(m, "forward", &inputs, &env));
    assert_near(&got, &want, 1e-9);
}

#[test]
fn the_outcome_depends_on_the_input_alone() {
    let module = decoder();
    let print = |m: &Module| {
        let graph = &m.functions["layer"];
        let node = |n| {
            format!("{:?} {:?} {:?}", graph.node(n).op, graph.node(n).attrs, graph.node(n).inputs())
        };
        graph.topo().into_iter().map(node).collect::<Vec<String>>()
    };
    let [a, b] = [0, 1].map(|_| print(&optimized(&module, &env(5)).0));
    assert_eq!(a, b);
}

#[test]
fn products_that_others_read_are_not_computed_twice() {
    const WIDE: i64 = 512;
    let mut module = Module::new("m");
    module.symbol("T", 1, 64);
    module.weight("w", TensorType::new(DType::F32, [WIDE, WIDE]));
    let mut b = module.builder("f");
    let x = b.param("x", TensorType::new(DType::F32, [t(), WIDE.into()])).unwrap();
    let w = b.weight("w").unwrap();
    let y = b.matmul(x, w).unwrap();
    let act = b.unary("silu", y).unwrap();
    let sum = b.add(y, act).unwrap();
    b.output("y", y);
    b.output("z", sum);
    let f = b.finish();
    module.add(f);
    module.entries.push("f".into());
    let (out, _) = optimized(&module, &env(64));
    let f = &out.functions["f"];
    assert_eq!(["linear", "matmul", "silu"].map(|n| count(f, n)), [1, 0, 1]);
}

#[test]
fn operators_without_a_kernel_are_expanded() {
    let mut module = Module::new("m");
    module.symbol("T", 1, 64);
    let mut b = module.builder("f");
    let x = b.param("x", TensorType::new(DType::F32, [t(), H.into()])).unwrap();
    let y = b.op1("l2_normalize", Attrs::none(), &[x]).unwrap();
    let m = b.reduce("reduce_mean", y, &[0], true).unwrap();
    b.output("m", m);
    let f = b.finish();
    module.add(f);
    module.entries.push("f".into());
    let (out, _) = optimized(&module, &env(8));
    let f = &out.functions["f"];
    assert_eq!(["l2_normalize", "reduce_mean", "reduce_sum"].map(|n| count(f, n)), [0, 0, 2]);
    let x = sample(&TensorType::new(DType::F32, [8, H]), &env(8), 3);
    let [got, want] = [&out, &module].map(|m| eval(m, "f", std::slice::from_ref(&x), &env(8)));
    assert_near(&got, &want, 1e-12);
}

#[test]
fn parameters_are_weights_where_every_call_passes_one() {
    let module = decoder();
    let params = weight_params(&module);
    let layer = &params["layer"];
    assert!(layer.contains("gate") && !layer.contains("x") && !layer.contains("cos"));
    assert_eq!(layer.len(), 9);
    assert!(params["forward"].is_empty());
}
