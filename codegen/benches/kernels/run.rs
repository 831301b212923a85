//! One case: compiled as in an artifact, verified, timed.

use std::sync::Arc;

use brolly_codegen::Codegen;
use indexmap::IndexMap;
use ir::{
    Attrs, Bounds, Dim, Env, Interpreter, KernelSpec, Layout, Module, Precision, Symbols, Target,
    Tensor, TensorType, Value,
};

use crate::{
    blas::Blas,
    cases::{Arg, Row, Work},
    json,
    testing::{Line, Loaded, pointer},
    yardstick::{Yardsticks, time},
};

/// Rows that the interpreter computes.
const FEW: usize = 3;

/// Most rows of a launch that kernels are compiled for.
const MOST_ROWS: i64 = 1 << 16;

/// Seconds that a sample takes at least, repeats together.
const SAMPLE_SECONDS: f64 = 0.02;

/// A line of the table, compiled for any number of rows.
pub(crate) struct Prepared<'a> {
    row: &'a Row,
    op: &'static str,
    attrs: Attrs,
    args: Vec<Arg>,
    spec: KernelSpec,
    kernel: ir::Kernel,
    loaded: Loaded,
}

/// With a number of rows.
pub(crate) struct Case<'a> {
    prepared: &'a Prepared<'a>,
    rows: usize,
    env: Env,
    args: Vec<Tensor>,
    buffers: Vec<Vec<Line>>,
}

/// Seconds and speeds of one round.
pub(crate) struct Sample {
    seconds: f64,
    peak_flops: f64,
    bandwidth: f64,
    peer: Option<f64>,
}

/// The one result of an operator, by the interpreter.
pub(crate) fn evaluate(op: &str, attrs: &Attrs, args: &[&Tensor]) -> Tensor {
    let mut module = Module::new("bench");
    let types: Vec<TensorType> = args.iter().map(|t| type_of(t)).collect();
    let (graph, _) = graph(&mut module, op, attrs, &types);
    let weights = IndexMap::<Arc<str>, Tensor>::new();
    let oracle = Interpreter::new(&module, &weights, Precision::F32);
    let inputs: Vec<Tensor> = args.iter().map(|t| (*t).clone()).collect();
    oracle.eval(&graph, &inputs, &Env::new()).unwrap().pop().unwrap()
}

fn type_of(t: &Tensor) -> TensorType {
    TensorType::new(t.dtype(), t.shape().iter().copied())
}

/// A function of one operator, and its specification.
fn graph(
    module: &mut Module,
    op: &str,
    attrs: &Attrs,
    types: &[TensorType],
) -> (ir::Graph, KernelSpec) {
    let mut b = module.builder("f");
    let args =
        types.iter().enumerate().map(|(i, ty)| Some(b.param(&i.to_string(), ty.clone()).unwrap()));
    let args: Vec<Option<Value>> = args.collect();
    let results = b.op(op, attrs.clone(), &args).unwrap();
    let node = b.graph().node(results[0].node);
    let spec = KernelSpec {
        op: node.op.0.name(),
        attrs: node.attrs.clone(),
        operands: types.iter().map(|ty| Some(Layout::contiguous(ty))).collect(),
        results: results.iter().map(|v| Layout::contiguous(b.ty(*v))).collect(),
        body: None,
        symbols: Arc::new(module.symbols.clone()),
    };
    for (i, v) in results.iter().enumerate() {
        b.output(&i.to_string(), *v);
    }
    (b.finish(), spec)
}

