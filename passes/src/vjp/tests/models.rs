//! Two tiny decoders with their losses: layers are one function, embeddings are tied to the head.

use std::{collections::BTreeSet, sync::Arc};

use ir::{Attrs, Builder, DType, Dim, Env, Module, OpError, Tensor, TensorType, Value};

use super::{Recompute, Weights, Wrt, bits, compare, differentiate, names, run};
use crate::{testing::sample, vjp::Candidates};

const LAYERS: usize = 3;
const HIDDEN: i64 = 8;
const HEADS: i64 = 4;
const KV_HEADS: i64 = 2;
const HEAD: i64 = 4;
const INNER: i64 = 12;
const VOCABULARY: i64 = 11;

pub(crate) type Built<T> = Result<T, OpError>;

fn tokens() -> Dim {
    Dim::symbol("T")
}

/// `x · wᵀ`, as checkpoints store weights.
fn project(b: &mut Builder<'_>, x: Value, w: Value) -> Built<Value> {
    let w = b.transpose(w, &[1, 0])?;
    b.matmul(x, w)
}

fn heads(b: &mut Builder<'_>, x: Value, n: i64) -> Built<Value> {
    b.reshape(x, vec![tokens(), n.into(), HEAD.into()])
}

fn attend(b: &mut Builder<'_>, [q, k, v]: [Value; 3], cu: Value, window: i64) -> Built<Value> {
    let attrs = Attrs::none().with("scale", 0.5).with("mask", "causal").with("window", window);
    let y = b.op1("attention", attrs, &[q, k, v, cu])?;
    let width = b.ty(y).shape[1].clone() * HEAD.into();
    b.reshape(y, vec![tokens(), width])
}

