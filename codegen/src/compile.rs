//! From kernel specifications to one image of machine code, or to modules for GPUs.
//!
//! Each distinct text is compiled once, on several threads; specifications that differ only in
//! sizes read at run time share code. The same specifications give the same bytes.

mod cuda;
mod known;

use std::{collections::BTreeSet, num::NonZeroUsize, sync::Arc};

use ir::{Attrs, CudaModule, Env, KernelSpec, Kernels, Layout, OpRef, Symbols, Target, TensorType};

use crate::{
    assemble::{AssembleError, Assembler},
    image::{self, LinkError},
    library,
    lower::{self, Emitted, LowerError, lowering},
    mlir::{self, CompileError, Cpu},
    objects::{ObjectKey, Objects},
    schedule::Tuning,
};
use known::Known;

/// The code generator for one machine.
#[derive(Clone, Debug)]
pub struct Codegen {
    target: Target,
    /// GPUs that code is generated for; none where the target is a CPU.
    gpus: Vec<Target>,
    assembler: Option<Assembler>,
    threads: NonZeroUsize,
    objects: Option<Arc<dyn Objects>>,
    tuning: Arc<Tuning>,
    /// Whether products may be computed by cuBLASLt.
    asks_library: bool,
    known: Arc<Known>,
}

/// Machine code and what a program needs to know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// To be mapped read-execute at a page boundary; for GPUs, the bytes of the modules.
    pub image: Vec<u8>,
    /// Modules for GPUs.
    pub modules: Vec<CudaModule>,
    /// One kernel for each specification, in their order.
    pub kernels: Vec<ir::Kernel>,
}

