//! Runs planned programs launch by launch with the interpreter as the kernels, over one arena of
//! bytes, and compares with the source graph: a wrong place, stride, lifetime or order shows.

mod casts;
mod collectives;
mod groups;

use std::{collections::BTreeMap, sync::Arc};

use indexmap::IndexMap;
use ir::{
    Attrs, Builder, DType, Dim, Env, Interpreter, KernelSpec, Kernels, Layout, Module, OpRef,
    Place, Precision, Program, Region, Tensor, TensorType, Value,
};

use super::{Plan, plan_memory};
use crate::{PageOptions, Recipe, State, expand_composites, fuse_loops, page_kv, prepare};

/// Takes every operator, at row-major operands only if `strict`.
#[derive(Clone, Copy, Default)]
struct AllKernels {
    strict: bool,
    apart: bool,
}

impl Kernels for AllKernels {
    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        if matches!(spec.op, "softmax" | "rope") {
            return Err("expand it".into());
        }
        let plain = spec.operands.iter().flatten().all(Layout::is_contiguous);
        if self.strict && spec.op != "copy" && !plain { Err("strided".into()) } else { Ok(()) }
    }

    fn run_apart(&self) -> bool {
        self.apart
    }

    fn seconds(
        &self,
        _: OpRef,
        _: &Attrs,
        _: &[Option<TensorType>],
        _: &[TensorType],
        _: &Env,
    ) -> Option<f64> {
        Some(1.0)
    }
}

struct Memory {
    arena: Vec<u8>,
    weights: Vec<Vec<u8>>,
    states: Vec<Vec<u8>>,
    env: Env,
}

impl Memory {
    fn region(&mut self, region: Region) -> &mut Vec<u8> {
        match region {
            Region::Arena => &mut self.arena,
            Region::Weight(i) => &mut self.weights[i as usize],
            Region::State(i) => &mut self.states[i as usize],
            Region::Null => unreachable!("an absent operand is not read"),
        }
    }

    /// Byte offsets of the elements of a layout, in row-major order.
    fn offsets(&self, layout: &Layout, place: &Place) -> Vec<usize> {
        let size = i64::try_from(layout.ty.dtype.size()).unwrap();
        let base = place.offset.eval(&self.env).unwrap();
        let strides: Vec<i64> = layout.strides.iter().map(|s| s.eval(&self.env).unwrap()).collect();
        let mut out = Vec::new();
        ir::tensor::for_each_index(&layout.ty.extents(&self.env).unwrap(), |index| {
            let at: i64 = index.iter().zip(&strides).map(|(i, s)| *i as i64 * s).sum();
            out.push(usize::try_from(base + at * size).unwrap());
        });
        out
    }

    fn read(&mut self, layout: &Layout, place: &Place) -> Tensor {
        let offsets = self.offsets(layout, place);
        let size = layout.ty.dtype.size();
        let shape = layout.ty.extents(&self.env).unwrap();
        let memory = self.region(place.region);
        let bytes = offsets.iter().flat_map(|o| memory[*o..o + size].to_vec()).collect();
        Tensor::from_bytes(layout.ty.dtype, &shape, bytes)
    }

    fn write(&mut self, layout: &Layout, place: &Place, value: &Tensor) {
        let offsets = self.offsets(layout, place);
        let size = layout.ty.dtype.size();
        let bytes = value.to_bytes();
        let memory = self.region(place.region);
        for (o, b) in offsets.iter().zip(bytes.chunks(size)) {
            memory[*o..o + size].copy_from_slice(b);
        }
    }
}

