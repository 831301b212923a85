//! Whether a manifest agrees with itself: every index, symbol, offset and size.
//!
//! Sizes are compared at the bounds of the symbols, by interval arithmetic that saturates, so that
//! absurd numbers are refused and nothing is computed with them.

use std::{collections::HashSet, sync::Arc};

use super::{Manifest, layout};
use crate::{
    Bounds, Collective, CollectiveOp, CudaMatmul, CudaParam, CudaVariant, DType, Dim, Kernel, Part,
    Place, Port, Program, Region, Shard, Sharded, Span, Symbols, TensorType,
};

/// No symbol, size or offset of an artifact is larger.
pub const MAX_SIZE: i64 = 1 << 48;

/// What is wrong, each with the field; at most some dozen.
pub(super) fn manifest(manifest: &Manifest) -> Vec<String> {
    let mut problems = Problems::default();
    let mut names = HashSet::new();
    for weight in &manifest.weights {
        let name = &weight.name;
        let elements = weight.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = elements.and_then(|n| n.checked_mul(weight.dtype.size() as u64));
        problems.check(bytes == Some(weight.bytes), || {
            let (dtype, shape) = (weight.dtype, &weight.shape);
            format!("weight `{name}`: {dtype}{shape:?} is not of {} bytes", weight.bytes)
        });
        problems.check(!layout::is_reserved(name) && names.insert(name.as_str()), || {
            format!("weight `{name}`: the name is reserved or occurs twice")
        });
    }
    for (i, module) in manifest.modules.iter().enumerate() {
        let is_inside = |span: &Span| {
            let end = span.offset.checked_add(span.bytes);
            end.is_some_and(|end| end <= manifest.code.bytes)
        };
        let are_inside = is_inside(&module.ptx) && module.cubin.as_ref().is_none_or(is_inside);
        problems.check(are_inside, || format!("module {i} lies outside of the code"));
    }
    let mut entries = HashSet::new();
    for program in &manifest.programs {
        problems.check(entries.insert(program.name.as_str()), || {
            format!("entry `{}` occurs twice", program.name)
        });
        Checker { manifest, program, problems: &mut problems }.program();
    }
    for fold in &manifest.folds {
        Checker { manifest, program: &fold.program(), problems: &mut problems }.program();
    }
    problems.0
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    const MOST: usize = 24;

    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds && self.0.len() < Self::MOST {
            self.0.push(problem());
        }
    }
}

struct Checker<'a> {
    manifest: &'a Manifest,
    program: &'a Program,
    problems: &'a mut Problems,
}

