//! Compiles a model into an artifact.

use std::{
    num::NonZeroUsize,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use codegen::{
    Assembler, Codegen,
    schedule::{Entry, Tuning},
};
use frontend::ImportOptions;
use ir::{
    DType, Module, Target,
    artifact::{self, Contents, Digest, WeightSpec},
};
use passes::{Fusion, Recipe, WeightFormat};

use crate::{
    CompileError, Keep, KernelCache, Progress, Silent, Training, fit,
    fold::fold,
    live::{self, Live},
    parallel,
    pipeline::Context,
    sums::sums,
};

/// What the weights of products become: integers in blocks of 32 with an f16 scale, or fp8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8 bits, 8.5 with the scales.
    Q8,
    /// 4 bits, 4.5 with the scales; 8 where a product's result is the model's.
    Q4,
    /// e4m3 in blocks of 128 with an f32 scale, and activations so too, in layers: for `sm_90a`.
    Fp8,
}

impl Quantization {
    pub(crate) fn format(self) -> WeightFormat {
        match self {
            Quantization::Q8 => WeightFormat::Integers(8),
            Quantization::Q4 => WeightFormat::Integers(4),
            Quantization::Fp8 => WeightFormat::E4m3,
        }
    }
}

/// A library of NVIDIA's that may compute products on GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLibrary {
    /// cuBLASLt.
    CublasLt,
}

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Bounds and weight types.
    pub import: ImportOptions,
    /// The machine to compile for, and to estimate costs by.
    pub target: Target,
    /// Where the target is a GPU, the GPUs that the artifact has code for, one of each
    /// architecture.
    pub gpus: Vec<Target>,
    /// NVIDIA's assembler, to be used for GPUs if there is one.
    pub assembler: Option<Assembler>,
    /// What weights become; they stay as they are stored where `None`.
    pub quantize: Option<Quantization>,
    /// A library that may compute products of bf16 and f16 on GPUs, where `tuning` has measured it
    /// to be faster. Results of a row may then depend on the number of rows. Of no effect on what
    /// trains.
    pub gpu_library: Option<GpuLibrary>,
    /// What to train, for an artifact that trains instead of one that serves.
    pub training: Option<Training>,
    /// Whether an artifact that trains also has the entry `step`, which serves the weights as they
    /// are.
    pub samples: bool,
    /// Whether a training step that needs more memory than it may have is compiled all the same, in
    /// the form that needs least, to be looked at.
    pub is_plan: bool,
    /// How a language model keeps keys and values: f32, bf16, f16, or i8 with an f32 scale for
    /// each token and head.
    pub kv_dtype: DType,
    /// Tokenizer, chat template and generation defaults, to be carried along.
    pub text: serde_json::Value,
    /// Threads to compile on; by default as many as the process may use. The artifact does not
    /// depend on it.
    pub threads: Option<NonZeroUsize>,
    /// Where compiled kernels are kept from one compile to the next, if anywhere. The artifact does
    /// not depend on it.
    pub kernel_cache: Option<KernelCache>,
    /// Schedules before those that the compiler comes with. Results do not depend on them, bit for
    /// bit.
    pub tuning: Tuning,
}

/// How long a stage took.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StageTime {
    /// The stage.
    pub stage: String,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// What came of a compile.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Compiled {
    /// Time per stage.
    pub stages: Vec<StageTime>,
    /// Attentions, norms and gated MLPs of the source, fused or not.
    pub fusions: Vec<Fusion>,
    /// Distinct kernels.
    pub kernels: usize,
    /// Launches of each entry.
    pub launches: Vec<(String, usize)>,
    /// Bytes of machine code.
    pub code_bytes: u64,
    /// Bytes of packed weights.
    pub weight_bytes: u64,
    /// The largest arena of an entry.
    pub arena_bytes: u64,
    /// Of a training step, what of a layer's forward is kept for its backward.
    pub kept: Option<Keep>,
    /// Where a library was asked for, what it computes, or why nothing.
    pub library: Option<String>,
}

struct Stages<'a> {
    progress: &'a dyn Progress,
    done: Vec<StageTime>,
}

impl Stages<'_> {
    fn run<T>(&mut self, name: &str, steps: u64, work: impl FnOnce() -> T) -> T {
        self.progress.stage(name, steps);
        let start = Instant::now();
        let out = work();
        self.push(name, start.elapsed());
        out
    }

    fn push(&mut self, name: &str, time: Duration) {
        self.done.push(StageTime { stage: name.into(), seconds: time.as_secs_f64() });
    }
}