/// Computes one kernel with the interpreter.
fn compute(spec: &KernelSpec, args: &[Option<Tensor>], env: &Env) -> Vec<Tensor> {
    let none: IndexMap<Arc<str>, Tensor> = IndexMap::new();
    let mut module = Module::new("kernel");
    module.symbols = (*spec.symbols).clone();
    let present: Vec<Tensor> = args.iter().flatten().cloned().collect();
    let graph = match (&spec.body, spec.op) {
        (Some(body), _) => (**body).clone(),
        (None, "copy") => return present,
        (None, op) => {
            let mut b = Builder::new(&module, "main");
            let operands: Vec<Option<Value>> = spec
                .operands
                .iter()
                .enumerate()
                .map(|(i, l)| l.as_ref().map(|l| b.param(&i.to_string(), l.ty.clone()).unwrap()))
                .collect();
            for (i, v) in b.op(op, spec.attrs.clone(), &operands).unwrap().iter().enumerate() {
                b.output(&i.to_string(), *v);
            }
            b.finish()
        }
    };
    Interpreter::new(&module, &none, Precision::F32).eval(&graph, &present, env).unwrap()
}

fn run(program: &Program, specs: &[KernelSpec], memory: &mut Memory) {
    for launch in &program.launches {
        let spec = &specs[launch.kernel as usize];
        let (operands, results) = launch.args.split_at(spec.operands.len());
        let args: Vec<Option<Tensor>> = spec
            .operands
            .iter()
            .zip(operands)
            .map(|(l, p)| l.as_ref().map(|l| memory.read(l, p)))
            .collect();
        let env = memory.env.clone();
        for ((layout, place), value) in
            spec.results.iter().zip(results).zip(compute(spec, &args, &env))
        {
            memory.write(layout, place, &value);
        }
    }
}

fn fold(
    module: &Module,
    weights: &IndexMap<Arc<str>, Tensor>,
    plan: &Plan,
    recipes: &[Recipe],
) -> Vec<Vec<u8>> {
    let fold = |name: &Arc<str>| {
        let recipe = recipes.iter().find(|r| r.name == *name).unwrap();
        let out = Interpreter::new(module, weights, Precision::F32)
            .eval(&recipe.graph, &[], &Env::new())
            .unwrap();
        out[0].to_bytes()
    };
    plan.weights.iter().map(fold).collect()
}

fn noise(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    Tensor::from_f64s(dtype, shape, (0..n).map(|_| next()).collect::<Vec<_>>())
}

const HIDDEN: usize = 12;
const VOCAB: usize = 11;
const LAYERS: usize = 3;

