//! What can go wrong with a device.

use crate::{cublaslt::LtError, nccl::NcclError};

/// What the driver answered to a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name}, {text}")]
pub struct DriverError {
    /// The call.
    pub call: &'static str,
    /// CUDA's number.
    pub code: u32,
    /// CUDA's name for it, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
    pub name: String,
    /// The driver's sentence.
    pub text: String,
}

/// Why a device cannot be used, or did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver.
    #[error(
        "no NVIDIA driver: libcuda.so.1 cannot be opened; install the driver, or compile the \
         model with `--target cpu`"
    )]
    NoDriver,
    /// The driver is too old.
    #[error(
        "the NVIDIA driver speaks CUDA {}.{}, and {}.{} is the oldest that will do: install a \
         driver of version 550 or later",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    OldDriver {
        /// As CUDA counts: 12040 is 12.4.
        found: u32,
        /// The oldest that will do.
        needed: u32,
    },
    /// There is no such device.
    #[error(
        "there is no CUDA device {index}: {}; take another one, or let CUDA_VISIBLE_DEVICES name \
         those that the process is to see",
        match count {
            0 => "the driver sees none".into(),
            1 => "the driver sees one, device 0".into(),
            _ => format!("the driver sees {count}, from 0 on"),
        }
    )]
    NoDevice {
        /// Its number.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// A kernel is for another device.
    #[error(
        "`{kernel}` holds no code for {device}, which has compute capability {}.{}: compile the \
         model for it ({reason})",
        capability.0, capability.1
    )]
    Architecture {
        /// The kernel.
        kernel: String,
        /// The device's name.
        device: String,
        /// Its compute capability.
        capability: (u32, u32),
        /// What the driver said.
        reason: String,
    },
    /// There is not enough memory.
    #[error(
        "{needed} bytes of device memory are needed and {free} of {total} are free: take a smaller \
         context, fewer sequences or quantised weights, or end what else uses the device"
    )]
    Memory {
        /// How much was asked for.
        needed: u64,
        /// How much is free.
        free: u64,
        /// How much the device has.
        total: u64,
    },
    /// A launch that cannot be.
    #[error("launch of `{kernel}`: {reason}")]
    Invalid {
        /// The kernel.
        kernel: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A copy or a place beyond the memory's end.
    #[error("bytes {offset}..{offset}+{bytes} of {size}")]
    Range {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
        /// Bytes of the memory.
        size: u64,
    },
    /// Pinned memory is asked for while the device may be copying it.
    #[error("pinned memory that the device may be copying: its stream was not waited for")]
    Busy,
    /// A launch that the driver refused.
    #[error("launch of `{kernel}`: {source}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What the driver said.
        source: DriverError,
    },
    /// Work that was launched failed on the device.
    #[error(
        "the device failed while it ran `{kernels}`: {source}; everything on it is lost, open it \
         again in a new process"
    )]
    Lost {
        /// Kernels that were launched since the last wait.
        kernels: String,
        /// What the driver said.
        source: DriverError,
    },
    /// There is no NCCL.
    #[error(
        "NCCL cannot be opened: {reason}; install libnccl2 (or the Python package \
         nvidia-nccl-cu12), and set BROLLY_NCCL to the path of its libnccl.so.2 where the linker \
         does not find it"
    )]
    NoNccl {
        /// What the linker said.
        reason: String,
    },
    /// NCCL is too old.
    #[error(
        "libnccl.so.2 is NCCL {}.{}, and {}.{} is the oldest that will do",
        found / 10000, found % 10000 / 100, needed / 10000, needed % 10000 / 100
    )]
    OldNccl {
        /// As NCCL counts: 21805 is 2.18.5.
        found: u32,
        /// The oldest that will do.
        needed: u32,
    },
    /// There is no cuBLASLt.
    #[error(
        "cuBLASLt cannot be opened: {reason}; the model was compiled with `--gpu-library \
         cublaslt`: install libcublas of CUDA 12 or later (or the Python package \
         nvidia-cublas-cu12), and set BROLLY_CUBLASLT to the path of its libcublasLt.so.12 where \
         the linker does not find it, or compile the model without that option"
    )]
    NoCublasLt {
        /// What the linker said.
        reason: String,
    },
    /// cuBLASLt is too old.
    #[error(
        "libcublasLt is of cuBLAS {}.{}, and {}.{} is the oldest that will do: install libcublas \
         of CUDA 12 or later, or set BROLLY_CUBLASLT to the path of another libcublasLt.so",
        found / 10000, found % 10000 / 100, needed / 10000, needed % 10000 / 100
    )]
    OldCublasLt {
        /// As cuBLAS counts: 120405 is 12.4.5.
        found: u32,
        /// The oldest that will do.
        needed: u32,
    },
    /// cuBLASLt does not compute a product.
    #[error(
        "cuBLASLt has no algorithm for a product of {product}: compile the model without \
         `--gpu-library`"
    )]
    NoAlgorithm {
        /// Its sizes and types.
        product: String,
    },
    /// cuBLASLt refused something.
    #[error("cuBLASLt: {0}")]
    CublasLt(#[from] LtError),
    /// Ranks on devices cannot meet.
    #[error("NCCL: {0}")]
    Nccl(#[from] NcclError),
    /// Ranks on devices meet no more, for one has failed.
    #[error("the ranks' communicator was aborted")]
    Aborted,
    /// Anything else that the driver refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Errors after which a context answers nothing else.
const FATAL: [u32; 13] = [214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999];

impl DriverError {
    /// Whether the context is lost: kernels wrote where they may not, or trapped.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        FATAL.contains(&self.code)
    }
}

impl CudaError {
    /// Whether nothing on the device can be used any more.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            CudaError::Lost { .. } => true,
            CudaError::Launch { source, .. } | CudaError::Driver(source) => source.is_fatal(),
            _ => false,
        }
    }
}