/// Runs all passes, and those of the serving form beside the training form if texts are sampled.
fn run_passes(
    module: &mut Module,
    cx: &mut Context<'_>,
    options: &CompileOptions,
    stages: &mut Stages<'_>,
) -> Result<(), CompileError> {
    let mut fork = None;
    let (training, must_fit) = (options.training.as_ref(), !options.is_plan);
    fit::lower(module, cx, training, must_fit, |pass, module, cx| {
        stages.run(pass.name, 0, || pass.run(module, cx))?;
        if options.samples && pass.name == live::FORK {
            fork = Some(Live::new(module));
        }
        Ok(())
    })?;
    fork.map_or(Ok(()), |fork| stages.run("serving form", 0, || fork.plan(cx)))
}

/// Finds everything that would stop a compile, and writes nothing.
///
/// # Errors
/// All problems of the first stage that has any.
pub fn check(model: &Path, options: &CompileOptions) -> Result<Vec<Fusion>, CompileError> {
    let codegen = codegen(options);
    let (specs, fusions) =
        after_passes(model, options, &codegen, |cx| (specs(cx), cx.report.fusions.clone()))?;
    codegen.check(&specs).map_err(CompileError::Codegen)?;
    Ok(fusions)
}

/// What the kernels of all entries have to compute, as [`compile`] would have them generated, where
/// `codegen` says what has a kernel: one for many models answers faster than one for each.
///
/// # Errors
/// All problems of the first stage that has any.
pub fn kernel_specs(
    model: &Path,
    options: &CompileOptions,
    codegen: &Codegen,
) -> Result<Vec<ir::KernelSpec>, CompileError> {
    after_passes(model, options, codegen, specs)
}

pub(crate) fn codegen(options: &CompileOptions) -> Codegen {
    let codegen = Codegen::new(options.target.clone()).with_assembler(options.assembler.clone());
    let codegen = codegen
        .with_tuning(options.tuning.clone().over(Tuning::builtin()))
        .with_library(options.gpu_library.is_some() && options.training.is_none());
    if options.gpus.is_empty() { codegen } else { codegen.for_gpus(&options.gpus) }
}

fn import(model: &Path, options: &CompileOptions) -> Result<frontend::Imported, CompileError> {
    let import = match options.training {
        Some(_) => frontend::import_to_train,
        None => frontend::import,
    };
    import(model, &options.import).map_err(CompileError::Import)
}

