//! The driver itself, through cudarc's bindings, which open it at run time.
#![allow(unsafe_code, reason = "the C interface of the driver")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr::{self, null_mut},
    slice,
    sync::Arc,
};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use ir::DType;

use super::{
    Answer, Driver, EventHandle, Function, GraphHandle, MAP_BYTES, Module, OLDEST, Pinned, Shape,
    StreamHandle,
};
use crate::{CudaError, DriverError, Facts, Swizzle, TensorMap, launch::Value};

/// Bytes of what the assembler may say.
const LOG_BYTES: usize = 8192;

/// A device's primary context.
#[derive(Debug)]
struct LibCuda {
    device: c_int,
    /// A `CUcontext`.
    context: usize,
    facts: Facts,
}

/// Opens the driver and a device's primary context.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoDevice`], or what the driver
/// says.
pub(crate) fn open(index: u32) -> Result<Arc<dyn Driver>, CudaError> {
    let (driver, count) = begin()?;
    if index >= count {
        return Err(CudaError::NoDevice { index, count });
    }
    let mut device = 0;
    // SAFETY: writes a device's number.
    let got = unsafe { sys::cuDeviceGet(&raw mut device, index.cast_signed()) };
    told("cuDeviceGet", got)?;
    let facts = facts(device, driver)?;
    let mut context = null_mut();
    // SAFETY: writes a context, which is released when this is dropped.
    let got = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
    told("cuDevicePrimaryCtxRetain", got)?;
    let driver = LibCuda { device, context: context as usize, facts };
    driver.enter()?;
    Ok(Arc::new(driver))
}

