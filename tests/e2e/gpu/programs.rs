//! Every program of the suite, compiled for both architectures at once: the kernels it takes.

use std::{collections::HashMap, path::PathBuf, sync::Mutex, thread};

use ::driver::{Codegen, CompileOptions, ImportOptions, Quantization, kernel_specs};
use ir::{DType, KernelSpec, Target};

use crate::support::{data, options};

/// What a kernel computes, and the GPUs that programs with it are for.
pub(crate) struct Wanted {
    pub(crate) spec: KernelSpec,
    pub(crate) gpus: Vec<Target>,
}

fn both() -> Vec<Target> {
    vec![Target::sm_80(), Target::sm_90a()]
}

/// Names, sources and options; those alone whose names hold `BROLLY_PROGRAMS`, if that is set.
fn models() -> Vec<(String, PathBuf, CompileOptions)> {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(data(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let mut models: Vec<(String, PathBuf, CompileOptions)> = Vec::new();
    for name in names("families") {
        let folder = data("families").join(&name);
        for dtype in [None, Some(DType::F32), Some(DType::Bf16)] {
            let import = ImportOptions { dtype, ..ImportOptions::default() };
            // What differs in e4m3 does so whatever the weights are.
            let fp8 = (dtype == Some(DType::Bf16)).then_some(DType::F8E4M3);
            for kv_dtype in [DType::F32, DType::Bf16, DType::I8].into_iter().chain(fp8) {
                let options = CompileOptions { kv_dtype, ..options(import.clone()) };
                models.push((format!("{name} {dtype:?} {kv_dtype}"), folder.clone(), options));
            }
        }
        for quantize in [Quantization::Q8, Quantization::Q4, Quantization::Fp8] {
            let mut options = options(ImportOptions::default());
            options.quantize = Some(quantize);
            if quantize == Quantization::Fp8 {
                options.gpus = vec![Target::sm_90a()];
            }
            models.push((format!("{name} {quantize:?}"), folder.clone(), options));
        }
    }
    for name in names("onnx") {
        let file = data("onnx").join(&name).join("model.onnx");
        models.push((name, file, options(ImportOptions::default())));
    }
    models.extend(crate::train::models());
    for (_, _, options) in &mut models {
        options.target = Target::sm_90a();
        if options.gpus.is_empty() {
            options.gpus = both();
        }
    }
    if let Ok(part) = std::env::var("BROLLY_PROGRAMS") {
        models.retain(|(name, ..)| name.contains(&part));
    }
    models
}

/// What the programs' kernels compute, each once, in the order of the programs.
pub(crate) fn specs() -> Vec<Wanted> {
    let models = models();
    let next = Mutex::new(0..models.len());
    let found = Mutex::new(Vec::new());
    let work = || {
        while let Some(i) = { next.lock().unwrap().next() } {
            let (name, model, options) = &models[i];
            let codegen = Codegen::new(Target::sm_90a()).for_gpus(&options.gpus);
            let specs = kernel_specs(model, options, &codegen).map_err(|error| {
                let problems = error.problems();
                format!("{name}: {}", problems.first().cloned().unwrap_or_default())
            });
            found.lock().unwrap().push((i, specs));
        }
    };
    thread::scope(|scope| {
        for _ in 1..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
        work();
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(i, _)| *i);
    let (mut known, mut failed) = (HashMap::new(), Vec::new());
    let mut all: Vec<Wanted> = Vec::new();
    for (i, specs) in found {
        let specs = specs.unwrap_or_else(|why| {
            failed.push(why);
            Vec::new()
        });
        let (_, _, options) = &models[i];
        for spec in specs {
            let at = *known.entry(question(&spec)).or_insert(all.len());
            if at == all.len() {
                all.push(Wanted { spec, gpus: Vec::new() });
            }
            let gpus = &mut all[at].gpus;
            gpus.extend(
                options.gpus.iter().filter(|gpu| !gpus.contains(gpu)).cloned().collect::<Vec<_>>(),
            );
        }
    }
    assert!(failed.is_empty(), "{} fail:\n{}", failed.len(), failed.join("\n"));
    all
}

/// All that a kernel follows from. Loops are functions that programs give names to as they come.
fn question(spec: &KernelSpec) -> String {
    let KernelSpec { op, attrs, operands, results, body, symbols } = spec;
    match body {
        Some(body) => {
            let body = body.to_string().replace(&*body.name, "");
            format!("{op} {operands:?} {results:?} {symbols:?} {body}")
        }
        None => format!("{op} {attrs:?} {operands:?} {results:?} {symbols:?}"),
    }
}
