//! The passes in order, as one table.

use std::{collections::BTreeMap, io::Write as _, sync::Arc};

use ir::{
    Bounds, DType, Env, KernelSpec, Kernels, Layout, ModelKind, Module, Split, Symbols, Target,
};
use passes::{FoldLimits, PageOptions, Parameter, PassError, Plan, Recipe, Report, State};

use crate::{Keep, Quantization, Zero, lora::Adapters};

/// What passes learn and later stages need.
pub(crate) struct Context<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) kind: ModelKind,
    pub(crate) max_seq_len: u64,
    pub(crate) quantize: Option<Quantization>,
    pub(crate) target: Target,
    pub(crate) kv_dtype: DType,
    pub(crate) report: Report,
    /// What is trained; `None` for a program that serves.
    pub(crate) parameters: Option<Vec<Parameter>>,
    /// How the ranks along the data axis share what is trained.
    pub(crate) zero: Zero,
    /// Stages that layers are shared among.
    pub(crate) stages: usize,
    /// How the ranks along the tensor axis have cut weights.
    pub(crate) splits: BTreeMap<Arc<str>, Split>,
    /// What of a layer's forward is there for its backward.
    pub(crate) keep: Keep,
    /// Whether losses are computed that nothing is learned from.
    pub(crate) evaluates: bool,
    /// Share of hidden states that are dropped in training.
    pub(crate) dropout: Option<f64>,
    /// Low-rank adapters, where those are what is trained.
    pub(crate) adapters: Option<Adapters>,
    /// Of each entry.
    pub(crate) states: BTreeMap<Arc<str>, Vec<State>>,
    pub(crate) recipes: Vec<Recipe>,
    pub(crate) plans: Vec<Plan>,
}

