//! Dropout in two tiny decoders against masks that are computed here, and where there is no place
//! for it.

use ir::{Env, Tensor};

use super::*;
use crate::{
    FoldLimits, canonicalize, optimize,
    testing::{Roofline, assert_near, count},
    vjp::{
        Recompute, Wrt, differentiate,
        tests::{
            Weights, compare,
            models::{Family, GPT2, LLAMA, decoder, inputs, weights},
            run,
        },
    },
    weight_params,
};

const P: f64 = 0.25;
const KEY: i64 = -7_000_000_000_000_000_001;

/// Number `n` of SplitMix64 from `seed` on, as `splitmix64.c` of Vigna 2015 has it.
fn splitmix64(seed: u64, n: u64) -> u64 {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n).fold(next(), |_, _| next())
}

/// What each element of each place is multiplied with: `[places, T, H]`.
fn masks(places: usize, [rows, width]: [usize; 2]) -> Tensor {
    // A quarter of all integers is below.
    let quantile = i64::MIN + (1 << 62);
    let mut values = Vec::new();
    for place in 0..places {
        let seed = splitmix64(KEY.cast_unsigned(), place as u64);
        for element in 0..rows * width {
            let bits = splitmix64(seed, element as u64).cast_signed();
            values.push(if bits < quantile { 0.0 } else { 1.0 / (1.0 - P) });
        }
    }
    Tensor::from_f64s(DType::F64, &[places, rows, width], values)
}

/// The module with masks as inputs in the place of seeds.
fn masked(m: &Module, places: usize) -> Module {
    let mut out = m.clone();
    let hidden = m.functions["layer"].ty(m.functions["layer"].outputs[0].1).clone();
    for name in ["layer", "forward"] {
        let source = &m.functions[name];
        let mut b = Builder::new(&out, name);
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for p in source.param_values() {
            let name = source.param_name(p.node);
            let mut ty = source.ty(p).clone();
            if name.starts_with(SEED) {
                ty = hidden.clone();
            }
            if name == DROPOUT_KEY {
                let shape = [places.into()].into_iter().chain(hidden.shape.iter().cloned());
                ty = TensorType::new(hidden.dtype, shape.collect::<Vec<_>>());
            }
            map.insert(p, b.param(name, ty).unwrap());
        }
        let is_seed = |v: Value| source.ty(v).dtype == DType::I64;
        for id in source.topo() {
            let node = source.node(id);
            let first = Value { node: id, port: 0 };
            let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
            let results = match node.op.name() {
                "param" => continue,
                "weight" => vec![b.weight(node.attrs.str("name")).unwrap()],
                "splitmix64" => vec![inputs[0].unwrap()],
                "reshape" if is_seed(first) => {
                    vec![b.reshape(inputs[0].unwrap(), hidden.shape.to_vec()).unwrap()]
                }
                "dropout" => vec![b.mul(inputs[0].unwrap(), inputs[1].unwrap()).unwrap()],
                op => b.op(op, node.attrs.clone(), &inputs).unwrap(),
            };
            for (port, v) in results.into_iter().enumerate() {
                map.insert(Value { node: id, port }, v);
            }
        }
        for (name, v) in &source.outputs {
            b.output(name, map[v]);
        }
        let graph = b.finish();
        out.add(graph);
    }
    ir::verify(&out).unwrap();
    out
}

fn key() -> Tensor {
    Tensor::from_i64s(DType::I64, &[], [KEY])
}

fn loss(m: &Module, at: &Weights, dropped_by: Option<&Tensor>) -> f64 {
    let inputs: Vec<Tensor> = inputs().into_iter().chain(dropped_by.cloned()).collect();
    run(m, "forward", at, &inputs, &Env::new())[0].to_f64s()[0]
}

/// Loss and gradients of all weights, by name.
fn gradients(m: &Module, at: &Weights, input: &Tensor, how: Recompute<'_>) -> Weights {
    let wrt = Wrt { weights: at.keys().cloned().collect(), params: BTreeSet::new() };
    let with = differentiate(m, "forward", &wrt, "loss", how).unwrap();
    let inputs: Vec<Tensor> = inputs().into_iter().chain([input.clone()]).collect();
    let out = run(&with, "forward.grad", at, &inputs, &Env::new());
    let names = with.functions["forward.grad"].outputs.iter().map(|(name, _)| name.clone());
    names.zip(out).collect()
}

