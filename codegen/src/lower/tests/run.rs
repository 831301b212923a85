//! Compiles a specification, runs it on tensors in the layouts it asks for, and evaluates the same
//! with the interpreter.

use std::{ops::Range, sync::Arc};

use indexmap::IndexMap;
use ir::{
    Attrs, DType, Dim, Env, Graph, Interpreter, KernelSpec, Layout, Module, OpRef, Precision,
    Symbols, Target, Tensor, TensorType, Value,
};

use crate::{
    Codegen,
    testing::{Loaded, Scratch},
};

pub(super) use crate::testing::noise;

/// An operator on tensors.
pub(super) struct Case {
    pub(super) op: &'static str,
    pub(super) attrs: Attrs,
    pub(super) args: Vec<Option<Tensor>>,
}

pub(super) fn type_of(t: &Tensor) -> TensorType {
    TensorType::new(t.dtype(), t.shape().iter().copied())
}

impl Case {
    pub(super) fn new(op: &'static str, attrs: Attrs, args: &[&Tensor]) -> Case {
        Case { op, attrs, args: args.iter().map(|t| Some((*t).clone())).collect() }
    }

    /// The specification, in dense layouts, and the interpreter's results, in f64.
    pub(super) fn expected(&self) -> (KernelSpec, Vec<Tensor>) {
        let module = Module::new("test");
        let (spec, graph) = self.graph(&module);
        let inputs: Vec<Tensor> = self.args.iter().flatten().cloned().collect();
        let weights = IndexMap::<Arc<str>, Tensor>::new();
        let oracle = Interpreter::new(&module, &weights, Precision::F64);
        (spec, oracle.eval(&graph, &inputs, &Env::new()).unwrap())
    }

    /// The specification alone.
    pub(super) fn spec(&self) -> KernelSpec {
        self.graph(&Module::new("test")).0
    }

    fn graph(&self, module: &Module) -> (KernelSpec, Graph) {
        let mut b = module.builder("f");
        let param = |(i, arg): (usize, &Option<Tensor>)| {
            Some(b.param(&i.to_string(), type_of(arg.as_ref()?)).unwrap())
        };
        let args: Vec<Option<Value>> = self.args.iter().enumerate().map(param).collect();
        let results = b.op(self.op, self.attrs.clone(), &args).unwrap();
        let attrs = b.graph().node(results[0].node).attrs.clone();
        let types: Vec<TensorType> = results.iter().map(|v| b.ty(*v).clone()).collect();
        for (i, v) in results.iter().enumerate() {
            b.output(&i.to_string(), *v);
        }
        let layout = |t: &Tensor| Layout::contiguous(&type_of(t));
        let spec = KernelSpec {
            op: OpRef::named(self.op).0.name(),
            attrs,
            operands: self.args.iter().map(|a| a.as_ref().map(layout)).collect(),
            results: types.iter().map(Layout::contiguous).collect(),
            body: None,
            symbols: Arc::new(Symbols::default()),
        };
        (spec, b.finish())
    }
}

/// Compiled kernels, ready to run.
pub(super) struct Runner {
    loaded: Loaded,
    kernels: Vec<ir::Kernel>,
    specs: Vec<KernelSpec>,
}

impl Runner {
    pub(super) fn new(specs: Vec<KernelSpec>) -> Runner {
        Runner::on(Target::x86_64_v3(), specs)
    }

    pub(super) fn on(target: Target, specs: Vec<KernelSpec>) -> Runner {
        Runner::by(&Codegen::new(target), specs)
    }

    pub(super) fn by(codegen: &Codegen, specs: Vec<KernelSpec>) -> Runner {
        let compiled = codegen.compile(&specs, &|_, _| {});
        let compiled = compiled.unwrap_or_else(|errors| panic!("{errors:#?}"));
        let symbols = compiled.kernels.iter().map(|k| (k.symbol.clone(), k.code_offset)).collect();
        let loaded = Loaded::new(&compiled.image, &symbols);
        Runner { loaded, kernels: compiled.kernels, specs }
    }

    /// Runs kernel `index` with its tiles in `parts` calls.
    pub(super) fn run(
        &self,
        index: usize,
        args: &[Option<Tensor>],
        env: &Env,
        parts: i64,
    ) -> Vec<Tensor> {
        self.run_shared(index, args, env, |tiles| {
            vec![(0..parts).map(|p| tiles * p / parts..tiles * (p + 1) / parts).collect()]
        })
    }