/// A decoder in the frontend's form: one layer function called three times.
fn decoder() -> (Module, IndexMap<Arc<str>, Tensor>) {
    let mut m = Module::new("tiny");
    m.symbol("T", 1, 24);
    m.symbol("S", 1, 4);
    m.symbol("R", 1, 4);
    let mut weights = IndexMap::new();
    let mut weight = |m: &mut Module, name: &str, dtype: DType, shape: &[usize]| {
        m.weight(name, TensorType::new(dtype, shape.iter().copied()));
        weights.insert(name.into(), noise(dtype, shape, name.len() as u64 + shape[0] as u64));
    };
    weight(&mut m, "embed", DType::F32, &[VOCAB, HIDDEN]);
    for l in 0..LAYERS {
        for (name, shape) in
            [("norm", &[HIDDEN][..]), ("qkv", &[24, HIDDEN]), ("out", &[HIDDEN, HIDDEN])]
        {
            let dtype = if name == "qkv" { DType::Bf16 } else { DType::F32 };
            weight(&mut m, &format!("{l}.{name}"), dtype, shape);
        }
    }
    let ty = |dtype, shape: &[&str]| {
        TensorType::new(dtype, shape.iter().map(|s| s.parse::<Dim>().unwrap()))
    };
    let mut b = m.builder("layer");
    let x = b.param("x", ty(DType::F32, &["T", "12"])).unwrap();
    let angles =
        [b.param("cos", ty(DType::F32, &["T", "2"])), b.param("sin", ty(DType::F32, &["T", "2"]))];
    let [cos, sin] = angles.map(Result::unwrap);
    let cu = b.param("cu_seqlens", ty(DType::I32, &["S + 1"])).unwrap();
    let norm = b.param("norm", ty(DType::F32, &["12"])).unwrap();
    let qkv = b.param("qkv", ty(DType::Bf16, &["24", "12"])).unwrap();
    let out = b.param("out", ty(DType::F32, &["12", "12"])).unwrap();
    b.at("attn");
    let h = b.op1("rms_norm", Attrs::none().with("eps", 1e-5), &[x, norm]).unwrap();
    let w = b.cast(qkv, DType::F32).unwrap();
    let w = b.transpose(w, &[1, 0]).unwrap();
    let p = b.matmul(h, w).unwrap();
    let head = |b: &mut Builder<'_>, from: i64, to: i64, heads: i64| {
        let s = b.slice(p, 1, from, to).unwrap();
        b.reshape(s, vec![Dim::symbol("T"), heads.into(), 4.into()]).unwrap()
    };
    let (q, k, v) = (head(&mut b, 0, 12, 3), head(&mut b, 12, 16, 1), head(&mut b, 16, 20, 1));
    let [q, k] = [q, k].map(|t| b.op1("rope", Attrs::none(), &[t, cos, sin]).unwrap());
    let attrs = Attrs::none().with("scale", 0.5).with("mask", "causal");
    let a = b.op1("attention", attrs, &[q, k, v, cu]).unwrap();
    let a = b.reshape(a, vec![Dim::symbol("T"), 12.into()]).unwrap();
    let w = b.transpose(out, &[1, 0]).unwrap();
    let y = b.matmul(a, w).unwrap();
    let y = b.unary("silu", y).unwrap();
    let y = b.add(x, y).unwrap();
    b.output("x", y);
    let layer = b.finish();
    m.add(layer);
    let mut b = m.builder("forward");
    let tokens = b.param("tokens", ty(DType::I32, &["T"])).unwrap();
    let positions = b.param("positions", ty(DType::I32, &["T"])).unwrap();
    let cu = b.param("cu_seqlens", ty(DType::I32, &["S + 1"])).unwrap();
    let rows = b.param("logit_rows", ty(DType::I32, &["R"])).unwrap();
    let embed = b.weight("embed").unwrap();
    let mut x = b.gather(embed, tokens, 0).unwrap();
    let p = b.cast(positions, DType::F32).unwrap();
    let p = b.reshape(p, vec![Dim::symbol("T"), 1.into()]).unwrap();
    let freq = b.constant(Tensor::from_f32s(&[2], &[1.0, 0.1])).unwrap();
    let angle = b.mul(p, freq).unwrap();
    let (cos, sin) = (b.cos(angle).unwrap(), b.sin(angle).unwrap());
    for l in 0..LAYERS {
        let w: Vec<Value> =
            ["norm", "qkv", "out"].map(|n| b.weight(&format!("{l}.{n}")).unwrap()).into();
        x = b.call("layer", &[&[x, cos, sin, cu][..], &w].concat()).unwrap()[0];
    }
    let x = b.gather(x, rows, 0).unwrap();
    let w = b.transpose(embed, &[1, 0]).unwrap();
    let logits = b.matmul(x, w).unwrap();
    b.output("logits", logits);
    let forward = b.finish();
    m.add(forward);
    m.entries.push("forward".into());
    ir::verify(&m).unwrap();
    (m, weights)
}

fn ints(v: &[i64]) -> Tensor {
    Tensor::from_i64s(DType::I32, &[v.len()], v.iter().copied())
}

