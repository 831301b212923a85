//! Stages one after the other against a step that is not cut, by the interpreter.

use indexmap::IndexMap;
use ir::{DType, Dim, Env, Interpreter, Precision, Target, Tensor, TensorType};

use super::{super::COTANGENT, *};
use crate::{
    Update, plan_memory,
    testing::{Roofline, sample},
    train_step::train_step,
    vjp::tests::models::{Family, GPT2, LLAMA, decoder, inputs},
};

/// A family's decoder of three layers, up to the logits of some rows.
fn model(family: &Family) -> Module {
    let mut m = decoder(family).unwrap();
    m.symbol("R", 1, 16);
    let source = m.functions["forward"].clone();
    let mut b = Builder::new(&m, "forward");
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for p in source.param_values().filter(|p| source.param_name(p.node) != "targets") {
        map.insert(p, b.param(source.param_name(p.node), source.ty(p).clone()).unwrap());
    }
    let rows = TensorType::new(DType::I32, [Dim::symbol("R")]);
    let rows = b.param("logit_rows", rows).unwrap();
    for id in source.topo() {
        let node = source.node(id);
        b.at(&node.loc);
        match node.op.name() {
            "param" => {}
            "weight" => {
                let v = b.weight(node.attrs.str("name")).unwrap();
                map.insert(Value { node: id, port: 0 }, v);
            }
            "linear_cross_entropy" => {
                let x = b.gather(map[&node.input(0)], rows, 0).unwrap();
                let w = b.transpose(map[&node.input(1)], &[1, 0]).unwrap();
                let logits = b.matmul(x, w).unwrap();
                b.output("logits", logits);
                break;
            }
            op => {
                let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
                let results = b.op(op, node.attrs.clone(), &inputs).unwrap();
                for (port, v) in results.into_iter().enumerate() {
                    map.insert(Value { node: id, port }, v);
                }
            }
        }
    }
    let forward = b.finish();
    m.add(forward);
    m
}

fn parameters(m: &Module, frozen: &[&str]) -> Vec<Parameter> {
    let update = Update::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let is_frozen = |name: &str| frozen.iter().any(|part| name.contains(part));
    let names = m.weights.keys().filter(|name| !is_frozen(name));
    names.map(|w| Parameter { weight: w.clone(), update: update.clone(), group: 0 }).collect()
}

/// What programs read and write, by name.
type Memory = IndexMap<Arc<str>, Tensor>;

/// Two documents, five rows of which have targets, and all parameters.
fn memory(m: &Module) -> Memory {
    let ints = |v: &[i64]| Tensor::from_i64s(DType::I32, &[v.len()], v.iter().copied());
    let floats = |x: f64| Tensor::from_f64s(DType::F32, &[], [x]);
    let [ids, positions, _, cu] = <[Tensor; 4]>::try_from(inputs()).unwrap();
    let mut memory: Memory = [
        ("ids", ids),
        ("positions", positions),
        ("cu_seqlens", cu),
        ("logit_rows", ints(&[0, 1, 3, 5, 6])),
        ("targets", ints(&[10, 0, 7, -100, 9])),
        ("scale", floats(0.125)),
        ("keep", floats(0.5)),
    ]
    .map(|(name, t)| (Arc::from(name), t))
    .into();
    for (i, (name, ty)) in m.weights.iter().enumerate() {
        memory.insert(state_name("param", name).into(), sample(ty, &Env::new(), 5 * i + 2));
        memory.insert(state_name("grad", name).into(), sample(ty, &Env::new(), 3 * i + 1));
    }
    memory
}

/// Runs an entry; its outputs are in memory then, and updated states in place.
fn run(m: &Module, entry: &str, states: &[State], memory: &mut Memory) {
    let graph = &m.functions[entry];
    let names = graph.params().iter().map(|p| graph.param_name(*p));
    let args: Vec<Tensor> = names
        .map(|name| memory.get(name).unwrap_or_else(|| panic!("{entry}: no `{name}`")).clone())
        .collect();
    let weights: Memory = m
        .weights
        .keys()
        .map(|name| (name.clone(), memory[state_name("param", name).as_str()].clone()))
        .collect();
    let out = Interpreter::new(m, &weights, Precision::F32).run(entry, &args, &Env::new());
    let out = out.unwrap_or_else(|e| panic!("{entry}: {e}"));
    for ((name, _), t) in graph.outputs.iter().zip(out) {
        let state = states.iter().find(|state| state.output.as_ref() == Some(name));
        memory.insert(state.map_or(name, |state| &state.param).clone(), t);
    }
}

