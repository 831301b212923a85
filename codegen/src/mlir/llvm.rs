//! LLVM side of the compiler: module attributes, middle-end passes and machine code.

use llvm_sys::{LLVMAttributeFunctionIndex, prelude::*};
use llvm_sys::{core::*, target::*, target_machine::*, transforms::pass_builder::*};
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Once;

/// The CPU that code is generated for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cpu {
    /// LLVM's name: `x86-64-v3`, `x86-64-v4`, `znver3`, ..
    pub name: String,
    /// LLVM's feature string, `+avx2,-sse4a,..`; empty for what the name implies.
    pub features: String,
}

impl Cpu {
    /// A CPU by LLVM's name, with the features that the name implies.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), features: String::new() }
    }

    /// The baseline: AVX2, FMA, F16C.
    #[must_use]
    pub fn x86_64_v3() -> Self {
        Self::named("x86-64-v3")
    }

    /// The machine that a target describes.
    #[must_use]
    pub fn of(target: &ir::Target) -> Self {
        let features: Vec<String> =
            target.features.iter().map(|f| format!("+{}", f.name())).collect();
        Self { name: target.cpu.clone(), features: features.join(",") }
    }

    /// A GPU by its architecture's name, `sm_80` or `sm_90a`, with PTX 8.0.
    #[must_use]
    pub fn cuda(arch: &str) -> Self {
        Self { name: arch.to_owned(), features: "+ptx80".to_owned() }
    }

    /// Whether it is a GPU.
    #[must_use]
    pub fn is_cuda(&self) -> bool {
        self.name.starts_with("sm_")
    }

    fn triple(&self) -> &'static CStr {
        if self.is_cuda() { c"nvptx64-nvidia-cuda" } else { c"x86_64-unknown-linux-gnu" }
    }

    /// The machine that this runs on.
    #[must_use]
    pub fn native() -> Self {
        // SAFETY: both return owned NUL-terminated strings.
        unsafe {
            Self {
                name: take_message(LLVMGetHostCPUName()),
                features: take_message(LLVMGetHostCPUFeatures()),
            }
        }
    }
}

/// What to emit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Object,
    Assembly,
}

/// A translated module in its own LLVM context.
pub(super) struct Backend {
    context: LLVMContextRef,
    module: LLVMModuleRef,
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: both are owned by this value, the module by the context.
        unsafe {
            LLVMDisposeModule(self.module);
            LLVMContextDispose(self.context);
        }
    }
}

impl Backend {
    /// Translates a module of the `llvm` dialect; `None` where MLIR reports an error.
    ///
    /// # Safety
    /// `operation` must be live, its context with the LLVM translations registered.
    pub(super) unsafe fn translate(operation: mlir_sys::MlirOperation) -> Option<Self> {
        // SAFETY: mlir-sys and llvm-sys link one LLVM, so its pointers cross freely.
        unsafe {
            let context = LLVMContextCreate();
            let module = mlir_sys::mlirTranslateModuleToLLVMIR(operation, context.cast());
            if module.is_null() {
                LLVMContextDispose(context);
                return None;
            }
            Some(Self { context, module: module.cast() })
        }
    }

    /// Optimises for `cpu` and emits.
    pub(super) fn emit(&self, cpu: &Cpu, output: Output) -> Result<Vec<u8>, String> {
        let machine = Machine::new(cpu)?;
        // SAFETY: module and machine are live; every string is NUL-terminated and outlives its
        // call.
        unsafe {
            LLVMSetTarget(self.module, cpu.triple().as_ptr());
            let layout = LLVMCreateTargetDataLayout(machine.0);
            LLVMSetModuleDataLayout(self.module, layout);
            LLVMDisposeTargetData(layout);
            self.set_function_attributes(cpu)?;
            if cpu.is_cuda() {
                self.mark_convergent();
            }
            self.optimise(&machine)?;
            let kind = match output {
                Output::Object => LLVMCodeGenFileType::LLVMObjectFile,
                Output::Assembly => LLVMCodeGenFileType::LLVMAssemblyFile,
            };
            let mut message = ptr::null_mut();
            let mut buffer = ptr::null_mut();
            let failed = LLVMTargetMachineEmitToMemoryBuffer(
                machine.0,
                self.module,
                kind,
                &raw mut message,
                &raw mut buffer,
            );
            if failed != 0 {
                return Err(take_message(message));
            }
            let start = LLVMGetBufferStart(buffer).cast::<u8>();
            let bytes = std::slice::from_raw_parts(start, LLVMGetBufferSize(buffer)).to_vec();
            LLVMDisposeMemoryBuffer(buffer);
            Ok(bytes)
        }
    }

    /// Tells the middle end which CPU it optimises for.
    ///
    /// # Safety
    /// The module must be live.
    unsafe fn set_function_attributes(&self, cpu: &Cpu) -> Result<(), String> {
        let name = c_string(&cpu.name)?;
        let features = c_string(&cpu.features)?;
        // SAFETY: walks the module's own list of functions; strings outlive the calls.
        unsafe {
            let mut function = LLVMGetFirstFunction(self.module);
            while !function.is_null() {
                if LLVMCountBasicBlocks(function) > 0 {
                    for (key, value) in [(c"target-cpu", &name), (c"target-features", &features)] {
                        let attribute = LLVMCreateStringAttribute(
                            self.context,
                            key.as_ptr(),
                            c_len(key),
                            value.as_ptr(),
                            c_len(value),
                        );
                        LLVMAddAttributeAtIndex(function, LLVMAttributeFunctionIndex, attribute);
                    }
                }
                function = LLVMGetNextFunction(function);
            }
        }
        Ok(())
    }

