//! Elementwise kernels: a function of elementwise operators over one index space, each operator on
//! its own, coordinates (`iota`) and plain copies between layouts.
//!
//! Axes that all operands walk as one are merged, so that dense operands give one flat loop. The
//! innermost axis goes sixteen elements at a time; operands that are neither dense nor constant
//! along it are gathered lane by lane. On a GPU a function may begin with a product.

mod cuda;
mod product;

use std::collections::BTreeMap;

use ir::{DType, Dim, Graph, KernelSpec, Target, Value, normalize_axis};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, TILE_ELEMENTS, operand_types, refuse, table_flops},
    elementwise::{self, Apply, literal},
    space::{Space, broadcast_strides},
    view::{View, computable, memory_elem, register_elem},
};
use crate::{
    cuda::CudaKernel,
    emit::{Elem, Emitter, Ty, Val},
};

/// The family, for these operators.
pub(super) struct Fused(pub(super) &'static [&'static str]);

impl Fused {
    /// Operators that are not element by element themselves, but loops of that kind.
    pub(super) const LOOPS: Fused = Fused(&["fused", "copy", "iota"]);
    /// One elementwise operator.
    pub(super) const SINGLE: Fused = Fused(elementwise::OPS);
}

/// A value of the function.
#[derive(Debug)]
enum Step {
    /// An operand, by number.
    Operand(usize),
    /// A constant, of any extents, all elements alike.
    Constant { float: f64, int: i64 },
    /// A run-time size.
    Size(Dim),
    /// The coordinate along an axis of the index space.
    Coordinate(usize),
    /// An operator on earlier values.
    Apply { op: &'static str, args: Vec<usize> },
}

/// The function as straight-line code.
#[derive(Debug, Default)]
struct Code {
    steps: Vec<(Step, DType)>,
    results: Vec<usize>,
    /// Whether a cast to a narrow float rounds at once, and not where that is stored.
    rounds: bool,
}

impl Code {
    fn push(&mut self, step: Step, dtype: DType) -> Result<usize, String> {
        if let Step::Apply { op, args } = &step {
            if args.is_empty() || args.len() > 3 {
                return Err(format!("`{op}` of {} operands", args.len()));
            }
            self.apply(op, dtype, args).check()?;
        } else if !computable(dtype) {
            return Err(format!("{dtype} has no CPU instructions"));
        }
        self.steps.push((step, dtype));
        Ok(self.steps.len() - 1)
    }

