//! Every kernel of every program of the suite: NVIDIA's assembler takes it, without spills where
//! time is spent, the emulator computes blocks of it on random operands, and there are variants of
//! it for all GPUs that run such code.
//!
//! Programs differ in sizes that are constants of their kernels. By default one kernel is taken of
//! those whose texts have the same lines but for numbers; `BROLLY_EVERY_KERNEL=1` takes them all,
//! and `BROLLY_EVERY_KERNEL=softmax` those of operators whose names hold that.

use std::{
    collections::{BTreeSet, HashSet, hash_map::DefaultHasher},
    env,
    fmt::Write as _,
    fs,
    hash::{Hash as _, Hasher as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ::ptx::{Arch, Gpu, Launch, Module, Param};
use codegen::{
    cuda::{CudaKernel, CudaParam},
    lower::lowering,
};
use ir::{CudaArch, DType, Dim, Env, KernelSpec, Layout, Target};

use super::{
    assemble::programs,
    buffer::Buffer,
    case::lacking,
    device::{ptx_of, targets},
    map,
    operands::{self, BLOCKS, SEQUENCES},
    oracle,
};

/// A kernel that no other one equals, in its text and how it is launched.
struct Distinct {
    spec: KernelSpec,
    target: Target,
    kernel: CudaKernel,
    /// Limits of the variants before it, which a launch of it is beyond.
    beyond: Vec<(Dim, i64)>,
}

/// Whether a model's time is spent in such a kernel: products, attention of heads of whole 16
/// elements, norms, loops and what moves rows. What runs once for a batch may spill, and so may
/// attention of heads that only models of tests have.
fn is_hot(spec: &KernelSpec) -> bool {
    let op = spec.op;
    let is_odd = |layout: &Layout| {
        let row = layout.ty.shape.last().and_then(Dim::as_const);
        row.is_some_and(|row| row % 16 != 0)
    };
    if op.contains("attention") && spec.operands[0].as_ref().is_some_and(is_odd) {
        return false;
    }
    let parts = ["linear", "matmul", "attention", "norm", "_step", "quantize"];
    let whole = [
        "fused",
        "copy",
        "cast",
        "rope",
        "kv_write",
        "accumulate",
        "softmax",
        "gather",
        "pack",
        "reduce_sum",
        "reduce_sum_square",
        "reduce_mean",
        "embedding_grad",
        "logsumexp",
        "cross_entropy",
        "moe_combine",
    ];
    parts.iter().any(|part| op.contains(part)) || whole.contains(&op)
}

/// How far off results may be.
fn tolerance(spec: &KernelSpec) -> f64 {
    let narrow = spec.operands.iter().flatten().any(|l| l.ty.dtype != DType::F32 && is_data(l));
    let behind =
        |id: &ir::NodeId, body: &ir::Graph| matches!(body.node(*id).op.name(), "matmul" | "linear");
    match spec.op {
        // What it rounds in between.
        "fused" if spec.body.as_ref().is_some_and(|f| f.topo().iter().any(|id| behind(id, f))) => {
            1e-2
        }
        "attention" | "attention_lse" | "paged_attention" | "rope_kv_write" if narrow => 4e-3,
        "linear_cross_entropy_grad" if narrow => 1e-2,
        "norm_grad" => 2e-4,
        "attention_grad" => 5e-5,
        _ => 2e-5,
    }
}

fn is_data(layout: &Layout) -> bool {
    layout.ty.dtype.is_float() || layout.ty.dtype == DType::I8
}

/// The kernels to look at, and of how many.
fn distinct() -> (Vec<Distinct>, usize) {
    let wanted = env::var("BROLLY_EVERY_KERNEL").ok();
    let all = wanted.is_some();
    let is_meant = |op: &str| wanted.as_ref().is_none_or(|part| part == "1" || op.contains(part));
    let specs = crate::gpu::programs::specs();
    let (mut kernels, mut forms, mut classes) = (Vec::new(), HashSet::new(), HashSet::new());
    for target in targets() {
        let here = specs.iter().filter(|wanted| wanted.gpus.contains(&target));
        for spec in here.map(|wanted| &wanted.spec).filter(|spec| is_meant(spec.op)) {
            let emitted = lowering(spec.op).unwrap().emit_cuda(spec, &target);
            let emitted = emitted.unwrap_or_else(|e| panic!("{e}"));
            let lack = lacking(&emitted, &target);
            assert_eq!(lack, None, "bytes of shared memory for {} on {}", spec.op, target.cpu);
            let mut beyond = Vec::new();
            for kernel in emitted {
                let limit = kernel.limit.clone();
                let CudaKernel { symbol, params, grid, .. } = &kernel;
                let form = format!("{} {symbol} {params:?} {grid:?} {limit:?}", target.cpu);
                if forms.insert(form) && (classes.insert(class(&kernel, &target)) || all) {
                    let (spec, target, beyond) = (spec.clone(), target.clone(), beyond.clone());
                    kernels.push(Distinct { spec, target, kernel, beyond });
                }
                beyond.extend(limit);
            }
        }
    }
    (kernels, forms.len())
}

/// What a kernel has in common with those that differ from it in numbers, and in how often lines
/// are repeated.
fn class(kernel: &CudaKernel, target: &Target) -> u64 {
    let text = kernel.mlir.replace(&kernel.symbol, "");
    let strip = |line: &str| line.replace(|c: char| c.is_ascii_digit() || "-.+".contains(c), "");
    let lines: BTreeSet<String> = text.lines().map(strip).collect();
    let mut hash = DefaultHasher::new();
    (&target.cpu, kernel.cluster, kernel.limit.is_some(), lines).hash(&mut hash);
    hash.finish()
}

#[test]
fn every_kernel_is_assembled_and_computes_what_it_should() {
    let assembler = programs();
    let (kernels, count) = distinct();
    println!("{} kernels of {count}", kernels.len());
    let next = AtomicUsize::new(0);
    let (failed, spilled) = (Mutex::new(0), Mutex::new(0));
    let count = |total: &Mutex<usize>, what: String| {
        println!("{what}");
        *total.lock().unwrap() += 1;
    };
    let times = [const { Mutex::new(Duration::ZERO) }; 3];
    let timed = |phase: usize, start: Instant| *times[phase].lock().unwrap() += start.elapsed();
    let work = || {
        while let Some(one) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let ptx = ptx_of(&one.kernel, &one.target);
            timed(0, start);
            if let Some(folder) = &assembler {
                let start = Instant::now();
                match one.assemble(folder, &ptx) {
                    Err(why) => count(&failed, one.describe(&why)),
                    Ok(Some(spill)) if is_hot(&one.spec) => count(&failed, one.describe(&spill)),
                    Ok(Some(spill)) => count(&spilled, one.describe(&spill)),
                    Ok(None) => {}
                }
                timed(1, start);
            }
            let start = Instant::now();
            let run = catch_unwind(AssertUnwindSafe(|| one.emulate(&ptx)));
            let run = run.unwrap_or_else(|panic| Err(message(&*panic)));
            if let Err(why) = run {
                count(&failed, one.describe(&why));
            }
            timed(2, start);
        }
    };
    thread::scope(|scope| {
        for _ in 1..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
        work();
    });
    let [printed, assembled, emulated] = times.map(|time| time.into_inner().unwrap());
    let spilled = spilled.into_inner().unwrap();
    println!("PTX {printed:.0?}, ptxas {assembled:.0?}, emulator {emulated:.0?}, {spilled} spill");
    assert_eq!(failed.into_inner().unwrap(), 0, "kernels fail, as said above");
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

impl Distinct {
    fn describe(&self, why: &str) -> String {
        let mut text =
            format!("{} {:?} on {}:", self.kernel.symbol, self.spec.attrs, self.target.cpu);
        for operand in &self.spec.operands {
            let _ = match operand {
                Some(layout) => write!(text, " {layout}"),
                None => write!(text, " _"),
            };
        }
        text.push_str(" ->");
        for result in &self.spec.results {
            let _ = write!(text, " {result}");
        }
        text + ": " + why
    }

    /// What the kernel spills, if it does.
    fn assemble(&self, folder: &Path, ptx: &str) -> Result<Option<String>, String> {
        // Kernels of one text are launched in several ways, and those are looked at side by side.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = crate::support::scratch().join(format!("every-{number}"));
        let (text, cubin) = (base.with_extension("ptx"), base.with_extension("cubin"));
        fs::write(&text, ptx).unwrap();
        let mut ptxas = Command::new(folder.join("ptxas"));
        ptxas.args(["-v", "-O3", &format!("-arch={}", self.target.cpu), "-o"]);
        let output = ptxas.arg(&cubin).arg(&text).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        for file in [text, cubin] {
            let _ = fs::remove_file(file);
        }
        // C75xx: products that the assembler serialised, registers that it could not move.
        if !output.status.success() || said.contains("warning") || said.contains("(C75") {
            return Err(said);
        }
        let spills = !said.contains("0 bytes spill stores, 0 bytes spill loads")
            || !said.contains("0 bytes stack frame");
        Ok(spills.then_some(said))
    }

    /// Whether the kernel is made for these sizes.
    fn is_meant(&self, env: &Env) -> bool {
        self.kernel.limit.as_ref().is_none_or(|limit| within(limit, env))
    }

    /// Whether a launch of these sizes takes it.
    fn is_taken(&self, env: &Env) -> bool {
        self.is_meant(env) && !self.beyond.iter().any(|limit| within(limit, env))
    }

    fn grid(&self, env: &Env) -> [u32; 3] {
        self.kernel.grid.each_ref().map(|dim| u32::try_from(dim.eval(env).unwrap()).unwrap())
    }

    /// The smallest sizes at which the kernel is taken and has two clusters of blocks; one that a
    /// program's bounds leave to the variants before it computes the same as they do.
    fn env(&self) -> Env {
        let env = |size: i64| -> Env {
            let value = |(name, bounds): (&std::sync::Arc<str>, &ir::Bounds)| {
                let value = match &**name {
                    "S" => SEQUENCES,
                    "NB" => BLOCKS,
                    "batch" => size.min(2),
                    _ => size,
                };
                (name.clone(), value.clamp(bounds.lo, bounds.hi))
            };
            self.spec.symbols.iter().map(value).collect()
        };
        let sizes = [3, 5, 7, 13, 37, 67, 131, 259, 2, 1].map(env);
        let has_two = |env: &Env| {
            let blocks: u32 = self.grid(env).iter().product();
            blocks >= 2 * self.kernel.cluster
        };
        let best = [
            sizes.iter().find(|env| self.is_taken(env) && has_two(env)),
            sizes.iter().find(|env| self.is_taken(env)),
            sizes.iter().find(|env| self.is_meant(env) && has_two(env)),
            sizes.iter().find(|env| self.is_meant(env)),
        ];
        best.into_iter().flatten().next().expect("no size is within the limit").clone()
    }

    /// Computes the first and the last block, or all where there are few or those two have nothing
    /// to do, and compares what they wrote.
    fn emulate(&self, ptx: &str) -> Result<(), String> {
        let env = self.env();
        let few = self.grid(&env).iter().product::<u32>() <= 2 * self.kernel.cluster;
        let written = self.emulate_at(&env, ptx, few)?;
        let written =
            if written == 0 && !few { self.emulate_at(&env, ptx, true)? } else { written };
        if written == 0 { Err(format!("{env:?}: wrote nothing")) } else { Ok(()) }
    }

    /// Elements that `all` blocks wrote, or the first and the last.
    fn emulate_at(&self, env: &Env, ptx: &str, all: bool) -> Result<usize, String> {
        let args = operands::random(&self.spec, env);
        let want = oracle::results(&self.spec, &args, env);
        let arch = match self.target.cuda.unwrap().arch {
            CudaArch::Sm80 => Arch::Sm80,
            CudaArch::Sm90a => Arch::Sm90a,
        };
        let mut gpu = Gpu::new(arch);
        let operands = self.spec.operands.iter().zip(&args);
        let operands: Vec<Option<Buffer>> = operands
            .map(|(layout, arg)| {
                let mut buffer = Buffer::new(&mut gpu, layout.as_ref()?, env);
                buffer.fill(&mut gpu, arg.as_ref()?);
                Some(buffer)
            })
            .collect();
        let in_place = KernelSpec::in_place(self.spec.op);
        let results: Vec<(Buffer, bool)> = (self.spec.results.iter().enumerate())
            .map(|(i, layout)| match in_place.iter().find(|(result, _)| *result == i) {
                Some((_, operand)) => (operands[*operand].clone().unwrap(), true),
                None => (Buffer::new(&mut gpu, layout, env), false),
            })
            .collect();
        let addresses: Vec<u64> = (operands.iter())
            .map(|buffer| buffer.as_ref().map_or(0, |b| b.address))
            .chain(results.iter().map(|(b, _)| b.address))
            .collect();
        let params = self.kernel.params.iter().map(|param| match param {
            CudaParam::Pointer { arg, align } => {
                assert_eq!(addresses[*arg as usize] % u64::from(*align), 0);
                Param::U64(addresses[*arg as usize])
            }
            CudaParam::Size(dim) => Param::U64(dim.eval(env).unwrap().cast_unsigned()),
            CudaParam::Map(map) => map::encode(&mut gpu, map, addresses[map.arg as usize], env),
        });
        let params: Vec<Param> = params.collect();
        let grid = self.grid(env);
        let launch = Launch {
            grid,
            block: [self.kernel.block, 1, 1],
            cluster: [self.kernel.cluster, 1, 1],
            dynamic_shared: self.kernel.shared_bytes,
            params,
            seed: 1,
            blocks: (!all).then(|| vec![[0; 3], grid.map(|blocks| blocks - 1)]),
            ..Launch::default()
        };
        let module = Module::parse(ptx).map_err(|e| e.to_string())?;
        let launched = gpu.launch(&module, &self.kernel.symbol, &launch);
        launched.map_err(|fault| format!("{env:?}: {fault}"))?;
        let mut written = 0;
        for (i, ((buffer, in_place), want)) in results.iter().zip(&want).enumerate() {
            let got = buffer.read(&mut gpu)?;
            // What blocks that did not run would have updated is as it was.
            let old = in_place.then_some(&buffer.values[..]);
            let size = buffer.dtype.size();
            let is_new = |(i, bytes): &(usize, &Vec<u8>)| {
                old.is_none_or(|old| old[i * size..][..size] != **bytes)
            };
            let there = got.iter().enumerate().filter_map(|(i, b)| Some((i, b.as_ref()?)));
            written += there.filter(is_new).count();
            if let Some((at, got, want)) =
                buffer.compare(&got, old, want, all, tolerance(&self.spec))
            {
                return Err(format!("{env:?}: result {i}, element {at} is {got}, not {want}"));
            }
        }
        Ok(written)
    }
}

fn within((size, most): &(Dim, i64), env: &Env) -> bool {
    size.eval(env).unwrap() <= *most
}
