//! An operator on tensors: its specification, and the interpreter's results.

use std::sync::Arc;

use codegen::{cuda::CudaKernel, lower::lowering};
use indexmap::IndexMap;
use ir::{
    Attrs, DType, Dim, Env, Interpreter, KernelSpec, Layout, Module, OpRef, Precision, Symbols,
    Target, Tensor, TensorType, Value,
};

/// An application of an operator.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) op: &'static str,
    pub(crate) attrs: Attrs,
    pub(crate) args: Vec<Option<Tensor>>,
    /// Operands whose first extent, and that of the results, is the run-time size T.
    pub(crate) rows: Vec<usize>,
    /// Results whose first extent is not that size all the same.
    pub(crate) fixed: Vec<usize>,
    /// Operands that lie in memory with their last two axes exchanged.
    pub(crate) transposed: Vec<usize>,
}

impl Case {
    pub(crate) fn new(op: &'static str, attrs: Attrs, args: &[Option<&Tensor>]) -> Case {
        let args = args.iter().map(|arg| arg.cloned()).collect();
        let [rows, fixed, transposed] = [const { Vec::new() }; 3];
        Case { op, attrs, args, rows, fixed, transposed }
    }

    pub(crate) fn with_rows(mut self, operands: &[usize]) -> Case {
        self.rows = operands.to_vec();
        self
    }

    pub(crate) fn with_fixed(mut self, results: &[usize]) -> Case {
        self.fixed = results.to_vec();
        self
    }

    pub(crate) fn transposed(mut self, operands: &[usize]) -> Case {
        self.transposed = operands.to_vec();
        self
    }

    /// The value of T.
    pub(crate) fn env(&self) -> Env {
        let rows = self.rows.first().and_then(|i| self.args[*i].as_ref());
        rows.map(|t| (Arc::from("T"), t.shape()[0] as i64)).into_iter().collect()
    }

    /// The specification, and the interpreter's results.
    pub(crate) fn expected(&self) -> (KernelSpec, Vec<Tensor>) {
        let module = Module::new("test");
        let mut b = module.builder("f");
        let mut inputs = Vec::new();
        let args: Vec<Option<Value>> = self
            .args
            .iter()
            .enumerate()
            .map(|(i, arg)| {
                let arg = arg.as_ref()?;
                inputs.push(arg.clone());
                let ty = TensorType::new(arg.dtype(), arg.shape().iter().copied());
                Some(b.param(&i.to_string(), ty).unwrap())
            })
            .collect();
        let results = b.op(self.op, self.attrs.clone(), &args).unwrap();
        let attrs = b.graph().node(results[0].node).attrs.clone();
        let types: Vec<TensorType> = results.iter().map(|v| b.ty(*v).clone()).collect();
        for (i, v) in results.iter().enumerate() {
            b.output(&i.to_string(), *v);
        }
        let graph = b.finish();
        let weights = IndexMap::<Arc<str>, Tensor>::new();
        let oracle = Interpreter::new(&module, &weights, Precision::F64);
        let values = oracle.eval(&graph, &inputs, &Env::new()).unwrap();
        let symbolic = |mut ty: TensorType| {
            ty.shape[0] = Dim::symbol("T");
            ty
        };
        let operand = |(i, arg): (usize, &Option<Tensor>)| {
            let arg = arg.as_ref()?;
            let ty = TensorType::new(arg.dtype(), arg.shape().iter().copied());
            let ty = if self.rows.contains(&i) { symbolic(ty) } else { ty };
            let mut layout = Layout::contiguous(&ty);
            if self.transposed.contains(&i) {
                let last = ty.rank() - 1;
                layout.strides[last] = ty.shape[last - 1].clone();
                layout.strides[last - 1] = Dim::from(1);
            }
            Some(layout)
        };
        let result = |(i, ty): (usize, TensorType)| {
            let fixed = self.rows.is_empty() || self.fixed.contains(&i);
            Layout::contiguous(&if fixed { ty } else { symbolic(ty) })
        };
        let spec = KernelSpec {
            op: OpRef::named(self.op).0.name(),
            attrs,
            operands: self.args.iter().enumerate().map(operand).collect(),
            results: types.into_iter().enumerate().map(result).collect(),
            body: None,
            symbols: Arc::new(Symbols::default()),
        };
        (spec, values)
    }

    /// The kernels for a GPU whose limit holds.
    pub(crate) fn kernels(&self, spec: &KernelSpec, target: &Target) -> Vec<CudaKernel> {
        let family = lowering(spec.op).unwrap();
        let kernels = family.emit_cuda(spec, target).unwrap_or_else(|e| panic!("{e}"));
        let lack = lacking(&kernels, target);
        assert_eq!(lack, None, "bytes of shared memory for {} on {}", spec.op, target.cpu);
        let env = self.env();
        let fits = |kernel: &CudaKernel| {
            kernel.limit.as_ref().is_none_or(|(size, most)| size.eval(&env).unwrap() <= *most)
        };
        kernels.into_iter().filter(fits).collect()
    }
}

/// Bytes of shared memory that launches of any size need, where not all GPUs that run code for
/// `target` have as many.
pub(crate) fn lacking(kernels: &[CudaKernel], target: &Target) -> Option<u32> {
    let any = kernels.iter().filter(|kernel| kernel.limit.is_none());
    let least = any.map(|kernel| kernel.shared_bytes).min().unwrap();
    (least > target.cuda.unwrap().arch.common_shared_bytes()).then_some(least)
}

/// Numbers in -1..1 that look random, the same every time, and that are numbers of `exact` too.
pub(crate) fn noise(dtype: DType, exact: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let count = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|_| next()).collect();
    Tensor::from_f64s(dtype, shape, Tensor::from_f64s(exact, shape, values).to_f64s())
}

/// Asserts that values agree: integers exactly, floats to `tolerance` of the larger of one and the
/// expected value, and to one step where narrower than f32.
pub(crate) fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let far = first_far(got, want, tolerance);
    if let Some((i, got, want)) = far {
        panic!("{what}: element {i} is {got}, not {want}");
    }
}

/// Tolerances above which codes of eight bits may be the neighbours of those that they should be.
const CODES: f64 = 1e-3;

/// The first element that is too far off, with what it is and what it should be.
pub(crate) fn first_far(got: &Tensor, want: &Tensor, tolerance: f64) -> Option<(usize, f64, f64)> {
    assert_eq!(got.shape(), want.shape());
    let rounding = match got.dtype() {
        DType::Bf16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        // A code of what is not exact may be the next one.
        DType::F8E4M3 if tolerance > CODES => 1.0 / 8.0,
        _ => 0.0,
    };
    let step = if got.dtype() == DType::I8 && tolerance > CODES { 1.0 } else { 0.0 };
    let exact = !got.dtype().is_float();
    let pairs = got.to_f64s().into_iter().zip(want.to_f64s()).enumerate();
    pairs.map(|(i, (g, w))| (i, g, w)).find(|(_, g, w)| {
        let same = g == w || (g.is_nan() && w.is_nan());
        let bound = if exact { step } else { tolerance * w.abs().max(1.0) + rounding * w.abs() };
        !(same || (g - w).abs() <= bound)
    })
}
