//! Folding while importing: shape arithmetic becomes sizes, small constants are evaluated.
//!
//! The facts of [`ir`] carry symbolic elements through most operators; comparison and selection
//! of sizes, which need the symbols' bounds, are decided here.

use ir::{
    Attrs, Body, Builder, DType, Dim, Env, EvalCx, Graph, OpError, Tensor, TensorType, Value,
};

use super::{cx::MAX_RANK, index::IndexForms, symbols::Sizes};

/// Most elements of a tensor that is evaluated.
const MAX_EVALUATED: usize = 1024;
/// Most elements of a vector of sizes.
const MAX_SIZES: usize = 1024;
/// Most terms of a shape's element count; beyond it no model made by an exporter lies.
const MAX_TERMS: usize = 4096;

/// The elements of a small integer or boolean vector or scalar, where they are known.
pub(super) fn elements(graph: &Graph, v: Value) -> Option<Vec<Dim>> {
    let fact = graph.fact(v);
    if fact.dims.is_some() {
        return fact.dims.clone();
    }
    let t = fact.constant.as_ref()?;
    let small = !t.dtype().is_float() && t.rank() <= 1 && t.len() <= MAX_SIZES;
    small.then(|| t.to_i64s().into_iter().map(Dim::from).collect())
}

/// Replaces a freshly added value by a plainer one of the same meaning, where one is known.
///
/// # Errors
/// Where a size has grown beyond what is sensible.
pub(super) fn settle(
    b: &mut Builder<'_>,
    sizes: &Sizes,
    index: &mut IndexForms,
    v: Value,
) -> Result<Value, OpError> {
    check_size(b, v)?;
    let node = b.graph().node(v.node);
    let plain = |v: Value| matches!(b.graph().node(v.node).op.name(), "constant" | "size_vector");
    let op = node.op.name();
    if matches!(op, "param" | "weight" | "constant" | "size_vector" | "iota") {
        return Ok(v);
    }
    let ty = b.ty(v).clone();
    let settled = op == "shape_of" || node.inputs().iter().flatten().all(|v| plain(*v));
    if settled && ty.rank() <= 1 && !ty.dtype.is_float() {
        let known = elements(b.graph(), v).or_else(|| decide(b.graph(), sizes, v));
        if let Some(known) = known.filter(|k| k.len() <= MAX_SIZES)
            && let Some(v) = sized(b, &ty, known)?
        {
            return Ok(v);
        }
    }
    if let Some(t) = evaluate(b.graph(), v) {
        return b.constant(t);
    }
    match compare_forms(b.graph(), sizes, index, v) {
        Some(truth) => {
            let truth = b.constant(Tensor::from_i64s(DType::Bool, &[], [i64::from(truth)]))?;
            let shape = Attrs::none().with("shape", ty.shape.to_vec());
            b.op1("broadcast_to", shape, &[truth])
        }
        None => identity(b, v),
    }
}

/// A value of known elements as a constant or a vector of sizes.
fn sized(
    b: &mut Builder<'_>,
    ty: &TensorType,
    elements: Vec<Dim>,
) -> Result<Option<Value>, OpError> {
    if let Some(values) = elements.iter().map(Dim::as_const).collect::<Option<Vec<_>>>() {
        let shape = ty.const_shape().unwrap_or_default();
        if shape.iter().product::<usize>() == values.len() {
            return b.constant(Tensor::from_i64s(ty.dtype, &shape, values)).map(Some);
        }
    }
    if !ty.dtype.is_int() {
        return Ok(None);
    }
    let attrs = Attrs::none().with("sizes", elements).with("scalar", ty.rank() == 0);
    b.op1("size_vector", attrs.with("dtype", ty.dtype), &[]).map(Some)
}