/// Runs all passes on a model and reads something off what they found.
pub(crate) fn after_passes<R>(
    model: &Path,
    options: &CompileOptions,
    codegen: &Codegen,
    read: impl FnOnce(&Context<'_>) -> R,
) -> Result<R, CompileError> {
    let mut imported = import(model, options)?;
    let mut cx = Context::new(codegen, imported.info.kind, imported.info.max_seq_len);
    cx.quantize = options.quantize;
    cx.target = options.target.clone();
    cx.kv_dtype = options.kv_dtype;
    cx.set_training(&mut imported.module, options.training.as_ref())?;
    let mut stages = Stages { progress: &Silent, done: Vec::new() };
    run_passes(&mut imported.module, &mut cx, options, &mut stages)?;
    Ok(read(&cx))
}

/// Compiles a model folder or an ONNX file into the artifact `out`.
///
/// # Errors
/// All problems of the first stage that has any; the file at `out` is then as before.
pub fn compile(
    model: &Path,
    out: &Path,
    options: &CompileOptions,
    progress: &dyn Progress,
) -> Result<Compiled, CompileError> {
    let mut stages = Stages { progress, done: Vec::new() };
    let imported = stages.run("import", 0, || import(model, options))?;
    let (mut module, weights, info) = (imported.module, imported.weights, imported.info);
    let threads = parallel::threads(options.threads);
    let mut codegen = codegen(options).on_threads(threads);
    if let Some(cache) = &options.kernel_cache {
        codegen = codegen.with_objects(Arc::new(cache.clone()));
    }
    let mut cx = Context::new(&codegen, info.kind, info.max_seq_len);
    cx.quantize = options.quantize;
    cx.target = options.target.clone();
    cx.kv_dtype = options.kv_dtype;
    cx.set_training(&mut module, options.training.as_ref())?;
    run_passes(&mut module, &mut cx, options, &mut stages)?;

    // All entries share one image and one list of weights.
    let sums = match options.target.cuda {
        Some(_) => sums(cx.plans.iter().map(|plan| &plan.program)),
        None => Vec::new(),
    };
    let mut specs = specs(&cx);
    specs.extend(sums.iter().map(|sum| sum.spec.clone()));
    let code = stages.run("codegen", specs.len() as u64, || {
        codegen.compile(&specs, &|_, _| progress.advance(1)).map_err(CompileError::Codegen)
    })?;
    if let Some(cache) = &options.kernel_cache {
        cache.trim();
    }
    let mut recipes: Vec<&Recipe> = Vec::new();
    let mut programs = Vec::new();
    let mut first = 0;
    for plan in &cx.plans {
        let mut program = plan.program.clone();
        let count = program.kernels.len();
        program.kernels = code.kernels[first..first + count].to_vec();
        first += count;
        let numbers: Vec<u32> = plan.weights.iter().map(|w| number(&mut recipes, &cx, w)).collect();
        for place in program.launches.iter_mut().flat_map(|l| &mut l.args) {
            if let ir::Region::Weight(n) = &mut place.region {
                *n = numbers[*n as usize];
            }
        }
        programs.push(program);
    }
    let folds = sums.iter().zip(&code.kernels[first..]).map(|(sum, k)| sum.fold(k.clone()));
    let specs = recipes.iter().map(|r| weight_spec(r)).collect();
    let compiled = Compiled {
        stages: Vec::new(),
        fusions: cx.report.fusions.clone(),
        kernels: code
            .kernels
            .iter()
            .map(|k| &k.symbol)
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        launches: programs.iter().map(|p| (p.name.clone(), p.launches.len())).collect(),
        code_bytes: code.image.len() as u64,
        weight_bytes: 0,
        arena_bytes: programs.iter().map(|p| p.arena_bytes).max().unwrap_or(0),
        kept: cx.parameters.is_some().then_some(cx.keep),
        library: options.gpu_library.map(|_| library(options, &programs)),
    };
    let source_digest = stages.run("digest", 0, || source_digest(model, threads))?;
    let contents = Contents {
        compiler: format!("brolly {}", env!("CARGO_PKG_VERSION")),
        target: options.target.clone(),
        model: info,
        source_digest,
        code: &code.image,
        modules: code.modules.clone(),
        random: options.import.random,
        text: options.text.clone(),
        report: report(&compiled, options),
        programs,
        folds: folds.collect(),
        weights: specs,
    };
    let manifest = stages.run("weights", recipes.len() as u64, || {
        artifact::write_on(threads, out, contents, |i| {
            let tensor = fold(&module, &*weights, recipes[i]);
            progress.advance(1);
            tensor
        })
    })?;
    Ok(Compiled { stages: stages.done, weight_bytes: manifest.weight_bytes(), ..compiled })
}

/// What a library computes, or why nothing.
fn library(options: &CompileOptions, programs: &[ir::Program]) -> String {
    let target = &options.target;
    let launches =
        programs.iter().flat_map(|p| p.launches.iter().map(move |l| (p, l.kernel as usize)));
    let computes = |code: &ir::CudaCode| code.library.is_some();
    let is_library = |(p, k): &(&ir::Program, usize)| p.kernels[*k].cuda.iter().any(computes);
    let has_measured = [&options.tuning, Tuning::builtin()].iter().any(|t| t.has_library(target));
    match (launches.filter(is_library).count(), has_measured) {
        (0, false) => format!(
            "cuBLASLt computes nothing: no table has measured costs of it for {0}; on such a GPU \
             `brolly tune --target cuda:{0} --gpu-library cublaslt` writes one for `--tuning`",
            target.cpu
        ),
        (0, true) => "cuBLASLt computes nothing: for no product of these sizes was it measured to \
                      be faster"
            .into(),
        (count, _) => format!(
            "cuBLASLt computes {count} launches: the bits of a result may depend on what else is \
             computed with it"
        ),
    }
}

/// What the compiler did: fusions, what a training step keeps, and the schedules that it was given.
fn report(compiled: &Compiled, options: &CompileOptions) -> serde_json::Value {
    let mut report = serde_json::json!({ "fusions": compiled.fusions });
    if let Some(kept) = compiled.kept {
        report["kept"] = serde_json::json!(kept);
    }
    let targets: Vec<&Target> = match options.gpus.as_slice() {
        [] => vec![&options.target],
        gpus => gpus.iter().collect(),
    };
    let is_own = |entry: &&Entry| targets.iter().any(|target| target.cpu == entry.target);
    let given: Vec<&Entry> = options.tuning.entries.iter().filter(is_own).collect();
    if !given.is_empty() {
        report["tuning"] = serde_json::json!(given);
    }
    report
}

/// The kernels of all entries.
pub(crate) fn specs(cx: &Context<'_>) -> Vec<ir::KernelSpec> {
    cx.plans.iter().flat_map(|plan| plan.specs.iter().cloned()).collect()
}

/// The number of a prepared weight in the artifact, new ones at the end.
fn number<'a>(recipes: &mut Vec<&'a Recipe>, cx: &'a Context<'_>, name: &str) -> u32 {
    let at = recipes.iter().position(|r| &*r.name == name).unwrap_or_else(|| {
        let recipe = cx.recipes.iter().find(|r| &*r.name == name);
        recipes.push(recipe.expect("every weight of a plan is prepared"));
        recipes.len() - 1
    });
    u32::try_from(at).expect("fewer than 2^32 weights")
}