/// Lowers as the compiler does, without the e-graph.
fn lower(
    m: &mut Module,
    kernels: &AllKernels,
    entry: &str,
    states: &[State],
) -> (Plan, Vec<Recipe>) {
    let symbols = Arc::new(m.symbols.clone());
    let has_kernel = |g: &ir::Graph, id: ir::NodeId| {
        let node = g.node(id);
        let spec = KernelSpec {
            op: node.op.0.name(),
            attrs: node.attrs.clone(),
            operands: Vec::new(),
            results: Vec::new(),
            body: None,
            symbols: symbols.clone(),
        };
        kernels.supports(&spec).is_ok()
    };
    expand_composites(m, &has_kernel).unwrap();
    ir::verify(m).unwrap();
    let recipes = prepare(m, entry, &[]).unwrap();
    ir::verify(m).unwrap();
    fuse_loops(m).unwrap();
    ir::verify(m).unwrap();
    (plan_memory(m, entry, states, kernels).unwrap(), recipes)
}

#[test]
fn planned_launches_compute_the_graph() {
    let (source, weights) = decoder();
    let inputs = [
        ints(&[3, 1, 4, 1, 5, 9, 2]),
        ints(&[0, 1, 2, 3, 0, 1, 2]),
        ints(&[0, 4, 7]),
        ints(&[3, 6]),
    ];
    let want = Interpreter::new(&source, &weights, Precision::F32)
        .run("forward", &inputs, &Env::new())
        .unwrap();
    for (strict, apart) in [(false, false), (true, false), (false, true)] {
        let mut m = source.clone();
        let (plan, recipes) = lower(&mut m, &AllKernels { strict, apart }, "forward", &[]);
        let env: Env = [("T", 7), ("S", 2), ("R", 2)].map(|(s, v)| (s.into(), v)).into();
        // Stale contents must not matter.
        let arena = vec![0xa5; usize::try_from(plan.program.arena_bytes).unwrap()];
        let packed = fold(&m, &weights, &plan, &recipes);
        let mut memory = Memory { arena, weights: packed, states: Vec::new(), env };
        for (port, value) in plan.program.inputs.iter().zip(&inputs) {
            memory.write(&Layout::contiguous(&port.ty), &port.place, value);
        }
        run(&plan.program, &plan.specs, &mut memory);
        let out = &plan.program.outputs[0];
        let got = memory.read(&Layout::contiguous(&out.ty), &out.place);
        assert_eq!(got, want[0]);
        // One layer's kernels serve all three calls.
        assert!(plan.specs.len() * 2 < plan.program.launches.len());
    }
}

