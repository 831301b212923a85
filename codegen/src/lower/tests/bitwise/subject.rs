//! A kernel for any number of rows, and the batches that its rows are computed in.

use std::{ops::Range, sync::Arc};

use ir::{Bounds, Dim, Env, Graph, KernelSpec, Layout, Symbols, Tensor};

use super::{Case, Draw, MOST};

/// How operands and results lie to the units that a launch may be made of.
#[derive(Clone, PartialEq)]
pub(super) enum Along {
    /// The same for all units; of a result, one for all units together, which is not compared but
    /// between threads.
    Shared,
    /// Tokens along this axis.
    Tokens(usize),
    /// Units along this axis.
    Units(usize),
    /// Where each unit's, or group's, tokens begin.
    Offsets,
    /// As [`Along::Shared`], of a result with one row for so many tokens.
    Every(usize),
}

/// What can be launched alone.
pub(super) enum Units {
    /// Rows.
    Rows,
    /// Sequences of these many tokens.
    Sequences(Vec<usize>),
    /// Rows of so many groups, each row with its group, in order.
    Groups(usize, Vec<usize>),
    /// Nothing, for a reason.
    Whole(#[allow(dead_code, reason = "says why")] &'static str),
}

/// An application of an operator, and what its results may not depend on.
pub(super) struct Subject {
    pub(super) case: Case,
    pub(super) body: Option<Arc<Graph>>,
    pub(super) units: Units,
    pub(super) operands: Vec<Along>,
    pub(super) results: Vec<Along>,
}

/// Runs the kernel: operands, sizes, and what each thread takes.
pub(super) type Run<'a> = dyn Fn(&[Option<Tensor>], &Env, Share) -> Vec<Tensor> + 'a;

/// Ranges of tiles by thread.
pub(super) type Share = Box<dyn FnOnce(i64) -> Vec<Vec<Range<i64>>>>;

impl Subject {
    /// Rows along these axes; where there is none, all rows share the operand, or the result
    /// depends on all of them.
    pub(super) fn rows(
        case: Case,
        operands: &[Option<usize>],
        results: &[Option<usize>],
    ) -> Subject {
        let along = |axes: &[Option<usize>]| {
            axes.iter().map(|axis| axis.map_or(Along::Shared, Along::Tokens)).collect()
        };
        let (operands, results) = (along(operands), along(results));
        Subject { case, body: None, units: Units::Rows, operands, results }
    }

    /// What has no rows.
    pub(super) fn whole(case: Case, why: &'static str) -> Subject {
        Subject { units: Units::Whole(why), ..Subject::rows(case, &[], &[]) }
    }

    /// Number of units.
    pub(super) fn count(&self) -> usize {
        match &self.units {
            Units::Sequences(lengths) => lengths.len(),
            Units::Groups(_, groups) => groups.len(),
            Units::Whole(_) => 1,
            Units::Rows => {
                let tokens = |(along, arg): (&Along, &Option<Tensor>)| match along {
                    Along::Tokens(axis) => arg.as_ref().map(|t| t.shape()[*axis]),
                    _ => None,
                };
                let args = self.operands.iter().zip(&self.case.args);
                args.filter_map(tokens).next().unwrap_or(MOST)
            }
        }
    }

    /// The specification for any number of tokens, within bounds that are drawn.
    pub(super) fn spec(&self, draw: &mut Draw) -> KernelSpec {
        let mut spec = match &self.body {
            None => self.case.spec(),
            Some(body) => fused(&self.case, body),
        };
        let sequences = matches!(self.units, Units::Sequences(_));
        let resize = |layout: &mut Layout, along: &Along| {
            let shape = &mut layout.ty.shape;
            match along {
                Along::Shared => return,
                Along::Tokens(axis) => shape[*axis] = Dim::symbol("T"),
                Along::Units(axis) if sequences => shape[*axis] = Dim::symbol("S"),
                Along::Units(axis) => shape[*axis] = Dim::symbol("T"),
                Along::Offsets if sequences => shape[0] = Dim::symbol("S") + Dim::from(1),
                Along::Offsets => return,
                Along::Every(n) => shape[0] = Dim::symbol("T").ceil_div(*n as i64),
            }
            *layout = Layout::contiguous(&layout.ty);
        };
        for (layout, along) in spec.operands.iter_mut().zip(&self.operands) {
            if let Some(layout) = layout {
                resize(layout, along);
            }
        }
        for (layout, along) in spec.results.iter_mut().zip(&self.results) {
            resize(layout, along);
        }
        let mut symbols = Symbols::default();
        for name in ["T", "S"] {
            let hi = draw.pick(&[300, 1000, 5000]);
            symbols.insert(name.into(), Bounds { lo: 0, hi });
        }
        spec.symbols = Arc::new(symbols);
        spec
    }

    /// Tokens of units.
    fn tokens(&self, units: &[usize]) -> Vec<usize> {
        let Units::Sequences(lengths) = &self.units else { return units.to_vec() };
        let start = |u: usize| lengths[..u].iter().sum::<usize>();
        units.iter().flat_map(|u| start(*u)..start(*u) + lengths[*u]).collect()
    }