    fn apply(&self, op: &'static str, to: DType, args: &[usize]) -> Apply<'static> {
        let (last, from) = &self.steps[*args.last().expect("operators have operands")];
        let constant = match last {
            Step::Constant { float, .. } => Some(*float),
            _ => None,
        };
        Apply { op, from: *from, to, constant }
    }

    /// The code of a `fused` body, of a `copy`, or of one operator.
    fn of(spec: &KernelSpec) -> Result<Code, String> {
        let mut code = Code::default();
        let rank = spec.results.first().ok_or("a kernel without results")?.ty.rank();
        if let Some(body) = &spec.body {
            code.read(body, rank)?;
            return Ok(code);
        }
        let mut args = Vec::new();
        for (i, ty) in operand_types(spec).into_iter().enumerate() {
            let ty = ty.ok_or("operands of an elementwise operator are required")?;
            args.push(code.push(Step::Operand(i), ty.dtype)?);
        }
        let to = spec.results[0].ty.dtype;
        let result = match spec.op {
            "copy" => args[0],
            "iota" => {
                let axis = normalize_axis(spec.attrs.int("axis"), rank).ok_or("axis")?;
                code.push(Step::Coordinate(axis), to)?
            }
            op => code.push(Step::Apply { op, args }, to)?,
        };
        code.results.push(result);
        Ok(code)
    }

    /// As [`Code::of`]; a `copy` moves bits.
    fn for_kernel(spec: &KernelSpec) -> Result<Code, String> {
        match spec.op {
            "copy" => {
                let steps = vec![(Step::Operand(0), DType::I8)];
                Ok(Code { steps, results: vec![0], rounds: false })
            }
            _ => Code::of(spec),
        }
    }

    fn read(&mut self, body: &Graph, rank: usize) -> Result<(), String> {
        let mut at: BTreeMap<Value, usize> = BTreeMap::new();
        // A product is one more operand of what follows, which does not read the product's.
        let product = product::product(body);
        let factors =
            |v: &Value| product.is_some_and(|id| body.node(id).inputs().contains(&Some(*v)));
        for (i, param) in body.param_values().enumerate().filter(|(_, v)| !factors(v)) {
            let index = self.push(Step::Operand(i), body.ty(param).dtype)?;
            at.insert(param, index);
        }
        if let Some(id) = product {
            let own = Value { node: id, port: 0 };
            let index = self.push(Step::Operand(body.params().len()), body.ty(own).dtype)?;
            at.insert(own, index);
        }
        for id in body.topo() {
            let node = body.node(id);
            let value = Value { node: id, port: 0 };
            let ty = body.ty(value);
            if Some(id) == product {
                continue;
            }
            let known = node.inputs().iter().flatten().all(|v| at.contains_key(v));
            if !known {
                return Err("a factor of a product that is read elsewhere".into());
            }
            let args = || node.inputs().iter().flatten().map(|v| at[v]).collect::<Vec<_>>();
            let step = match node.op.name() {
                "param" => continue,
                "constant" => {
                    let tensor = node.attrs.tensor("value");
                    if tensor.len() != 1 {
                        return Err(format!("a constant of {} elements in a loop", tensor.len()));
                    }
                    Step::Constant { float: tensor.to_f64s()[0], int: tensor.to_i64s()[0] }
                }
                "size_vector" if node.attrs.dims("sizes").len() == 1 => {
                    Step::Size(node.attrs.dims("sizes")[0].clone())
                }
                "iota" => {
                    let own = ty.rank();
                    let axis = normalize_axis(node.attrs.int("axis"), own).ok_or("axis")?;
                    Step::Coordinate(rank - own + axis)
                }
                "broadcast_to" => {
                    at.insert(value, args()[0]);
                    continue;
                }
                op => Step::Apply { op, args: args() },
            };
            let index = self.push(step, ty.dtype)?;
            at.insert(value, index);
        }
        let result = |v: &Value| at.get(v).copied().ok_or("a factor of a product as a result");
        let results = body.outputs.iter().map(|(_, v)| result(v));
        self.results = results.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Emits the function on `lanes` points; `operand(i)` and `coordinate(axis)` load.
    fn emit(
        &self,
        cx: &Cx<'_>,
        lanes: u32,
        operand: impl Fn(usize) -> Val,
        coordinate: impl Fn(usize) -> Val,
    ) -> Vec<Val> {
        let size = |dim: &Dim| cx.e.splat(cx.size(dim), lanes);
        self.emit_on(&cx.e, lanes, operand, size, coordinate)
    }

    /// As [`Self::emit`]; `size` is a run-time size on all lanes.
    fn emit_on(
        &self,
        e: &Emitter,
        lanes: u32,
        operand: impl Fn(usize) -> Val,
        size: impl Fn(&Dim) -> Val,
        coordinate: impl Fn(usize) -> Val,
    ) -> Vec<Val> {
        let mut values: Vec<Val> = Vec::with_capacity(self.steps.len());
        for (step, dtype) in &self.steps {
            let value = match step {
                Step::Operand(i) => operand(*i),
                Step::Constant { float, int } => literal(e, *dtype, lanes, *float, *int),
                Step::Size(dim) => of_index(e, size(dim), *dtype),
                Step::Coordinate(axis) => of_index(e, coordinate(*axis), *dtype),
                Step::Apply { op, args } => {
                    let operands: Vec<Val> = args.iter().map(|a| values[*a]).collect();
                    let value = self.apply(op, *dtype, args).emit(e, &operands);
                    let is_narrow = matches!(dtype, DType::Bf16 | DType::F16);
                    if self.rounds && *op == "cast" && is_narrow {
                        e.cast(e.cast(value, memory_elem(*dtype)), Elem::F32)
                    } else {
                        value
                    }
                }
            };
            values.push(value);
        }
        self.results.iter().map(|r| values[*r]).collect()
    }
}

/// An i64 as an element of `dtype`.
fn of_index(e: &Emitter, index: Val, dtype: DType) -> Val {
    e.cast(index, register_elem(dtype))
}

impl Lower for Fused {
    fn ops(&self) -> &'static [&'static str] {
        self.0
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        let shape = &spec.results.first().ok_or("a kernel without results")?.ty.shape;
        if spec.results.iter().any(|r| r.ty.shape != *shape) {
            return Err("results of different shapes in one loop".into());
        }
        if spec.operands.iter().flatten().any(|o| o.ty.rank() > shape.len()) {
            return Err("an operand of higher rank than the results".into());
        }
        if spec.op == "copy" {
            let [Some(operand)] = spec.operands.as_slice() else {
                return Err("copy takes one operand".into());
            };
            let same = operand.ty.dtype == spec.results[0].ty.dtype;
            return if same { Ok(()) } else { Err("copy does not convert".into()) };
        }
        if spec.body.as_ref().is_some_and(|body| product::product(body).is_some()) {
            return Err("loops behind products are for GPUs".into());
        }
        Code::of(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let code = Code::for_kernel(spec).map_err(|reason| refuse(spec, reason))?;
        let tiles = Loop::of(&cx, &code).emit(&cx);
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        if spec.body.as_ref().is_some_and(|body| product::product(body).is_some()) {
            return product::kernels(spec, target);
        }
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let code = Code::for_kernel(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec, &code)])
    }