fn optimized(m: &Module) -> Module {
    let mut m = m.clone();
    canonicalize(&mut m, FoldLimits::default()).unwrap();
    let params = weight_params(&m);
    optimize(&mut m, &params, &Roofline, &Env::from([("T".into(), 7), ("S".into(), 2)])).unwrap();
    m
}

fn check(family: &Family) {
    let plain = decoder(family).unwrap();
    let at = weights(&plain);
    let layers = plain.functions["forward"].topo();
    let layers =
        layers.into_iter().filter_map(|id| callee(&plain.functions["forward"], id)).count();
    let places = 1 + 2 * layers;
    let masks = masks(places, [7, 8]);
    for (base, is_plain) in [(plain.clone(), true), (optimized(&plain), false)] {
        let mut m = base.clone();
        add_dropout(&mut m, "forward", P).unwrap();
        ir::verify(&m).unwrap();
        assert_eq!(m.functions.len(), 2, "a layer is one function");
        let dropped = ["layer", "forward"].map(|name| count(&m.functions[name], "dropout"));
        assert_eq!(dropped, [2, 1]);

        let masked = masked(&m, places);
        let (got, want) = (loss(&m, &at, Some(&key())), loss(&masked, &at, Some(&masks)));
        assert!((got - want).abs() < 1e-12 * want.abs(), "{got}, not {want}");
        assert!((got - loss(&base, &at, None)).abs() > 1e-3, "something is dropped");
        let other = Tensor::from_i64s(DType::I64, &[], [KEY + 1]);
        assert!((got - loss(&m, &at, Some(&other))).abs() > 1e-3, "keys differ");

        let grads = gradients(&m, &at, &key(), Recompute::None);
        let want = gradients(&masked, &at, &masks, Recompute::None);
        let again = gradients(&m, &at, &key(), Recompute::Full);
        for (name, grad) in &grads {
            assert_near(std::slice::from_ref(grad), &[want[name].clone()], 1e-11);
            // A product with an activation has other bits than its parts in f64.
            let is_same = grad.to_bytes() == again[name].to_bytes();
            assert!(is_same || !is_plain, "{name}");
            assert_near(&[again[name].clone()], std::slice::from_ref(grad), 1e-8);
        }
        // All layers are one function.
        for name in at.keys().filter(|name| !name.contains("s.1.") && !name.contains("s.2.")) {
            let grad = &grads[format!("grad.{name}").as_str()];
            let mut moved = |t: &Tensor| {
                let mut at = at.clone();
                at.insert(name.clone(), t.clone());
                loss(&m, &at, Some(&key()))
            };
            compare(grad, &at[name], &mut moved).unwrap_or_else(|e| panic!("{name}: {e}"));
        }

        // Without it, it is what it was.
        let mut without = m.clone();
        for name in ["layer", "forward"] {
            let graph = without_dropout(&without, &m.functions[name]).unwrap();
            without.add(graph);
        }
        ir::verify(&without).unwrap();
        assert_eq!(without.functions["forward"].params().len(), inputs().len());
        assert_eq!(loss(&without, &at, None).to_bits(), loss(&base, &at, None).to_bits());
    }
}

#[test]
fn masks_of_a_llama() {
    check(&LLAMA);
}

#[test]
fn masks_of_a_gpt2() {
    check(&GPT2);
}