/// One pass: its name, what it does, and the function.
pub(crate) struct Pass {
    pub(crate) name: &'static str,
    run: fn(&mut Module, &mut Context<'_>) -> Result<(), Vec<PassError>>,
}

/// The pipeline. Inexact rewrites all happen in `optimize`, before the serving form is made.
pub(crate) static PASSES: &[Pass] = &[
    Pass { name: "optimize", run: optimize },
    Pass { name: "page-kv", run: page_kv },
    Pass { name: "dropout", run: dropout },
    Pass { name: "train-step", run: train_step },
    Pass { name: "expand", run: expand },
    Pass { name: "quantize", run: quantize },
    Pass { name: "prepare", run: prepare },
    Pass { name: "fuse-rope", run: fuse_rope },
    Pass { name: "fuse-loops", run: fuse_loops },
    Pass { name: "mix-precision", run: mix_precision },
    Pass { name: "round-activations", run: round_activations },
    Pass { name: "plan-memory", run: plan_memory },
];

impl Pass {
    /// Runs the pass and, in debug builds, the verifier.
    pub(crate) fn run(
        &self,
        module: &mut Module,
        cx: &mut Context<'_>,
    ) -> Result<(), crate::CompileError> {
        let _span = tracing::info_span!("pass", name = self.name).entered();
        (self.run)(module, cx).map_err(crate::CompileError::Pass)?;
        dump(self.name, module);
        if cfg!(debug_assertions) {
            ir::verify(module)
                .map_err(|problems| crate::CompileError::Internal { stage: self.name, problems })?;
        }
        Ok(())
    }
}

/// Writes the module to stderr where `BROLLY_DUMP=after:PASS` asks for it.
fn dump(pass: &str, module: &Module) {
    let wanted = std::env::var("BROLLY_DUMP").unwrap_or_default();
    if wanted.split(',').any(|w| w == format!("after:{pass}")) {
        // A closed stderr is no reason to stop.
        let _ = writeln!(std::io::stderr(), "// after {pass}\n{module}");
    }
}

/// Block size of paged key/value memory, in tokens.
const BLOCK_SIZE: i64 = 16;

/// Most blocks of key/value memory that a runtime may supply.
const MAX_BLOCKS: i64 = 1 << 24;

/// Of each row of logits on a GPU, the most likely that are copied to the host.
const HEAD: i64 = 256;

fn optimize(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    let env = representative(&module.symbols);
    passes::canonicalize(module, FoldLimits::default()).map_err(|e| vec![e])?;
    let mut weights = passes::weight_params(module);
    if let Some(adapters) = &cx.adapters {
        adapters.lora.take_from(&mut weights);
    }
    cx.report = passes::optimize(module, &weights, cx.kernels, &env).map_err(|e| vec![e])?;
    Ok(())
}

fn page_kv(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    if cx.kind != ModelKind::Decoder || cx.parameters.is_some() {
        return Ok(());
    }
    let options = PageOptions {
        block_size: BLOCK_SIZE,
        dtype: cx.kv_dtype,
        max_seq_len: i64::try_from(cx.max_seq_len).unwrap_or(i64::MAX / 4),
        max_blocks: MAX_BLOCKS,
        head: cx.target.cuda.map_or(0, |_| HEAD),
    };
    let states = passes::page_kv(module, "forward", options)?;
    cx.states.insert("step".into(), states);
    module.entries = vec!["step".into()];
    keep_reachable(module);
    Ok(())
}

fn dropout(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    cx.dropout.map_or(Ok(()), |p| passes::add_dropout(module, "forward", p))
}

fn train_step(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    if let Some(parameters) = &cx.parameters {
        let sharding = cx.sharding()?;
        let keep = cx.keep.passes();
        cx.states = match cx.stages {
            0 | 1 => {
                passes::train_step(module, "forward", parameters, &sharding, keep, &cx.target)?
            }
            stages => {
                let how = (stages, keep);
                passes::train_step_in_stages(
                    module, "forward", parameters, &sharding, how, &cx.target,
                )?
            }
        };
        if let Some(adapters) = &cx.adapters {
            adapters.add_merges(module).map_err(|e| vec![e])?;
        }
        if !cx.evaluates {
            module.entries.retain(|entry| !is_evaluation(entry));
            cx.states.retain(|entry, _| !is_evaluation(entry));
        }
        keep_reachable(module);
        passes::canonicalize(module, FoldLimits::default()).map_err(|e| vec![e])?;
        passes::join_parts(module).map_err(|e| vec![e])?;
    }
    Ok(())
}

/// Whether an entry of a training step computes a loss alone.
fn is_evaluation(entry: &str) -> bool {
    entry.split('.').next() == Some("evaluate")
}

fn expand(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    keep_reachable(module);
    let has_kernel = has_kernel(module, cx.kernels);
    passes::expand_composites(module, &has_kernel).map_err(|e| vec![e])
}

/// Whether a kernel computes a node, its operands dense in memory.
fn has_kernel<'a>(
    module: &Module,
    kernels: &'a dyn Kernels,
) -> impl Fn(&ir::Graph, ir::NodeId) -> bool + use<'a> {
    let symbols = Arc::new(module.symbols.clone());
    move |graph: &ir::Graph, id: ir::NodeId| {
        let node = graph.node(id);
        let layout = |v: &ir::Value| Layout::contiguous(graph.ty(*v));
        let spec = KernelSpec {
            op: node.op.0.name(),
            attrs: node.attrs.clone(),
            operands: node.inputs().iter().map(|v| v.as_ref().map(layout)).collect(),
            results: node.results().iter().map(|f| Layout::contiguous(&f.ty)).collect(),
            body: None,
            symbols: symbols.clone(),
        };
        kernels.supports(&spec).is_ok()
    }
}

fn quantize(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    match cx.quantize {
        Some(quantization) => {
            passes::quantize(module, quantization.format(), &cx.target).map_err(|e| vec![e])
        }
        None => Ok(()),
    }
}

fn prepare(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    for entry in module.entries.clone() {
        let recipes = passes::prepare(module, &entry, &cx.recipes).map_err(|e| vec![e])?;
        cx.recipes.extend(recipes);
    }
    keep_reachable(module);
    Ok(())
}