    /// Operands of a launch of these units alone.
    fn args(&self, units: &[usize]) -> Vec<Option<Tensor>> {
        let tokens = self.tokens(units);
        let part = |(i, arg): (usize, &Option<Tensor>)| {
            let arg = arg.as_ref()?;
            Some(match self.operands.get(i) {
                Some(Along::Tokens(axis)) => take(arg, *axis, &tokens),
                Some(Along::Units(axis)) => take(arg, *axis, units),
                Some(Along::Offsets) => self.offsets(arg, units),
                _ => arg.clone(),
            })
        };
        self.case.args.iter().enumerate().map(part).collect()
    }

    fn offsets(&self, like: &Tensor, units: &[usize]) -> Tensor {
        let counts: Vec<usize> = match &self.units {
            Units::Sequences(lengths) => units.iter().map(|u| lengths[*u]).collect(),
            Units::Groups(groups, of) => {
                let rows = |g| units.iter().filter(|u| of[**u] == g).count();
                (0..*groups).map(rows).collect()
            }
            _ => unreachable!("only sequences and groups have offsets"),
        };
        let sums = counts.iter().scan(0, |sum, n| {
            *sum += *n as i64;
            Some(*sum)
        });
        let sums: Vec<i64> = [0].into_iter().chain(sums).collect();
        Tensor::from_i64s(like.dtype(), &[sums.len()], sums)
    }

    /// Results of a launch of these units alone.
    pub(super) fn run(
        &self,
        run: &Run<'_>,
        units: &[usize],
        threads: usize,
        draw: &mut Draw,
    ) -> Vec<Tensor> {
        let sizes = [("T", self.tokens(units).len()), ("S", units.len())];
        let env = sizes.into_iter().map(|(name, n)| (name.into(), n as i64)).collect();
        run(&self.args(units), &env, draw.shares(threads))
    }

    /// The rows that these units have in a result of all.
    fn rows_of(&self, result: usize, all: &Tensor, units: &[usize]) -> Option<Vec<u8>> {
        match self.results.get(result)? {
            Along::Tokens(axis) => Some(take(all, *axis, &self.tokens(units)).to_bytes()),
            Along::Units(axis) => Some(take(all, *axis, units).to_bytes()),
            _ => None,
        }
    }

    /// Compares results on threads, in batches and in chunks.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn check(&self, run: &Run<'_>, draw: &mut Draw) -> Result<(), String> {
        let n = self.count();
        let all: Vec<usize> = (0..n).collect();
        let whole = self.run(run, &all, 1, draw);
        for threads in [2, 3] {
            let shared = self.run(run, &all, threads, draw);
            if shared != whole {
                return Err(format!("{}: other bits on {threads} threads", self.name()));
            }
        }
        if !matches!(self.units, Units::Whole(_)) && n > 0 {
            for units in self.batches(n, draw) {
                let threads = draw.within(1..=2);
                let part = self.run(run, &units, threads, draw);
                for (i, (part, all)) in part.iter().zip(&whole).enumerate() {
                    let Some(wanted) = self.rows_of(i, all, &units) else { continue };
                    if part.to_bytes() != wanted {
                        return Err(format!("{}: result {i} of {units:?} of {n}", self.name()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Units of launches: none, single ones, all in chunks, and some in another order.
    pub(super) fn batches(&self, n: usize, draw: &mut Draw) -> Vec<Vec<usize>> {
        let mut batches = vec![Vec::new()];
        batches.extend((0..3).map(|_| vec![draw.within(0..=n - 1)]));
        let parts = draw.within(2..=4);
        batches.extend(draw.cut(n, parts).into_iter().map(Iterator::collect));
        for _ in 0..2 {
            let count = draw.within(1..=MOST);
            batches.push((0..count).map(|_| draw.within(0..=n - 1)).collect());
        }
        if let Units::Groups(_, groups) = &self.units {
            batches.iter_mut().for_each(|units| units.sort_by_key(|u| groups[*u]));
        }
        batches
    }

    fn name(&self) -> String {
        let shapes: Vec<_> =
            self.case.args.iter().flatten().map(super::super::run::type_of).collect();
        format!("{} {:?} of {shapes:?}", self.case.op, self.case.attrs)
    }
}

/// The specification of a function of elementwise operators.
fn fused(case: &Case, body: &Arc<Graph>) -> KernelSpec {
    let layout =
        |t: &Option<Tensor>| t.as_ref().map(|t| Layout::contiguous(&super::super::run::type_of(t)));
    KernelSpec {
        op: case.op,
        attrs: case.attrs.clone(),
        operands: case.args.iter().map(layout).collect(),
        results: body.outputs.iter().map(|(_, v)| Layout::contiguous(body.ty(*v))).collect(),
        body: (case.op == "fused").then(|| body.clone()),
        symbols: Arc::default(),
    }
}

/// The entries of an axis at these places.
pub(super) fn take(t: &Tensor, axis: usize, at: &[usize]) -> Tensor {
    let (shape, bytes) = (t.shape(), t.to_bytes());
    let inner = shape[axis + 1..].iter().product::<usize>() * t.dtype().size();
    let outer: usize = shape[..axis].iter().product();
    let mut out = Vec::with_capacity(outer * at.len() * inner);
    for o in 0..outer {
        for i in at {
            out.extend_from_slice(&bytes[(o * shape[axis] + i) * inner..][..inner]);
        }
    }
    let mut shape = shape.to_vec();
    shape[axis] = at.len();
    Tensor::from_bytes(t.dtype(), &shape, out)
}
