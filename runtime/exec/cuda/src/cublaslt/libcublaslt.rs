//! cuBLASLt itself, opened when a program first needs it.
//!
//! The functions are declared here, for cudarc's bindings look for the library under the names of
//! the one CUDA that they are made for. Numbers are those of `cublasLt.h` and `library_types.h`.
#![allow(unsafe_code, reason = "the C interface of cuBLASLt")]

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    ptr::null_mut,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use ir::DType;
use libloading::Library;

use super::{AlgorithmHandle, CublasLt, LtAnswer, LtError, LtHandle, Matmul, OLDEST, Places};
use crate::{CudaError, driver::StreamHandle, library};

const SUCCESS: c_int = 0;
/// `CUBLAS_STATUS_NOT_SUPPORTED`.
const NOT_SUPPORTED: c_int = 15;
/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_F32: c_int = 68;
/// `CUBLAS_OP_T`; the default is none.
const TRANSPOSED: c_int = 1;
/// `CUBLASLT_EPILOGUE_BIAS`; the default is none.
const EPILOGUE_BIAS: c_int = 4;
/// Of `cublasLtMatmulDescAttributes_t`.
const DESC_TRANSA: c_int = 3;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
/// Of `cublasLtMatmulPreferenceAttributes_t`.
const PREF_WORKSPACE: c_int = 1;
const PREF_ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];

type Status = c_int;
type Pointer = *mut c_void;

/// `cublasLtMatmulAlgo_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Found {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

type Creates = unsafe extern "C" fn(*mut Pointer) -> Status;
type Destroys = unsafe extern "C" fn(Pointer) -> Status;
type Sets = unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> Status;
type Describes = unsafe extern "C" fn(*mut Pointer, c_int, c_int) -> Status;
type LaysOut = unsafe extern "C" fn(*mut Pointer, c_int, u64, u64, i64) -> Status;
type Finds = unsafe extern "C" fn(
    Pointer,
    Pointer,
    Pointer,
    Pointer,
    Pointer,
    Pointer,
    Pointer,
    c_int,
    *mut Found,
    *mut c_int,
) -> Status;
type Multiplies = unsafe extern "C" fn(
    Pointer,
    Pointer,
    *const c_void,
    *const c_void,
    Pointer,
    *const c_void,
    Pointer,
    *const c_void,
    *const c_void,
    Pointer,
    *mut c_void,
    Pointer,
    *const Algorithm,
    *mut c_void,
    usize,
    Pointer,
) -> Status;
type Names = unsafe extern "C" fn(Status) -> *const c_char;

/// The library's functions.
struct LibCublasLt {
    version: unsafe extern "C" fn() -> usize,
    status_name: Names,
    status_text: Names,
    create: Creates,
    destroy: Destroys,
    describe: Describes,
    set_description: Sets,
    drop_description: Destroys,
    lay_out: LaysOut,
    drop_layout: Destroys,
    prefer: Creates,
    set_preference: Sets,
    drop_preference: Destroys,
    find: Finds,
    multiply: Multiplies,
    /// Algorithms that have been chosen, by number.
    chosen: Mutex<Chosen>,
    /// Last, for the functions are of it.
    _library: Library,
}

#[derive(Default)]
struct Chosen {
    last: usize,
    plans: BTreeMap<usize, Arc<Plan>>,
}

/// A product as the library has it described, and how to compute it.
struct Plan {
    description: Object,
    /// Of `w`, `x`, `residual` or `y`, and `y`.
    layouts: [Object; 4],
    algorithm: Algorithm,
    workspace_bytes: usize,
    beta: f32,
}

/// Something of the library, by its address, and what frees it.
struct Object {
    address: usize,
    free: Destroys,
}

impl Object {
    fn pointer(&self) -> Pointer {
        self.address as Pointer
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made by the library, which is never closed, and freed once.
        unsafe { (self.free)(self.pointer()) };
    }
}

/// Opens the library, once, for a driver of so new a CUDA.
///
/// # Errors
/// [`CudaError::NoCublasLt`], [`CudaError::OldCublasLt`].
pub(crate) fn open(driver: u32) -> Result<Arc<dyn CublasLt>, CudaError> {
    static OPENED: OnceLock<Result<Arc<LibCublasLt>, CudaError>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| LibCublasLt::open(driver).map(Arc::new));
    opened.clone().map(|library| library as Arc<dyn CublasLt>)
}

/// Where the library is looked for, unless `BROLLY_CUBLASLT` names it: that of CUDA 13 needs a
/// driver as new.
fn names(driver: u32) -> &'static [&'static str] {
    let all = &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
    if driver >= 13000 { all } else { &all[1..] }
}

