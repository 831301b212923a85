//! Whole models on a GPU: compiled for one, loaded, fed and read as on a device, computed by the
//! emulator, and held against what the CPU computes.

mod driver;
mod library;
pub(crate) mod programs;
mod ranks;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use ::driver::{Assembler, CompileOptions, Quantization};
use driver::{Driver, device};
use frontend::ImportOptions;
use gpu_check::models::{self, Expected};
use ir::{CudaArch, DType, Target, artifact::Artifact};
use serve::{Session, SessionOptions};

use crate::{
    families::expect,
    support::{compile_to, data, open, options},
};

/// How far numbers of a model in bf16 may be from the CPU's, at most and in the mean: a
/// GPU rounds activations to bf16 before each product, the CPU does not.
const TOLERANCE: [f32; 2] = [0.2, 0.04];

/// The same with e4m3 in layers, three bits of a fraction, and weights of no training.
const FP8_TOLERANCE: [f32; 2] = [0.8, 0.15];

/// Models in bf16 or f16 whose kernels the emulator computes, each with the type.
const MODELS: [(&str, DType); 2] = [("llama-rope-llama3", DType::Bf16), ("qwen3-f16", DType::F16)];

/// The first prompts of a fixture, cut so that an emulator computes them in seconds.
fn prompts(name: &str) -> Vec<Vec<u32>> {
    let expect = expect(&data("families").join(name));
    let cut = |(i, prompt): (usize, Vec<u32>)| prompt.into_iter().take(45 - 14 * i).collect();
    expect.prompts.into_iter().enumerate().take(2).map(cut).collect()
}

/// A device that is an emulator.
pub(crate) fn emulated(arch: CudaArch) -> cuda::Device {
    device(arch).0
}

pub(crate) fn open_on_gpu(path: &Path, arch: CudaArch, seats: usize) -> (Session, Arc<Driver>) {
    let artifact = Arc::new(Artifact::open(path).unwrap());
    let (device, driver) = device(arch);
    let device = exec::Device::cuda(device, NonZeroUsize::new(1)).unwrap();
    let sequences = NonZeroUsize::new(seats);
    let options = SessionOptions { device: Some(device), sequences, ..SessionOptions::default() };
    (Session::of(artifact, options).unwrap(), driver)
}

fn assembler() -> Option<Assembler> {
    Assembler::at(&crate::ptx::programs()?.join("ptxas"))
}

/// Writes a model and what is expected of it for a real device, if cases are asked for.
fn record(name: &str, expected: &Expected, compile: impl FnOnce() -> PathBuf) {
    let Some(folder) = std::env::var_os("BROLLY_GPU_CASES") else { return };
    let folder = Path::new(&folder).join("models");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(compile(), folder.join(format!("{name}.brolly"))).unwrap();
    let text = serde_json::to_vec(expected).unwrap();
    std::fs::write(folder.join(format!("{name}.json")), text).unwrap();
}

#[test]
fn models_compute_on_gpus_what_they_do_on_the_cpu() {
    for (name, dtype) in MODELS {
        let folder = data("families").join(name);
        let import = ImportOptions {
            max_seq_len: Some(96),
            max_batch_tokens: 32,
            dtype: Some(dtype),
            ..ImportOptions::default()
        };
        let compile = |kind: &str, gpus: Vec<Target>| {
            let mut options = options(import.clone());
            options.kv_dtype = dtype;
            options.target = gpus.last().cloned().unwrap_or(options.target);
            options.gpus = gpus;
            // An emulator takes PTX.
            options.assembler = (kind == "device").then(assembler).flatten();
            compile_to(&format!("{name}-{kind}"), &folder, &options).0
        };
        let mut cpu = open(&compile("cpu", Vec::new()), 1);
        let expected = models::expect(&mut cpu, prompts(name), TOLERANCE).unwrap();
        record(name, &expected, || compile("device", vec![Target::sm_80(), Target::sm_90a()]));
        // One file has the code of both.
        let path = compile("gpus", vec![Target::sm_80(), Target::sm_90a()]);
        for arch in [CudaArch::Sm80, CudaArch::Sm90a] {
            let (mut gpu, driver) = open_on_gpu(&path, arch, 2);
            let found = models::check(&mut gpu, &expected);
            found.unwrap_or_else(|why| panic!("{name} on {}: {why}", arch.name()));
            let counts = driver.counts();
            assert!(counts.launches > 0 && counts.replays > 0, "{counts:?}");
        }
    }
}

/// A model in bf16, with e4m3 in its layers where that is asked for, and on the CPU without.
fn in_bf16(folder: &Path, name: &str, fp8: bool) -> PathBuf {
    let import = ImportOptions {
        max_seq_len: Some(96),
        max_batch_tokens: 32,
        dtype: Some(DType::Bf16),
        ..ImportOptions::default()
    };
    let mut options = CompileOptions { kv_dtype: DType::Bf16, ..options(import) };
    if fp8 {
        options.target = Target::sm_90a();
        options.gpus = vec![Target::sm_90a()];
        options.quantize = Some(Quantization::Fp8);
    }
    compile_to(&format!("{name}-{}", if fp8 { "fp8" } else { "cpu" }), folder, &options).0
}