#[test]
fn paged_steps_give_the_logits_of_the_whole_sequence() {
    let (mut m, weights) = decoder();
    let tokens: Vec<i64> = (0..21).map(|i| (i * 7 + 3) % VOCAB as i64).collect();
    let positions: Vec<i64> = (0..21).collect();
    let all = [ints(&tokens), ints(&positions), ints(&[0, 21]), ints(&[4, 16, 17, 20])];
    let want = Interpreter::new(&m, &weights, Precision::F32)
        .run("forward", &all, &Env::new())
        .unwrap()
        .remove(0)
        .to_f32s();
    let options =
        PageOptions { block_size: 16, dtype: DType::F32, max_seq_len: 40, max_blocks: 8, head: 0 };
    let states = page_kv(&mut m, "forward", options).unwrap();
    assert_eq!(states.len(), 2 * LAYERS);
    m.entries = vec!["step".into()];
    m.functions.retain(|name, _| &**name == "step" || name.ends_with(".paged"));
    let (plan, recipes) = lower(&mut m, &AllKernels::default(), "step", &states);
    let blocks = 4;
    let packed = fold(&m, &weights, &plan, &recipes);
    let base: Env = [("S", 1), ("R", 1), ("NB", blocks)].map(|(s, v)| (s.into(), v)).into();
    let state = |p: &ir::Port| {
        let bytes = p.ty.bytes().eval(&base).unwrap();
        vec![0u8; usize::try_from(bytes).unwrap()]
    };
    let states = plan.program.states.iter().map(state).collect();
    let arena = vec![0xa5; usize::try_from(plan.program.arena_bytes).unwrap()];
    let mut memory = Memory { arena, weights: packed, states, env: base };
    // A prompt in two chunks, then single tokens; blocks in no order.
    let table = [2i64, 0, 3];
    let mut next = 0;
    let mut rows = BTreeMap::new();
    for chunk in [5usize, 12, 1, 1, 1, 1] {
        let range: Vec<i64> = (next as i64..(next + chunk) as i64).collect();
        memory.env.insert("T".into(), chunk as i64);
        let slot = |p: &i64| table[usize::try_from(*p).unwrap() / 16] * 16 + p % 16;
        let slots: Vec<i64> = range.iter().map(slot).collect();
        for port in &plan.program.inputs {
            let value = match &*port.name {
                "tokens" => ints(&tokens[next..next + chunk]),
                "positions" => ints(&range),
                "cu_seqlens" => ints(&[0, chunk as i64]),
                "logit_rows" => ints(&[chunk as i64 - 1]),
                "slots" => ints(&slots),
                "block_tables" => Tensor::from_i64s(DType::I32, &[1, 3], table),
                other => panic!("unknown input {other}"),
            };
            memory.write(&Layout::contiguous(&port.ty), &port.place, &value);
        }
        run(&plan.program, &plan.specs, &mut memory);
        next += chunk;
        let out = plan.program.outputs.iter().find(|p| &*p.name == "logits").unwrap();
        rows.insert(next - 1, memory.read(&Layout::contiguous(&out.ty), &out.place).to_f32s());
    }
    for (i, row) in [4usize, 16, 17, 20].into_iter().enumerate() {
        for (a, b) in rows[&row].iter().zip(&want[i * VOCAB..][..VOCAB]) {
            assert!((a - b).abs() < 1e-5, "row {row}: {a} and {b}");
        }
    }
}

#[test]
fn paging_refuses_what_mixes_positions_and_names_it() {
    let (m, _) = decoder();
    let text = m.to_string().replace("mask = \"causal\"", "mask = \"full\"");
    let mut m = ir::parse_module(&text).unwrap();
    let options =
        PageOptions { block_size: 16, dtype: DType::F32, max_seq_len: 40, max_blocks: 8, head: 0 };
    let errors = page_kv(&mut m, "forward", options).unwrap_err();
    assert!(errors.iter().any(|e| e.to_string().contains("attn")), "{errors:?}");
}