/// Opens the driver: what CUDA it speaks, and how many devices it sees.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::OldDriver`], or what the driver says.
pub(crate) fn begin() -> Result<(u32, u32), CudaError> {
    // SAFETY: opening the driver runs its initialisers, which is what it is opened for.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes an int.
    told("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    let found = version.cast_unsigned();
    if found < OLDEST {
        return Err(CudaError::OldDriver { found, needed: OLDEST });
    }
    // SAFETY: no arguments but flags.
    let begun = unsafe { sys::cuInit(0) };
    if begun == CUresult::CUDA_ERROR_NO_DEVICE {
        return Ok((found, 0));
    }
    told("cuInit", begun)?;
    let mut count = 0;
    // SAFETY: writes an int.
    told("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    Ok((found, count.cast_unsigned()))
}

fn facts(device: c_int, driver: u32) -> Answer<Facts> {
    let attribute = |attribute: Attribute| -> Answer<u32> {
        let mut value = 0;
        // SAFETY: writes an int.
        let got = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
        told("cuDeviceGetAttribute", got)?;
        Ok(value.cast_unsigned())
    };
    let mut name = [0u8; 128];
    let (text, length) = (name.as_mut_ptr().cast::<c_char>(), 127);
    // SAFETY: writes at most as many bytes as it is told, with a zero at the end.
    told("cuDeviceGetName", unsafe { sys::cuDeviceGetName(text, length, device) })?;
    let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
    let mut bytes = 0;
    // SAFETY: writes a size.
    told("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut bytes, device) })?;
    Ok(Facts {
        name: name.into_owned(),
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver,
        memory_bytes: bytes as u64,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
    })
}

/// What a call answered.
fn told(call: &'static str, result: CUresult) -> Answer {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let read = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = ptr::null();
        // SAFETY: writes a pointer to a constant of the driver, or null.
        let got = unsafe { get(result, &raw mut text) };
        if got != CUresult::CUDA_SUCCESS || text.is_null() {
            return format!("error {}", result as u32);
        }
        // SAFETY: a text of the driver that ends with zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    let (name, text) = (read(sys::cuGetErrorName), read(sys::cuGetErrorString));
    Err(DriverError { call, code: result as u32, name, text })
}

/// Calls the driver in the device's context.
macro_rules! call {
    ($self:ident, $name:ident($($arg:expr),* $(,)?)) => {{
        LibCuda::enter($self)?;
        // SAFETY: pointers among the arguments are to values of the types that the call reads or
        // writes and that live as long as it; handles have not been destroyed, as the trait asks.
        told(stringify!($name), unsafe { sys::$name($($arg),*) })
    }};
}

impl LibCuda {
    /// Makes the context this thread's.
    fn enter(&self) -> Answer {
        let context = self.context as sys::CUcontext;
        // SAFETY: the context is retained until this is dropped.
        told("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })
    }
}

impl Drop for LibCuda {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; nothing that belongs to it is left, for all keep this.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Driver for LibCuda {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn enter(&self) -> Answer {
        LibCuda::enter(self)
    }

    fn memory(&self) -> Answer<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        call!(self, cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Answer<u64> {
        let (mut address, bytes) = (0, usize::try_from(bytes).unwrap_or(usize::MAX));
        call!(self, cuMemAlloc_v2(&raw mut address, bytes))?;
        Ok(address)
    }

    fn free(&self, address: u64) -> Answer {
        call!(self, cuMemFree_v2(address))
    }

    fn pin(&self, bytes: usize) -> Answer<Pinned> {
        let mut pointer = null_mut();
        call!(self, cuMemHostAlloc(&raw mut pointer, bytes, 0))?;
        // SAFETY: so many bytes were just allocated, and nobody else knows of them.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned(pointer as usize))
    }

    fn unpin(&self, pinned: Pinned) -> Answer {
        call!(self, cuMemFreeHost(pinned.0 as *mut c_void))
    }

    fn write_pinned(&self, pinned: Pinned, offset: usize, bytes: &[u8]) {
        let to = (pinned.0 as *mut u8).wrapping_add(offset);
        // SAFETY: the caller stays within the allocation, and no copy reads it meanwhile.
        unsafe { slice::from_raw_parts_mut(to, bytes.len()) }.copy_from_slice(bytes);
    }

    fn read_pinned(&self, pinned: Pinned, offset: usize, bytes: &mut [u8]) {
        let from = (pinned.0 as *const u8).wrapping_add(offset);
        // SAFETY: as for writing; `pin` wrote all of it.
        bytes.copy_from_slice(unsafe { slice::from_raw_parts(from, bytes.len()) });
    }

    fn upload(
        &self,
        to: u64,
        from: Pinned,
        offset: usize,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        let from = (from.0 as *const c_void).wrapping_byte_add(offset);
        call!(self, cuMemcpyHtoDAsync_v2(to, from, bytes, stream.0 as sys::CUstream))
    }

    fn download(
        &self,
        to: Pinned,
        offset: usize,
        from: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        let to = (to.0 as *mut c_void).wrapping_byte_add(offset);
        call!(self, cuMemcpyDtoHAsync_v2(to, from, bytes, stream.0 as sys::CUstream))
    }

    fn copy(&self, to: u64, from: u64, bytes: u64, stream: StreamHandle) -> Answer {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        call!(self, cuMemcpyDtoDAsync_v2(to, from, bytes, stream.0 as sys::CUstream))
    }

    fn fill(&self, to: u64, byte: u8, bytes: u64, stream: StreamHandle) -> Answer {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        call!(self, cuMemsetD8Async(to, byte, bytes, stream.0 as sys::CUstream))
    }

    fn load(&self, image: &[u8]) -> Answer<Module> {
        let mut module = null_mut();
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
        let loaded = call!(
            self,
            cuModuleLoadDataEx(
                &raw mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        );
        loaded.map_err(|mut error| {
            let said = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy);
            if let Ok(said) = said
                && !said.trim().is_empty()
            {
                error.text = format!("{}: {}", error.text, said.trim());
            }
            error
        })?;
        Ok(Module(module as usize))
    }

    fn unload(&self, module: Module) -> Answer {
        call!(self, cuModuleUnload(module.0 as sys::CUmodule))
    }

    fn function(&self, module: Module, symbol: &str) -> Answer<Function> {
        let mut function = null_mut();
        // A symbol with a zero in it is not found, as it should be.
        let symbol = CString::new(symbol.split('\0').next().unwrap_or("")).unwrap_or_default();
        let module = module.0 as sys::CUmodule;
        call!(self, cuModuleGetFunction(&raw mut function, module, symbol.as_ptr()))?;
        Ok(Function(function as usize))
    }

    fn param_sizes(&self, function: Function) -> Answer<Vec<usize>> {
        let function = function.0 as sys::CUfunction;
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            self.enter()?;
            let index = sizes.len();
            // SAFETY: writes two sizes; the function's module is loaded.
            let got =
                unsafe { sys::cuFuncGetParamInfo(function, index, &raw mut offset, &raw mut size) };
            // The number after the last is the only one that is out of range.
            if got == CUresult::CUDA_ERROR_INVALID_VALUE {
                return Ok(sizes);
            }
            told("cuFuncGetParamInfo", got)?;
            sizes.push(size);
        }
    }

    fn allow_shared(&self, function: Function, bytes: u32) -> Answer {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let function = function.0 as sys::CUfunction;
        let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        call!(self, cuFuncSetAttribute(function, attribute, bytes.cast_signed()))
    }

    fn encode_map(&self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]> {
        let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
        let swizzle = match map.swizzle {
            Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let dtype = match map.dtype {
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::U8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let rank = map.extents.len();
        let steps = vec![1u32; rank];
        call!(
            self,
            cuTensorMapEncodeTiled(
                &raw mut encoded,
                dtype,
                c_uint::try_from(rank).unwrap_or(c_uint::MAX),
                address as *mut c_void,
                map.extents.as_ptr(),
                map.strides.as_ptr(),
                map.boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        )?;
        let mut bytes = [0; MAP_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(encoded.opaque) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(bytes)
    }

    fn launch(
        &self,
        function: Function,
        shape: Shape,
        params: &[Value],
        stream: StreamHandle,
    ) -> Answer {
        let cluster = sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                x: shape.cluster,
                y: 1,
                z: 1,
            },
        };
        let overlap = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = Vec::with_capacity(2);
        if shape.cluster > 1 {
            let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes.push(attribute(id, cluster));
        }
        if shape.dependent {
            let id =
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes.push(attribute(id, overlap));
        }
        let [x, y, z] = shape.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: shape.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared_bytes,
            hStream: stream.0 as sys::CUstream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::try_from(attributes.len()).unwrap_or(0),
        };
        // The driver copies parameters before it returns and never writes to them.
        let mut pointers: Vec<*mut c_void> =
            params.iter().map(|value| value.bytes().as_ptr().cast_mut().cast()).collect();
        let function = function.0 as sys::CUfunction;
        let pointers = pointers.as_mut_ptr();
        call!(self, cuLaunchKernelEx(&raw const config, function, pointers, null_mut()))
    }

    fn create_stream(&self) -> Answer<StreamHandle> {
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        call!(self, cuStreamCreate(&raw mut stream, flags))?;
        Ok(StreamHandle(stream as usize))
    }

    fn destroy_stream(&self, stream: StreamHandle) -> Answer {
        call!(self, cuStreamDestroy_v2(stream.0 as sys::CUstream))
    }

    fn synchronize(&self, stream: StreamHandle) -> Answer {
        call!(self, cuStreamSynchronize(stream.0 as sys::CUstream))
    }

    fn wait(&self, stream: StreamHandle, event: EventHandle) -> Answer {
        call!(self, cuStreamWaitEvent(stream.0 as sys::CUstream, event.0 as sys::CUevent, 0))
    }

    fn create_event(&self) -> Answer<EventHandle> {
        let mut event = null_mut();
        call!(self, cuEventCreate(&raw mut event, 0))?;
        Ok(EventHandle(event as usize))
    }

    fn destroy_event(&self, event: EventHandle) -> Answer {
        call!(self, cuEventDestroy_v2(event.0 as sys::CUevent))
    }

    fn record(&self, event: EventHandle, stream: StreamHandle) -> Answer {
        call!(self, cuEventRecord(event.0 as sys::CUevent, stream.0 as sys::CUstream))
    }

    fn synchronize_event(&self, event: EventHandle) -> Answer {
        call!(self, cuEventSynchronize(event.0 as sys::CUevent))
    }

    fn elapsed_ms(&self, from: EventHandle, to: EventHandle) -> Answer<f32> {
        let mut ms = 0.0;
        let (from, to) = (from.0 as sys::CUevent, to.0 as sys::CUevent);
        call!(self, cuEventElapsedTime(&raw mut ms, from, to))?;
        Ok(ms)
    }

    fn begin_capture(&self, stream: StreamHandle) -> Answer {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        call!(self, cuStreamBeginCapture_v2(stream.0 as sys::CUstream, mode))
    }

    fn end_capture(&self, stream: StreamHandle) -> Answer<GraphHandle> {
        let mut graph = null_mut();
        call!(self, cuStreamEndCapture(stream.0 as sys::CUstream, &raw mut graph))?;
        let mut executable = null_mut();
        let made = call!(self, cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        let gone = call!(self, cuGraphDestroy(graph));
        made.and(gone)?;
        Ok(GraphHandle(executable as usize))
    }

    fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Answer {
        call!(self, cuGraphLaunch(graph.0 as sys::CUgraphExec, stream.0 as sys::CUstream))
    }

    fn destroy_graph(&self, graph: GraphHandle) -> Answer {
        call!(self, cuGraphExecDestroy(graph.0 as sys::CUgraphExec))
    }
}