/// Alone and among others, in parts and at once: also with e4m3 in layers.
#[test]
fn layers_of_fp8_are_near_the_cpu() {
    let name = "llama-rope-llama3";
    let folder = data("families").join(name);
    let mut cpu = open(&in_bf16(&folder, name, false), 1);
    let expected = models::expect(&mut cpu, prompts(name), FP8_TOLERANCE).unwrap();
    let (mut gpu, _) = open_on_gpu(&in_bf16(&folder, name, true), CudaArch::Sm90a, 2);
    models::check(&mut gpu, &expected).unwrap();
}

/// Keys and values in e4m3: codes and scales are written on the device, and read there.
#[test]
fn keys_and_values_of_fp8_are_near_the_cpu() {
    let name = "llama-rope-llama3";
    let folder = data("families").join(name);
    let compile = |kind: &str, gpus: Vec<Target>| {
        let import = ImportOptions {
            max_seq_len: Some(96),
            max_batch_tokens: 32,
            dtype: Some(DType::Bf16),
            ..ImportOptions::default()
        };
        let mut options = CompileOptions { kv_dtype: DType::F8E4M3, ..options(import) };
        options.target = gpus.last().cloned().unwrap_or(options.target);
        options.gpus = gpus;
        compile_to(&format!("{name}-kv-fp8-{kind}"), &folder, &options).0
    };
    let mut cpu = open(&compile("cpu", Vec::new()), 1);
    let expected = models::expect(&mut cpu, prompts(name), TOLERANCE).unwrap();
    let path = compile("gpus", vec![Target::sm_80(), Target::sm_90a()]);
    for arch in [CudaArch::Sm80, CudaArch::Sm90a] {
        let (mut gpu, _) = open_on_gpu(&path, arch, 2);
        models::check(&mut gpu, &expected).unwrap_or_else(|why| panic!("{}: {why}", arch.name()));
    }
}

#[test]
fn an_artifact_says_which_device_it_is_for() {
    let folder = data("families").join("qwen3-f16");
    let compile = |name: &str, gpus: Vec<Target>| {
        let mut options = options(ImportOptions::default());
        options.kv_dtype = DType::F16;
        options.target = gpus.last().cloned().unwrap_or(options.target);
        options.gpus = gpus;
        compile_to(name, &folder, &options).0
    };
    let on = |path: &Path, device: exec::Device| {
        let options = SessionOptions { device: Some(device), ..SessionOptions::default() };
        let artifact = Arc::new(Artifact::open(path).unwrap());
        Session::of(artifact, options).unwrap_err().to_string()
    };
    let gpu = |arch| exec::Device::cuda(device(arch).0, NonZeroUsize::new(1)).unwrap();
    let hopper = compile("only-sm90a", vec![Target::sm_90a()]);
    let error = on(&hopper, gpu(CudaArch::Sm80));
    assert!(error.contains("its code is for sm_90a") && error.contains("8.0"), "{error}");
    assert!(error.contains("--target cuda"), "{error}");
    let error = on(&hopper, exec::Device::cpu(NonZeroUsize::new(1)).unwrap());
    assert!(error.ends_with("its code is for GPUs, and it is to run on the CPU"), "{error}");
    let cpu = compile("only-cpu", Vec::new());
    let error = on(&cpu, gpu(CudaArch::Sm80));
    assert!(error.ends_with("its code is for CPUs, and it is to run on a GPU"), "{error}");
}

#[test]
fn training_on_a_gpu_follows_the_cpu() {
    for (case, dtype, tolerance) in
        [("llama-gqa3", None, 1e-4), ("gpt2-gelu-new", Some(DType::Bf16), 2e-2)]
    {
        let cpu = exec::Device::cpu(NonZeroUsize::new(1)).unwrap();
        let want = crate::train::first_steps(case, |options| options.import.dtype = dtype, cpu, 2);
        for (arch, target) in
            [(CudaArch::Sm80, Target::sm_80()), (CudaArch::Sm90a, Target::sm_90a())]
        {
            let gpu = exec::Device::cuda(device(arch).0, NonZeroUsize::new(1)).unwrap();
            let how = |options: &mut CompileOptions| {
                options.import.dtype = dtype;
                options.target = target.clone();
                options.gpus = vec![target.clone()];
            };
            let got = crate::train::first_steps(case, how, gpu, 2);
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                let off = (got - want).abs() / want.abs();
                assert!(off <= tolerance, "{case} on {}: {got}, not {want}", arch.name());
            }
        }
    }
}
