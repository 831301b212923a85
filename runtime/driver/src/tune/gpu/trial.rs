//! One product with some tiles, compiled into an artifact and loaded on a device.
//!
//! Weights are random numbers that no file holds, and x is one of them, so a run copies nothing to
//! the device. It is multiplied with several weights in turn: few rows with more than the
//! second-level cache holds, as in a model, and more for so long that a launch takes no part of it.

use std::sync::Arc;

use codegen::{
    Codegen,
    kernels::gemm::Gemm,
    schedule::{Entry, Family, Tile, Tuning, Variant},
};
use exec::{Device, Executable, Model, States};
use ir::{
    Attr, Attrs, Bounds, CudaTarget, DType, Dim, E4M3_BLOCK, E4M3_PANEL_BYTES, ModelInfo,
    ModelKind, Module, OpError, PANEL, QUANT_GROUP, Symbols, TensorType,
    artifact::{Artifact, Contents, Digest, WeightSpec, write},
};
use passes::Plan;

use super::{
    super::{
        Product, device,
        trial::{Temporary, failure},
    },
    Candidate,
};
use crate::{CompileError, CompileOptions};

/// Rows up to which it is the weight that takes time.
const FEW_ROWS: u64 = 256;
/// Bytes of the weights that few rows are multiplied with in turn.
const WEIGHT_BYTES: u64 = 160 << 20;
/// Operations of a run of more rows.
const FLOPS: u64 = 1_000_000_000_000;
/// Weights at most.
const MOST_WEIGHTS: u64 = 16;
/// The seed of x and the weights.
const SEED: u64 = 6;

/// What candidates for a product have in common.
pub(super) struct Bench<'a> {
    pub(super) product: &'a Product,
    pub(super) compile: &'a CompileOptions,
    pub(super) gpu: CudaTarget,
    device: &'a Device,
    gemm: Gemm,
}

/// A candidate.
pub(super) struct Trial {
    pub(super) candidate: Candidate,
    /// How many weights a run multiplies with.
    pub(super) weights: usize,
    product: Product,
    executable: Executable,
    dtype: DType,
}

/// An artifact of a candidate.
pub(super) struct Written {
    file: Temporary,
    candidate: Candidate,
    weights: usize,
    dtype: DType,
}