impl LibCublasLt {
    fn open(driver: u32) -> Result<LibCublasLt, CudaError> {
        let missing = |reason: String| CudaError::NoCublasLt { reason };
        let library = library::open("BROLLY_CUBLASLT", names(driver)).map_err(missing)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is that of the function in `cublasLt.h`.
                *unsafe { library.get($name) }.map_err(|e| missing(e.to_string()))?
            };
        }
        let library = LibCublasLt {
            version: function!(b"cublasLtGetVersion\0"),
            status_name: function!(b"cublasLtGetStatusName\0"),
            status_text: function!(b"cublasLtGetStatusString\0"),
            create: function!(b"cublasLtCreate\0"),
            destroy: function!(b"cublasLtDestroy\0"),
            describe: function!(b"cublasLtMatmulDescCreate\0"),
            set_description: function!(b"cublasLtMatmulDescSetAttribute\0"),
            drop_description: function!(b"cublasLtMatmulDescDestroy\0"),
            lay_out: function!(b"cublasLtMatrixLayoutCreate\0"),
            drop_layout: function!(b"cublasLtMatrixLayoutDestroy\0"),
            prefer: function!(b"cublasLtMatmulPreferenceCreate\0"),
            set_preference: function!(b"cublasLtMatmulPreferenceSetAttribute\0"),
            drop_preference: function!(b"cublasLtMatmulPreferenceDestroy\0"),
            find: function!(b"cublasLtMatmulAlgoGetHeuristic\0"),
            multiply: function!(b"cublasLtMatmul\0"),
            chosen: Mutex::default(),
            _library: library,
        };
        // SAFETY: takes nothing.
        let found = u32::try_from(unsafe { (library.version)() }).unwrap_or(0);
        if found < OLDEST {
            return Err(CudaError::OldCublasLt { found, needed: OLDEST });
        }
        Ok(library)
    }

    fn chosen(&self) -> MutexGuard<'_, Chosen> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a call answered.
    fn told(&self, call: &'static str, status: Status) -> LtAnswer {
        if status == SUCCESS {
            return Ok(());
        }
        let read = |of: Names| {
            // SAFETY: takes any number.
            let text = unsafe { of(status) };
            // SAFETY: a text of the library that ends with zero, or null.
            let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
            text.map_or_else(|| format!("status {status}"), |t| t.to_string_lossy().into_owned())
        };
        Err(LtError { call, name: read(self.status_name), text: read(self.status_text) })
    }

    /// Something new of the library.
    fn object(
        &self,
        call: &'static str,
        free: Destroys,
        make: impl FnOnce(*mut Pointer) -> Status,
    ) -> LtAnswer<Object> {
        let mut made = null_mut();
        self.told(call, make(&raw mut made))?;
        Ok(Object { address: made as usize, free })
    }

    fn layout(&self, dtype: DType, rows: u64, columns: u64, stride: u64) -> LtAnswer<Object> {
        let (code, stride) = (code(dtype)?, i64::try_from(stride).unwrap_or(i64::MAX));
        // SAFETY: writes the address of a new layout.
        let make = |to| unsafe { (self.lay_out)(to, code, rows, columns, stride) };
        self.object("cublasLtMatrixLayoutCreate", self.drop_layout, make)
    }

    /// Sets an attribute of a description or a preference.
    fn set<T: Copy>(
        &self,
        call: &'static str,
        set: Sets,
        of: &Object,
        attribute: c_int,
        value: T,
    ) -> LtAnswer {
        let (from, bytes) = ((&raw const value).cast::<c_void>(), size_of::<T>());
        // SAFETY: reads so many bytes of a value that is there, of the type that it has.
        self.told(call, unsafe { set(of.pointer(), attribute, from, bytes) })
    }

    fn set_description<T: Copy>(&self, of: &Object, attribute: c_int, value: T) -> LtAnswer {
        self.set("cublasLtMatmulDescSetAttribute", self.set_description, of, attribute, value)
    }

    fn set_preference<T: Copy>(&self, of: &Object, attribute: c_int, value: T) -> LtAnswer {
        let call = "cublasLtMatmulPreferenceSetAttribute";
        self.set(call, self.set_preference, of, attribute, value)
    }

    fn plan(
        &self,
        handle: LtHandle,
        matmul: &Matmul,
        aligned: &Places<u32>,
    ) -> LtAnswer<Option<Plan>> {
        let Matmul { m, n, k, factors, results, transposed, .. } = *matmul;
        let f32 = code(DType::F32)?;
        // SAFETY: writes the address of a new description.
        let make = |to| unsafe { (self.describe)(to, COMPUTE_F32, f32) };
        let description = self.object("cublasLtMatmulDescCreate", self.drop_description, make)?;
        if transposed {
            self.set_description(&description, DESC_TRANSA, TRANSPOSED)?;
        }
        if let Some(aligned) = aligned.bias {
            self.set_description(&description, DESC_EPILOGUE, EPILOGUE_BIAS)?;
            // An address that is aligned so, and at which nothing is read: each product has its
            // own.
            self.set_description(&description, DESC_BIAS_POINTER, u64::from(aligned))?;
        }
        let [rows, columns] = if transposed { [k, n] } else { [n, k] };
        let residual = matmul.residual_stride.unwrap_or(matmul.y_stride);
        let layouts = [
            self.layout(factors, rows, columns, matmul.w_stride)?,
            self.layout(factors, k, m, matmul.x_stride)?,
            self.layout(results, n, m, residual)?,
            self.layout(results, n, m, matmul.y_stride)?,
        ];
        // SAFETY: writes the address of a new preference.
        let make = |to| unsafe { (self.prefer)(to) };
        let call = "cublasLtMatmulPreferenceCreate";
        let preference = self.object(call, self.drop_preference, make)?;
        let workspace = usize::try_from(matmul.workspace_bytes).unwrap_or(usize::MAX);
        self.set_preference(&preference, PREF_WORKSPACE, workspace)?;
        let begins = [aligned.w, aligned.x, aligned.residual.unwrap_or(aligned.y), aligned.y];
        for (attribute, bytes) in PREF_ALIGNMENTS.into_iter().zip(begins) {
            self.set_preference(&preference, attribute, bytes)?;
        }
        let (mut found, mut count) = (Found::default(), 0);
        let [w, x, c, y] = layouts.each_ref().map(Object::pointer);
        // SAFETY: reads what has just been made, and writes one result and their number.
        let status = unsafe {
            (self.find)(
                handle.0 as Pointer,
                description.pointer(),
                w,
                x,
                c,
                y,
                preference.pointer(),
                1,
                &raw mut found,
                &raw mut count,
            )
        };
        if status == NOT_SUPPORTED {
            return Ok(None);
        }
        self.told("cublasLtMatmulAlgoGetHeuristic", status)?;
        let beta = if matmul.residual_stride.is_some() { 1.0 } else { 0.0 };
        let is_there = count > 0 && found.state == SUCCESS;
        let (algorithm, workspace_bytes) = (found.algorithm, found.workspace_bytes);
        Ok(is_there.then_some(Plan { description, layouts, algorithm, workspace_bytes, beta }))
    }
}