impl<'a> Prepared<'a> {
    pub(crate) fn new(row: &'a Row, target: &Target) -> Prepared<'a> {
        let (op, attrs, args) = row.operator();
        let mut module = Module::new("bench");
        let bounds = Bounds { lo: 1, hi: MOST_ROWS };
        module.symbols = Symbols::from_iter([("T".into(), bounds)]);
        let symbolic = |arg: &Arg| {
            let mut ty = type_of(&arg.tensor(FEW, 1));
            if arg.has_rows() {
                ty.shape[0] = "T".parse::<Dim>().unwrap();
            }
            ty
        };
        let types: Vec<TensorType> = args.iter().map(symbolic).collect();
        let (_, spec) = graph(&mut module, op, &attrs, &types);
        let codegen = Codegen::new(target.clone());
        let compiled = codegen.compile(std::slice::from_ref(&spec), &|_, _| {});
        let mut compiled = compiled.unwrap_or_else(|errors| panic!("{errors:#?}"));
        let kernel = compiled.kernels.remove(0);
        let symbols = [(kernel.symbol.clone(), kernel.code_offset)].into();
        let loaded = Loaded::new(&compiled.image, &symbols);
        Prepared { row, op, attrs, args, spec, kernel, loaded }
    }

    pub(crate) fn case(&'a self, rows: usize) -> Case<'a> {
        let env = Env::from_iter([("T".into(), rows as i64)]);
        let args = (1..).zip(&self.args).map(|(seed, arg)| arg.tensor(rows, seed));
        let args: Vec<Tensor> = args.collect();
        let results = self.spec.results.iter().map(|layout| {
            let elements: usize = layout.ty.extents(&env).unwrap().iter().product();
            Line::buffer(&vec![0; elements * layout.ty.dtype.size()])
        });
        let buffers = args.iter().map(|t| Line::buffer(&t.to_bytes())).chain(results).collect();
        Case { prepared: self, rows, env, args, buffers }
    }
}

impl Case<'_> {
    /// Runs the kernel in as many threads as there are parts; the CPU seconds of the slowest.
    fn run(&self, threads: usize) -> f64 {
        let Prepared { kernel, loaded, .. } = self.prepared;
        let args: Vec<usize> =
            self.buffers.iter().map(|b| pointer(b).expose_provenance()).collect();
        let dims: Vec<i64> = kernel.dims.iter().map(|d| d.eval(&self.env).unwrap()).collect();
        let tiles = kernel.tiles.eval(&self.env).unwrap();
        time(threads, tiles, kernel.scratch_bytes, |tiles, scratch| {
            let args: Vec<*mut u8> =
                args.iter().map(|a| std::ptr::with_exposed_provenance_mut(*a)).collect();
            loaded.call(&kernel.symbol, &args, &dims, scratch, tiles);
        })
    }

    /// The bytes of the first result's first rows.
    fn result(&self, rows: usize) -> Vec<u8> {
        let layout = &self.prepared.spec.results[0];
        let bytes = layout.ty.extents(&self.env).unwrap()[1..].iter().product::<usize>()
            * layout.ty.dtype.size()
            * rows;
        let lines = &self.buffers[self.args.len()];
        lines.iter().flat_map(|line| line.0).take(bytes).collect()
    }

    /// A few rows against the interpreter, and all rows on two threads against the few.
    pub(crate) fn verify(&self) {
        let Prepared { op, attrs, spec, row, .. } = self.prepared;
        let name = row.name(self.rows);
        let few = self.prepared.case(FEW.min(self.rows));
        few.run(1);
        let args: Vec<&Tensor> = few.args.iter().collect();
        let want = evaluate(op, attrs, &args);
        let dtype = spec.results[0].ty.dtype;
        let got = Tensor::from_bytes(dtype, want.shape(), few.result(few.rows));
        let want = want.to_f64s();
        // Sums of thousands of terms may cancel, so that a small one has the error of a large one.
        let largest = want.iter().fold(1.0f64, |largest, w| largest.max(w.abs()));
        let bound = if dtype.is_float() { 1e-4 * largest } else { 0.0 };
        for (i, (g, w)) in got.to_f64s().into_iter().zip(want).enumerate() {
            assert!((g - w).abs() <= bound, "{} {name}: element {i} is {g}, not {w}", row.family);
        }
        self.run(2);
        let same = self.result(few.rows) == few.result(few.rows);
        assert!(same, "{} {name}: rows depend on the number of rows", row.family);
    }

    pub(crate) fn sample(&self, threads: usize, by: &Yardsticks, peer: Option<&Blas>) -> Sample {
        let bandwidth = by.bandwidth(threads);
        let seconds = least(|| self.run(threads));
        let peak_flops = by.peak_flops(threads);
        let peer = peer.zip(self.product()).map(|(blas, (n, k))| {
            let [x, w, y] = [0, 1, 2].map(|i| &self.buffers[i]);
            least(|| blas.sgemm(threads, [self.rows, n, k], x, w, y))
        });
        Sample { seconds, peak_flops, bandwidth, peer }
    }

    fn product(&self) -> Option<(usize, usize)> {
        match self.prepared.row.work {
            Work::Linear { n, k, .. } => Some((n, k)),
            _ => None,
        }
    }

    /// A line of JSON.
    pub(crate) fn report(&self, threads: usize, samples: &[Sample]) -> String {
        let Prepared { row, kernel, .. } = self.prepared;
        let value = |dim: &Dim| dim.eval(&self.env).unwrap() as f64;
        let (flops, bytes) = (value(&kernel.flops), value(&kernel.bytes));
        let bound = |s: &Sample| (flops / s.peak_flops, bytes / s.bandwidth);
        let ratio = |s: &Sample| bound(s).0.max(bound(s).1) / s.seconds;
        let computes = samples.iter().filter(|s| bound(s).0 > bound(s).1).count() * 2;
        let (work, unit) =
            if computes > samples.len() { (flops, "GFLOP/s") } else { (bytes, "GB/s") };
        let all = |f: &dyn Fn(&Sample) -> f64| json(samples.iter().map(f));
        let peer = match samples.iter().all(|s| s.peer.is_some()) {
            true => all(&|s| s.peer.unwrap_or(f64::NAN) / s.seconds),
            false => "null".into(),
        };
        format!(
            "{{\"family\":\"{}\",\"case\":\"{}\",\"threads\":{threads},\"unit\":\"{unit}\",\
             \"speed\":{},\"ratio\":{},\"peak_flops\":{},\"read_bandwidth\":{},\
             \"openblas\":{peer}}}",
            row.family,
            row.name(self.rows),
            all(&|s| work / s.seconds / 1e9),
            all(&ratio),
            all(&|s| s.peak_flops),
            all(&|s| s.bandwidth),
        )
    }
}

/// The shortest of several runs.
fn least(mut run: impl FnMut() -> f64) -> f64 {
    let (mut best, mut total) = (f64::MAX, 0.0);
    while total < SAMPLE_SECONDS {
        let seconds = run();
        best = best.min(seconds);
        total += seconds.max(1e-5);
    }
    best
}
