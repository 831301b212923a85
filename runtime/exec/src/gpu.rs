//! A GPU that programs run on, and what a model has on it: weights and kernels.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use cuda::{Address, CudaError, Device, Event, Kernel, Multiplier, Staging, Stream};
use ir::{CudaArch, CudaModule, artifact::Artifact};

use crate::ExecError;

/// Bytes of each half of the buffer that inputs and outputs go through.
const STAGING_BYTES: usize = 4 << 20;
/// Bytes of each half of the buffers that weights go through.
const UPLOAD_BYTES: usize = 8 << 20;
/// Threads that copy weights into such buffers: one alone is slower than the link.
const UPLOAD_THREADS: usize = 8;

/// Copies of which the fastest counts.
const COPIES: usize = 5;

/// A device with the stream that programs run on; its copies are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Device,
    stream: Stream,
    staging: Mutex<Staging>,
    /// cuBLASLt, once a program needs it.
    multiplier: Mutex<Option<Multiplier>>,
    /// What was free when it was opened.
    free_bytes: u64,
}

impl Gpu {
    pub(crate) fn new(device: Device) -> Result<Gpu, CudaError> {
        let (free_bytes, _) = device.memory()?;
        let stream = Stream::new(&device)?;
        let staging = Mutex::new(device.staging(STAGING_BYTES)?);
        let multiplier = Mutex::default();
        Ok(Gpu(Arc::new(Inner { device, stream, staging, multiplier, free_bytes })))
    }

    pub(crate) fn device(&self) -> &Device {
        &self.0.device
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.0.stream
    }

    pub(crate) fn staging(&self) -> MutexGuard<'_, Staging> {
        self.0.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// cuBLASLt, which is opened now if it was not before.
    pub(crate) fn multiplier(&self) -> Result<Multiplier, CudaError> {
        let mut known = self.0.multiplier.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(multiplier) = &*known {
            return Ok(multiplier.clone());
        }
        Ok(known.insert(Multiplier::new(&self.0.device)?).clone())
    }

    /// Bytes that were free when the device was opened.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.0.free_bytes
    }

    /// Bytes of device memory that are in use now, beyond those that were when it was opened.
    pub(crate) fn used_bytes(&self) -> Result<u64, CudaError> {
        let (free, _) = self.0.device.memory()?;
        Ok(self.0.free_bytes.saturating_sub(free))
    }

    /// Bytes a second that a copy within the device's memory reads and writes, the best of some.
    pub(crate) fn copy_bandwidth(&self, bytes: u64) -> Result<f64, CudaError> {
        let device = &self.0.device;
        let (free, _) = device.memory()?;
        let bytes = bytes.min(free / 4).max(1);
        let (from, to) = (self.zeros(bytes)?, device.allocate(bytes)?);
        let [before, after] = [Event::new(device)?, Event::new(device)?];
        let mut best = f64::INFINITY;
        for _ in 0..COPIES {
            before.record(&self.0.stream)?;
            self.0.stream.copy(&to.at(0), &from.at(0), bytes)?;
            after.record(&self.0.stream)?;
            self.0.stream.synchronize()?;
            best = best.min(after.ms_since(&before)? / 1e3);
        }
        Ok(2.0 * bytes as f64 / best.max(1e-9))
    }

    /// Memory that holds zeros.
    pub(crate) fn zeros(&self, bytes: u64) -> Result<cuda::Memory, CudaError> {
        let memory = self.0.device.allocate(bytes)?;
        if bytes > 0 {
            self.0.stream.fill(&memory.at(0), 0, bytes)?;
        }
        Ok(memory)
    }

    pub(crate) fn upload(&self, to: &Address, data: &[u8]) -> Result<(), CudaError> {
        self.staging().upload(&self.0.stream, to, data)
    }

    pub(crate) fn download(&self, from: &Address, data: &mut [u8]) -> Result<(), CudaError> {
        self.staging().download(&self.0.stream, from, data)
    }

    /// Copies much to new memory, on several threads.
    fn upload_whole(&self, data: &[u8]) -> Result<cuda::Memory, CudaError> {
        let device = &self.0.device;
        let memory = device.allocate(data.len() as u64)?;
        let part = data.len().div_ceil(UPLOAD_THREADS).next_multiple_of(UPLOAD_BYTES).max(1);
        let copy = |(i, part_data): (usize, &[u8])| -> Result<(), CudaError> {
            let stream = Stream::new(device)?;
            let mut staging = device.staging(UPLOAD_BYTES.min(part_data.len()))?;
            staging.upload(&stream, &memory.at((i * part) as u64), part_data)?;
            stream.synchronize()
        };
        thread::scope(|scope| {
            let parts = data.chunks(part).enumerate();
            let threads: Vec<_> = parts.map(|part| scope.spawn(move || copy(part))).collect();
            let results = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            });
            results.collect::<Vec<_>>().into_iter().collect::<Result<(), CudaError>>()
        })?;
        Ok(memory)
    }
}

