//! Dropout in a loop with what surrounds it, against the interpreter, bit for bit: integers of 64
//! bits wrap in vectors as they do there.

use std::sync::Arc;

use indexmap::IndexMap;
use ir::{
    Attrs, Body, Builder, DType, Dim, Env, Interpreter, KernelSpec, Layout, Module, OpRef,
    Precision, Tensor, TensorType, Value,
};

use super::super::elementwise;
use super::run::{Runner, noise};

/// Adds an operator, or what it is made of where no loop computes it.
fn add(b: &mut Builder<'_>, op: &str, attrs: Attrs, inputs: &[Value]) -> Value {
    let args: Vec<Option<Value>> = inputs.iter().copied().map(Some).collect();
    let Body::Composite(expand) = OpRef::named(op).body() else {
        return b.op(op, attrs, &args).unwrap()[0];
    };
    if elementwise::OPS.contains(&op) {
        return b.op(op, attrs, &args).unwrap()[0];
    }
    let mut inner = b.module().builder(op);
    let params = inputs.iter().enumerate();
    let params: Vec<Value> =
        params.map(|(i, v)| inner.param(&i.to_string(), b.ty(*v).clone()).unwrap()).collect();
    let args: Vec<Option<Value>> = params.iter().copied().map(Some).collect();
    let result = expand(&mut inner, &attrs, &args).unwrap()[0];
    inner.output("y", result);
    let inner = inner.finish();
    let mut map: IndexMap<Value, Value> = params.into_iter().zip(inputs.iter().copied()).collect();
    for id in inner.topo() {
        let node = inner.node(id);
        if node.op.name() != "param" {
            let inputs: Vec<Value> = node.inputs().iter().flatten().map(|v| map[v]).collect();
            let v = add(b, node.op.name(), node.attrs.clone(), &inputs);
            map.insert(Value { node: id, port: 0 }, v);
        }
    }
    map[&result]
}

/// `r + dropout(x)`, as training has it, for any number of rows.
fn sum(module: &Module, dtype: DType, width: usize, p: f64, is_expanded: bool) -> ir::Graph {
    let mut b = module.builder("body");
    let rows = [Dim::symbol("T"), Dim::from(width)];
    let x = b.param("x", TensorType::new(dtype, rows.clone())).unwrap();
    let r = b.param("r", TensorType::new(dtype, rows)).unwrap();
    let seed = b.param("seed", TensorType::new(DType::I64, Vec::<Dim>::new())).unwrap();
    let attrs = Attrs::none().with("p", p);
    let y = match is_expanded {
        true => add(&mut b, "dropout", attrs, &[x, seed]),
        false => b.op1("dropout", attrs, &[x, seed]).unwrap(),
    };
    let y = b.add(r, y).unwrap();
    b.output("y", y);
    b.finish()
}

#[test]
fn loops_drop_what_the_interpreter_drops() {
    let mut module = Module::new("m");
    module.symbol("T", 1, 64);
    let cases = [
        (DType::F32, 384, 0.1, 7i64),
        (DType::F32, 37, 0.5, -3),
        (DType::F32, 16, 0.9, i64::MIN),
        (DType::Bf16, 40, 0.25, 1 << 61),
    ];
    let spec = |(dtype, width, p, _): (DType, usize, f64, i64)| {
        let body = sum(&module, dtype, width, p, true);
        let layout = |v: Value| Layout::contiguous(body.ty(v));
        KernelSpec {
            op: "fused",
            attrs: Attrs::none(),
            operands: body.param_values().map(|v| Some(layout(v))).collect(),
            results: vec![layout(body.outputs[0].1)],
            symbols: Arc::new(module.symbols.clone()),
            body: Some(Arc::new(body)),
        }
    };
    let runner = Runner::new(cases.map(spec).to_vec());
    for (i, (dtype, width, p, seed)) in cases.into_iter().enumerate() {
        let rows = 23;
        let shape = [rows, width];
        let args = [noise(dtype, &shape, 1), noise(dtype, &shape, 2)];
        let seed = Tensor::from_i64s(DType::I64, &[], [seed]);
        let args = [args[0].clone(), args[1].clone(), seed];
        let env = Env::from([("T".into(), rows as i64)]);
        let none = IndexMap::<Arc<str>, Tensor>::new();
        let oracle = Interpreter::new(&module, &none, Precision::F32);
        let want = oracle.eval(&sum(&module, dtype, width, p, false), &args, &env).unwrap();
        for parts in [1, 3] {
            let got = runner.run(i, &args.clone().map(Some), &env, parts);
            assert!(got[0].to_bytes() == want[0].to_bytes(), "{dtype} {width} {p} in {parts}");
        }
    }
}