/// Elements that follow from known operands and the symbols' bounds.
fn decide(graph: &Graph, sizes: &Sizes, v: Value) -> Option<Vec<Dim>> {
    let node = graph.node(v.node);
    let op = node.op.name();
    if !matches!(op, "select" | "maximum" | "minimum") && !COMPARISONS.contains(&op) {
        return None;
    }
    let args: Vec<Vec<Dim>> =
        node.inputs().iter().map(|v| elements(graph, (*v)?)).collect::<Option<_>>()?;
    let n = args.iter().map(Vec::len).max()?;
    if args.iter().any(|a| a.len() != n && a.len() != 1) {
        return None;
    }
    let at = |a: usize, i: usize| &args[a][if args[a].len() == 1 { 0 } else { i }];
    let truth = |t: bool| Dim::from(i64::from(t));
    (0..n)
        .map(|i| match op {
            "select" => match at(0, i).as_const()? {
                0 => Some(at(2, i).clone()),
                _ => Some(at(1, i).clone()),
            },
            "maximum" => Some(sizes.maximum(at(0, i), at(1, i))),
            "minimum" => Some(sizes.minimum(at(0, i), at(1, i))),
            _ => {
                let (a, b) = (at(0, i), at(1, i));
                // A difference of constants may leave 64 bits; their order does not.
                let (lo, hi) = match (a.as_const(), b.as_const()) {
                    (Some(a), Some(b)) => (a.cmp(&b) as i64, a.cmp(&b) as i64),
                    _ => {
                        let range = (a.clone() - b.clone()).bounds(&sizes.symbols);
                        (range.lo, range.hi)
                    }
                };
                compare(op, lo, hi).map(truth)
            }
        })
        .collect()
}

/// Operators that [`compare`] decides.
const COMPARISONS: &[&str] = &["equal", "less", "less_equal", "greater", "greater_equal"];

/// The outcome of comparing two values whose difference lies in `lo..=hi`.
fn compare(op: &str, lo: i64, hi: i64) -> Option<bool> {
    let (yes, no) = match op {
        "equal" => (lo == 0 && hi == 0, lo > 0 || hi < 0),
        "less" => (hi < 0, lo >= 0),
        "less_equal" => (hi <= 0, lo > 0),
        "greater" => (lo > 0, hi <= 0),
        "greater_equal" => (lo >= 0, hi < 0),
        _ => return None,
    };
    (yes != no).then_some(yes)
}

/// The outcome of a comparison of index grids, where it is the same everywhere.
fn compare_forms(graph: &Graph, sizes: &Sizes, index: &mut IndexForms, v: Value) -> Option<bool> {
    let node = graph.node(v.node);
    if !COMPARISONS.contains(&node.op.name()) {
        return None;
    }
    let shape = &graph.ty(v).shape;
    let [a, b] = [0, 1].map(|i| index.of(graph, node.input(i)));
    let difference = a?.minus(&b?, shape.len());
    let (mut lo, mut hi) = {
        let b = difference.base.bounds(&sizes.symbols);
        (b.lo, b.hi)
    };
    for (stride, extent) in difference.strides.iter().zip(shape) {
        let reach = (stride.clone() * (extent.clone() - Dim::from(1))).bounds(&sizes.symbols);
        lo = lo.saturating_add(reach.lo.min(0));
        hi = hi.saturating_add(reach.hi.max(0));
    }
    compare(node.op.name(), lo, hi)
}

/// The value of a primitive on constants, if it is small.
fn evaluate(graph: &Graph, v: Value) -> Option<Tensor> {
    let node = graph.node(v.node);
    let Body::Primitive(eval) = node.op.body() else { return None };
    if !node.attrs.is_constant() {
        return None;
    }
    let small = |t: &Tensor| t.len() <= MAX_EVALUATED;
    let args = node.inputs().iter().map(|i| match i {
        None => Some(None),
        Some(i) if graph.node(i.node).op.name() == "constant" => {
            graph.fact(*i).constant.clone().filter(small).map(Some)
        }
        Some(_) => None,
    });
    let args = args.collect::<Option<Vec<_>>>().filter(|a| !a.is_empty())?;
    let results: Vec<TensorType> = node.results().iter().map(|f| f.ty.clone()).collect();
    let fits = |ty: &TensorType| {
        let n = ty.const_shape()?.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        (n <= MAX_EVALUATED).then_some(())
    };
    results.iter().try_for_each(fits)?;
    let cx = EvalCx { attrs: &node.attrs, results: &results, env: &Env::new() };
    eval(&cx, &args).into_iter().nth(v.port)
}

