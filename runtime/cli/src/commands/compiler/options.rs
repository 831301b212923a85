//! From flags to the driver's options.

use std::path::Path;

use driver::{Assembler, Cache, CompileOptions, GpuLibrary, Quantization, Tuning};
use ir::{CudaArch, DType, Target};
use text::TextBundle;

use crate::{
    args::{self, Bound, Chosen, Quantize, TargetCpu},
    context::Context,
    failure::{Failure, Result},
};

/// Options, and problems of the files that they carry along.
pub(super) struct Prepared {
    pub(super) options: CompileOptions,
    /// What is wrong with the tokenizer's files.
    pub(super) problems: Vec<String>,
}

/// The options without the text files' contents, by flags alone.
pub(super) fn bare(
    model: &Path,
    flags: &args::CompileOptions,
    cx: &Context,
) -> Result<CompileOptions> {
    if model.extension().is_some_and(|e| e == "toml") {
        return Err(Failure::input(format!(
            "{}: is a training run's configuration, which `brolly train` compiles itself; give a \
             model folder or an .onnx file",
            model.display()
        )));
    }
    let gpus = gpus(flags)?;
    let target = match (gpus.last(), flags.target_cpu) {
        (Some(gpu), _) => gpu.clone(),
        (None, None | Some(TargetCpu::X86_64V3)) => Target::x86_64_v3(),
        (None, Some(TargetCpu::Native)) => driver::native_target()
            .map_err(|e| Failure::input(format!("--target-cpu native: {e}")))?,
    };
    let assembler = (!gpus.is_empty()).then(Assembler::find).flatten();
    let threads = Some(cx.threads());
    let text = serde_json::Value::Null;
    let quantize = flags.quantize.map(|quantize| match quantize {
        Quantize::Q8 => Quantization::Q8,
        Quantize::Q4 => Quantization::Q4,
        Quantize::Fp8 => Quantization::Fp8,
    });
    if quantize == Some(Quantization::Fp8) && gpus != [Target::sm_90a()] {
        return Err(Failure::Usage(
            "--quantize fp8 is for GPUs that multiply fp8: compile with `--target cuda:sm_90a`, or \
             with `--quantize q8` for others"
                .into(),
        ));
    }
    let gpu_library = gpu_library(flags, &gpus)?;
    let kv_dtype = flags.kv_dtype.unwrap_or(match flags.dtype {
        _ if gpus.is_empty() => DType::F32,
        Some(dtype) => dtype,
        None => DType::Bf16,
    });
    let import = Default::default();
    let tuning = flags.tuning.as_deref().map(tuning).transpose()?.unwrap_or_default();
    let kernel_cache = (!flags.no_kernel_cache).then(|| Cache::user().kernels());
    let mut options = CompileOptions {
        import,
        target,
        gpus,
        assembler,
        quantize,
        gpu_library,
        training: None,
        samples: false,
        is_plan: false,
        kv_dtype,
        text,
        threads,
        kernel_cache,
        tuning,
    };
    let import = &mut options.import;
    import.dtype = flags.dtype;
    import.random = flags.random_weights.then_some(0);
    import.max_seq_len = flags.max_seq_len;
    import.max_batch_tokens = flags.max_batch_tokens.unwrap_or(import.max_batch_tokens);
    import.max_sequences = flags.max_sequences.unwrap_or(import.max_sequences);
    for Bound { name, lo, hi } in &flags.bounds {
        let bounds = ir::Bounds { lo: *lo, hi: *hi };
        if import.bounds.insert(name.as_str().into(), bounds).is_some() {
            return Err(Failure::Usage(format!("--bound {name}: is given more than once")));
        }
    }
    Ok(options)
}

/// The GPUs that flags name, in the order of their generations.
fn gpus(flags: &args::CompileOptions) -> Result<Vec<Target>> {
    let is_named = |arch: CudaArch| {
        let names =
            |chosen: &Chosen| matches!(chosen, Chosen::Gpus) || *chosen == Chosen::Gpu(arch);
        flags.target.iter().any(names)
    };
    let all = [(CudaArch::Sm80, Target::sm_80()), (CudaArch::Sm90a, Target::sm_90a())];
    let gpus: Vec<Target> =
        all.into_iter().filter(|(arch, _)| is_named(*arch)).map(|(_, gpu)| gpu).collect();
    if !gpus.is_empty() && flags.target.contains(&Chosen::Cpu) {
        return Err(Failure::Usage(
            "--target: an artifact is for the CPU or for GPUs; compile twice for both".into(),
        ));
    }
    if !gpus.is_empty() && flags.target_cpu.is_some() {
        return Err(Failure::Usage("--target-cpu is for `--target cpu`".into()));
    }
    Ok(gpus)
}

/// The library that may compute products.
fn gpu_library(flags: &args::CompileOptions, gpus: &[Target]) -> Result<Option<GpuLibrary>> {
    let Some(args::GpuLibrary::Cublaslt) = flags.gpu_library else { return Ok(None) };
    if gpus.is_empty() {
        return Err(Failure::Usage(
            "--gpu-library is for GPUs: compile with `--target cuda` too".into(),
        ));
    }
    if flags.quantize.is_some() {
        return Err(Failure::Usage(
            "--gpu-library multiplies weights of bf16 and f16: leave `--quantize` away".into(),
        ));
    }
    Ok(Some(GpuLibrary::CublasLt))
}

/// Reads a table of schedules.
pub(super) fn tuning(path: &Path) -> Result<Tuning> {
    let named = |why: &dyn std::fmt::Display| Failure::input(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path)
        .map_err(|e| named(&format!("cannot be read: {e}; `brolly tune` writes such tables")))?;
    Tuning::parse(&text).map_err(|e| named(&e))
}

impl Prepared {
    /// Reads the text files beside a model.
    pub(super) fn new(
        model: &Path,
        flags: &args::CompileOptions,
        cx: &Context,
    ) -> Result<Prepared> {
        let mut options = bare(model, flags, cx)?;
        let mut problems = Vec::new();
        let mut bundle = TextBundle::default();
        if model.is_dir() {
            match TextBundle::load(model) {
                Ok(loaded) => bundle = loaded,
                Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
            }
        }
        options.text = serde_json::to_value(&bundle).map_err(|e| Failure::Bug(e.to_string()))?;
        Ok(Prepared { options, problems })
    }

    /// The options, if nothing is wrong; otherwise all that is, of the model too.
    pub(super) fn checked(self, model: &Path) -> Result<CompileOptions> {
        if self.problems.is_empty() {
            return Ok(self.options);
        }
        Err(match driver::check(model, &self.options) {
            Err(error) => super::failure(model, &error, self.problems),
            Ok(_) => {
                let headline = format!("{}: {} problems", model.display(), self.problems.len());
                Failure::inputs(headline, self.problems)
            }
        })
    }
}
