//! What candidates are run on.

use codegen::schedule::Family;
use exec::Device;
use ir::CudaArch;

use crate::{CompileError, CompileOptions, parallel};

/// The device that candidates are run on: this machine's cores, or its first GPU, which the options
/// are for from then on: of several architectures, the one whose code it runs.
///
/// # Errors
/// [`CompileError::NoGpu`] where there is no GPU, or one of another architecture;
/// [`CompileError::Tune`] where threads cannot be started.
pub fn tuning_device(compile: &mut CompileOptions) -> Result<Device, CompileError> {
    let threads = Some(parallel::threads(compile.threads));
    if compile.gpus.is_empty() {
        return Device::cpu(threads)
            .map_err(|e| CompileError::Tune { product: "threads".into(), reason: e.to_string() });
    }
    let none = |reason: String| CompileError::NoGpu { reason };
    let device = Device::open_gpu(0, threads).map_err(|e| none(e.to_string()))?;
    let facts = device.facts().expect("a GPU");
    let runs = match facts.capability {
        (9, 0) => [CudaArch::Sm90a, CudaArch::Sm80].as_slice(),
        (8.., _) => &[CudaArch::Sm80],
        _ => &[],
    };
    let gpu = |arch: &CudaArch| {
        compile.gpus.iter().find(|gpu| gpu.cuda.is_some_and(|cuda| cuda.arch == *arch))
    };
    let Some(gpu) = runs.iter().find_map(gpu).cloned() else {
        let (major, minor) = facts.capability;
        let asked: Vec<&str> = compile.gpus.iter().map(|gpu| gpu.cpu.as_str()).collect();
        return Err(none(format!(
            "this machine's is {}, of compute capability {major}.{minor}, which runs no code for \
             {}",
            facts.name,
            asked.join(" and ")
        )));
    };
    compile.target = gpu.clone();
    compile.gpus = vec![gpu];
    Ok(device)
}

/// Families of products that a target has kernels for.
pub(super) fn has(compile: &CompileOptions, family: Family) -> bool {
    let arch = compile.target.cuda.map(|gpu| gpu.arch);
    family != Family::Fp8 || arch == Some(CudaArch::Sm90a)
}