/// Plans an entry with one state, `k` of the keys, and returns what is wrong.
fn planned(build: impl FnOnce(&mut Builder<'_>, [Value; 5])) -> Result<Plan, String> {
    let mut m = Module::new("m");
    m.symbol("T", 1, 16);
    let mut b = m.builder("step");
    let t = || Dim::symbol("T");
    let f32s = |shape: &[Dim]| TensorType::new(DType::F32, shape.to_vec());
    let [n, h, d, block] = [2i64, 1, 4, 16].map(Dim::from);
    let kc = b.param("k", f32s(&[n.clone(), h.clone(), d.clone(), block.clone()])).unwrap();
    let vc = b.param("v", f32s(&[n, h.clone(), block, d.clone()])).unwrap();
    let [k, v] = ["new k", "new v"].map(|p| b.param(p, f32s(&[t(), h.clone(), d.clone()])));
    let slots = b.param("slots", TensorType::new(DType::I32, [t()])).unwrap();
    build(&mut b, [kc, vc, k.unwrap(), v.unwrap(), slots]);
    let step = b.finish();
    m.add(step);
    let state = |name: &str| State {
        param: name.into(),
        output: Some(format!("{name}.out").into()),
        part_of: None,
        shard_of: None,
    };
    let states = [state("k"), state("v")];
    let known =
        |s: &State| m.functions["step"].outputs.iter().any(|(n, _)| Some(n) == s.output.as_ref());
    let states: Vec<State> = states.into_iter().filter(known).collect();
    plan_memory(&m, "step", &states, &AllKernels::default())
        .map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn write(b: &mut Builder<'_>, args: [Value; 5]) -> [Value; 2] {
    let out = b.op("kv_write", Attrs::none(), &args.map(Some)).unwrap();
    [out[0], out[1]]
}

#[test]
fn states_are_updated_in_place_where_nothing_else_reads_them() {
    let twice = planned(|b, args @ [_, _, k, v, slots]| {
        let [kc, vc] = write(b, args);
        let [kc, vc] = write(b, [kc, vc, v, k, slots]);
        b.output("k.out", kc);
        b.output("v.out", vc);
    });
    assert_eq!(twice.unwrap().program.launches.len(), 2);
    let why = planned(|b, args @ [kc, ..]| {
        let [k, v] = write(b, args);
        let before = b.neg(kc).unwrap();
        b.output("k.out", k);
        b.output("v.out", v);
        b.output("before", before);
    });
    let why = why.unwrap_err();
    assert!(why.contains("cannot update operand 0 in place: it is read elsewhere too"), "{why}");
    let why = planned(|b, args| {
        let [k, v] = write(b, args);
        b.output("k.out", k);
        b.output("v", v);
    });
    let why = why.unwrap_err();
    assert!(why.contains("operand 1 in place: it is not a state of the program"), "{why}");
}

#[test]
fn states_may_be_read_before_they_are_updated() {
    let view_of = |b: &mut Builder<'_>, kc| b.slice(kc, 0, 0i64, 1i64).unwrap();
    let before = planned(|b, args @ [kc, ..]| {
        let view = view_of(b, kc);
        for (name, read) in [("whole", kc), ("part", view)] {
            let y = b.neg(read).unwrap();
            b.output(name, y);
        }
        let [k, v] = write(b, args);
        b.output("k.out", k);
        b.output("v.out", v);
    });
    assert_eq!(before.unwrap().program.launches.len(), 3);
    let why = planned(|b, args @ [kc, ..]| {
        let view = view_of(b, kc);
        let early = b.neg(view).unwrap();
        b.output("early", early);
        let [k, v] = write(b, args);
        b.output("k.out", k);
        b.output("v.out", v);
        let late = b.exp(view).unwrap();
        b.output("late", late);
    });
    let why = why.unwrap_err();
    assert!(why.contains("cannot update operand 0 in place: it is read elsewhere too"), "{why}");
}

#[test]
fn a_program_has_the_largest_window_of_its_attention() {
    let window = |windows: &[i64]| {
        let plan = planned(|b, args| {
            let i32s = |shape: &[Dim]| TensorType::new(DType::I32, shape.to_vec());
            let tables = b.param("tables", i32s(&[Dim::from(1i64), Dim::from(2i64)])).unwrap();
            let cu = b.param("cu_seqlens", i32s(&[Dim::from(2i64)])).unwrap();
            let positions = b.param("positions", i32s(&[Dim::symbol("T")])).unwrap();
            let [k, v] = write(b, args);
            for (i, window) in windows.iter().enumerate() {
                let attrs = Attrs::none().with("scale", 0.5).with("window", *window);
                let operands = [args[2], k, v, tables, cu, positions].map(Some);
                let y = b.op("paged_attention", attrs, &operands).unwrap()[0];
                b.output(&format!("y{i}"), y);
            }
            b.output("k.out", k);
            b.output("v.out", v);
        });
        plan.unwrap().program.window
    };
    assert_eq!([window(&[7]), window(&[7, 9, 7])], [Some(7), Some(9)]);
    assert_eq!([window(&[]), window(&[7, 0])], [None, None], "a layer sees all");
}

#[test]
fn memory_beyond_an_artifact_is_refused_by_name() {
    let plan = |rows: i64, values: usize| {
        let mut m = Module::new("m");
        m.symbol("N", 1, rows);
        let mut b = m.builder("main");
        let mut ends = Vec::new();
        for i in 0..values {
            let shape = [Dim::symbol("N"), Dim::from(1i64 << 20)];
            let x = b.param(&format!("x{i}"), TensorType::new(DType::F32, shape)).unwrap();
            ends.push(x);
        }
        for (i, x) in ends.into_iter().enumerate() {
            b.at("the sum");
            let y = b.neg(x).unwrap();
            b.output(&format!("y{i}"), y);
        }
        let main = b.finish();
        m.add(main);
        let plan = plan_memory(&m, "main", &[], &AllKernels::default());
        plan.map(|_| ()).map_err(|e| e[0].to_string())
    };
    assert_eq!(plan(1 << 24, 1), Ok(()));
    let why = plan(1 << 27, 1).unwrap_err();
    assert!(why.contains("`x0` takes 4194304*N bytes, which may be more than"), "{why}");
    let why = plan(1 << 26, 3).unwrap_err();
    assert!(why.contains("the largest value is `"), "{why}");
}

/// What an entry makes for another: kernels write it where it stays, the rest is copied there.
#[test]
fn states_that_an_entry_makes_are_computed_in_place() {
    let mut m = Module::new("m");
    m.symbol("T", 1, 8);
    let mut b = m.builder("forward");
    let ty = TensorType::new(DType::F32, [Dim::symbol("T"), 4.into()]);
    let x = b.param("x", ty).unwrap();
    let y = b.unary("exp", x).unwrap();
    let turned = b.transpose(y, &[1, 0]).unwrap();
    let z = b.unary("neg", y).unwrap();
    let names = [("kept.0", y), ("kept.1", turned), ("kept.2", x), ("kept.3", z), ("kept.4", z)];
    names.into_iter().chain([("z", z)]).for_each(|(name, v)| b.output(name, v));
    let graph = b.finish();
    m.add(graph);
    let state = |(name, _): &(&str, Value)| State {
        param: (*name).into(),
        output: Some((*name).into()),
        part_of: None,
        shard_of: None,
    };
    let states: Vec<State> = names.iter().map(state).collect();
    let plan = plan_memory(&m, "forward", &states, &AllKernels::default()).unwrap();
    let program = &plan.program;
    let known: Vec<&str> = program.states.iter().map(|port| &*port.name).collect();
    assert_eq!(known, names.map(|(name, _)| name));
    assert_eq!(program.outputs.len(), 1);
    // Two operators; a view, an input, one value a second time, and the output are copies.
    let ops: Vec<&str> = program.kernels.iter().map(|kernel| kernel.op.as_str()).collect();
    let launched = |op: &str| {
        let of = |launch: &&ir::Launch| ops[launch.kernel as usize] == op;
        program.launches.iter().filter(of).count()
    };
    assert_eq!(["exp", "neg", "copy"].map(launched), [1, 1, 4]);
    let made: Vec<&str> = program.intervals.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(made, ["x", "neg.copy"], "nothing else takes memory of the arena");

    let env: Env = [("T".into(), 3)].into();
    let t = noise(DType::F32, &[3, 4], 5);
    let mut memory = Memory {
        arena: vec![0xff; usize::try_from(program.arena_bytes).unwrap()],
        weights: Vec::new(),
        states: vec![vec![0xff; 8 * 4 * 4]; names.len()],
        env: env.clone(),
    };
    memory.write(&Layout::contiguous(&program.inputs[0].ty), &program.inputs[0].place, &t);
    run(program, &plan.specs, &mut memory);
    let none: IndexMap<Arc<str>, Tensor> = IndexMap::new();
    let want = Interpreter::new(&m, &none, Precision::F32).run("forward", &[t], &env).unwrap();
    for (port, want) in program.states.iter().chain(&program.outputs).zip(want) {
        let got = memory.read(&Layout::contiguous(&port.ty), &port.place);
        assert_eq!(got.to_bytes(), want.to_bytes(), "{}", port.name);
    }
}