impl Checker<'_> {
    fn program(&mut self) {
        let Program { symbols, kernels, launches, intervals, window, .. } = self.program;
        for (symbol, Bounds { lo, hi }) in symbols {
            self.check(0 <= *lo && lo <= hi && *hi <= MAX_SIZE, || {
                format!("symbol `{symbol}` has the bounds {lo}..{hi}")
            });
        }
        self.check(self.program.arena_bytes <= MAX_SIZE.unsigned_abs(), || "arena_bytes".into());
        self.check(window.is_none_or(|w| (1..=MAX_SIZE.unsigned_abs()).contains(&w)), || {
            "window".into()
        });
        self.ports();
        for (i, kernel) in kernels.iter().enumerate() {
            let is_library = |code: &crate::CudaCode| code.library.is_some();
            let has_no_code = !kernel.cuda.is_empty() && kernel.cuda.iter().all(is_library);
            self.check(has_no_code || kernel.code_offset < self.manifest.code.bytes, || {
                format!("kernel {i} (`{}`) lies outside of the code", kernel.symbol)
            });
            self.check(kernel.scratch_bytes <= MAX_SIZE.unsigned_abs(), || {
                format!("kernel {i}: scratch_bytes")
            });
            self.size(&kernel.tiles, || format!("kernel {i}: tiles"));
            for (j, dim) in kernel.dims.iter().enumerate() {
                self.known(dim, || format!("kernel {i}: dims[{j}]"));
                let b = dim.bounds(symbols);
                self.check(-MAX_SIZE <= b.lo && b.hi <= MAX_SIZE, || {
                    format!("kernel {i}: dims[{j}] leaves the range of sizes")
                });
            }
            self.known(&kernel.flops, || format!("kernel {i}: flops"));
            self.known(&kernel.bytes, || format!("kernel {i}: bytes"));
            self.variants(i, kernel);
        }
        for (i, launch) in launches.iter().enumerate() {
            self.check((launch.kernel as usize) < kernels.len(), || {
                format!("launch {i} is of kernel {} of {}", launch.kernel, kernels.len())
            });
            for (j, place) in launch.args.iter().enumerate() {
                self.place(place, 0, || format!("launch {i} (`{}`): args[{j}]", launch.label));
            }
        }
        self.parts();
        self.shards();
        self.collectives();
        for (i, interval) in intervals.iter().enumerate() {
            let end = interval.offset.checked_add(interval.bytes);
            let in_arena = end.is_some_and(|end| end <= self.program.arena_bytes);
            let in_time =
                interval.first <= interval.last && interval.last as usize <= launches.len();
            self.check(in_arena && in_time, || {
                format!("intervals[{i}] leaves the arena or the run")
            });
        }
    }

    fn variants(&mut self, number: usize, kernel: &Kernel) {
        let launches = self.program.launches.iter();
        let args = launches.filter(|l| l.kernel as usize == number).map(|l| l.args.len()).min();
        self.check(kernel.cuda.is_empty() != self.manifest.target.cuda.is_some(), || {
            format!("kernel {number} (`{}`) has code of another kind than the target", kernel.op)
        });
        for code in &kernel.cuda {
            let is_complete = match code.library {
                Some(_) => code.variants.is_empty(),
                None => code.variants.last().is_some_and(|v| v.limit.is_none()),
            };
            let arch = code.arch.name();
            self.check(is_complete, || format!("kernel {number}: no variant for {arch}"));
            if let Some(matmul) = &code.library {
                self.matmul(number, matmul, args.unwrap_or(usize::MAX));
            }
            for variant in &code.variants {
                let module = self.manifest.modules.get(variant.module as usize);
                let is_whole = module.is_some_and(|module| module.arch == code.arch);
                self.variant(number, variant, is_whole, args.unwrap_or(usize::MAX));
            }
        }
    }

    fn matmul(&mut self, number: usize, matmul: &CudaMatmul, args: usize) {
        let CudaMatmul { m, n, k, x, w, bias, residual, y, workspace, .. } = matmul;
        let what = |field: &str| format!("kernel {number}: product by a library: {field}");
        let matrices = [Some(x), Some(w), residual.as_ref(), Some(y)];
        let strides = matrices.iter().flatten().map(|matrix| &matrix.stride);
        for dim in [m, n, k].into_iter().chain(strides) {
            self.size(dim, || what("sizes"));
        }
        let places = matrices.iter().flatten().map(|matrix| matrix.arg);
        for arg in places.chain(*bias).chain([*workspace]) {
            self.check((arg as usize) < args, || what("an argument that launches lack"));
        }
        let CudaMatmul { factors, results, workspace_bytes, .. } = matmul;
        let is_half = matches!(factors, DType::Bf16 | DType::F16);
        self.check(is_half && (*results == DType::F32 || results == factors), || {
            what(&format!("{factors} in {results}"))
        });
        self.check(*workspace_bytes <= MAX_SIZE.unsigned_abs(), || what("workspace_bytes"));
    }

    fn variant(&mut self, number: usize, variant: &CudaVariant, is_whole: bool, args: usize) {
        let name = &variant.symbol;
        let what = |field: &str| format!("kernel {number}: `{name}`: {field}");
        self.check(is_whole, || what("its module is not there"));
        self.check((1..=1024).contains(&variant.block), || what("block"));
        self.check((1..=16).contains(&variant.cluster), || what("cluster"));
        for dim in &variant.grid {
            self.size(dim, || what("grid"));
        }
        if let Some((size, _)) = &variant.limit {
            self.size(size, || what("limit"));
        }
        for arg in &variant.early {
            self.check((*arg as usize) < args, || what("an early operand that launches lack"));
        }
        for param in &variant.params {
            let arg = match param {
                CudaParam::Pointer { arg, .. } => *arg,
                CudaParam::Size(dim) => {
                    self.known(dim, || what("size"));
                    continue;
                }
                CudaParam::Map(map) => {
                    for dim in map.extents.iter().chain(&map.strides) {
                        self.size(dim, || what("tensor map"));
                    }
                    map.arg
                }
            };
            self.check((arg as usize) < args, || what("an argument that launches lack"));
        }
    }

    fn parts(&mut self) {
        let Program { parts, states, .. } = self.program;
        for Part { state, of, offset } in parts {
            let is_state = |name: &Arc<str>| states.iter().any(|port| port.name == *name);
            let is_part = |name: &Arc<str>| parts.iter().any(|part| part.state == *name);
            self.check(is_state(state) && !is_part(of), || {
                format!("states: `{state}` is not there, or a part of a part")
            });
            self.size(offset, || format!("states: `{state}`: offset"));
        }
    }

    fn shards(&mut self) {
        let Program { shards, states, .. } = self.program;
        for Sharded { state, of } in shards {
            let elements = of.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
            let is_there = states.iter().any(|port| port.name == *state);
            let fits = of.split.as_ref().is_none_or(|split| {
                let ranks = u64::from(split.ranks);
                let extent = split.pieces.iter().try_fold(0u64, |n, piece| n.checked_add(*piece));
                let is_even = |piece: &u64| ranks > 0 && piece.is_multiple_of(ranks);
                extent.is_some()
                    && of.shape.get(split.dim).copied() == extent
                    && split.pieces.iter().all(is_even)
            });
            let is_small = elements.is_some_and(|n| n <= MAX_SIZE.unsigned_abs());
            self.check(is_there && fits && is_small && of.ranks > 0, || {
                format!("states: `{state}` is a part of something that cannot be")
            });
        }
    }

    fn collectives(&mut self) {
        let Program { collectives, launches, symbols, .. } = self.program;
        let mut last = 0;
        for (i, collective) in collectives.iter().enumerate() {
            let Collective { op, axis, ranks, dtype, elements, .. } = collective;
            let Collective { input, output, start, end, label, .. } = collective;
            let name = move || format!("collective {i} (`{label}`)");
            let in_order = last <= *start && start <= end && *end as usize <= launches.len();
            self.check(in_order, || {
                format!("{}: from launch {start} to launch {end} is out of order", name())
            });
            last = *start;
            let is_sum = *op != CollectiveOp::AllGather;
            let has_sum = matches!(
                dtype,
                DType::F64 | DType::F32 | DType::Bf16 | DType::F16 | DType::I64 | DType::I32
            );
            let is_known = *ranks == 1 || symbols.contains_key(&*Shard::symbol(axis));
            self.check(*ranks > 0 && is_known && (has_sum || !is_sum), || {
                format!("{}: {ranks} ranks along `{axis}`, elements of {dtype}", name())
            });
            self.size(elements, move || format!("{}: elements", name()));
            let elements = elements.bounds(symbols).hi.max(0);
            let ranks = i64::from(*ranks).max(1);
            let shard = elements / ranks + i64::from(elements % ranks != 0);
            let bytes = |n: i64| n.saturating_mul(i64::try_from(dtype.size()).unwrap_or(i64::MAX));
            let (into, out) = match op {
                CollectiveOp::AllReduce => (elements, elements),
                CollectiveOp::ReduceScatter => (elements, shard),
                CollectiveOp::AllGather => (shard, elements),
            };
            self.place(input, bytes(into), move || format!("{}: input", name()));
            self.place(output, bytes(out), move || format!("{}: output", name()));
            let is_writable = matches!(output.region, Region::Arena | Region::State(_));
            self.check(is_writable && input.region != Region::Null, || {
                format!("{}: lies in the wrong memory", name())
            });
        }
    }

    fn ports(&mut self) {
        let Program { inputs, outputs, states, symbols, .. } = self.program;
        for (role, ports) in [("inputs", inputs), ("outputs", outputs), ("states", states)] {
            let mut names: HashSet<&Arc<str>> = HashSet::new();
            for Port { name, ty, place } in ports {
                self.check(names.insert(name), || format!("{role}: `{name}` occurs twice"));
                for dim in &ty.shape {
                    self.size(dim, || format!("{role}: `{name}`: shape"));
                }
                let bytes = most_bytes(ty, symbols);
                self.check(bytes <= MAX_SIZE, || format!("{role}: `{name}` has {bytes} bytes"));
                self.place(place, bytes, || format!("{role}: `{name}`"));
                let at_home = match (role, place.region) {
                    (_, Region::Arena) | ("outputs", Region::Weight(_) | Region::State(_)) => {
                        role != "states"
                    }
                    ("states", Region::State(_)) => true,
                    _ => false,
                };
                self.check(at_home, || format!("{role}: `{name}` lies in the wrong memory"));
            }
        }
    }

    /// The region exists and holds `bytes` from the offset on, whatever the symbols.
    fn place(&mut self, place: &Place, bytes: i64, name: impl Fn() -> String + Copy) {
        self.size(&place.offset, name);
        let end = place.offset.bounds(&self.program.symbols).hi.saturating_add(bytes);
        let room = match place.region {
            Region::Arena => i64::try_from(self.program.arena_bytes).ok(),
            Region::Weight(i) => {
                let weight = self.manifest.weights.get(i as usize);
                weight.and_then(|w| i64::try_from(w.bytes).ok())
            }
            // The size of a state is the caller's choice; the launch checks it.
            Region::State(i) => ((i as usize) < self.program.states.len()).then_some(MAX_SIZE),
            Region::Null => Some(MAX_SIZE),
        };
        self.check(room.is_some_and(|room| end <= room), || {
            format!("{}: {:?} + {} lies outside", name(), place.region, place.offset)
        });
    }

    /// A size or offset that is computable and never negative.
    fn size(&mut self, dim: &Dim, name: impl Fn() -> String) {
        self.known(dim, &name);
        let Bounds { lo, hi } = dim.bounds(&self.program.symbols);
        self.check(0 <= lo && hi <= MAX_SIZE, || {
            format!("{}: `{dim}` is between {lo} and {hi}", name())
        });
    }

    fn known(&mut self, dim: &Dim, name: impl Fn() -> String) {
        let symbols = &self.program.symbols;
        let unknown = dim.symbols().into_iter().find(|s| !symbols.contains_key(s));
        self.check(unknown.is_none(), || {
            format!("{}: `{dim}` has a symbol without bounds", name())
        });
    }

    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        let entry = &self.program.name;
        self.problems.check(holds, || format!("entry `{entry}`: {}", problem()));
    }
}

/// Bytes of a tensor at the upper bounds of its symbols; saturates.
fn most_bytes(ty: &TensorType, symbols: &Symbols) -> i64 {
    let size = i64::try_from(ty.dtype.size()).unwrap_or(i64::MAX);
    ty.shape.iter().fold(size, |n, dim| n.saturating_mul(dim.bounds(symbols).hi.max(0)))
}