fn weight_spec(recipe: &Recipe) -> WeightSpec {
    let ty = recipe.graph.ty(recipe.graph.outputs[0].1);
    let shape = ty.const_shape().expect("weights have constant shapes");
    WeightSpec {
        name: recipe.name.to_string(),
        dtype: ty.dtype,
        shape: shape.iter().map(|d| *d as u64).collect(),
        sources: recipe.sources.iter().map(ToString::to_string).collect(),
    }
}

/// Bytes of a file that are hashed as one.
const PIECE_BYTES: usize = 64 << 20;

/// blake3 of the names and contents of the model's files, in the order of their names; of contents,
/// of the digests of their pieces.
fn source_digest(model: &Path, threads: NonZeroUsize) -> Result<Digest, CompileError> {
    let unreadable = |path: &Path, e: std::io::Error| {
        let why = format!("cannot be read: {e}");
        CompileError::Import(vec![frontend::FrontendError::file(path, why)])
    };
    let files: Vec<PathBuf> = frontend::model_files(model);
    let maps = files.iter().map(|path| ir::map_file(path).map_err(|e| unreadable(path, e)));
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    let mut pieces: Vec<(usize, Range<usize>)> = Vec::new();
    for (file, map) in maps.iter().enumerate() {
        let bytes = map.as_ref().len();
        let starts = (0..bytes).step_by(PIECE_BYTES);
        pieces.extend(starts.map(|start| (file, start..bytes.min(start + PIECE_BYTES))));
    }
    let hash =
        |(file, range): &(usize, Range<usize>)| blake3::hash(&maps[*file].as_ref()[range.clone()]);
    let digests = parallel::map(&pieces, threads, hash);
    let folder = if model.is_dir() { model } else { model.parent().unwrap_or(Path::new("")) };
    let mut all = blake3::Hasher::new();
    for (number, (path, map)) in files.iter().zip(&maps).enumerate() {
        let name = path.strip_prefix(folder).unwrap_or(path).as_os_str().as_encoded_bytes();
        all.update(&(name.len() as u64).to_le_bytes()).update(name);
        all.update(&(map.as_ref().len() as u64).to_le_bytes());
        for (_, digest) in pieces.iter().zip(&digests).filter(|((file, _), _)| *file == number) {
            all.update(digest.as_bytes());
        }
    }
    Ok(Digest::from(*all.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_digest_depends_on_contents_alone() {
        let dir = std::env::temp_dir().join(format!("brolly-digest-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let digest = |threads| source_digest(&dir, NonZeroUsize::new(threads).unwrap()).unwrap();
        std::fs::write(dir.join("config.json"), "{}").unwrap();
        let before = digest(1);
        std::fs::write(dir.join("notes.json"), "{}").unwrap();
        assert!(digest(3) == before);
        std::fs::write(dir.join("chat_template.jinja"), "x").unwrap();
        assert!(digest(1) != before);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
