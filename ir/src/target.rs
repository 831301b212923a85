//! What code is compiled for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An instruction set extension that generated CPU code may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are those of the vendor's manual")]
pub enum CpuFeature {
    Avx2,
    Fma,
    F16c,
    Bmi2,
    Avx512f,
    Avx512bw,
    Avx512dq,
    Avx512vl,
    Avx512vnni,
    Avx512bf16,
}

impl CpuFeature {
    /// The name as LLVM and `/proc/cpuinfo` spell it.
    pub fn name(self) -> &'static str {
        match self {
            CpuFeature::Avx2 => "avx2",
            CpuFeature::Fma => "fma",
            CpuFeature::F16c => "f16c",
            CpuFeature::Bmi2 => "bmi2",
            CpuFeature::Avx512f => "avx512f",
            CpuFeature::Avx512bw => "avx512bw",
            CpuFeature::Avx512dq => "avx512dq",
            CpuFeature::Avx512vl => "avx512vl",
            CpuFeature::Avx512vnni => "avx512vnni",
            CpuFeature::Avx512bf16 => "avx512bf16",
        }
    }
}

/// Generations of NVIDIA GPUs that kernels are generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CudaArch {
    /// Ampere: asynchronous copies, `mma.sync`.
    Sm80,
    /// Hopper with its own instructions: bulk tensor copies, `wgmma`, register reallocation.
    Sm90a,
}

impl CudaArch {
    /// The name as LLVM and the assembler spell it.
    pub fn name(self) -> &'static str {
        match self {
            CudaArch::Sm80 => "sm_80",
            CudaArch::Sm90a => "sm_90a",
        }
    }

    /// Bytes of shared memory that a block may have on every GPU that runs such code: of those that
    /// run Ampere's, 8.6, 8.9 and 12.0 have the least (CUDA C++ Programming Guide, "Technical
    /// Specifications per Compute Capability").
    pub fn common_shared_bytes(self) -> u32 {
        match self {
            CudaArch::Sm80 => 99 << 10,
            CudaArch::Sm90a => 227 << 10,
        }
    }
}

/// A GPU, as far as schedules need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CudaTarget {
    /// Instructions.
    pub arch: CudaArch,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// 32-bit registers of a multiprocessor.
    pub registers: u32,
    /// Most bytes of shared memory that one block may have.
    pub shared_bytes: u32,
}

/// A machine to compile for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// LLVM target triple.
    pub triple: String,
    /// LLVM processor name: `x86-64-v3`, `znver3`.
    pub cpu: String,
    /// Extensions that the code may use and the machine must have.
    pub features: Vec<CpuFeature>,
    /// Floats of one vector register.
    pub vector_width: u32,
    /// Bytes of second-level cache a core.
    pub l2_bytes: u64,
    /// Single-precision operations a second of one core, for cost estimates.
    pub peak_flops: f64,
    /// Bytes a second that one core reads from memory, for cost estimates.
    pub read_bandwidth: f64,
    /// Seconds that one launch costs, for cost estimates.
    pub launch_seconds: f64,
    /// The GPU, where kernels are to run on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<CudaTarget>,
}

impl Target {
    /// The baseline: 64-bit x86 with AVX2, FMA and F16C.
    pub fn x86_64_v3() -> Target {
        Target {
            triple: "x86_64-unknown-linux-gnu".into(),
            cpu: "x86-64-v3".into(),
            features: vec![CpuFeature::Avx2, CpuFeature::Fma, CpuFeature::F16c, CpuFeature::Bmi2],
            vector_width: 8,
            l2_bytes: 512 << 10,
            peak_flops: 100e9,
            read_bandwidth: 17e9,
            launch_seconds: 2e-6,
            cuda: None,
        }
    }

    /// An A100: `sm_80`. Operations and bandwidth are those of the whole GPU, by its data sheet
    /// (dense bf16; 40 GB model).
    pub fn sm_80() -> Target {
        let gpu = CudaTarget {
            arch: CudaArch::Sm80,
            multiprocessors: 108,
            registers: 65536,
            shared_bytes: 163 << 10,
        };
        Target {
            l2_bytes: 40 << 20,
            peak_flops: 312e12,
            read_bandwidth: 1.555e12,
            ..Self::gpu(gpu)
        }
    }

    /// An H200: `sm_90a`. Operations and bandwidth as in [`Target::sm_80`].
    pub fn sm_90a() -> Target {
        let gpu = CudaTarget {
            arch: CudaArch::Sm90a,
            multiprocessors: 132,
            registers: 65536,
            shared_bytes: 227 << 10,
        };
        Target { l2_bytes: 50 << 20, peak_flops: 989e12, read_bandwidth: 4.8e12, ..Self::gpu(gpu) }
    }

    fn gpu(gpu: CudaTarget) -> Target {
        Target {
            triple: "nvptx64-nvidia-cuda".into(),
            cpu: gpu.arch.name().into(),
            features: Vec::new(),
            vector_width: 4,
            launch_seconds: 4e-6,
            cuda: Some(gpu),
            ..Target::x86_64_v3()
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.triple, self.cpu)
    }
}
