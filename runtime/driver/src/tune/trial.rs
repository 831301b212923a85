//! One product under one schedule, compiled into an artifact and loaded.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use codegen::{
    Codegen,
    schedule::{Entry, Family, Schedule, Tuning},
};
use exec::{Device, Executable, Model, States};
use ir::{
    Attrs, Bounds, DType, Dim, ModelInfo, ModelKind, Module, OpError, PANEL, Symbols, Tensor,
    TensorType,
    artifact::{Artifact, Contents, Digest, WeightSpec, write},
};

use super::Product;
use crate::{CompileError, CompileOptions};

/// Most rows that are run.
const MOST_ROWS: u64 = 256;

/// Runs that are timed as one at most, for the shortest of them.
const REPEATS: usize = 5;

pub(super) struct Trial {
    pub(super) schedule: Schedule,
    product: Product,
    executable: Executable,
    /// f32 `[MOST_ROWS, k]`.
    x: Vec<u8>,
}

impl Trial {
    /// Compiles and loads.
    pub(super) fn new(
        product: &Product,
        schedule: Schedule,
        compile: &CompileOptions,
        device: &Device,
    ) -> Result<Trial, CompileError> {
        let Product { family, n, k, .. } = *product;
        let entry = Entry { schedule, ..Entry::of(&compile.target, family, n, k) };
        let tuning = Tuning { entries: vec![entry] };
        let mut codegen = Codegen::new(compile.target.clone()).with_tuning(tuning);
        if let Some(threads) = compile.threads {
            codegen = codegen.on_threads(threads);
        }
        if let Some(cache) = &compile.kernel_cache {
            codegen = codegen.with_objects(Arc::new(cache.clone()));
        }
        let fail = |reason: String| failure(product, reason);
        let (module, weight) = module(product).map_err(|e| fail(e.to_string()))?;
        let plan =
            passes::plan_memory(&module, "main", &[], &codegen).map_err(CompileError::Pass)?;
        let code = codegen.compile(&plan.specs, &|_, _| {}).map_err(CompileError::Codegen)?;
        let mut program = plan.program;
        program.kernels = code.kernels;
        let spec = WeightSpec {
            name: "w".into(),
            dtype: weight.dtype(),
            shape: weight.shape().iter().map(|d| *d as u64).collect(),
            sources: Vec::new(),
        };
        let contents = Contents {
            compiler: format!("brolly {}", env!("CARGO_PKG_VERSION")),
            target: compile.target.clone(),
            model: ModelInfo {
                architecture: "product".into(),
                kind: ModelKind::Graph,
                vocab_size: 0,
                hidden_size: 0,
                max_seq_len: MOST_ROWS,
                parameters: n * k,
            },
            source_digest: Digest::default(),
            code: &code.image,
            modules: code.modules.clone(),
            folds: Vec::new(),
            random: None,
            text: serde_json::Value::Null,
            report: serde_json::Value::Null,
            programs: vec![program],
            weights: vec![spec],
        };
        let file = Temporary::new();
        write(&file.0, contents, |_| Ok::<_, String>(weight.clone()))?;
        let artifact = Artifact::open(&file.0)?;
        let executable = Model::load(Arc::new(artifact), device.clone())
            .and_then(|model| Executable::load(&model, "main", &[]));
        let mut executable = executable.map_err(|e| fail(e.to_string()))?;
        executable.set_profiling(true);
        let x = (0..MOST_ROWS * k).flat_map(|i| ((i % 61) as f32 / 64.0 - 0.4).to_le_bytes());
        Ok(Trial { schedule, product: *product, executable, x: x.collect() })
    }