/// What a model has on a GPU.
#[derive(Debug)]
pub(crate) struct Loaded {
    gpu: Gpu,
    arch: CudaArch,
    /// All weights as they lie in the file.
    weights: cuda::Memory,
    /// Modules that have been loaded, by number.
    kernels: Mutex<BTreeMap<u32, Kernel>>,
}

impl Loaded {
    /// Uploads a model's weights to a device that it has code for.
    pub(crate) fn new(artifact: &Artifact, gpu: &Gpu) -> Result<Loaded, ExecError> {
        let arch = architecture(artifact, gpu.device())?;
        let weights = gpu.upload_whole(artifact.weight_memory())?;
        Ok(Loaded { gpu: gpu.clone(), arch, weights, kernels: Mutex::default() })
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The architecture whose code the device runs.
    pub(crate) fn arch(&self) -> CudaArch {
        self.arch
    }

    /// Where a packed weight begins.
    pub(crate) fn weight(&self, artifact: &Artifact, number: u32) -> Address {
        let weights = &artifact.manifest().weights;
        self.weights.at(weights[number as usize].offset - weights[0].offset)
    }

    /// The kernel of a module, which is loaded when it is first asked for.
    pub(crate) fn kernel(
        &self,
        artifact: &Artifact,
        module: u32,
        symbol: &str,
    ) -> Result<Kernel, ExecError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&module) {
            return Ok(kernel.clone());
        }
        let CudaModule { arch, ptx, cubin } = &artifact.manifest().modules[module as usize];
        let (major, _) = self.gpu.device().facts().capability;
        let is_native = match arch {
            CudaArch::Sm80 => major == 8,
            CudaArch::Sm90a => true,
        };
        let code = artifact.code(cubin.filter(|_| is_native).unwrap_or(*ptx));
        let kernel = Kernel::load(self.gpu.device(), code, symbol)?;
        kernels.insert(module, kernel.clone());
        Ok(kernel)
    }
}

/// The architecture of a model's code that a device runs best.
fn architecture(artifact: &Artifact, device: &Device) -> Result<CudaArch, ExecError> {
    let manifest = artifact.manifest();
    let of_modules = manifest.modules.iter().map(|module| module.arch);
    // What libraries compute has no module.
    let codes = manifest.programs.iter().flat_map(|p| &p.kernels).flat_map(|k| &k.cuda);
    let archs: Vec<CudaArch> = of_modules.chain(codes.map(|code| code.arch)).collect();
    let has = |arch: CudaArch| archs.contains(&arch);
    let facts = device.facts();
    if facts.capability == (9, 0) && has(CudaArch::Sm90a) {
        return Ok(CudaArch::Sm90a);
    }
    if facts.capability >= (8, 0) && has(CudaArch::Sm80) {
        return Ok(CudaArch::Sm80);
    }
    let mut known: Vec<&str> = archs.iter().map(|arch| arch.name()).collect();
    known.sort_unstable();
    known.dedup();
    let (major, minor) = facts.capability;
    Err(ExecError::Architecture {
        path: artifact.path().into(),
        device: facts.name.clone(),
        capability: format!("{major}.{minor}"),
        known: if known.is_empty() { "CPUs".into() } else { known.join(" and ") },
    })
}