/// What begins so, by what it goes on with.
fn numbered(memory: &Memory, kind: &str) -> Vec<(String, Tensor)> {
    let of_kind =
        |(name, t): (&Arc<str>, &Tensor)| Some((name.strip_prefix(kind)?.to_owned(), t.clone()));
    memory.iter().filter_map(of_kind).collect()
}

struct Cutting {
    family: &'static Family,
    stages: usize,
    recompute: Recompute<'static>,
    frozen: &'static [&'static str],
}

fn check(cutting: &Cutting) {
    let Cutting { family, stages, recompute, frozen } = *cutting;
    let source = model(family);
    let parameters = parameters(&source, frozen);
    let alone = Sharding::none();

    let mut whole = source.clone();
    let states =
        train_step(&mut whole, "forward", &parameters, &alone, recompute, &Target::x86_64_v3())
            .unwrap();
    let mut want = memory(&source);
    run(&whole, "accumulate", &states["accumulate"], &mut want);

    let mut cut = source.clone();
    let how = (stages, recompute);
    let states =
        train_step_in_stages(&mut cut, "forward", &parameters, &alone, how, &Target::x86_64_v3())
            .unwrap();
    ir::verify(&cut).unwrap();
    for entry in &cut.entries {
        plan_memory(&cut, entry, &states[entry], &Roofline).unwrap_or_else(|e| panic!("{e:?}"));
    }
    let before = memory(&source);
    let mut of_stages = vec![before.clone(); stages];
    let entry = |name: &str, stage: usize| format!("{name}.{stage}");
    let pass = |name: &str, stage: usize, memory: &mut Memory| {
        let entry = entry(name, stage);
        run(&cut, &entry, &states[entry.as_str()], memory);
    };
    let is_state = |name: &str| name.starts_with("param.") || name.starts_with("grad.");
    for stage in 0..stages - 1 {
        pass("forward", stage, &mut of_stages[stage]);
        let mut alone = of_stages[stage].clone();
        let handed = numbered(&of_stages[stage], HANDED);
        alone.retain(|name, _| !name.starts_with(HANDED));
        pass("evaluate", stage, &mut alone);
        assert!(numbered(&alone, HANDED) == handed, "evaluation computes the same");
        let named = handed.into_iter().map(|(n, t)| (format!("{HIDDEN}{n}").into(), t));
        of_stages[stage + 1].extend(named);
    }
    pass("accumulate", stages - 1, &mut of_stages[stages - 1]);
    for stage in (0..stages - 1).rev() {
        let returned = numbered(&of_stages[stage + 1], RETURNED).into_iter();
        let named = returned.map(|(n, t)| (format!("{COTANGENT}{HANDED}{n}").into(), t));
        of_stages[stage].extend(named);
        pass("backward", stage, &mut of_stages[stage]);
    }
    let last = &of_stages[stages - 1];
    assert_eq!(last["loss"].to_bytes(), want["loss"].to_bytes());
    let mut probes = 0;
    for (name, t) in want.iter().filter(|(name, _)| name.starts_with("probe.")) {
        let of = of_stages.iter().filter_map(|memory| memory.get(name));
        let of: Vec<&Tensor> = of.collect();
        assert!(of.len() == 1 && of[0].to_bytes() == t.to_bytes(), "{name}");
        probes += 1;
    }
    assert!(probes > 3);
    let mut shared = 0;
    for p in &parameters {
        let name = state_name("grad", &p.weight);
        let holds = |stage: &usize| {
            states[entry("update", *stage).as_str()].iter().any(|s| *s.param == *name)
        };
        let holders: Vec<usize> = (0..stages).filter(holds).collect();
        let got = |stage: usize| of_stages[stage][name.as_str()].clone();
        let want = &want[name.as_str()];
        if let [only] = holders[..] {
            assert_eq!(got(only).to_bytes(), want.to_bytes(), "{name}");
            continue;
        }
        shared += 1;
        assert_eq!(holders, [0, stages - 1], "{name}");
        // Each has added its own to what there was.
        let before = before[name.as_str()].to_f64s();
        let both = got(0).to_f64s().into_iter().zip(got(stages - 1).to_f64s()).zip(before);
        for (((a, b), before), want) in both.zip(want.to_f64s()) {
            let sum = a + b - 0.5 * before;
            assert!((sum - want).abs() < 1e-6 * (1.0 + want.abs()), "{name}: {sum} {want}");
        }
    }
    assert_eq!(shared, usize::from(!frozen.contains(&"embed")));
    // Other states are as they were.
    for (stage, memory) in of_stages.iter().enumerate() {
        for (name, t) in memory.iter().filter(|(name, _)| is_state(name)) {
            let own = states[entry("update", stage).as_str()].iter().any(|s| s.param == *name);
            assert!(own || *t == before[name], "stage {stage}: {name}");
        }
    }
}