    /// Says of inline PTX that the lanes of a warp, or warps, execute together that it must not
    /// depend on more conditions than it was written under: LLVM would copy it into branches.
    ///
    /// # Safety
    /// The module must be live.
    unsafe fn mark_convergent(&self) {
        let name = c"convergent";
        // SAFETY: walks the module's own functions, blocks and instructions; the string is read
        // while its owner lives.
        unsafe {
            let kind = LLVMGetEnumAttributeKindForName(name.as_ptr(), name.count_bytes());
            let convergent = LLVMCreateEnumAttribute(self.context, kind, 0);
            let mut function = LLVMGetFirstFunction(self.module);
            while !function.is_null() {
                let mut block = LLVMGetFirstBasicBlock(function);
                while !block.is_null() {
                    let mut instruction = LLVMGetFirstInstruction(block);
                    while !instruction.is_null() {
                        if is_collective(instruction) {
                            let index = LLVMAttributeFunctionIndex;
                            LLVMAddCallSiteAttribute(instruction, index, convergent);
                        }
                        instruction = LLVMGetNextInstruction(instruction);
                    }
                    block = LLVMGetNextBasicBlock(block);
                }
                function = LLVMGetNextFunction(function);
            }
        }
    }

    /// The O3 pipeline without the vectorisers: kernels come vectorised.
    ///
    /// # Safety
    /// The module must be live and laid out for `machine`.
    unsafe fn optimise(&self, machine: &Machine) -> Result<(), String> {
        // SAFETY: options live for the one call; the error is consumed once.
        unsafe {
            let options = LLVMCreatePassBuilderOptions();
            LLVMPassBuilderOptionsSetLoopVectorization(options, 0);
            LLVMPassBuilderOptionsSetLoopInterleaving(options, 0);
            LLVMPassBuilderOptionsSetSLPVectorization(options, 0);
            let error = LLVMRunPasses(self.module, c"default<O3>".as_ptr(), machine.0, options);
            LLVMDisposePassBuilderOptions(options);
            if error.is_null() {
                return Ok(());
            }
            let text = llvm_sys::error::LLVMGetErrorMessage(error);
            let message = CStr::from_ptr(text).to_string_lossy().into_owned();
            llvm_sys::error::LLVMDisposeErrorMessage(text);
            Err(message)
        }
    }
}

/// Whether it is inline PTX with an instruction of more than one thread (PTX ISA, "sync" and
/// "aligned" of the instructions, and barriers).
///
/// # Safety
/// The instruction must be live.
unsafe fn is_collective(instruction: LLVMValueRef) -> bool {
    // SAFETY: the called value of a call, text as long as said.
    let text = unsafe {
        if LLVMIsACallInst(instruction).is_null() {
            return false;
        }
        let called = LLVMGetCalledValue(instruction);
        if LLVMIsAInlineAsm(called).is_null() {
            return false;
        }
        let mut bytes = 0;
        let text = LLVMGetInlineAsmAsmString(called, &raw mut bytes);
        std::slice::from_raw_parts(text.cast::<u8>(), bytes)
    };
    let text = String::from_utf8_lossy(text);
    [".sync", ".aligned", "bar.arrive", "barrier."].iter().any(|part| text.contains(part))
}

/// The version of LLVM that is linked: `22.1.0`.
pub(crate) fn llvm_version() -> String {
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: writes the three numbers.
    unsafe { LLVMGetVersion(&raw mut major, &raw mut minor, &raw mut patch) };
    format!("{major}.{minor}.{patch}")
}

struct Machine(LLVMTargetMachineRef);

impl Machine {
    fn new(cpu: &Cpu) -> Result<Self, String> {
        static TARGETS: Once = Once::new();
        // SAFETY: the targets are registered once; strings outlive the calls; messages are consumed
        // once.
        unsafe {
            TARGETS.call_once(|| {
                LLVMInitializeX86TargetInfo();
                LLVMInitializeX86Target();
                LLVMInitializeX86TargetMC();
                LLVMInitializeX86AsmPrinter();
                LLVMInitializeNVPTXTargetInfo();
                LLVMInitializeNVPTXTarget();
                LLVMInitializeNVPTXTargetMC();
                LLVMInitializeNVPTXAsmPrinter();
            });
            let triple = cpu.triple();
            let (name, features) = (c_string(&cpu.name)?, c_string(&cpu.features)?);
            let mut target = ptr::null_mut();
            let mut message = ptr::null_mut();
            if LLVMGetTargetFromTriple(triple.as_ptr(), &raw mut target, &raw mut message) != 0 {
                return Err(take_message(message));
            }
            let machine = LLVMCreateTargetMachine(
                target,
                triple.as_ptr(),
                name.as_ptr(),
                features.as_ptr(),
                LLVMCodeGenOptLevel::LLVMCodeGenLevelAggressive,
                LLVMRelocMode::LLVMRelocPIC,
                LLVMCodeModel::LLVMCodeModelSmall,
            );
            if machine.is_null() {
                return Err("no target machine".to_owned());
            }
            Ok(Self(machine))
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: owned by this value.
        unsafe { LLVMDisposeTargetMachine(self.0) }
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("`{}` contains a NUL", text.escape_debug()))
}

fn c_len(text: &CStr) -> u32 {
    u32::try_from(text.count_bytes()).unwrap_or(u32::MAX)
}

/// Copies and frees a message of LLVM's.
///
/// # Safety
/// `message` must be an owned NUL-terminated string.
unsafe fn take_message(message: *mut c_char) -> String {
    // SAFETY: by the caller's promise.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeMessage(message);
        text
    }
}