    fn flops(&self, spec: &KernelSpec) -> Dim {
        match &spec.body {
            None => table_flops(spec),
            Some(body) => {
                let nodes = body.topo().len() - body.params().len();
                let loops = spec.results[0].ty.elements() * Dim::from(nodes);
                match product::product(body) {
                    Some(id) => loops + product::flops(spec, body, id),
                    None => loops,
                }
            }
        }
    }
}

/// The loop nest around the code.
struct Loop<'c> {
    code: &'c Code,
    operands: Vec<View>,
    results: Vec<View>,
    /// Axes of coordinates that the code reads.
    axes: Vec<usize>,
    space: Space,
}

impl<'c> Loop<'c> {
    fn of(cx: &Cx<'_>, code: &'c Code) -> Loop<'c> {
        let spec = cx.spec;
        let view = |view: View| if spec.op == "copy" { view.bits() } else { view };
        let operands: Vec<View> = (0..spec.operands.len()).map(|i| view(cx.operand(i))).collect();
        let results: Vec<View> = (0..spec.results.len()).map(|i| view(cx.result(i))).collect();
        Loop::new(code, operands, results)
    }

    fn new(code: &'c Code, operands: Vec<View>, results: Vec<View>) -> Loop<'c> {
        let extents = results[0].shape.clone();
        let rank = extents.len();
        let axes: Vec<usize> = code
            .steps
            .iter()
            .filter_map(|(step, _)| match step {
                Step::Coordinate(axis) => Some(*axis),
                _ => None,
            })
            .collect();
        let spread = |v: &View| broadcast_strides(&v.shape, &v.strides, rank);
        // A coordinate is an operand whose element is its own offset.
        let unit = |axis: &usize| (0..rank).map(|a| Dim::from(i64::from(a == *axis))).collect();
        let strides: Vec<Vec<Dim>> = operands
            .iter()
            .map(spread)
            .chain(results.iter().map(spread))
            .chain(axes.iter().map(unit))
            .collect();
        let space = Space::new(&extents, &strides).merged();
        Loop { code, operands, results, axes, space }
    }

    /// Emits the nest; returns the number of tiles.
    fn emit(self, cx: &Cx<'_>) -> Dim {
        let e = &cx.e;
        let (outer, inner, steps) = self.space.clone().split_inner();
        let rows = outer.points();
        let zero = e.i64(0);
        if rows.is(1) {
            let (first, end) = cx.share(&inner, TILE_ELEMENTS);
            let offsets = vec![zero; self.space.strides.len()];
            self.row(cx, &offsets, &steps, first, end);
            return inner.ceil_div(TILE_ELEMENTS);
        }
        if inner.as_const().is_some_and(|n| n <= 2 * TILE_ELEMENTS) {
            return cx.share_rows(&rows, &inner, |row| {
                let offsets = outer.offsets(cx, row);
                self.row(cx, &offsets, &steps, zero, cx.size(&inner));
            });
        }
        let parts = inner.ceil_div(TILE_ELEMENTS);
        let tiles = rows * parts.clone();
        let (first, end) = (e.tile_begin(), e.tile_end());
        e.for_each(first, end, 1, |tile| {
            let parts = cx.size(&parts);
            let offsets = outer.offsets(cx, e.div_unsigned(tile, parts));
            let first = e.mul_const(e.rem_unsigned(tile, parts), TILE_ELEMENTS);
            let end = e.min(e.add_const(first, TILE_ELEMENTS), cx.size(&inner));
            self.row(cx, &offsets, &steps, first, end);
        });
        tiles
    }

    /// The innermost loop, from `offsets`, over `first..end`.
    fn row(&self, cx: &Cx<'_>, offsets: &[Val], steps: &[Dim], first: Val, end: Val) {
        let line = self.line(cx, offsets, steps);
        cx.strips(first, end, |i, lanes| line.strip(cx, i, lanes));
    }

    /// A line of the innermost axis from `offsets` on.
    fn line<'l>(&'l self, cx: &Cx<'_>, offsets: &'l [Val], steps: &'l [Dim]) -> Line<'l> {
        let e = &cx.e;
        let inputs = self.operands.len();
        let operands: Vec<View> =
            self.operands.iter().zip(offsets).map(|(v, o)| v.at(cx, *o)).collect();
        let results: Vec<View> =
            self.results.iter().zip(&offsets[inputs..]).map(|(v, o)| v.at(cx, *o)).collect();
        // What does not move along the line is loaded once.
        let still: Vec<Option<Val>> = operands
            .iter()
            .zip(steps)
            .map(|(v, step)| step.is(0).then(|| v.load(cx, e.i64(0))))
            .collect();
        Line { nest: self, offsets, steps, operands, results, still }
    }

    fn coordinate(&self, cx: &Cx<'_>, first: Val, step: &Dim, lanes: u32) -> Val {
        let e = &cx.e;
        let all = e.splat(first, lanes);
        if lanes == 1 || step.is(0) {
            return all;
        }
        let lane = e.iota(Ty::Vector(crate::emit::Elem::I64, lanes));
        e.add(all, e.mul(lane, e.splat(cx.size(step), lanes)))
    }
}