fn fuse_rope(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    let has_kernel = has_kernel(module, cx.kernels);
    passes::fuse_rope(module, &has_kernel).map_err(|e| vec![e])
}

fn fuse_loops(module: &mut Module, _: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    passes::take_residuals(module).map_err(|e| vec![e])?;
    passes::fuse_loops(module).map_err(|e| vec![e])
}

fn mix_precision(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    if cx.parameters.is_none() {
        return Ok(());
    }
    passes::mix_precision(module, &cx.target).map_err(|e| vec![e])?;
    passes::fuse_products(module, &cx.target).map_err(|e| vec![e])
}

fn round_activations(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    passes::round_activations(module, &cx.target).map_err(|e| vec![e])
}

fn plan_memory(module: &mut Module, cx: &mut Context<'_>) -> Result<(), Vec<PassError>> {
    for entry in module.entries.clone() {
        let states = cx.states.get(&entry).map_or(&[][..], Vec::as_slice);
        cx.plans.push(passes::plan_memory(module, &entry, states, cx.kernels)?);
    }
    Ok(())
}

/// Drops functions that no entry calls, directly or not.
fn keep_reachable(module: &mut Module) {
    let mut live: Vec<Arc<str>> = module.entries.clone();
    let mut next = 0;
    while let Some(name) = live.get(next).cloned() {
        next += 1;
        let Some(graph) = module.function(&name) else { continue };
        for id in graph.topo() {
            if let Some(ir::Attr::Str(callee)) = graph.node(id).attrs.get("callee")
                && !live.contains(callee)
            {
                live.push(callee.clone());
            }
        }
    }
    module.functions.retain(|name, _| live.contains(name));
}

/// Values between the bounds, geometrically, at which costs are compared.
pub(crate) fn representative(symbols: &Symbols) -> Env {
    let middle = |b: &Bounds| {
        let (mut lo, mut hi) = (b.lo.max(1), b.hi.max(1));
        while lo < hi {
            lo = lo.saturating_mul(2).min(hi);
            hi = (hi / 2).max(lo);
        }
        lo
    };
    symbols.iter().map(|(name, b)| (name.clone(), middle(b))).collect()
}

/// Runs one pass on a module, for `brolly opt`.
///
/// # Errors
/// The pass's problems, or that there is no pass of that name.
pub fn run_pass(
    name: &str,
    module: &mut Module,
    kernels: &dyn Kernels,
) -> Result<(), crate::CompileError> {
    if name == "canonicalize" {
        return passes::canonicalize(module, FoldLimits::default())
            .map_err(|e| crate::CompileError::Pass(vec![e]));
    }
    let Some(pass) = PASSES.iter().find(|p| p.name == name) else {
        let names: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
        let why = format!("no such pass; there are canonicalize, {}", names.join(", "));
        return Err(crate::CompileError::Pass(vec![PassError::new(name, why)]));
    };
    let entry = module.entries.first().map_or("", |e| e);
    let kind = match entry {
        "forward" => ModelKind::Decoder,
        "embed" => ModelKind::Encoder,
        _ => ModelKind::Graph,
    };
    let mut cx = Context::new(kernels, kind, 4096);
    pass.run(module, &mut cx)
}

impl<'a> Context<'a> {
    pub(crate) fn new(kernels: &'a dyn Kernels, kind: ModelKind, max_seq_len: u64) -> Self {
        Context {
            kernels,
            kind,
            max_seq_len,
            quantize: None,
            target: Target::x86_64_v3(),
            kv_dtype: DType::F32,
            report: Report::default(),
            parameters: None,
            zero: Zero::default(),
            stages: 1,
            splits: BTreeMap::new(),
            keep: Keep::All,
            evaluates: true,
            dropout: None,
            adapters: None,
            states: BTreeMap::new(),
            recipes: Vec::new(),
            plans: Vec::new(),
        }
    }
}