/// Why kernels could not be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodegenError {
    /// A specification that no family takes.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// Generated text that MLIR or LLVM refuses: a bug of the generator.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Generated text that NVIDIA's assembler refuses: a bug of the generator, or an assembler too
    /// old.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Code that cannot be part of an image: a bug of the generator.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Codegen {
    /// A generator for `target`, compiling on as many threads as the machine has.
    pub fn new(target: Target) -> Codegen {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let gpus = target.cuda.iter().map(|_| target.clone()).collect();
        let tuning = Arc::new(Tuning::builtin().clone());
        Codegen {
            target,
            gpus,
            assembler: None,
            threads,
            objects: None,
            tuning,
            asks_library: false,
            known: Arc::default(),
        }
    }

    /// The same, generating code for these GPUs, one of each architecture; the target remains what
    /// costs are estimated by.
    #[must_use]
    pub fn for_gpus(self, gpus: &[Target]) -> Codegen {
        Codegen { gpus: gpus.to_vec(), known: Arc::default(), ..self }
    }

    /// The same, assembling what is generated for GPUs.
    #[must_use]
    pub fn with_assembler(self, assembler: Option<Assembler>) -> Codegen {
        Codegen { assembler, ..self }
    }

    /// The same, compiling on so many threads. The code does not depend on it.
    #[must_use]
    pub fn on_threads(self, threads: NonZeroUsize) -> Codegen {
        Codegen { threads, ..self }
    }

    /// The same, taking kernels that were compiled before from `objects`, and keeping the others
    /// there. The code does not depend on it.
    #[must_use]
    pub fn with_objects(self, objects: Arc<dyn Objects>) -> Codegen {
        Codegen { objects: Some(objects), ..self }
    }

    /// The same, with these schedules alone. Results do not depend on it.
    #[must_use]
    pub fn with_tuning(self, tuning: Tuning) -> Codegen {
        Codegen { tuning: Arc::new(tuning), ..self }
    }

    /// The same, which may leave products to cuBLASLt on GPUs, where tables say that it is faster.
    /// Results of a row may then depend on the number of rows.
    #[must_use]
    pub fn with_library(self, asks_library: bool) -> Codegen {
        Codegen { asks_library, known: Arc::default(), ..self }
    }

    /// The machine that code is generated for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Finds what [`compile`](Self::compile) would refuse to generate, without compiling anything.
    ///
    /// # Errors
    /// A [`CodegenError::Lower`] for every specification that no family takes.
    pub fn check(&self, specs: &[KernelSpec]) -> Result<(), Vec<CodegenError>> {
        if self.gpus.is_empty() {
            return self.emit(specs).map(drop);
        }
        let check = |gpu: &Target| self.emit_cuda(specs, gpu).err().unwrap_or_default();
        let errors: Vec<CodegenError> = self.gpus.iter().flat_map(check).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Generates, compiles and links kernels. `progress(done, all)` is called, from any thread,
    /// when a distinct kernel is done.
    ///
    /// # Errors
    /// Every [`CodegenError`] of every specification.
    pub fn compile(
        &self,
        specs: &[KernelSpec],
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Compiled, Vec<CodegenError>> {
        if !self.gpus.is_empty() {
            return self.compile_cuda(specs, progress);
        }
        let emitted = self.emit(specs)?;
        let mut distinct: Vec<&Emitted> = Vec::new();
        let mut known: BTreeSet<&str> = BTreeSet::new();
        for kernel in &emitted {
            if known.insert(&kernel.symbol) {
                distinct.push(kernel);
            }
        }
        let objects = self.objects(&distinct, progress)?;
        let named: Vec<(&str, &[u8])> =
            distinct.iter().zip(&objects).map(|(k, o)| (&*k.symbol, &**o)).collect();
        let image = image::link(&named)
            .map_err(|errors| errors.into_iter().map(CodegenError::Link).collect::<Vec<_>>())?;
        let kernels = emitted
            .into_iter()
            .zip(specs)
            .map(|(kernel, spec)| {
                let family = lowering(spec.op).expect("it was emitted");
                ir::Kernel {
                    op: spec.op.to_owned(),
                    code_offset: image.symbols[&kernel.symbol],
                    symbol: kernel.symbol,
                    dims: kernel.dims,
                    tiles: kernel.tiles,
                    scratch_bytes: kernel.scratch_bytes,
                    flops: family.flops(spec),
                    bytes: family.bytes(spec),
                    cuda: Vec::new(),
                }
            })
            .collect();
        Ok(Compiled { image: image.bytes, modules: Vec::new(), kernels })
    }

    fn emit(&self, specs: &[KernelSpec]) -> Result<Vec<Emitted>, Vec<CodegenError>> {
        let emit = |spec: &KernelSpec| match lowering(spec.op) {
            Some(family) => family.emit_tuned(spec, &self.target, &self.tuning),
            None => Err(LowerError { op: spec.op.into(), reason: "no kernel computes it".into() }),
        };
        let (done, failed): (Vec<_>, Vec<_>) = specs.iter().map(emit).partition(Result::is_ok);
        let errors: Vec<CodegenError> =
            failed.into_iter().filter_map(Result::err).map(CodegenError::Lower).collect();
        if errors.is_empty() {
            Ok(done.into_iter().filter_map(Result::ok).collect())
        } else {
            Err(errors)
        }
    }

    /// What is kept under a key, or what is made then and kept.
    fn kept<E>(
        &self,
        key: &ObjectKey,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let Some(objects) = &self.objects else { return make() };
        if let Some(object) = objects.load(key) {
            return Ok(object);
        }
        let object = make()?;
        objects.store(key, &object);
        Ok(object)
    }

    fn objects(
        &self,
        kernels: &[&Emitted],
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<u8>>, Vec<CodegenError>> {
        let text = |kernel: &&Emitted| crate::Kernel {
            symbol: kernel.symbol.clone(),
            mlir: kernel.mlir.clone(),
            scratch_bytes: kernel.scratch_bytes,
            args: Vec::new(),
            dims: Vec::new(),
        };
        let texts: Vec<crate::Kernel> = kernels.iter().map(text).collect();
        let cpu = Cpu::of(&self.target);
        let compile = |kernel: &crate::Kernel| {
            self.kept(&ObjectKey::of(&kernel.mlir, &cpu), || mlir::compile(kernel, &cpu))
        };
        let results = mlir::each(&texts, self.threads.get(), compile, progress);
        let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let errors: Vec<CodegenError> =
            bad.into_iter().filter_map(Result::err).map(CodegenError::Compile).collect();
        if errors.is_empty() {
            Ok(good.into_iter().filter_map(Result::ok).collect())
        } else {
            Err(errors)
        }
    }
}

impl Kernels for Codegen {
    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        if spec.op == library::OP {
            return match self.asks_library && !self.gpus.is_empty() {
                true => library::matmul(spec, &self.gpus).map(drop).map_err(|e| e.reason),
                false => Err("cuBLASLt is not asked for".into()),
            };
        }
        let Some(family) = lowering(spec.op) else {
            return Err(format!("no kernel computes `{}`", spec.op));
        };
        if self.gpus.is_empty() {
            return family.supports(spec);
        }
        // Whether there is a kernel shows when it is printed, and passes ask for every use of it.
        self.known
            .or_find(spec, || self.gpus.iter().try_for_each(|gpu| family.supports_cuda(spec, gpu)))
    }

    fn converts(&self, spec: &KernelSpec) -> bool {
        !self.gpus.is_empty() && self.supports(spec).is_ok()
    }

    fn asks_library(&self) -> bool {
        self.asks_library && !self.gpus.is_empty()
    }

    fn workspace_bytes(&self, spec: &KernelSpec) -> u64 {
        if spec.op == library::OP { library::workspace_bytes(&self.gpus) } else { 0 }
    }

    fn run_apart(&self) -> bool {
        !self.gpus.is_empty()
    }

    fn seconds(
        &self,
        op: OpRef,
        attrs: &Attrs,
        args: &[Option<TensorType>],
        results: &[TensorType],
        env: &Env,
    ) -> Option<f64> {
        let layout = |ty: &TensorType| Layout::contiguous(ty);
        let spec = KernelSpec {
            op: op.0.name(),
            attrs: attrs.clone(),
            operands: args.iter().map(|a| a.as_ref().map(layout)).collect(),
            results: results.iter().map(layout).collect(),
            body: None,
            symbols: std::sync::Arc::new(Symbols::default()),
        };
        let value = |dim: ir::Dim| dim.eval(env).ok().map(|v| v as f64);
        // The estimate of the generated product times what was measured, so that it may be compared
        // with all else.
        let mut measured = 1.0;
        if op.name() == library::OP {
            self.supports(&spec).ok()?;
            let rows = library::rows(args[0].as_ref()?).eval(env).ok()?;
            measured = self.tuning.library_ratio(&self.target, &library::product(&spec)?, rows)?;
        }
        let (flops, bytes) = work(&spec)?;
        let (flops, bytes) = (value(flops)?, value(bytes)?);
        let target = &self.target;
        let (compute, memory) = (flops / target.peak_flops, bytes / target.read_bandwidth);
        // Arithmetic and reads overlap, but never wholly: of two forms with the same bottleneck,
        // the one that does less besides is the faster.
        let busy = compute.max(memory) + OVERLAP_LOSS * compute.min(memory);
        Some((busy + target.launch_seconds) * measured)
    }
}

/// Floating point operations, and bytes that are read and written; `None` where nothing computes
/// the operator.
fn work(spec: &KernelSpec) -> Option<(ir::Dim, ir::Dim)> {
    match lowering(spec.op) {
        Some(family) => Some((family.flops(spec), family.bytes(spec))),
        None => (spec.op == library::OP).then(|| lower::table_work(spec)),
    }
}

/// Share of the work beside the bottleneck that is not hidden behind it.
const OVERLAP_LOSS: f64 = 0.1;