#[test]
fn stages_have_the_gradients_of_a_step_that_is_not_cut() {
    for family in [&LLAMA, &GPT2] {
        for stages in [2, 3] {
            for recompute in [Recompute::None, Recompute::Cheap, Recompute::Full] {
                check(&Cutting { family, stages, recompute, frozen: &[] });
            }
        }
    }
}

#[test]
fn nothing_goes_back_to_what_is_frozen() {
    let frozen = &["embed", "layers.0.", "positions"];
    let source = model(&LLAMA);
    let parameters = parameters(&source, frozen);
    let mut m = source.clone();
    let how = (3, Recompute::None);
    let alone = Sharding::none();
    let error =
        train_step_in_stages(&mut m, "forward", &parameters, &alone, how, &Target::x86_64_v3())
            .unwrap_err();
    let told = "function `forward`: has nothing to train in stage 0 of 3";
    assert!(error.len() == 1 && error[0].to_string().starts_with(told), "{error:?}");

    // Of two stages the first has the second layer, too.
    check(&Cutting { family: &LLAMA, stages: 2, recompute: Recompute::None, frozen });

    // The last layer alone, so that the first two stages have nothing: no cotangent is asked for.
    let frozen = &["embed", "layers.0.", "layers.1."];
    let parameters = super::tests::parameters(&source, frozen);
    let trained = parameters.iter().map(|p| p.weight.clone()).collect();
    let mut m = source.clone();
    add_loss(&mut m, "forward", &parameters).unwrap();
    let stages = cut(&m, "forward", &trained, 3).unwrap();
    assert!(stages.iter().all(|stage| stage.hidden.is_empty() && stage.handed.is_empty()));
}

#[test]
fn stages_share_layers_as_evenly_as_can_be() {
    let source = model(&LLAMA);
    let parameters = parameters(&source, &[]);
    let mut m = source.clone();
    add_loss(&mut m, "forward", &parameters).unwrap();
    let trained = parameters.iter().map(|p| p.weight.clone()).collect();
    let layers = |stages: usize| -> Vec<usize> {
        let stages = cut(&m, "forward", &trained, stages).unwrap();
        stages.iter().map(|stage| crate::testing::count(&stage.graph, "call")).collect()
    };
    assert_eq!(layers(2), [2, 1]);
    assert_eq!(layers(3), [1, 1, 1]);
    let stages = cut(&m, "forward", &trained, 2).unwrap();
    let names = |graph: &Graph| -> Vec<String> {
        graph.params().iter().map(|p| graph.param_name(*p).to_owned()).collect()
    };
    // Rotation tables are made of positions in each stage.
    assert_eq!(names(&stages[0].graph), ["ids", "positions", "cu_seqlens"]);
    let last = ["positions", "cu_seqlens", "logit_rows", "targets", "scale", "hidden.0"];
    assert_eq!(names(&stages[1].graph), last);
    let mut m = source.clone();
    let alone = Sharding::none();
    let how = (4, Recompute::None);
    let error =
        train_step_in_stages(&mut m, "forward", &parameters, &alone, how, &Target::x86_64_v3())
            .unwrap_err();
    let told = "function `forward`: has 3 layers, which 4 stages cannot share";
    assert!(error[0].to_string().starts_with(told), "{error:?}");
}
