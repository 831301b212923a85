//! Models whose products cuBLASLt computes, where tables say that it is faster.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc};

use ::driver::{Compiled, GpuLibrary, Tuning};
use cuda::standin::Ahead;
use frontend::ImportOptions;
use gpu_check::models::{self, Expected};
use ir::{CudaArch, DType, Program, Target, artifact::Artifact};
use serve::{Session, SessionOptions};

use super::{TOLERANCE, assembler, driver, open_on_gpu, prompts, record};
use crate::support::{compile_to, data, open, options};

const NAME: &str = "llama-rope-llama3";

/// A table in which the library takes so many nanoseconds where a generated kernel takes a
/// thousand, for products of all sizes.
fn table(cublaslt_ns: u64) -> Tuning {
    let mut text = String::new();
    for (n, k) in (3..12).flat_map(|n| (3..12).map(move |k| (1 << n, 1 << k))) {
        for target in ["sm_80", "sm_90a"] {
            text += &format!(
                "[[entry]]\ntarget = \"{target}\"\nfamily = \"bf16\"\nn = {n}\nk = {k}\n\
                 library = [{{ rows = 16, generated_ns = 1000, cublaslt_ns = {cublaslt_ns} }}]\n"
            );
        }
    }
    Tuning::parse(&text).unwrap()
}

/// A model for these GPUs, or for the CPU.
fn compile(gpus: Vec<Target>, library: Option<Tuning>, for_device: bool) -> (PathBuf, Compiled) {
    let mut options = options(ImportOptions {
        max_seq_len: Some(96),
        max_batch_tokens: 32,
        dtype: Some(DType::Bf16),
        ..ImportOptions::default()
    });
    options.kv_dtype = DType::Bf16;
    options.target = gpus.last().cloned().unwrap_or(options.target);
    options.gpus = gpus;
    options.assembler = for_device.then(assembler).flatten();
    if let Some(tuning) = library {
        (options.gpu_library, options.tuning) = (Some(GpuLibrary::CublasLt), tuning);
    }
    compile_to("cublaslt", &data("families").join(NAME), &options)
}

fn both() -> Vec<Target> {
    vec![Target::sm_80(), Target::sm_90a()]
}

/// Launches that a library computes.
fn by_library(program: &Program) -> usize {
    let is_library = |k: u32| program.kernels[k as usize].cuda.iter().all(|c| c.library.is_some());
    program.launches.iter().filter(|launch| is_library(launch.kernel)).count()
}

#[test]
fn models_whose_products_a_library_computes_agree_with_the_cpu() {
    let mut cpu = open(&compile(Vec::new(), None, false).0, 1);
    let expected = models::expect(&mut cpu, prompts(NAME), TOLERANCE).unwrap();
    let expected = Expected { by_library: true, ..expected };
    record(&format!("{NAME}-cublaslt"), &expected, || compile(both(), Some(table(10)), true).0);
    let (path, compiled) = compile(both(), Some(table(10)), false);
    let artifact = Artifact::open(&path).unwrap();
    let program = artifact.manifest().program("step").unwrap();
    let count = by_library(program);
    // Queries, keys and values at once, and what follows attention, in two layers; all else has
    // columns that are no multiple of eight.
    assert_eq!(count, 4);
    let note = compiled.library.unwrap();
    assert!(note.contains(&format!("computes {count} launches")), "{note}");
    // Memory for the library is planned, and known before anything runs.
    let mut workspaces = program.intervals.iter().filter(|i| i.name.ends_with(".workspace"));
    assert!(workspaces.all(|interval| interval.bytes == 32 << 20));
    assert!(program.arena_bytes > 32 << 20 && program.arena_bytes < 34 << 20, "once, for all");
    for arch in [CudaArch::Sm80, CudaArch::Sm90a] {
        let (mut gpu, driver) = open_on_gpu(&path, arch, 2);
        models::check(&mut gpu, &expected).unwrap_or_else(|why| panic!("{}: {why}", arch.name()));
        let counts = driver.counts();
        assert!(counts.products > 0 && counts.replays > 0 && counts.launches > 0, "{counts:?}");
    }
    // A machine without the library says so before anything runs.
    let bare = cuda::Device::with(Arc::new(driver::driver(CudaArch::Sm80, Ahead::First)));
    if let Err(why @ cuda::CudaError::NoCublasLt { .. }) = cuda::Multiplier::new(&bare) {
        let device = exec::Device::cuda(bare, NonZeroUsize::new(1)).unwrap();
        let options = SessionOptions { device: Some(device), ..SessionOptions::default() };
        let error = Session::of(Arc::new(artifact), options).unwrap_err().to_string();
        assert!(error.contains(&why.to_string()), "{error}");
    }
}

/// The library is chosen by measured costs alone, and never where it was not asked for.
#[test]
fn a_library_is_chosen_by_measured_costs() {
    let launches = |library: Option<Tuning>| {
        let (path, compiled) = compile(vec![Target::sm_90a()], library, false);
        let artifact = Artifact::open(&path).unwrap();
        (by_library(artifact.manifest().program("step").unwrap()), compiled.library)
    };
    let (count, note) = launches(Some(Tuning::default()));
    let note = note.unwrap();
    assert_eq!(count, 0);
    assert!(note.contains("no table has measured costs of it for sm_90a"), "{note}");
    assert!(note.contains("brolly tune --target cuda:sm_90a --gpu-library cublaslt"), "{note}");
    let (count, note) = launches(Some(table(2000)));
    assert_eq!(count, 0);
    assert!(note.unwrap().contains("for no product of these sizes"));
    let (count, note) = launches(None);
    assert_eq!((count, note), (0, None));
}