impl Bench<'_> {
    /// The bench of a product, and the tiles that the compiler would give it.
    pub(super) fn new<'a>(
        product: &'a Product,
        compile: &'a CompileOptions,
        device: &'a Device,
    ) -> Result<(Bench<'a>, Vec<Variant>), CompileError> {
        let fail = |reason: &str| failure(product, reason.into());
        let gpu = compile.target.cuda.ok_or_else(|| fail("the target is no GPU"))?;
        if !device::has(compile, product.family) {
            return Err(CompileError::Targets(vec![format!(
                "{product}: {} has no such products",
                compile.target.cpu
            )]));
        }
        let codegen = Codegen::new(compile.target.clone());
        let (plan, _) = plan(product, Form::Packed, (1, 1), &codegen)?;
        let gemm = plan.specs.iter().find_map(codegen::lower::gemm);
        let gemm = gemm.ok_or_else(|| fail("has no kernel"))?;
        let base = Tuning::builtin().tiles(&compile.target, &gpu, &gemm);
        // Of a generation, some GPUs have less shared memory than others.
        let shared_bytes = device
            .facts()
            .map_or(gpu.shared_bytes, |facts| facts.shared_bytes.min(gpu.shared_bytes));
        let gpu = CudaTarget { shared_bytes, ..gpu };
        Ok((Bench { product, compile, gpu, device, gemm }, base))
    }

    /// Whether the tile computes the product as it is.
    pub(super) fn computes(&self, tile: Tile) -> bool {
        tile.fitted(&self.gemm, &self.gpu) == Some(tile)
    }

    /// Compiles and loads.
    pub(super) fn trial(&self, tiles: &[Variant], rows: u64) -> Result<Trial, CompileError> {
        self.open(self.write(tiles, rows)?)
    }

    /// The library's product, loaded.
    pub(super) fn library(&self, rows: u64) -> Result<Trial, CompileError> {
        self.open(self.write_as(Candidate::Library, &[], rows)?)
    }

    /// Compiles, for up to so many rows.
    pub(super) fn write(&self, tiles: &[Variant], rows: u64) -> Result<Written, CompileError> {
        self.write_as(Candidate::Tile(tiles[0].tile), tiles, rows)
    }

    fn write_as(
        &self,
        candidate: Candidate,
        tiles: &[Variant],
        rows: u64,
    ) -> Result<Written, CompileError> {
        let Product { family, n, k, gated } = *self.product;
        let target = &self.compile.target;
        let entry = Entry { gated, tiles: tiles.to_vec(), ..Entry::of(target, family, n, k) };
        let mut codegen = Codegen::new(target.clone())
            .with_assembler(self.compile.assembler.clone())
            .with_tuning(Tuning { entries: vec![entry] })
            .with_library(candidate == Candidate::Library)
            .on_threads(std::num::NonZeroUsize::MIN);
        if let Some(cache) = &self.compile.kernel_cache {
            codegen = codegen.with_objects(Arc::new(cache.clone()));
        }
        let weights = match rows {
            ..=FEW_ROWS => WEIGHT_BYTES / weight_bytes(self.product),
            _ => FLOPS / (2 * rows * n * k).max(1),
        };
        let weights = weights.clamp(1, MOST_WEIGHTS);
        let form = match candidate {
            Candidate::Library => Form::AsStored,
            Candidate::Tile(_) => Form::Packed,
        };
        let (plan, module) = plan(self.product, form, (rows, weights), &codegen)?;
        let code = codegen.compile(&plan.specs, &|_, _| {}).map_err(CompileError::Codegen)?;
        let mut program = plan.program;
        program.kernels = code.kernels;
        let spec = |name: &Arc<str>| {
            let ty = &module.weights[name];
            WeightSpec {
                name: name.to_string(),
                dtype: ty.dtype,
                shape: ty.const_shape().expect("constant").iter().map(|d| *d as u64).collect(),
                sources: Vec::new(),
            }
        };
        let dtype = program.outputs[0].ty.dtype;
        let contents = Contents {
            compiler: format!("brolly {}", env!("CARGO_PKG_VERSION")),
            target: target.clone(),
            model: ModelInfo {
                architecture: "product".into(),
                kind: ModelKind::Graph,
                vocab_size: 0,
                hidden_size: 0,
                max_seq_len: rows,
                parameters: n * k,
            },
            source_digest: Digest::default(),
            code: &code.image,
            modules: code.modules.clone(),
            folds: Vec::new(),
            random: Some(SEED),
            text: serde_json::Value::Null,
            report: serde_json::Value::Null,
            weights: plan.weights.iter().map(spec).collect(),
            programs: vec![program],
        };
        let file = Temporary::new();
        write(&file.0, contents, |_| Err("there is none to be stored"))?;
        let weights = usize::try_from(weights).unwrap_or(1);
        Ok(Written { file, candidate, weights, dtype })
    }

    /// Loads.
    pub(super) fn open(&self, written: Written) -> Result<Trial, CompileError> {
        let Written { file, candidate, weights, dtype } = written;
        let artifact = Artifact::open(&file.0)?;
        let executable = Model::load(Arc::new(artifact), self.device.clone())
            .and_then(|model| Executable::load(&model, "main", &[]))
            .and_then(|mut executable| {
                let names: Vec<String> = (0..weights).map(|i| format!("y{i}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                executable.leave_outputs(&names)?;
                Ok(executable)
            });
        let executable = executable.map_err(|e| failure(self.product, e.to_string()))?;
        Ok(Trial { candidate, weights, product: *self.product, executable, dtype })
    }
}

impl Trial {
    /// The results of so many rows.
    pub(super) fn results(&mut self, rows: u64) -> Result<Vec<u8>, CompileError> {
        self.run(rows).map_err(|reason| failure(&self.product, reason))?;
        let all: Vec<usize> = (0..usize::try_from(rows).unwrap_or(usize::MAX)).collect();
        let bytes = match self.dtype {
            DType::F32 => {
                let found = self.executable.output_rows::<u32>("y0", &all);
                found.map(|rows| rows.concat().into_iter().flat_map(u32::to_le_bytes).collect())
            }
            _ => {
                let found = self.executable.output_rows::<u16>("y0", &all);
                found.map(|rows| rows.concat().into_iter().flat_map(u16::to_le_bytes).collect())
            }
        };
        bytes.map_err(|e| failure(&self.product, e.to_string()))
    }

    /// Multiplies so many rows, and waits for the end.
    pub(super) fn run(&mut self, rows: u64) -> Result<(), String> {
        let symbols = [("T", i64::try_from(rows).unwrap_or(i64::MAX))];
        let run = self.executable.run(&mut States::none(), &symbols, &[]);
        run.map_err(|e| e.to_string())
    }
}

/// How a weight lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As generated kernels read it.
    Packed,
    /// Column by column, as checkpoints have it.
    AsStored,
}