/// A model of one layer, whose body computes `%y` of `%x`, `%w` and `%cu`.
fn model(body: &str) -> Module {
    let text = format!(
        r#"module "m"
symbol T in 1..16
symbol S in 1..4
weight "w" : f32[8, 8]
weight "n" : f32[8]
entry forward

fn layer(%x: f32[T, 8], %w: f32[8, 8], %n: f32[8], %cu: i32[S + 1]) {{
{body}  return y = %y
}}

fn forward(%h: f32[T, 8], %cu: i32[S + 1]) {{
  %w = weight() {{name = "w"}} : f32[8, 8]
  %n = weight() {{name = "n"}} : f32[8]
  %0 = call(%h, %w, %n, %cu) {{callee = "layer"}} : f32[T, 8]
  %1 = call(%0, %w, %n, %cu) {{callee = "layer"}} : f32[T, 8]
  return y = %1
}}
"#
    );
    ir::parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

const ATTEND: &str = "  %q = reshape(%h) {shape = <T, 2, 4>} : f32[T, 2, 4]
  %o = attention(%q, %q, %q, %cu) {scale = 0.5, mask = \"causal\"} : f32[T, 2, 4]
  %p = reshape(%o) {shape = <T, 8>} : f32[T, 8]
  %a = matmul(%p, %w) : f32[T, 8]
";
const NORM: &str = "  %h = rms_norm(%x, %n) {eps = 1e-5} : f32[T, 8]\n";

/// Attention and the MLP read one norm, and are added together: both are dropped.
#[test]
fn parallel_layers_have_two_places() {
    for sum in [
        "  %s = add(%a, %m) : f32[T, 8]\n  %y = add(%x, %s) : f32[T, 8]\n",
        "  %s = add(%a, %x) : f32[T, 8]\n  %y = add(%m, %s) : f32[T, 8]\n",
    ] {
        let mut m = model(&format!("{NORM}{ATTEND}  %m = matmul(%h, %w) : f32[T, 8]\n{sum}"));
        add_dropout(&mut m, "forward", P).unwrap();
        ir::verify(&m).unwrap();
        let layer = &m.functions["layer"];
        let dropped = layer.topo().into_iter().filter(|id| layer.node(*id).op.name() == "dropout");
        let read: Vec<&str> =
            dropped.map(|id| layer.node(layer.node(id).input(0).node).op.name()).collect();
        assert_eq!(read, ["matmul", "matmul"], "{layer}");
        assert_eq!(count(&m.functions["forward"], "dropout"), 1);
    }
}

/// Norms behind sums, as Vaswani et al. 2017 have them.
#[test]
fn norms_may_stand_behind_sums() {
    let attend = ATTEND.replace("%h", "%x");
    let mut m = model(&format!(
        "{attend}  %s = add(%x, %a) : f32[T, 8]
  %t = rms_norm(%s, %n) {{eps = 1e-5}} : f32[T, 8]
  %m = matmul(%t, %w) : f32[T, 8]
  %u = add(%m, %t) : f32[T, 8]
  %y = rms_norm(%u, %n) {{eps = 1e-5}} : f32[T, 8]\n"
    ));
    add_dropout(&mut m, "forward", P).unwrap();
    assert_eq!(count(&m.functions["layer"], "dropout"), 2);
}

#[test]
fn layers_without_a_place_are_named() {
    let refused = |body: &str| {
        let mut m = model(body);
        let errors = add_dropout(&mut m, "forward", P).unwrap_err();
        let [error] = &errors[..] else { panic!("{errors:?}") };
        error.to_string()
    };
    let product = format!("{NORM}{}", ATTEND.replace("%a =", "%y ="));
    let told = "function `layer`: its result is not a parameter, the hidden state, with something \
                added to it";
    let said = refused(&product);
    assert!(said.starts_with(told), "{said}");
    // A norm's weight that a product gives.
    let said = refused(&format!(
        "{NORM}{ATTEND}  %m = matmul(%h, %w) : f32[T, 8]
  %z = reduce_sum(%m) {{axes = [0]}} : f32[8]
  %s = add(%x, %a) : f32[T, 8]
  %y = rms_norm(%s, %z) {{eps = 1e-5}} : f32[T, 8]\n"
    ));
    let told = "function `layer`: `matmul` (node ``) adds nothing to the hidden state";
    assert!(said.starts_with(told), "{said}");

    let mut m = model(&format!("{NORM}{ATTEND}  %y = add(%x, %a) : f32[T, 8]\n"));
    let mut forward = m.functions["forward"].clone();
    let calls: Vec<NodeId> =
        forward.topo().into_iter().filter(|id| callee(&forward, *id).is_some()).collect();
    let sum = {
        let mut b = Builder::resume(&m, forward.clone());
        let first = Value { node: calls[0], port: 0 };
        let sum = b.add(first, first).unwrap();
        forward = b.finish();
        sum
    };
    forward.set_input(calls[1], 0, Some(sum));
    m.add(forward);
    let errors = add_dropout(&mut m, "forward", P).unwrap_err();
    let told = "function `forward`: its layers read 2 hidden states that come out of no layer";
    assert!(errors[0].to_string().starts_with(told), "{errors:?}");
    let errors = add_dropout(&mut m, "backward", P).unwrap_err();
    assert_eq!(errors[0].to_string(), "function `backward`: no such function");
}