/// `cudaDataType_t`.
fn code(dtype: DType) -> LtAnswer<c_int> {
    Ok(match dtype {
        DType::F32 => 0,
        DType::F16 => 2,
        DType::Bf16 => 14,
        _ => {
            let (name, text) = ("CUBLAS_STATUS_NOT_SUPPORTED".into(), format!("no {dtype}"));
            return Err(LtError { call: "cublasLtMatrixLayoutCreate", name, text });
        }
    })
}

impl CublasLt for LibCublasLt {
    fn create(&self) -> LtAnswer<LtHandle> {
        let mut made = null_mut();
        // SAFETY: writes a handle, which is destroyed by `destroy`.
        self.told("cublasLtCreate", unsafe { (self.create)(&raw mut made) })?;
        Ok(LtHandle(made as usize))
    }

    fn destroy(&self, handle: LtHandle) -> LtAnswer {
        // SAFETY: made by `create`, and destroyed once.
        self.told("cublasLtDestroy", unsafe { (self.destroy)(handle.0 as Pointer) })
    }

    fn choose(
        &self,
        handle: LtHandle,
        matmul: &Matmul,
        aligned: &Places<u32>,
    ) -> LtAnswer<Option<AlgorithmHandle>> {
        let Some(plan) = self.plan(handle, matmul, aligned)? else { return Ok(None) };
        let mut chosen = self.chosen();
        chosen.last += 1;
        let number = chosen.last;
        chosen.plans.insert(number, Arc::new(plan));
        Ok(Some(AlgorithmHandle(number)))
    }

    fn release(&self, algorithm: AlgorithmHandle) -> LtAnswer {
        self.chosen().plans.remove(&algorithm.0);
        Ok(())
    }

    fn multiply(
        &self,
        handle: LtHandle,
        algorithm: AlgorithmHandle,
        places: &Places<u64>,
        stream: StreamHandle,
    ) -> LtAnswer {
        let plan = self.chosen().plans.get(&algorithm.0).cloned();
        let plan = plan.expect("an algorithm that was chosen and not released");
        if let Some(bias) = places.bias {
            self.set_description(&plan.description, DESC_BIAS_POINTER, bias)?;
        }
        let (alpha, [w, x, c, y]) = (1.0f32, plan.layouts.each_ref().map(Object::pointer));
        // SAFETY: the library has chosen the algorithm for these descriptions; places are on its
        // device, hold what they describe, and are kept by the caller's stream.
        let status = unsafe {
            (self.multiply)(
                handle.0 as Pointer,
                plan.description.pointer(),
                (&raw const alpha).cast(),
                places.w as *const c_void,
                w,
                places.x as *const c_void,
                x,
                (&raw const plan.beta).cast(),
                places.residual.unwrap_or(places.y) as *const c_void,
                c,
                places.y as *mut c_void,
                y,
                &raw const plan.algorithm,
                places.workspace as *mut c_void,
                plan.workspace_bytes,
                stream.0 as Pointer,
            )
        };
        self.told("cublasLtMatmul", status)
    }
}

impl std::fmt::Debug for LibCublasLt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LibCublasLt")
    }
}
