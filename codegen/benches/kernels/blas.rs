//! OpenBLAS beside us, opened when it is asked for.

#![allow(unsafe_code, reason = "calls a C library")]

use std::{ffi::c_int, path::Path};

use libloading::{Library, Symbol};

use crate::{
    testing::{Line, pointer},
    yardstick::time,
};

/// `order, transpose a and b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc`.
type Sgemm = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    f32,
    *const f32,
    c_int,
    *const f32,
    c_int,
    f32,
    *mut f32,
    c_int,
);

const ROW_MAJOR: c_int = 101;
const AS_IT_IS: c_int = 111;

/// The library. Symbols are looked up under the plain name and the one that SciPy's builds have.
pub(crate) struct Blas {
    library: Library,
    prefix: &'static str,
}

impl Blas {
    pub(crate) fn open(path: &Path) -> Result<Blas, String> {
        let shown = |why: String| format!("--openblas {}: {why}", path.display());
        // SAFETY: loading a library runs its initialisers; the user named it.
        let library = unsafe { Library::new(path) }.map_err(|e| shown(e.to_string()))?;
        for prefix in ["", "scipy_"] {
            let threads = format!("{prefix}openblas_set_num_threads");
            // SAFETY: the function takes one int.
            let set = unsafe { library.get::<unsafe extern "C" fn(c_int)>(threads.as_bytes()) };
            if let Ok(set) = set {
                // Threads are ours, each with its share of the columns.
                // SAFETY: as above.
                unsafe { set(1) };
                return Ok(Blas { library, prefix });
            }
        }
        Err(shown("has no openblas_set_num_threads of 32-bit integers; give libopenblas.so".into()))
    }

    /// `y[m, n] = x[m, k] · w[k, n]`; the CPU seconds of the slowest thread.
    pub(crate) fn sgemm(
        &self,
        threads: usize,
        size: [usize; 3],
        x: &[Line],
        w: &[Line],
        y: &[Line],
    ) -> f64 {
        let name = format!("{}cblas_sgemm", self.prefix);
        // SAFETY: the C function of that name has this type.
        let sgemm: Symbol<'_, Sgemm> = unsafe { self.library.get(name.as_bytes()) }.unwrap();
        let [m, n, k] = size.map(|v| v as c_int);
        assert!(size[0] * size[2] * 4 <= size_of_val(x) && size[1] * size[2] * 4 <= size_of_val(w));
        assert!(size[0] * size[1] * 4 <= size_of_val(y));
        let [x, w, y] = [x, w, y].map(|v| pointer(v).expose_provenance());
        time(threads, size[1] as i64, 64, |columns, _| {
            let count = (columns.end - columns.start) as c_int;
            let at = columns.start as usize * size_of::<f32>();
            let floats = |address| std::ptr::with_exposed_provenance_mut::<f32>(address);
            // SAFETY: the asserts hold the sizes; threads write columns of their own.
            unsafe {
                sgemm(
                    ROW_MAJOR,
                    AS_IT_IS,
                    AS_IT_IS,
                    m,
                    count,
                    k,
                    1.0,
                    floats(x),
                    k,
                    floats(w + at),
                    n,
                    0.0,
                    floats(y + at),
                    n,
                );
            }
        })
    }
}