/// Looks through operators that do nothing for their operands.
fn identity(b: &mut Builder<'_>, v: Value) -> Result<Value, OpError> {
    let graph = b.graph();
    let node = graph.node(v.node);
    let x = match (node.op.name(), node.inputs()) {
        ("reshape" | "broadcast_to" | "cast", [Some(x)]) => *x,
        ("concat", [Some(x)]) => *x,
        ("transpose", [Some(x)]) if node.attrs.ints("perm").is_sorted() => *x,
        (op @ ("and" | "or"), [Some(x), Some(y)]) => {
            let neutral = Some(op == "and");
            match (truth(graph, *x) == neutral, truth(graph, *y) == neutral) {
                (true, _) => return widened(b, *y, v),
                (_, true) => return widened(b, *x, v),
                _ => v,
            }
        }
        ("select", [Some(cond), Some(x), Some(y)]) => match truth(graph, *cond) {
            Some(true) => return widened(b, *x, v),
            Some(false) => return widened(b, *y, v),
            None => v,
        },
        _ => v,
    };
    Ok(if graph.ty(x) == graph.ty(v) { x } else { v })
}

/// `x` broadcast to the shape of `v`.
fn widened(b: &mut Builder<'_>, x: Value, v: Value) -> Result<Value, OpError> {
    if b.ty(x) == b.ty(v) {
        return Ok(x);
    }
    let shape = Attrs::none().with("shape", b.ty(v).shape.to_vec());
    b.op1("broadcast_to", shape, &[x])
}

/// The truth of a boolean that is the same everywhere.
fn truth(graph: &Graph, v: Value) -> Option<bool> {
    let node = graph.node(v.node);
    match node.op.name() {
        "broadcast_to" | "reshape" => {
            let x = node.input(0);
            let t = graph.fact(x).constant.as_ref()?;
            (t.dtype() == DType::Bool && t.len() == 1).then(|| t.to_i64s()[0] != 0)
        }
        "constant" => {
            let t = node.attrs.tensor("value");
            (t.dtype() == DType::Bool && t.len() == 1).then(|| t.to_i64s()[0] != 0)
        }
        _ => None,
    }
}

/// Refuses shapes and sizes whose expressions have grown without bound.
fn check_size(b: &mut Builder<'_>, v: Value) -> Result<(), OpError> {
    let fact = b.fact(v);
    let ty = &fact.ty;
    if ty.rank() > MAX_RANK {
        let rank = ty.rank();
        return Err(OpError::new(format!("has {rank} axes; at most {MAX_RANK} are supported")));
    }
    let terms = |d: &Dim| match d.as_const().is_some() || d.as_symbol().is_some() {
        true => 1,
        false => {
            let text = d.to_string();
            1 + text.len() / 64 + text.matches([' ', ',']).count()
        }
    };
    let product = ty.shape.iter().map(terms).fold(1usize, |n, t| n.saturating_mul(t));
    let worst = fact.dims.iter().flatten().map(terms).max().unwrap_or(0);
    if product > MAX_TERMS || worst > MAX_TERMS / 64 {
        return Err(OpError::new("its sizes are too large expressions of the symbols"));
    }
    if fact.dims.as_ref().is_some_and(|d| d.len() > MAX_SIZES) {
        let mut results = b.graph().node(v.node).results().to_vec();
        results[v.port].dims = None;
        b.graph_mut().set_results(v.node, results);
    }
    Ok(())
}
