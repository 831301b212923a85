//! From kernel specifications to modules for GPUs: PTX for each architecture, assembled too where
//! there is an assembler.

use std::collections::{BTreeMap, BTreeSet};

use ir::{CudaCode, CudaModule, KernelSpec, Span, Target};

use super::{Codegen, CodegenError, Compiled, work};
use crate::{
    cuda::CudaKernel,
    library,
    lower::{LowerError, lowering},
    mlir::{self, Cpu},
    objects::ObjectKey,
};

/// Modules begin on a multiple of this.
const ALIGN: usize = 64;

impl Codegen {
    /// The kernels of every specification for a GPU, or what has none; a library's product has no
    /// kernel.
    pub(super) fn emit_cuda(
        &self,
        specs: &[KernelSpec],
        gpu: &Target,
    ) -> Result<Vec<Vec<CudaKernel>>, Vec<CodegenError>> {
        let emit = |spec: &KernelSpec| match lowering(spec.op) {
            None if spec.op == library::OP => library::matmul(spec, &self.gpus).map(|_| Vec::new()),
            Some(family) => family.emit_cuda_tuned(spec, gpu, &self.tuning),
            None => Err(LowerError { op: spec.op.into(), reason: "no kernel computes it".into() }),
        };
        all(specs.iter().map(emit)).map_err(|e| e.into_iter().map(CodegenError::Lower).collect())
    }

    /// As [`compile`](Codegen::compile), for GPUs.
    pub(super) fn compile_cuda(
        &self,
        specs: &[KernelSpec],
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Compiled, Vec<CodegenError>> {
        let mut image = Vec::new();
        let mut modules: Vec<CudaModule> = Vec::new();
        let mut codes: Vec<Vec<CudaCode>> = vec![Vec::new(); specs.len()];
        for gpu in &self.gpus {
            let arch = gpu.cuda.expect("a GPU").arch;
            let emitted = self.emit_cuda(specs, gpu)?;
            let mut distinct: Vec<&CudaKernel> = Vec::new();
            let mut known = BTreeSet::new();
            for kernel in emitted.iter().flatten() {
                if known.insert(kernel.symbol.as_str()) {
                    distinct.push(kernel);
                }
            }
            let texts = self.ptx(&distinct, gpu, progress)?;
            let cubins = self.cubins(&distinct, &texts, gpu)?;
            let mut put = |bytes: &[u8]| {
                image.resize(image.len().next_multiple_of(ALIGN), 0);
                let span = Span { offset: image.len() as u64, bytes: bytes.len() as u64 };
                image.extend_from_slice(bytes);
                span
            };
            let mut numbers = BTreeMap::new();
            for (i, (kernel, text)) in distinct.iter().zip(&texts).enumerate() {
                let number = u32::try_from(modules.len()).expect("few modules");
                numbers.insert(kernel.symbol.as_str(), number);
                let cubin = cubins.get(i).map(|bytes| put(bytes));
                modules.push(CudaModule { arch, ptx: put(text), cubin });
            }
            for ((code, kernels), spec) in codes.iter_mut().zip(&emitted).zip(specs) {
                let variants = kernels.iter().map(|k| k.variant(numbers[k.symbol.as_str()]));
                let library = (spec.op == library::OP).then(|| library::matmul(spec, &self.gpus));
                let library = library.transpose().map_err(|e| vec![CodegenError::Lower(e)])?;
                code.push(CudaCode { arch, variants: variants.collect(), library });
            }
        }
        let kernels = codes.into_iter().zip(specs).map(|(cuda, spec)| {
            let (flops, bytes) = work(spec).expect("it was emitted");
            let symbol = cuda[0].variants.first().map_or(library::SYMBOL, |v| v.symbol.as_str());
            ir::Kernel {
                op: spec.op.to_owned(),
                symbol: symbol.to_owned(),
                code_offset: 0,
                dims: Vec::new(),
                tiles: ir::Dim::from(1),
                scratch_bytes: 0,
                flops,
                bytes,
                cuda,
            }
        });
        Ok(Compiled { kernels: kernels.collect(), image, modules })
    }

    /// PTX, each ending with the zero that drivers look for.
    fn ptx(
        &self,
        kernels: &[&CudaKernel],
        gpu: &Target,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Vec<u8>>, Vec<CodegenError>> {
        let cpu = Cpu::cuda(&gpu.cpu);
        let compile = |kernel: &crate::Kernel| {
            let make = || {
                let text = mlir::ptx(&kernel.symbol, &kernel.mlir, &gpu.cpu)?;
                Ok([text.as_bytes(), &[0]].concat())
            };
            self.kept(&ObjectKey::of(&kernel.mlir, &cpu), make)
        };
        let texts: Vec<_> = kernels.iter().map(|k| text(&k.symbol, &k.mlir)).collect();
        let results = mlir::each(&texts, self.threads.get(), compile, progress);
        all(results.into_iter()).map_err(|e| e.into_iter().map(CodegenError::Compile).collect())
    }

    /// The same, assembled; none without an assembler.
    fn cubins(
        &self,
        kernels: &[&CudaKernel],
        ptx: &[Vec<u8>],
        gpu: &Target,
    ) -> Result<Vec<Vec<u8>>, Vec<CodegenError>> {
        let Some(assembler) = &self.assembler else { return Ok(Vec::new()) };
        let version = Cpu { features: assembler.version().into(), ..Cpu::cuda(&gpu.cpu) };
        let compile = |kernel: &crate::Kernel| {
            let make = || assembler.assemble(&kernel.symbol, &kernel.mlir, &gpu.cpu);
            self.kept(&ObjectKey::of(&kernel.mlir, &version), make)
        };
        let ptx = ptx.iter().map(|bytes| String::from_utf8_lossy(&bytes[..bytes.len() - 1]));
        let texts: Vec<_> = kernels.iter().zip(ptx).map(|(k, ptx)| text(&k.symbol, &ptx)).collect();
        let results = mlir::each(&texts, self.threads.get(), compile, &|_, _| {});
        all(results.into_iter()).map_err(|e| e.into_iter().map(CodegenError::Assemble).collect())
    }
}

fn text(symbol: &str, text: &str) -> crate::Kernel {
    crate::Kernel {
        symbol: symbol.into(),
        mlir: text.into(),
        scratch_bytes: 0,
        args: Vec::new(),
        dims: Vec::new(),
    }
}

/// All results, or all errors.
fn all<T, E>(results: impl Iterator<Item = Result<T, E>>) -> Result<Vec<T>, Vec<E>> {
    let (good, bad): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
    let bad: Vec<E> = bad.into_iter().filter_map(Result::err).collect();
    if bad.is_empty() { Ok(good.into_iter().filter_map(Result::ok).collect()) } else { Err(bad) }
}
