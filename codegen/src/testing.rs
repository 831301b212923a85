//! Maps an image and calls its kernels: for tests and benches only, the runtime has its own loader.

#![allow(unsafe_code, reason = "calls generated code")]

use std::collections::BTreeMap;
use std::ops::Range;

use ir::{DType, Tensor};

/// A mapped image.
pub(crate) struct Loaded {
    map: memmap2::Mmap,
    symbols: BTreeMap<String, u64>,
}

type Function = unsafe extern "C" fn(*const *mut u8, *const i64, *mut u8, i64, i64);

impl Loaded {
    /// Maps the image read-execute.
    pub(crate) fn new(bytes: &[u8], symbols: &BTreeMap<String, u64>) -> Self {
        let mut map = memmap2::MmapMut::map_anon(bytes.len()).expect("memory for code");
        map.copy_from_slice(bytes);
        Self { map: map.make_exec().expect("executable memory"), symbols: symbols.clone() }
    }

    /// Calls `symbol` on the tiles. Pointers and sizes must be what the kernel's documentation asks
    /// for.
    pub(crate) fn call(
        &self,
        symbol: &str,
        args: &[*mut u8],
        dims: &[i64],
        scratch: &mut Scratch,
        tiles: Range<i64>,
    ) {
        let offset = usize::try_from(self.symbols[symbol]).expect("offset in the image");
        // SAFETY: the offset is that of a function of this type; the caller gives what it expects.
        unsafe {
            let function: Function = std::mem::transmute(self.map.as_ptr().add(offset));
            function(
                args.as_ptr(),
                dims.as_ptr(),
                scratch.0.as_mut_ptr().cast(),
                tiles.start,
                tiles.end,
            );
        }
    }
}

/// A thread's scratch memory, 64-byte aligned.
pub(crate) struct Scratch(Vec<Line>);

/// 64 bytes, aligned as in an artifact.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Line(#[allow(dead_code, reason = "benches only")] pub(crate) [u8; 64]);

impl Line {
    /// These bytes, and some more to fill the last line.
    #[allow(dead_code, reason = "benches only")]
    pub(crate) fn buffer(bytes: &[u8]) -> Vec<Line> {
        let line = |piece: &[u8]| {
            let mut line = [0; 64];
            line[..piece.len()].copy_from_slice(piece);
            Line(line)
        };
        bytes.chunks(64).map(line).collect()
    }
}

impl Scratch {
    /// `bytes` of scratch, filled with a pattern that reads as NaN.
    pub(crate) fn new(bytes: u64) -> Self {
        Self(vec![Line([0xff; 64]); usize::try_from(bytes.div_ceil(64)).expect("fits")])
    }
}

/// Address of a buffer as a kernel's argument.
pub(crate) fn pointer<T>(data: &[T]) -> *mut u8 {
    data.as_ptr().cast_mut().cast()
}

/// Numbers that look random, the same every time.
#[allow(dead_code, reason = "not every bench")]
pub(crate) fn noise(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let count = shape.iter().product();
    Tensor::from_f64s(dtype, shape, (0..count).map(|_| next()).collect::<Vec<_>>())
}

/// CPU seconds of this thread: unlike wall time, other processes' load does not count.
#[allow(dead_code, reason = "benches only")]
pub(crate) fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the one struct.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
