//! Inputs lie one behind the other, and outputs, at every size.

use indexmap::IndexMap;
use ir::{
    DType, Dim, Env, Interpreter, Layout, Module, Port, Precision, Tensor, TensorType, Value,
};

use super::{AllKernels, Memory, Program, noise, run};
use crate::plan_memory;

/// Values that are too large to lie with others.
const LARGE: i64 = 5 << 20;

fn module() -> Module {
    let mut m = Module::new("ports");
    m.symbol("T", 1, 40);
    m.symbol("S", 0, 9);
    m.symbol("L", 1, LARGE);
    let ty = |shape: &[&str]| {
        TensorType::new(DType::F32, shape.iter().map(|s| s.parse::<Dim>().unwrap()))
    };
    let mut b = m.builder("main");
    let shapes: [&[&str]; 4] = [&["T", "3"], &["L"], &["S + 1"], &["T"]];
    let xs: Vec<Value> =
        (0..).zip(shapes).map(|(i, s)| b.param(&format!("x{i}"), ty(s)).unwrap()).collect();
    let ys: Vec<Value> = xs.iter().map(|x| b.neg(*x).unwrap()).collect();
    let zs: Vec<Value> = ys.iter().map(|y| b.exp(*y).unwrap()).collect();
    for (i, v) in ys.iter().chain(&zs).chain(&xs[3..]).enumerate() {
        b.output(&format!("y{i}"), *v);
    }
    let main = b.finish();
    m.add(main);
    m.entries.push("main".into());
    m
}

/// Where ports begin and end at some sizes, in order, but for the large ones.
fn ranges(ports: &[Port], env: &Env) -> Vec<(i64, i64)> {
    let range = |port: &Port| {
        let start = port.place.offset.eval(env).unwrap();
        (start, start + port.ty.bytes().eval(env).unwrap())
    };
    let small = ports.iter().filter(|port| !port.ty.shape.contains(&Dim::symbol("L")));
    let mut ranges: Vec<_> = small.map(range).collect();
    ranges.sort_unstable();
    ranges
}

fn are_together(program: &Program, env: &Env) -> bool {
    let is_next = |pair: &[(i64, i64)]| (pair[0].1 + 63) / 64 * 64 == pair[1].0;
    let all = |ports: &[Port]| ranges(ports, env).windows(2).all(is_next);
    // The last output is an input, and lies there.
    all(&program.inputs) && all(&program.outputs[..8])
}

#[test]
fn ports_of_a_device_lie_together() {
    let m = module();
    let none: IndexMap<_, Tensor> = IndexMap::new();
    let plan = |apart| plan_memory(&m, "main", &[], &AllKernels { strict: false, apart }).unwrap();
    let [here, apart] = [false, true].map(plan);
    for (t, s) in [(1, 0), (40, 9), (7, 3), (16, 7)] {
        let env: Env = [("T", t), ("S", s), ("L", 5)].map(|(s, v)| (s.into(), v)).into();
        let inputs: Vec<Tensor> = (0..)
            .zip(m.functions["main"].param_values())
            .map(|(i, v)| {
                let shape = m.functions["main"].ty(v).extents(&env).unwrap();
                noise(DType::F32, &shape, i)
            })
            .collect();
        let interpreter = Interpreter::new(&m, &none, Precision::F32);
        let want = interpreter.run("main", &inputs, &env).unwrap();
        for plan in [&here, &apart] {
            let arena = vec![0xa5; usize::try_from(plan.program.arena_bytes).unwrap()];
            let (weights, states) = (Vec::new(), Vec::new());
            let mut memory = Memory { arena, weights, states, env: env.clone() };
            for (port, value) in plan.program.inputs.iter().zip(&inputs) {
                memory.write(&Layout::contiguous(&port.ty), &port.place, value);
            }
            run(&plan.program, &plan.specs, &mut memory);
            for (port, want) in plan.program.outputs.iter().zip(&want) {
                let got = memory.read(&Layout::contiguous(&port.ty), &port.place);
                assert_eq!(got, *want, "{}", port.name);
            }
        }
        assert!(are_together(&apart.program, &env), "{t} {s}");
    }
    let small: Env = [("T", 1), ("S", 0), ("L", 1)].map(|(s, v)| (s.into(), v)).into();
    assert!(!are_together(&here.program, &small));
    // What is large lies by itself, and no place depends on its size.
    let large = |ports: &[Port]| {
        ports.iter().filter(|port| port.place.offset.symbols().contains(&"L".into())).count()
    };
    assert_eq!(large(&apart.program.inputs) + large(&apart.program.outputs), 0);
}