/// The weight's type.
fn weight(product: &Product, form: Form) -> TensorType {
    let Product { family, n, k, gated } = *product;
    let size = |v: u64| usize::try_from(v).unwrap_or(usize::MAX);
    if form == Form::AsStored {
        return TensorType::new(activation(family), [size(n), size(k)]);
    }
    let panels = size(n).div_ceil(PANEL) * if gated { 2 } else { 1 };
    let k = size(k);
    match family {
        Family::F32 => TensorType::new(DType::F32, [panels, k, PANEL]),
        Family::Bf16 => TensorType::new(DType::Bf16, [panels, k, PANEL]),
        Family::F16 => TensorType::new(DType::F16, [panels, k, PANEL]),
        Family::Q8 | Family::Q4 => {
            let bytes = ir::quant_lane_bytes(if family == Family::Q4 { 4 } else { 8 });
            TensorType::new(DType::U8, [panels, k.div_ceil(QUANT_GROUP), bytes])
        }
        Family::Fp8 => {
            TensorType::new(DType::U8, [panels, k.div_ceil(E4M3_BLOCK), E4M3_PANEL_BYTES])
        }
    }
}

fn weight_bytes(product: &Product) -> u64 {
    let ty = weight(product, Form::Packed);
    let elements = ty.const_shape().expect("constant").iter().product::<usize>();
    (elements * ty.dtype.size()).max(1) as u64
}

/// `y = x · w` for each of so many weights, as the products of a model have it.
fn plan(
    product: &Product,
    form: Form,
    (rows, weights): (u64, u64),
    codegen: &Codegen,
) -> Result<(Plan, Module), CompileError> {
    let module =
        module(product, form, (rows, weights)).map_err(|e| failure(product, e.to_string()))?;
    let plan = passes::plan_memory(&module, "main", &[], codegen).map_err(CompileError::Pass)?;
    Ok((plan, module))
}

/// The type of what is multiplied.
fn activation(family: Family) -> DType {
    match family {
        Family::F32 => DType::F32,
        Family::F16 => DType::F16,
        _ => DType::Bf16,
    }
}

fn module(product: &Product, form: Form, (rows, weights): (u64, u64)) -> Result<Module, OpError> {
    let Product { family, n, k, gated } = *product;
    let int = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    let mut module = Module::new("product");
    module.symbols = Symbols::from_iter([("T".into(), Bounds { lo: 1, hi: int(rows) })]);
    let dtype = activation(family);
    module.weight("x", TensorType::new(dtype, [int(rows), int(k)].map(Dim::from)));
    for i in 0..weights {
        module.weight(&format!("w{i}"), weight(product, form));
    }
    let mut b = module.builder("main");
    let x = b.weight("x")?;
    let range = vec![Dim::from(0), Dim::symbol("T")];
    let range = Attrs::none().with("axis", 0i64).with("range", range).with("step", 1i64);
    let mut x = b.op1("slice", range, &[x])?;
    let mut attrs =
        Attrs::none().with("n", int(n)).with("act", if gated { "silu" } else { "none" });
    let op = match family {
        _ if form == Form::AsStored => {
            attrs = Attrs::none().with("dtype", dtype);
            "cublaslt_linear"
        }
        Family::Q8 | Family::Q4 | Family::Fp8 => {
            attrs = attrs.with("gated", Attr::Bool(gated));
            "quantized_linear"
        }
        _ if gated => "gated_linear",
        _ => "linear",
    };
    if family == Family::Fp8 {
        let format = Attrs::none().with("weight_bits", 8i64).with("format", "e4m3");
        x = b.op1("quantize_rows", format, &[x])?;
    }
    for i in 0..weights {
        let w = b.weight(&format!("w{i}"))?;
        let y = b.op1(op, attrs.clone(), &[x, w])?;
        b.output(&format!("y{i}"), y);
    }
    let graph = b.finish();
    module.add(graph);
    module.entries = vec!["main".into()];
    Ok(module)
}