/// Operands and results along one line.
struct Line<'l> {
    nest: &'l Loop<'l>,
    offsets: &'l [Val],
    steps: &'l [Dim],
    operands: Vec<View>,
    results: Vec<View>,
    still: Vec<Option<Val>>,
}

impl Line<'_> {
    /// Computes `lanes` elements from `i` on.
    fn strip(&self, cx: &Cx<'_>, i: Val, lanes: u32) {
        let values = self.values(cx, i, lanes);
        self.store(cx, i, values);
    }

    /// What `lanes` elements from `i` on are, by result.
    fn values(&self, cx: &Cx<'_>, i: Val, lanes: u32) -> Vec<Val> {
        let (e, steps) = (&cx.e, self.steps);
        let outputs = self.operands.len() + self.results.len();
        let load = |k: usize| match self.still[k] {
            Some(value) => e.splat(value, lanes),
            None => self.operands[k].load_strip(cx, cx.scale(i, &steps[k]), &steps[k], lanes),
        };
        let coordinate = |axis: usize| {
            let k = outputs + self.nest.axes.iter().position(|a| *a == axis).unwrap_or_default();
            let first = cx.offset(self.offsets[k], i, &steps[k]);
            self.nest.coordinate(cx, first, &steps[k], lanes)
        };
        self.nest.code.emit(cx, lanes, load, coordinate)
    }

    /// Stores results from `i` on.
    fn store(&self, cx: &Cx<'_>, i: Val, values: Vec<Val>) {
        for (k, (value, view)) in values.into_iter().zip(&self.results).enumerate() {
            let step = &self.steps[self.operands.len() + k];
            view.store_strip(cx, value, cx.scale(i, step), step);
        }
    }
}