/// Hidden state, rotation tables, offsets and weights to the next hidden state.
type Layer = fn(&mut Builder<'_>, Value, [Value; 2], Value, &[Value]) -> Built<Value>;

/// A family of models: the weights of a layer, what it computes, and what surrounds the layers.
pub(crate) struct Family {
    weights: &'static [(&'static str, &'static [i64])],
    outer: &'static [(&'static str, &'static [i64])],
    layer: Layer,
    /// Hidden state of token ids and positions, from the outer weights.
    embed: fn(&mut Builder<'_>, Value, Value, &[Value]) -> Built<Value>,
    /// The last norm.
    end: fn(&mut Builder<'_>, Value, &[Value]) -> Built<Value>,
}

pub(crate) static LLAMA: Family = Family {
    weights: &[
        ("norm", &[HIDDEN]),
        ("q", &[HEADS * HEAD, HIDDEN]),
        ("k", &[KV_HEADS * HEAD, HIDDEN]),
        ("v", &[KV_HEADS * HEAD, HIDDEN]),
        ("o", &[HIDDEN, HEADS * HEAD]),
        ("mlp_norm", &[HIDDEN]),
        ("gate", &[INNER, HIDDEN]),
        ("up", &[INNER, HIDDEN]),
        ("down", &[HIDDEN, INNER]),
    ],
    outer: &[("embed", &[VOCABULARY, HIDDEN]), ("last_norm", &[HIDDEN])],
    layer: |b, x, [cos, sin], cu, w| {
        let eps = || Attrs::none().with("eps", 1e-5);
        let h = b.op1("rms_norm", eps(), &[x, w[0]])?;
        let rope = |b: &mut Builder<'_>, w: Value, n: i64| {
            let y = project(b, h, w)?;
            let y = heads(b, y, n)?;
            b.op1("rope", Attrs::none(), &[y, cos, sin])
        };
        let (q, k) = (rope(b, w[1], HEADS)?, rope(b, w[2], KV_HEADS)?);
        let v = project(b, h, w[3])?;
        let v = heads(b, v, KV_HEADS)?;
        let y = attend(b, [q, k, v], cu, 3)?;
        let y = project(b, y, w[4])?;
        let x = b.add(x, y)?;
        let h = b.op1("rms_norm", eps(), &[x, w[5]])?;
        let (gate, up) = (project(b, h, w[6])?, project(b, h, w[7])?);
        let gate = b.unary("silu", gate)?;
        let h = b.mul(gate, up)?;
        let h = project(b, h, w[8])?;
        b.add(x, h)
    },
    embed: |b, ids, _, w| b.gather(w[0], ids, 0),
    end: |b, x, w| b.op1("rms_norm", Attrs::none().with("eps", 1e-5), &[x, w[1]]),
};

pub(crate) static GPT2: Family = Family {
    weights: &[
        ("norm", &[HIDDEN]),
        ("norm_bias", &[HIDDEN]),
        ("qkv", &[HIDDEN, 3 * HEADS * HEAD]),
        ("qkv_bias", &[3 * HEADS * HEAD]),
        ("o", &[HEADS * HEAD, HIDDEN]),
        ("o_bias", &[HIDDEN]),
        ("mlp_norm", &[HIDDEN]),
        ("mlp_norm_bias", &[HIDDEN]),
        ("up", &[HIDDEN, INNER]),
        ("up_bias", &[INNER]),
        ("down", &[INNER, HIDDEN]),
        ("down_bias", &[HIDDEN]),
    ],
    outer: &[
        ("embed", &[VOCABULARY, HIDDEN]),
        ("last_norm", &[HIDDEN]),
        ("last_norm_bias", &[HIDDEN]),
        ("positions", &[16, HIDDEN]),
    ],
    layer: |b, x, _, cu, w| {
        let eps = || Attrs::none().with("eps", 1e-5);
        let h = b.op1("layer_norm", eps(), &[x, w[0], w[1]])?;
        let qkv = b.matmul(h, w[2])?;
        let qkv = b.add(qkv, w[3])?;
        let mut part = |i: i64| {
            let y = b.slice(qkv, 1, i * HEADS * HEAD, (i + 1) * HEADS * HEAD)?;
            heads(b, y, HEADS)
        };
        let qkv = [part(0)?, part(1)?, part(2)?];
        let y = attend(b, qkv, cu, 0)?;
        let y = b.matmul(y, w[4])?;
        let y = b.add(y, w[5])?;
        let x = b.add(x, y)?;
        let h = b.op1("layer_norm", eps(), &[x, w[6], w[7]])?;
        let h = b.matmul(h, w[8])?;
        let h = b.add(h, w[9])?;
        let h = b.unary("gelu_tanh", h)?;
        let h = b.matmul(h, w[10])?;
        let h = b.add(h, w[11])?;
        b.add(x, h)
    },
    embed: |b, ids, positions, w| {
        let (x, p) = (b.gather(w[0], ids, 0)?, b.gather(w[3], positions, 0)?);
        b.add(x, p)
    },
    end: |b, x, w| b.op1("layer_norm", Attrs::none().with("eps", 1e-5), &[x, w[1], w[2]]),
};

fn f32s(shape: &[i64]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().copied())
}

/// `forward(ids, positions, cu_seqlens, targets) -> loss`, the mean over tokens.
pub(crate) fn decoder(family: &Family) -> Built<Module> {
    let mut m = Module::new("decoder");
    m.symbol("T", 1, 16);
    m.symbol("S", 1, 8);
    for (name, shape) in family.outer {
        m.weight(name, f32s(shape));
    }
    for l in 0..LAYERS {
        for (name, shape) in family.weights {
            m.weight(&format!("layers.{l}.{name}"), f32s(shape));
        }
    }
    let table = TensorType::new(DType::F32, [tokens(), (HEAD / 2).into()]);
    let ids = TensorType::new(DType::I32, [tokens()]);
    let offsets = TensorType::new(DType::I32, [Dim::symbol("S") + 1.into()]);

    let mut b = m.builder("layer");
    let x = b.param("x", TensorType::new(DType::F32, [tokens(), HIDDEN.into()]))?;
    let tables = [b.param("cos", table.clone())?, b.param("sin", table)?];
    let cu = b.param("cu_seqlens", offsets.clone())?;
    let weights = family.weights.iter().map(|(name, shape)| b.param(name, f32s(shape)));
    let weights = weights.collect::<Built<Vec<_>>>()?;
    let y = (family.layer)(&mut b, x, tables, cu, &weights)?;
    b.output("y", y);
    let layer = b.finish();
    m.add(layer);

    let mut b = m.builder("forward");
    let [ids, positions, targets] = [
        b.param("ids", ids.clone())?,
        b.param("positions", ids.clone())?,
        b.param("targets", ids)?,
    ];
    let cu = b.param("cu_seqlens", offsets)?;
    let outer = family.outer.iter().map(|(name, _)| b.weight(name));
    let outer = outer.collect::<Built<Vec<_>>>()?;
    let mut x = (family.embed)(&mut b, ids, positions, &outer)?;
    let at = b.cast(positions, DType::F32)?;
    let at = b.reshape(at, vec![tokens(), 1.into()])?;
    let turns = b.constant(Tensor::from_f64s(DType::F32, &[2], [1.0, 0.125]))?;
    let angles = b.mul(at, turns)?;
    let (cos, sin) = (b.cos(angles)?, b.sin(angles)?);
    for l in 0..LAYERS {
        let mut args = vec![x, cos, sin, cu];
        for (name, _) in family.weights {
            args.push(b.weight(&format!("layers.{l}.{name}"))?);
        }
        b.at(&format!("layers.{l}"));
        x = b.call("layer", &args)?[0];
        b.at("");
    }
    let x = (family.end)(&mut b, x, &outer)?;
    // The head reads the table of the embedding by a node of its own.
    let head = b.weight("embed")?;
    let losses = b.op("linear_cross_entropy", Attrs::none(), &[x, head, targets].map(Some))?[0];
    let loss = b.reduce("reduce_mean", losses, &[0], false)?;
    b.output("loss", loss);
    let forward = b.finish();
    m.add(forward);
    m.entries.push("forward".into());
    Ok(m)
}

/// Two sequences of five and two tokens.
pub(crate) fn inputs() -> Vec<Tensor> {
    let ints = |v: &[i64]| Tensor::from_i64s(DType::I32, &[v.len()], v.iter().copied());
    vec![
        ints(&[3, 10, 0, 3, 7, 1, 3]),
        ints(&[0, 1, 2, 3, 4, 0, 1]),
        ints(&[10, 0, 3, 7, -100, 3, 9]),
        ints(&[0, 5, 7]),
    ]
}

pub(crate) fn weights(m: &Module) -> Weights {
    let all = m.weights.iter().enumerate();
    all.map(|(i, (name, ty))| {
        let t = sample(ty, &Env::new(), 5 * i + 2);
        // Norms' weights lie about one.
        let near = if name.ends_with("norm") { 1.0 } else { 0.0 };
        let values = t.to_f64s().into_iter().map(|x| near + 0.6 * x);
        (name.clone(), Tensor::from_f64s(DType::F64, t.shape(), values))
    })
    .collect()
}

/// Loss, then gradients by name.
fn grads(m: &Module, frozen: &BTreeSet<Arc<str>>, how: Recompute<'_>) -> (Module, Weights) {
    let wrt = Wrt::weights_but(m, frozen);
    let with = differentiate(m, "forward", &wrt, "loss", how).unwrap_or_else(|e| panic!("{e:?}"));
    let out = run(&with, "forward.grad", &weights(m), &inputs(), &Env::new());
    let outputs = &with.functions["forward.grad"].outputs;
    let named = outputs.iter().map(|(n, _)| n.clone()).zip(out).collect();
    (with, named)
}

fn calls(m: &Module, callee: &str) -> usize {
    let g = &m.functions["forward.grad"];
    let nodes = g.topo().into_iter().map(|n| g.node(n));
    nodes.filter(|n| n.op.name() == "call" && n.attrs.str("callee") == callee).count()
}

/// Every second value that the backward reads.
fn every_second(c: &Candidates<'_>) -> BTreeSet<Value> {
    c.read.iter().copied().step_by(2).collect()
}

fn check(family: &Family) {
    let m = decoder(family).unwrap();
    let (with, got) = grads(&m, &BTreeSet::new(), Recompute::None);
    let at = weights(&m);
    let loss = |at: &Weights| run(&m, "forward", at, &inputs(), &Env::new())[0].to_f64s()[0];
    assert_eq!(got["loss"].to_f64s(), [loss(&at)]);
    assert_eq!(got.len(), 1 + m.weights.len());
    for (name, t) in &at {
        let grad = &got[format!("grad.{name}").as_str()];
        let mut moved = |t: &Tensor| {
            let mut at = at.clone();
            at.insert(name.clone(), t.clone());
            loss(&at)
        };
        compare(grad, t, &mut moved).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(grad.to_f64s().iter().any(|g| *g != 0.0), "{name} has no gradient");
    }
    // A layer is one function, forward and backward.
    assert_eq!((calls(&with, "layer.forward"), calls(&with, "layer.backward")), (LAYERS, LAYERS));
    assert_eq!(with.functions.len(), m.functions.len() + 3);
    let all = |w: &Weights| bits(&w.values().cloned().collect::<Vec<_>>());
    for how in [Recompute::Full, Recompute::Chosen(&every_second)] {
        let (other, again) = grads(&m, &BTreeSet::new(), how);
        assert_eq!(all(&got), all(&again));
        let kept = |m: &Module| m.functions["layer.backward"].params().len();
        assert!(kept(&other) != kept(&with), "policies differ in what they keep");
        if matches!(how, Recompute::Full) {
            assert_eq!(calls(&other, "layer"), LAYERS, "the forward is the layer itself");
        }
    }
    frozen(family, &m, &got);
}

/// Frozen weights have no gradient, and nothing is computed for them.
fn frozen(family: &Family, m: &Module, all: &Weights) {
    let first = family.weights.iter().map(|(name, _)| format!("layers.0.{name}").into());
    let outer = family.outer.iter().map(|(name, _)| Arc::from(*name));
    let mut frozen: BTreeSet<Arc<str>> = first.chain(outer).collect();
    frozen.insert("layers.2.norm".into());
    let (with, got) = grads(m, &frozen, Recompute::None);
    assert_eq!(got.len(), 1 + m.weights.len() - frozen.len());
    for (name, t) in &got {
        assert_eq!(t.to_bytes(), all[name].to_bytes(), "{name}");
    }
    assert_eq!(calls(&with, "layer"), 1, "the first layer is called as it is");
    let g = &with.functions["forward.grad"];
    let made = |op: &str| g.topo().iter().filter(|n| g.node(**n).op.name() == op).count();
    assert_eq!(made("embedding_grad"), 0);
    // Layer 1 needs no gradient of its input, layer 2 none of its norm.
    for form in ["layer.backward", "layer.backward.1"] {
        assert_eq!(calls(&with, form), 1);
        let outputs = &with.functions[form].outputs;
        let without = if calls_of(&with, form, 2) { "param.norm" } else { "param.x" };
        assert_eq!(outputs.len(), family.weights.len(), "{form}");
        assert!(outputs.iter().all(|(n, _)| &**n != without), "{form}");
    }
}

/// Whether a form's call comes from that layer.
fn calls_of(m: &Module, form: &str, layer: usize) -> bool {
    let g = &m.functions["forward.grad"];
    g.topo().into_iter().map(|n| g.node(n)).any(|n| {
        n.op.name() == "call"
            && n.attrs.str("callee") == form
            && *n.loc == *format!("layers.{layer}")
    })
}

#[test]
fn gradients_of_a_llama() {
    check(&LLAMA);
}

#[test]
fn gradients_of_a_gpt2() {
    check(&GPT2);
}

/// The sum of the two uses of a tied weight is the gradient of it.
#[test]
fn tied_weights_accumulate() {
    let m = decoder(&LLAMA).unwrap();
    let (_, tied) = grads(&m, &BTreeSet::new(), Recompute::None);
    // The same model with the head untied.
    let mut untied = m.clone();
    untied.weight("head", f32s(&[VOCABULARY, HIDDEN]));
    let mut forward = untied.functions["forward"].clone();
    let reads = |n: &ir::NodeId| {
        let node = forward.node(*n);
        node.op.name() == "weight" && node.attrs.str("name") == "embed"
    };
    let embeds: Vec<_> = forward.node_ids().into_iter().filter(reads).collect();
    let [_, head] = embeds[..] else { panic!("two reads") };
    *forward.attrs_mut(head) = Attrs::none().with("name", "head");
    untied.add(forward);
    let wrt = Wrt { weights: names(&["embed", "head"]), ..Wrt::default() };
    let with = differentiate(&untied, "forward", &wrt, "loss", Recompute::None).unwrap();
    let mut at = weights(&m);
    let head = at["embed"].clone();
    at.insert("head".into(), head);
    let out = run(&with, "forward.grad", &at, &inputs(), &Env::new());
    let sum: Vec<f64> = out[1].to_f64s().iter().zip(out[2].to_f64s()).map(|(a, b)| b + a).collect();
    assert_eq!(tied["grad.embed"].to_f64s(), sum);
}
