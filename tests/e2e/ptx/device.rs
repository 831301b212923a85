//! Runs kernels in the emulator on tensors in the layouts that a specification asks for.

use ::ptx::{Arch, Fault, Gpu, Launch, Module, Param, Report};
use codegen::{
    cuda::{CudaKernel, CudaParam},
    mlir,
};
use ir::{CudaArch, Env, KernelSpec, Layout, Target, Tensor};

use super::{
    case::{Case, assert_close},
    record,
};

/// The two GPUs.
pub(crate) fn targets() -> [Target; 2] {
    [Target::sm_80(), Target::sm_90a()]
}

/// The PTX of a kernel.
pub(crate) fn ptx_of(kernel: &CudaKernel, target: &Target) -> String {
    mlir::ptx(&kernel.symbol, &kernel.mlir, &target.cpu).unwrap_or_else(|e| panic!("{e}"))
}

/// A case on a GPU, and what must come out.
#[derive(Clone, Copy)]
pub(crate) struct Trial<'a> {
    /// What it shows.
    pub(crate) what: &'a str,
    /// The part of the suite that it is from.
    pub(crate) family: &'a str,
    pub(crate) case: &'a Case,
    pub(crate) spec: &'a KernelSpec,
    pub(crate) target: &'a Target,
    pub(crate) want: &'a [Tensor],
    /// How far off floats may be, as [`assert_close`] has it.
    pub(crate) tolerance: f64,
    /// What else has the same bits: the suite asserts it here, and a real device by this.
    pub(crate) same: &'a [Same<'a>],
}

/// Bits that trials on a target have in common.
#[derive(Clone, Copy)]
pub(crate) enum Same<'a> {
    /// The whole first result, in all trials on these operands.
    Variants,
    /// Of the first result the rows from the second number on, as many as the third says, in all
    /// trials with this name.
    Rows(&'a str, usize, usize),
}

impl Trial<'_> {
    /// Runs a kernel in the emulator; results, which are as expected, and counts.
    pub(crate) fn run(&self, kernel: &CudaKernel, seed: u64) -> (Vec<Tensor>, Report) {
        let Trial { case, spec, target, .. } = self;
        let text = ptx_of(kernel, target);
        let layouts = || spec.operands.iter().flatten().chain(&spec.results);
        if !layouts().any(|layout| has_gaps(layout, &case.env())) {
            record::trial(self, kernel, &text);
        }
        let (got, report) = run_text(&text, case, spec, kernel, target, seed)
            .unwrap_or_else(|fault| panic!("{} for {}: {fault}\n{text}", case.op, target.cpu));
        for (got, want) in got.iter().zip(self.want) {
            let what = format!("{}, {} on {}", self.what, kernel.symbol, target.cpu);
            assert_close(&what, got, want, self.tolerance);
        }
        (got, report)
    }
}

/// Runs a text, which need not be what the kernel's MLIR gives, on a case's operands.
pub(crate) fn run_text(
    text: &str,
    case: &Case,
    spec: &KernelSpec,
    kernel: &CudaKernel,
    target: &Target,
    seed: u64,
) -> Result<(Vec<Tensor>, Report), Fault> {
    let env = case.env();
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let arch = match target.cuda.unwrap().arch {
        CudaArch::Sm80 => Arch::Sm80,
        CudaArch::Sm90a => Arch::Sm90a,
    };
    let mut gpu = Gpu::new(arch);
    let mut addresses: Vec<u64> = Vec::new();
    for (layout, arg) in spec.operands.iter().zip(&case.args) {
        addresses.push(match (layout, arg) {
            (Some(layout), Some(arg)) => gpu.upload(&bytes(layout, arg, &env)),
            _ => 0,
        });
    }
    let in_place = KernelSpec::in_place(spec.op);
    for (i, layout) in spec.results.iter().enumerate() {
        addresses.push(match in_place.iter().find(|(result, _)| *result == i) {
            Some((_, operand)) => addresses[*operand],
            None => gpu.alloc(size(layout, &env)),
        });
    }
    let value = |dim: &ir::Dim| dim.eval(&env).unwrap();
    let params = kernel.params.iter().map(|param| match param {
        CudaParam::Pointer { arg, align } => {
            let address = addresses[*arg as usize];
            assert_eq!(address % u64::from(*align), 0);
            Param::U64(address)
        }
        CudaParam::Size(dim) => Param::U64(value(dim).cast_unsigned()),
        CudaParam::Map(map) => super::map::encode(&mut gpu, map, addresses[map.arg as usize], &env),
    });
    let launch = Launch {
        grid: kernel.grid.each_ref().map(|dim| u32::try_from(value(dim)).unwrap()),
        block: [kernel.block, 1, 1],
        cluster: [kernel.cluster, 1, 1],
        dynamic_shared: kernel.shared_bytes,
        params: params.collect(),
        seed,
        // Besides what it declares, a kernel reads nothing before it has waited.
        early: (arch == Arch::Sm90a)
            .then(|| kernel.early.iter().map(|arg| addresses[*arg as usize]).collect()),
        ..Launch::default()
    };
    let report = gpu.launch(&module, &kernel.symbol, &launch)?;
    let results = spec.results.iter().zip(&addresses[spec.operands.len()..]);
    let tensor = |(layout, address): (&Layout, &u64)| {
        let extents = layout.ty.extents(&env).unwrap();
        if !has_gaps(layout, &env) {
            let bytes = gpu.read(*address, size(layout, &env));
            return Tensor::from_bytes(layout.ty.dtype, &extents, bytes);
        }
        let (each, mut elements) = (layout.ty.dtype.size(), Vec::new());
        ir::tensor::for_each_index(&extents, |index| {
            let at = offset(layout, index, &env) * each;
            elements.extend(gpu.read(*address + at as u64, each));
        });
        Tensor::from_bytes(layout.ty.dtype, &extents, elements)
    };
    Ok((results.map(tensor).collect(), report))
}

/// Bytes of a layout up to its last element.
pub(crate) fn size(layout: &Layout, env: &Env) -> usize {
    let extents = layout.ty.extents(env).unwrap();
    if extents.contains(&0) {
        return 0;
    }
    let last: Vec<usize> = extents.iter().map(|extent| extent - 1).collect();
    (offset(layout, &last, env) + 1) * layout.ty.dtype.size()
}

/// Whether there are bytes between elements.
fn has_gaps(layout: &Layout, env: &Env) -> bool {
    let count: usize = layout.ty.extents(env).unwrap().iter().product();
    size(layout, env) > count * layout.ty.dtype.size()
}

/// How many elements one lies behind the first.
fn offset(layout: &Layout, index: &[usize], env: &Env) -> usize {
    let steps = layout.strides.iter().map(|s| usize::try_from(s.eval(env).unwrap()).unwrap());
    index.iter().zip(steps).map(|(i, step)| i * step).sum()
}

/// A tensor's bytes in a layout, zeros between them.
pub(crate) fn bytes(layout: &Layout, tensor: &Tensor, env: &Env) -> Vec<u8> {
    let each = layout.ty.dtype.size();
    let mut out = vec![0; size(layout, env)];
    let (values, mut next) = (tensor.to_bytes(), 0);
    ir::tensor::for_each_index(tensor.shape(), |index| {
        let at = offset(layout, index, env);
        out[at * each..][..each].copy_from_slice(&values[next..][..each]);
        next += each;
    });
    out
}
