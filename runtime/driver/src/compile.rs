//! Compiles a model into an artifact.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use codegen::Codegen;
use frontend::ImportOptions;
use ir::{
    Target,
    artifact::{self, Contents, Digest, WeightSpec},
};
use passes::{Fusion, Recipe};

use crate::{
    CompileError, Progress,
    fold::with_folded,
    pipeline::{Context, PASSES},
};

/// Integers that the weights of products become, in blocks of 32 with an f16 scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8 bits, 8.5 with the scales.
    Q8,
    /// 4 bits, 4.5 with the scales; 8 where a product's result is the model's.
    Q4,
}

impl Quantization {
    pub(crate) fn bits(self) -> i64 {
        match self {
            Quantization::Q8 => 8,
            Quantization::Q4 => 4,
        }
    }
}

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Bounds and weight types.
    pub import: ImportOptions,
    /// The machine to compile for.
    pub target: Target,
    /// Whether weights become integers; they stay as they are stored where `None`.
    pub quantize: Option<Quantization>,
    /// Tokenizer, chat template and generation defaults, to be carried along.
    pub text: serde_json::Value,
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

/// Finds everything that would stop a compile, and writes nothing.
///
/// # Errors
/// All problems of the first stage that has any.
pub fn check(model: &Path, options: &CompileOptions) -> Result<Vec<Fusion>, CompileError> {
    let mut imported = frontend::import(model, &options.import).map_err(CompileError::Import)?;
    let codegen = Codegen::new(options.target.clone());
    let mut cx = Context::new(&codegen, imported.info.kind, imported.info.max_seq_len);
    cx.quantize = options.quantize;
    for pass in PASSES {
        pass.run(&mut imported.module, &mut cx)?;
    }
    Ok(cx.report.fusions)
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
    let imported = stages
        .run("import", 0, || frontend::import(model, &options.import))
        .map_err(CompileError::Import)?;
    let (mut module, weights, info) = (imported.module, imported.weights, imported.info);
    let codegen = Codegen::new(options.target.clone());
    let mut cx = Context::new(&codegen, info.kind, info.max_seq_len);
    cx.quantize = options.quantize;
    for pass in PASSES {
        stages.run(pass.name, 0, || pass.run(&mut module, &mut cx))?;
    }

    // All entries share one image and one list of weights.
    let specs: Vec<_> = cx.plans.iter().flat_map(|p| p.specs.iter().cloned()).collect();
    let code = stages.run("codegen", specs.len() as u64, || {
        codegen.compile(&specs, &|_, _| progress.advance(1)).map_err(CompileError::Codegen)
    })?;
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
    };
    let source_digest = stages.run("digest", 0, || source_digest(model))?;
    let contents = Contents {
        compiler: format!("brolly {}", env!("CARGO_PKG_VERSION")),
        target: options.target.clone(),
        model: info,
        source_digest,
        code: &code.image,
        text: options.text.clone(),
        report: serde_json::json!({ "fusions": compiled.fusions }),
        programs,
        weights: specs,
    };
    let manifest = stages.run("weights", recipes.len() as u64, || {
        with_folded(&module, &*weights, &recipes, |next| {
            artifact::write(out, contents, |i| {
                let tensor = next(i);
                progress.advance(1);
                tensor
            })
        })
    })?;
    Ok(Compiled { stages: stages.done, weight_bytes: manifest.weight_bytes(), ..compiled })
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

/// blake3 of the names and contents of the model's files, in the order of their names.
fn source_digest(model: &Path) -> Result<Digest, CompileError> {
    let unreadable = |path: &Path, e: std::io::Error| {
        let why = format!("cannot be read: {e}");
        CompileError::Import(vec![frontend::FrontendError::file(path, why)])
    };
    let mut files = Vec::new();
    if model.is_dir() {
        for entry in std::fs::read_dir(model).map_err(|e| unreadable(model, e))? {
            let path = entry.map_err(|e| unreadable(model, e))?.path();
            let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if path.is_file() && matches!(kind, "json" | "safetensors" | "jinja") {
                files.push(path);
            }
        }
    } else {
        files.push(model.to_path_buf());
    }
    files.sort();
    let mut all = blake3::Hasher::new();
    for path in files {
        let map = ir::map_file(&path).map_err(|e| unreadable(&path, e))?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        all.update(&(name.len() as u64).to_le_bytes()).update(name);
        let mut file = blake3::Hasher::new();
        file.update_rayon(map.as_ref());
        all.update(file.finalize().as_bytes());
    }
    Ok(Digest::from(*all.finalize().as_bytes()))
}