    /// The results of so many rows.
    pub(super) fn results(&mut self, rows: u64) -> Result<Vec<u8>, CompileError> {
        self.run(rows).map_err(|reason| failure(&self.product, reason))?;
        let y = self.executable.output::<f32>("y");
        let y = y.map_err(|e| failure(&self.product, e.to_string()))?;
        Ok(y.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// The shortest time of the product in a few runs.
    pub(super) fn seconds(&mut self, rows: u64) -> Result<f64, CompileError> {
        let mut best = f64::MAX;
        for _ in 0..REPEATS {
            self.run(rows).map_err(|reason| failure(&self.product, reason))?;
            let products =
                self.executable.launch_times().filter(|l| l.kernel.op.ends_with("linear"));
            best = best.min(products.map(|l| l.time.as_secs_f64()).sum());
        }
        Ok(best)
    }

    fn run(&mut self, rows: u64) -> Result<(), String> {
        let bytes = usize::try_from(rows * self.product.k * 4).map_err(|e| e.to_string())?;
        let symbols = [("T", i64::try_from(rows).unwrap_or(i64::MAX))];
        let run = self.executable.run(&mut States::none(), &symbols, &[("x", &self.x[..bytes])]);
        run.map_err(|e| e.to_string())
    }
}

pub(super) fn failure(product: &Product, reason: String) -> CompileError {
    CompileError::Tune { product: product.to_string(), reason }
}

/// `y = x · w` for up to [`MOST_ROWS`] rows, and the weight, whose numbers are all small.
fn module(product: &Product) -> Result<(Module, Tensor), OpError> {
    let Product { family, n, k, .. } = *product;
    let size = |v: u64| usize::try_from(v).unwrap_or(usize::MAX);
    let panels = size(n).div_ceil(PANEL);
    let (dtype, shape) = match family {
        Family::F32 => (DType::F32, [panels, size(k), PANEL]),
        Family::Bf16 => (DType::Bf16, [panels, size(k), PANEL]),
        Family::F16 => (DType::F16, [panels, size(k), PANEL]),
        Family::Q8 | Family::Q4 | Family::Fp8 => {
            let bits = if family == Family::Q8 { 8 } else { 4 };
            (DType::U8, [panels, size(k).div_ceil(ir::QUANT_BLOCK), ir::quant_weight_bytes(bits)])
        }
    };
    let bytes = shape.iter().product::<usize>() * dtype.size();
    let word = |i: usize| 0x3c00u16 + u16::try_from(i * 31 % 512).unwrap_or(0);
    let bytes: Vec<u8> = (0..bytes / 2).flat_map(|i| word(i).to_le_bytes()).collect();
    let weight = Tensor::from_bytes(dtype, &shape, bytes);

    let mut module = Module::new("product");
    let most = i64::try_from(MOST_ROWS).unwrap_or(i64::MAX);
    module.symbols = Symbols::from_iter([("T".into(), Bounds { lo: 1, hi: most })]);
    module.weight("w", TensorType::new(dtype, shape));
    let mut b = module.builder("main");
    let x = b.param("x", TensorType::new(DType::F32, [Dim::symbol("T"), Dim::from(size(k))]))?;
    let w = b.weight("w")?;
    let attrs = Attrs::none().with("n", i64::try_from(n).unwrap_or(i64::MAX));
    let y = if family.is_quantized() {
        let bits = if family == Family::Q4 { 4i64 } else { 8 };
        let rows = b.op1("quantize_rows", Attrs::none().with("weight_bits", bits), &[x])?;
        b.op1("quantized_linear", attrs, &[rows, w])?
    } else {
        b.op1("linear", attrs, &[x, w])?
    };
    b.output("y", y);
    let graph = b.finish();
    module.add(graph);
    module.entries = vec!["main".into()];
    Ok((module, weight))
}

/// A file that is removed in the end.
pub(super) struct Temporary(pub(super) PathBuf);

impl Temporary {
    pub(super) fn new() -> Temporary {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("brolly-tune-{}-{number}.brolly", std::process::id());
        Temporary(std::env::temp_dir().join(name))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It stays mapped by whoever opened it; one that cannot be removed is in a folder for such.
        let _ = std::fs::remove_file(&self.0);
    }
}