    /// Runs kernel `index`; `share` says by thread which of its tiles each takes, in order.
    pub(super) fn run_shared(
        &self,
        index: usize,
        args: &[Option<Tensor>],
        env: &Env,
        share: impl FnOnce(i64) -> Vec<Vec<Range<i64>>>,
    ) -> Vec<Tensor> {
        let (spec, kernel) = (&self.specs[index], &self.kernels[index]);
        let mut buffers: Vec<Buffer> = Vec::new();
        for (layout, arg) in spec.operands.iter().zip(args) {
            buffers.push(match (layout, arg) {
                (Some(layout), Some(arg)) => Buffer::of(layout, arg, env),
                _ => Buffer::default(),
            });
        }
        let in_place = KernelSpec::in_place(spec.op);
        for (i, layout) in spec.results.iter().enumerate() {
            buffers.push(match in_place.iter().find(|(result, _)| *result == i) {
                Some((_, operand)) => buffers[*operand].clone(),
                None => Buffer::new(layout, env),
            });
        }
        let addresses: Vec<usize> =
            buffers.iter_mut().map(|b| b.address().expose_provenance()).collect();
        let dims: Vec<i64> = kernel.dims.iter().map(|d| d.eval(env).unwrap()).collect();
        let tiles = kernel.tiles.eval(env).unwrap();
        let work = |ranges: Vec<Range<i64>>| {
            let at = |a: &usize| std::ptr::with_exposed_provenance_mut(*a);
            let addresses: Vec<*mut u8> = addresses.iter().map(at).collect();
            let mut scratch = Scratch::new(kernel.scratch_bytes);
            for range in ranges {
                self.loaded.call(&kernel.symbol, &addresses, &dims, &mut scratch, range);
            }
        };
        let mut shares = share(tiles);
        let first = shares.pop().unwrap_or_default();
        std::thread::scope(|scope| {
            for ranges in shares {
                scope.spawn(|| work(ranges));
            }
            work(first);
        });
        let first = spec.operands.len();
        let results = spec.results.iter().zip(&buffers[first..]);
        results.map(|(layout, buffer)| buffer.tensor(layout, env)).collect()
    }
}

/// Byte that fills memory which no element is in.
const FILL: u8 = 0xa5;

/// Memory of one operand, with room around it.
#[derive(Clone, Default)]
struct Buffer {
    bytes: Vec<u64>,
    /// Byte of element zero.
    start: usize,
}

/// Elements of a layout: byte offsets in row-major order.
fn offsets(layout: &Layout, env: &Env) -> Vec<i64> {
    let shape = layout.ty.extents(env).unwrap();
    let strides: Vec<i64> = layout.strides.iter().map(|s| s.eval(env).unwrap()).collect();
    let mut out = Vec::new();
    ir::tensor::for_each_index(&shape, |index| {
        let at: i64 = index.iter().zip(&strides).map(|(i, s)| *i as i64 * s).sum();
        out.push(at * layout.ty.dtype.size() as i64);
    });
    out
}

impl Buffer {
    fn new(layout: &Layout, env: &Env) -> Buffer {
        let offsets = offsets(layout, env);
        let lowest = offsets.iter().copied().min().unwrap_or(0).min(0);
        let highest = offsets.iter().copied().max().unwrap_or(0).max(0);
        let start = usize::try_from(-lowest).unwrap().next_multiple_of(8) + 64;
        let bytes = start + usize::try_from(highest).unwrap() + 8 + 64;
        Buffer { bytes: vec![u64::from_ne_bytes([FILL; 8]); bytes.div_ceil(8)], start }
    }

    fn of(layout: &Layout, tensor: &Tensor, env: &Env) -> Buffer {
        let mut buffer = Buffer::new(layout, env);
        let (size, values) = (layout.ty.dtype.size(), tensor.to_bytes());
        let mut raw = buffer.raw();
        for (at, value) in offsets(layout, env).into_iter().zip(values.chunks_exact(size)) {
            let at = buffer.place(at);
            raw[at..at + size].copy_from_slice(value);
        }
        let words = raw.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap()));
        buffer.bytes = words.collect();
        buffer
    }

    fn place(&self, offset: i64) -> usize {
        usize::try_from(self.start as i64 + offset).unwrap()
    }

    fn raw(&self) -> Vec<u8> {
        self.bytes.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    fn address(&mut self) -> *mut u8 {
        if self.bytes.is_empty() {
            return std::ptr::null_mut();
        }
        self.bytes.as_mut_ptr().cast::<u8>().wrapping_add(self.start)
    }

    /// The elements, after checking that nothing around them was written.
    fn tensor(&self, layout: &Layout, env: &Env) -> Tensor {
        let size = layout.ty.dtype.size();
        let raw = self.raw();
        let mut touched = vec![false; raw.len()];
        let mut values = Vec::new();
        for at in offsets(layout, env) {
            let at = self.place(at);
            values.extend_from_slice(&raw[at..at + size]);
            touched[at..at + size].fill(true);
        }
        let stray = raw.iter().zip(&touched).position(|(b, t)| !t && *b != FILL);
        assert_eq!(
            stray, None,
            "a byte outside {layout} was written (element 0 is {})",
            self.start
        );
        Tensor::from_bytes(layout.ty.dtype, &layout.ty.extents(env).unwrap(), values)
    }
}

/// Asserts that values agree: integers exactly, floats to `tolerance` of the larger of one and the
/// expected value, and to the neighbouring number where narrower than f32: what is almost halfway
/// between two may be rounded to either.
pub(super) fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}: shape");
    if !got.dtype().is_float() {
        assert_eq!(got.to_i64s(), want.to_i64s(), "{what}");
        return;
    }
    let rounding = match got.dtype() {
        DType::Bf16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 0.0,
    };
    for (i, (g, w)) in got.to_f64s().into_iter().zip(want.to_f64s()).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan());
        let bound = tolerance * w.abs().max(1.0) + rounding * w.abs();
        assert!(same || (g - w).abs() <= bound, "{what}: element {i} is {g}, not {w}");
    }
}

/// A layout of this type with these strides.
pub(super) fn strided(ty: &TensorType, strides: &[&str]) -> Layout {
    let strides = strides.iter().map(|s| s.parse::<Dim>().unwrap()).collect();
    Layout { ty: ty.clone(), strides }
}
