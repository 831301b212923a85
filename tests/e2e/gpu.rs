//! Whole models on a GPU: compiled for one, loaded, fed and read as on a device, computed by the
//! emulator, and held against what the CPU computes.

mod driver;

use std::{ops::ControlFlow, path::Path, sync::Arc};

use frontend::ImportOptions;
use ir::{CudaArch, DType, Target, artifact::Artifact};
use serve::{Session, SessionOptions};

use crate::{
    families::{expect, greedy},
    support::{compile_to, data, open, options},
};

/// How far log-probabilities of a model in bf16 may be from the CPU's, at most and in the mean: a
/// GPU rounds activations to bf16 before each product, the CPU does not.
const TOLERANCE: [f32; 2] = [0.2, 0.04];

/// Compiles a fixture for a GPU and opens it on an emulated one.
fn on_gpu(
    name: &str,
    arch: CudaArch,
    import: &ImportOptions,
    dtype: DType,
) -> (Session, Arc<driver::Emulated>) {
    let target = match arch {
        CudaArch::Sm80 => Target::sm_80(),
        CudaArch::Sm90a => Target::sm_90a(),
    };
    let mut options = options(import.clone());
    options.gpus = vec![target.clone()];
    options.target = target;
    options.kv_dtype = dtype;
    let file = format!("{name}-{}", arch.name());
    let (path, _) = compile_to(&file, &data("families").join(name), &options);
    open_on_gpu(&path, arch)
}

fn open_on_gpu(path: &Path, arch: CudaArch) -> (Session, Arc<driver::Emulated>) {
    let artifact = Arc::new(Artifact::open(path).unwrap());
    let (device, driver) = driver::device(arch);
    let device = exec::Device::cuda(device, std::num::NonZeroUsize::new(1)).unwrap();
    let options = SessionOptions { device: Some(device), ..SessionOptions::default() };
    (Session::of(artifact, options).unwrap(), driver)
}

fn assert_near(what: &str, got: &[Option<f32>], want: &[Option<f32>], tolerance: [f32; 2]) {
    assert_eq!(got.len(), want.len());
    let off = got.iter().zip(want).map(|pair| match pair {
        (Some(got), Some(want)) => (got - want).abs(),
        (None, None) => 0.0,
        _ => f32::INFINITY,
    });
    let off: Vec<f32> = off.collect();
    let most = off.iter().fold(0.0, |most: f32, off| if *off <= most { most } else { *off });
    let mean = off.iter().sum::<f32>() / off.len() as f32;
    assert!(
        most <= tolerance[0] && mean <= tolerance[1],
        "{what}: {most} at most, {mean} in the mean"
    );
}

#[test]
fn a_language_model_computes_on_a_gpu_what_it_does_on_the_cpu() {
    let name = "llama-rope-llama3";
    let expect = expect(&data("families").join(name));
    let import = ImportOptions {
        max_seq_len: Some(128),
        max_batch_tokens: 48,
        dtype: Some(DType::Bf16),
        ..ImportOptions::default()
    };
    let mut cpu_options = options(import.clone());
    cpu_options.kv_dtype = DType::Bf16;
    let (path, _) = compile_to("gpu-on-cpu", &data("families").join(name), &cpu_options);
    let mut cpu = open(&path, 1);
    let prompt: Vec<u32> = expect.prompts.iter().flatten().copied().take(70).collect();
    let want = cpu.score(&prompt).unwrap();
    for arch in [CudaArch::Sm80, CudaArch::Sm90a] {
        let (mut gpu, driver) = on_gpu(name, arch, &import, DType::Bf16);
        let got = gpu.score(&prompt).unwrap();
        assert_near(arch.name(), &got, &want, TOLERANCE);
        // A prefix has the same bits, whatever else is in the step.
        assert_eq!(gpu.score(&prompt[..33]).unwrap(), got[..33]);
        let start = &prompt[..20];
        let new = gpu.generate(start, &greedy(6), |_| ControlFlow::Continue(())).unwrap();
        let whole: Vec<u32> = start.iter().chain(&new.tokens).copied().collect();
        let scores = gpu.score(&whole).unwrap();
        let scores: Vec<f32> = scores[20..].iter().map(|score| score.unwrap()).collect();
        assert_eq!(new.logprobs, scores, "{}", arch.name());
        let (_, replays) = driver.counts();
        assert!(replays > 0, "steps of one token are recorded");
    }
}
