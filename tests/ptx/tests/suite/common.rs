//! Helpers: kernels from a few lines of PTX, random matrices, references in f64.

use brolly_ptx::{Arch, Fault, Gpu, Launch, Module, Param, Report};
use half::bf16;

/// A warp runs `body` with `%lane`, `%in` and `%out` set; `out` holds `words` words for each lane.
///
/// `body` may use `%p`, `%h`, `%r`, `%f`, `%d` and `%e`: predicates, b16, b32, f32, b64 and f64.
pub(crate) fn kernel(target: &str, body: &str, words: usize) -> String {
    format!(
        ".version 8.0\n.target {target}\n.address_size 64\n\
         .visible .entry k(.param .u64 in, .param .u64 out) {{\n\
         .reg .pred %p<16>; .reg .b16 %h<32>; .reg .b32 %r<160>; .reg .f32 %f<160>;\n\
         .reg .b64 %d<32>; .reg .f64 %e<16>; .reg .b32 %lane, %warp; .reg .b64 %in, %out, %x;\n\
         .shared .align 1024 .b8 sm[32768];\n\
         ld.param.b64 %in, [in]; ld.param.b64 %out, [out];\n\
         mov.u32 %lane, %tid.x; mul.wide.u32 %x, %lane, {}; add.s64 %out, %out, %x;\n\
         mul.wide.u32 %x, %lane, 16; add.s64 %in, %in, %x;\n{body}\nret;\n}}\n",
        words * 4
    )
}

/// What a launch of [`kernel`] left in `out`, or its fault.
pub(crate) struct Outcome {
    pub(crate) words: Vec<u32>,
    pub(crate) result: Result<Report, Fault>,
}

/// Runs `body` with `input` for `threads` threads.
pub(crate) fn run(
    arch: Arch,
    body: &str,
    input: &[u8],
    words: usize,
    threads: u32,
    seed: u64,
) -> Outcome {
    let target = if arch == Arch::Sm80 { "sm_80" } else { "sm_90a" };
    let text = kernel(target, body, words);
    let module = Module::parse(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut gpu = Gpu::new(arch);
    let given = gpu.upload(input);
    let out = gpu.upload(&vec![0; threads as usize * words * 4]);
    let params = vec![Param::U64(given), Param::U64(out)];
    let launch = Launch { block: [threads, 1, 1], params, seed, ..Launch::default() };
    let result = gpu.launch(&module, "k", &launch);
    let bytes = gpu.read(out, threads as usize * words * 4);
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Outcome { words: bytes.chunks_exact(4).map(word).collect(), result }
}

/// The words that a warp of an sm_80 leaves; `input` has four words for each lane.
pub(crate) fn eval(body: &str, input: &[u32], words: usize) -> Vec<u32> {
    let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let outcome = run(Arch::Sm80, body, &bytes, words, 32, 1);
    outcome.result.unwrap_or_else(|fault| panic!("{fault}"));
    outcome.words
}

/// The kind of fault that `body` ends with.
pub(crate) fn fault(arch: Arch, body: &str, threads: u32) -> Fault {
    let outcome = run(arch, body, &[0; 16384], 4, threads, 1);
    outcome.result.expect_err("the kernel should fault")
}

/// Reproducible numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        self.0 >> 31
    }

    /// Between -1 and 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() & 0xffff) as f32 / 32768.0 - 1.0
    }

    pub(crate) fn bf16s(&mut self, count: usize) -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(self.unit())).collect()
    }
}

pub(crate) fn bf16_bytes(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// `a: [m, k]`, `b: [n, k]`, the element `a[row] · b[column]`.
pub(crate) fn dot(a: &[bf16], b: &[bf16], k: usize, row: usize, column: usize) -> f64 {
    let (a, b) = (&a[row * k..][..k], &b[column * k..][..k]);
    a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
}

/// A fixture's text.
pub(crate) fn fixture(name: &str) -> String {
    let path = format!("{}/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("the fixture is there")
}

/// A text in which something was replaced, which has to occur.
pub(crate) fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "`{from}` does not occur");
    text.replace(from, to)
}
