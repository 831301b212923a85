//! From a kernel's MLIR text to machine code: parse, lower to the `llvm` dialect, translate to LLVM
//! IR, optimise and emit for an explicit CPU.
//!
//! One MLIR context per thread, kept for its life; a fresh LLVM context per kernel. Nothing depends
//! on the machine that compiles (except [`Cpu::native`]), on time or on threads: the same text
//! gives the same bytes.

#![allow(unsafe_code, reason = "MLIR and LLVM are C libraries")]

mod dependent;
mod llvm;

use crate::{Kernel, mlir::llvm::Backend};
use melior::{
    Context,
    dialect::DialectRegistry,
    ir::Module,
    pass::PassManager,
    utility::{
        parse_pass_pipeline, register_all_dialects, register_all_llvm_translations,
        register_all_passes,
    },
};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use llvm::Cpu;
pub(crate) use llvm::llvm_version;

/// The code that turns text into objects: what it makes may change with any of it.
pub(crate) const SOURCE: &str = concat!(
    include_str!("mlir.rs"),
    include_str!("mlir/dependent.rs"),
    include_str!("mlir/llvm.rs")
);

/// Lowers `scf`, `vector`, `arith` and `llvm` to `llvm` alone.
const PIPELINE: &str = "builtin.module(canonicalize,cse,convert-scf-to-cf,convert-vector-to-llvm,\
                        convert-to-llvm,cse,reconcile-unrealized-casts)";

/// Why a kernel could not be compiled. Each is a bug of its generator or of the target's
/// description.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The text is not valid MLIR.
    #[error("kernel `{symbol}`: MLIR does not verify: {diagnostics}")]
    Parse {
        /// The kernel.
        symbol: String,
        /// What MLIR said.
        diagnostics: String,
    },
    /// A lowering pass failed.
    #[error("kernel `{symbol}`: lowering failed: {diagnostics}")]
    Lower {
        /// The kernel.
        symbol: String,
        /// What MLIR said.
        diagnostics: String,
    },
    /// The lowered module has no LLVM IR form.
    #[error("kernel `{symbol}`: translation to LLVM IR failed: {diagnostics}")]
    Translate {
        /// The kernel.
        symbol: String,
        /// What MLIR said.
        diagnostics: String,
    },
    /// LLVM refused the module or the target.
    #[error("kernel `{symbol}`: LLVM for {cpu}: {reason}")]
    Backend {
        /// The kernel.
        symbol: String,
        /// CPU name.
        cpu: String,
        /// What LLVM said.
        reason: String,
    },
}

/// Compiles one kernel to a relocatable ELF object.
///
/// # Errors
/// [`CompileError`], with MLIR's or LLVM's own words.
pub fn compile(kernel: &Kernel, cpu: &Cpu) -> Result<Vec<u8>, CompileError> {
    translate(kernel, cpu, llvm::Output::Object)
}

/// Compiles one kernel to assembly text.
///
/// # Errors
/// As [`compile`].
pub fn assembly(kernel: &Kernel, cpu: &Cpu) -> Result<String, CompileError> {
    let bytes = translate(kernel, cpu, llvm::Output::Assembly)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Compiles one kernel for a GPU, `sm_80` or `sm_90a`, to PTX. Kernels for `sm_90a` wait themselves
/// for what was launched before them, so that launches may overlap.
///
/// # Errors
/// As [`compile`].
pub fn ptx(symbol: &str, mlir: &str, arch: &str) -> Result<String, CompileError> {
    let kernel = Kernel {
        symbol: symbol.to_owned(),
        mlir: mlir.to_owned(),
        scratch_bytes: 0,
        args: Vec::new(),
        dims: Vec::new(),
    };
    let text = assembly(&kernel, &Cpu::cuda(arch))?;
    Ok(if arch == "sm_90a" { dependent::insert(&text) } else { text })
}

/// Calls `compile` with each kernel, on `threads` threads; results in the kernels' order.
/// `progress(done, all)` is called, from any thread, when a kernel is done.
pub fn each<E: Send>(
    kernels: &[Kernel],
    threads: usize,
    compile: impl Fn(&Kernel) -> Result<Vec<u8>, E> + Sync,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Vec<Result<Vec<u8>, E>> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut mine = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(kernel) = kernels.get(index) else { return mine };
            mine.push((index, compile(kernel)));
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, kernels.len());
        }
    };
    let mut results: Vec<_> = std::thread::scope(|scope| {
        let count = threads.clamp(1, kernels.len().max(1));
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

fn translate(kernel: &Kernel, cpu: &Cpu, output: llvm::Output) -> Result<Vec<u8>, CompileError> {
    thread_local!(static SESSION: Session = Session::new());
    SESSION.with(|session| session.translate(kernel, cpu, output))
}

/// An MLIR context with the dialects, passes and diagnostics that kernels need.
struct Session {
    context: Context,
    diagnostics: Rc<RefCell<Vec<String>>>,
}

impl Session {
    fn new() -> Self {
        register_all_passes();
        let registry = DialectRegistry::new();
        register_all_dialects(&registry);
        let context = Context::new_with_registry(&registry, false);
        for dialect in ["arith", "cf", "llvm", "nvvm", "scf", "vector"] {
            context.get_or_load_dialect(dialect);
        }
        register_all_llvm_translations(&context);
        let diagnostics = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&diagnostics);
        context.attach_diagnostic_handler(move |diagnostic| {
            let text = format!("{}: {diagnostic}", diagnostic.location());
            sink.borrow_mut().push(text);
            true
        });
        Self { context, diagnostics }
    }

    fn diagnostics(&self) -> String {
        self.diagnostics.borrow_mut().drain(..).collect::<Vec<_>>().join("; ")
    }

    fn translate(
        &self,
        kernel: &Kernel,
        cpu: &Cpu,
        output: llvm::Output,
    ) -> Result<Vec<u8>, CompileError> {
        let symbol = || kernel.symbol.clone();
        self.diagnostics.borrow_mut().clear();
        let Some(mut module) = Module::parse(&self.context, &kernel.mlir) else {
            return Err(CompileError::Parse { symbol: symbol(), diagnostics: self.diagnostics() });
        };
        let passes = PassManager::new(&self.context);
        let lowered = parse_pass_pipeline(passes.as_operation_pass_manager(), PIPELINE)
            .and_then(|()| passes.run(&mut module));
        if let Err(error) = lowered {
            let diagnostics = format!("{error}; {}", self.diagnostics());
            return Err(CompileError::Lower { symbol: symbol(), diagnostics });
        }
        // SAFETY: the operation is a live module whose context has every LLVM translation
        // registered.
        let backend = unsafe { Backend::translate(module.as_operation().to_raw()) };
        let Some(backend) = backend else {
            return Err(CompileError::Translate {
                symbol: symbol(),
                diagnostics: self.diagnostics(),
            });
        };
        backend.emit(cpu, output).map_err(|reason| CompileError::Backend {
            symbol: symbol(),
            cpu: cpu.name.clone(),
            reason,
        })
    }
}

#[cfg(test)]
mod tests;
