//! Attention masks by abstract interpretation.
//!
//! A tensor that is built from coordinates and sizes is a function of its indices. This module
//! follows integers as affine functions, conditions as conjunctions of linear inequalities, and
//! two-valued tensors as a condition with a value on each side, through whatever spelling computes
//! them: comparisons of ranges, triangular constants, `where`, casts, arithmetic on 0 and 1. A mask
//! that depends on data has no such form, and stays a bias.
//!
//! Axes are counted from the last one, as broadcasting aligns them: of a mask `[.., M, N]`, axis 0
//! is the key and axis 1 the query.

use std::collections::BTreeMap;

use egg::Id;
use ir::{Dim, Fact, Symbols, Tensor, TensorType, normalize_axis};

use crate::egraph::{Data, EGraph, ENode};

/// Nesting of terms that is followed.
const DEPTH: usize = 64;
/// Scores that get no weight beside any other, as exporters write them.
const HIDDEN: f64 = -9_999.0;

/// A mask that attention applies by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionMask {
    /// Whether a query sees no later key.
    pub(crate) causal: bool,
    /// Keys at this distance or more before the query are hidden; zero: none.
    pub(crate) window: i64,
}

/// The mask that adding `bias` to scores of `queries` by `keys` amounts to, if it is one.
pub(crate) fn attention_mask(
    egraph: &EGraph,
    bias: Id,
    queries: &Dim,
    keys: &Dim,
) -> Option<AttentionMask> {
    let mut reader = Reader { egraph, memo: BTreeMap::new() };
    let Abstract::Choice { when, yes, no } = reader.read(bias, 0)? else { return None };
    if yes != 0.0 || no > HIDDEN {
        return None;
    }
    // Query i stands at position i + offset.
    let offset = keys.clone() - queries.clone();
    let mut mask = AttentionMask { causal: false, window: 0 };
    for c in when.0 {
        let [j, i, rest @ ..] = c.coefficients.as_slice() else { return None };
        if rest.iter().any(|c| *c != 0) {
            return None;
        }
        match (i, j) {
            (1, -1) if c.constant == offset => mask.causal = true,
            (-1, 1) => {
                let width = (c.constant + Dim::from(1i64) + offset.clone()).as_const()?;
                // A window without width shows later keys alone, which no mask of attention does.
                mask.window = match (width, mask.window) {
                    (..=0, _) => return None,
                    (_, 0) => width,
                    (_, other) => width.min(other),
                };
            }
            _ => return None,
        }
    }
    // A row without any key is uniform in the source where hidden scores are finite.
    let first = offset.bounds(&egraph.analysis.module.symbols).lo >= 0;
    (first || no == f64::NEG_INFINITY).then_some(mask)
}

/// `Σ coefficient · index + constant`.
#[derive(Clone, Debug, PartialEq)]
struct Affine {
    coefficients: Vec<i64>,
    constant: Dim,
}

/// All of these are not negative.
#[derive(Clone, Debug, PartialEq, Default)]
struct Condition(Vec<Affine>);

#[derive(Clone, Debug, PartialEq)]
enum Abstract {
    Integer(Affine),
    Bool(Condition),
    Choice { when: Condition, yes: f64, no: f64 },
}

struct Reader<'a> {
    egraph: &'a EGraph,
    memo: BTreeMap<Id, Option<Abstract>>,
}

impl Reader<'_> {
    fn read(&mut self, id: Id, depth: usize) -> Option<Abstract> {
        let id = self.egraph.find(id);
        if let Some(known) = self.memo.get(&id) {
            return known.clone();
        }
        self.memo.insert(id, None);
        let Data::Value(_) = self.egraph[id].data else { return None };
        let ty = self.egraph[id].data.ty()?.clone();
        let found = match self.egraph[id].data.fact().and_then(known) {
            Some(known) => Some(known),
            None if depth < DEPTH => {
                let nodes = self.egraph[id].nodes.clone();
                nodes.iter().find_map(|n| self.node(n, &ty, depth + 1))
            }
            None => None,
        };
        let found = found.map(|f| simplify(f, &ty, &self.egraph.analysis.module.symbols));
        self.memo.insert(id, found.clone());
        found
    }

    fn node(&mut self, node: &ENode, ty: &TensorType, depth: usize) -> Option<Abstract> {
        let (op, operands, attr_ids) = node.as_op()?;
        let egraph = self.egraph;
        let attrs = crate::egraph::attrs(egraph, op, attr_ids)?;
        let mut arg = |i: usize| self.read(*operands.get(i)?, depth);
        let shape = |i: usize| egraph[operands[i]].data.ty().map(|t| t.shape.to_vec());
        match op.name() {
            "iota" => {
                let axis = normalize_axis(attrs.int("axis"), ty.rank())?;
                let mut coefficients = vec![0; ty.rank()];
                coefficients[ty.rank() - 1 - axis] = 1;
                Some(Abstract::Integer(Affine { coefficients, constant: Dim::from(0i64) }))
            }
            "broadcast_to" => arg(0),
            "reshape" => {
                let from = shape(0)?;
                let value = arg(0)?;
                let axes = same_but_for_ones(&from, &ty.shape)?;
                Some(value.map(|f| f.rearrange(&axes)))
            }
            "transpose" => {
                let n = ty.rank();
                let axes = (0..n).map(|i| {
                    let perm = attrs.ints("perm");
                    // Axis i of the result, from the end, is this axis of the operand, from the
                    // end.
                    usize::try_from(perm[n - 1 - i]).ok().map(|p| Some(n - 1 - p))
                });
                let axes: Vec<Option<usize>> = axes.collect::<Option<_>>()?;
                arg(0).map(|v| v.map(|f| f.rearrange(&axes)))
            }
            "slice" if attrs.int("step") == 1 => {
                let axis = normalize_axis(attrs.int("axis"), ty.rank())?;
                let start = attrs.dims("range").first()?.clone();
                arg(0).map(|v| v.map(|f| f.shift(ty.rank() - 1 - axis, &start)))
            }
            "cast" => cast(arg(0)?, ty),
            "add" | "sub" | "mul" => arithmetic(op.name(), arg(0)?, arg(1)?),
            "concat" => {
                let axis = normalize_axis(attrs.int("axis"), ty.rank())?;
                let mut parts = Vec::with_capacity(operands.len());
                for i in 0..operands.len() {
                    let Abstract::Integer(value) = arg(i)? else { return None };
                    parts.push((value, shape(i)?[axis].clone()));
                }
                joined(&parts, ty.rank() - 1 - axis).map(Abstract::Integer)
            }
            // Sums of nothing but zeros.
            "cumsum" => match arg(0)? {
                Abstract::Integer(a) if a.as_const()?.is(0) => Some(Abstract::Integer(a)),
                _ => None,
            },
            "equal" | "less" | "less_equal" | "greater" | "greater_equal" => {
                if !egraph[operands[0]].data.ty()?.dtype.is_int() {
                    return None;
                }
                compare(op.name(), arg(0)?, arg(1)?)
            }
            "and" => match (arg(0)?, arg(1)?) {
                (Abstract::Bool(a), Abstract::Bool(b)) => Some(Abstract::Bool(a.and(b))),
                _ => None,
            },
            "not" => match arg(0)? {
                Abstract::Bool(c) => Some(Abstract::Bool(c.negate()?)),
                _ => None,
            },
            "select" => {
                let Abstract::Bool(when) = arg(0)? else { return None };
                let side = |v: Abstract| match v {
                    Abstract::Choice { when, yes, .. } if when.0.is_empty() => Some(yes),
                    _ => None,
                };
                let (yes, no) = (side(arg(1)?)?, side(arg(2)?)?);
                Some(Abstract::Choice { when, yes, no })
            }
            _ => None,
        }
    }
}

impl Abstract {
    fn map(self, f: impl Fn(Affine) -> Affine) -> Abstract {
        let all = |c: Condition| Condition(c.0.into_iter().map(&f).collect());
        match self {
            Abstract::Integer(a) => Abstract::Integer(f(a)),
            Abstract::Bool(c) => Abstract::Bool(all(c)),
            Abstract::Choice { when, yes, no } => Abstract::Choice { when: all(when), yes, no },
        }
    }
}

impl Affine {
    /// Axis `i` of the result reads axis `axes[i]`.
    fn rearrange(&self, axes: &[Option<usize>]) -> Affine {
        let at = |a: &Option<usize>| a.and_then(|a| self.coefficients.get(a)).copied().unwrap_or(0);
        Affine { coefficients: axes.iter().map(at).collect(), constant: self.constant.clone() }
    }

    /// The index along an axis starts at `start`.
    fn shift(self, axis: usize, start: &Dim) -> Affine {
        let c = self.coefficients.get(axis).copied().unwrap_or(0);
        Affine { constant: self.constant + Dim::from(c) * start.clone(), ..self }
    }

    fn combine(&self, other: &Affine, sign: i64) -> Affine {
        let n = self.coefficients.len().max(other.coefficients.len());
        let at = |a: &Affine, i: usize| a.coefficients.get(i).copied().unwrap_or(0);
        let sum = |i| at(self, i).saturating_add(at(other, i).saturating_mul(sign));
        Affine {
            coefficients: (0..n).map(sum).collect(),
            constant: self.constant.clone() + other.constant.clone() * Dim::from(sign),
        }
    }

    fn times(&self, factor: i64) -> Affine {
        Affine {
            coefficients: self.coefficients.iter().map(|c| c.saturating_mul(factor)).collect(),
            constant: self.constant.clone() * Dim::from(factor),
        }
    }

    fn plus(mut self, constant: i64) -> Affine {
        self.constant = self.constant + Dim::from(constant);
        self
    }

    fn as_const(&self) -> Option<&Dim> {
        self.coefficients.iter().all(|c| *c == 0).then_some(&self.constant)
    }
}

impl Condition {
    fn and(mut self, other: Condition) -> Condition {
        for c in other.0 {
            if !self.0.contains(&c) {
                self.0.push(c);
            }
        }
        self
    }

    fn negate(self) -> Option<Condition> {
        match <[Affine; 1]>::try_from(self.0) {
            Ok([c]) => Some(Condition(vec![c.times(-1).plus(-1)])),
            Err(none) if none.is_empty() => Some(Condition::never()),
            Err(_) => None,
        }
    }

    fn never() -> Condition {
        Condition(vec![Affine { coefficients: Vec::new(), constant: Dim::from(-1i64) }])
    }

    fn is_never(&self) -> bool {
        matches!(self.0.as_slice(), [c] if c.as_const().is_some_and(|d| d.is(-1)))
    }
}

/// What a constant, or a symbolic scalar, is.
fn known(fact: &Fact) -> Option<Abstract> {
    let rank = fact.ty.rank();
    let affine = |coefficients, constant| Abstract::Integer(Affine { coefficients, constant });
    if let (Some([d]), true) = (fact.dims.as_deref(), fact.ty.dtype.is_int()) {
        return Some(affine(vec![0; rank], d.clone()));
    }
    let t = fact.constant.as_ref()?;
    if t.dtype().is_float() {
        return two_valued(t);
    }
    let values = t.to_i64s();
    if t.dtype() == ir::DType::Bool {
        return boolean(t, &values).map(Abstract::Bool);
    }
    let (first, last) = (*values.first()?, t.shape().last().copied().unwrap_or(1));
    let step = if last > 1 { values[1] - first } else { 0 };
    let fits =
        |(k, v): (usize, &i64)| i64::try_from(k % last).is_ok_and(|j| *v == first + j * step);
    let mut coefficients = vec![0; rank];
    if let Some(c) = coefficients.first_mut() {
        *c = step;
    }
    values.iter().enumerate().all(fits).then(|| affine(coefficients, Dim::from(first)))
}

/// A constant of one value, or of a larger one where a condition holds and a smaller elsewhere.
fn two_valued(t: &Tensor) -> Option<Abstract> {
    let values = t.to_f64s();
    let yes = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let no = values.iter().copied().fold(f64::INFINITY, f64::min);
    if values.is_empty() || !values.iter().all(|v| *v == yes || *v == no) {
        return None;
    }
    let holds: Vec<i64> = values.iter().map(|v| i64::from(*v == yes)).collect();
    boolean(t, &holds).map(|when| Abstract::Choice { when, yes, no })
}

/// A constant condition: always true, or a triangle over the last two axes.
fn boolean(t: &Tensor, values: &[i64]) -> Option<Condition> {
    if values.iter().all(|v| *v != 0) {
        return Some(Condition::default());
    }
    let [.., rows, columns] = *t.shape() else { return None };
    // The diagonal that the first row ends at.
    let shift = values.iter().take(columns).take_while(|v| **v != 0).count();
    let lower = |(k, v): (usize, &i64)| {
        let (i, j) = (k / columns % rows, k % columns);
        (*v != 0) == (j < i + shift)
    };
    let shift_dim = i64::try_from(shift).ok()?;
    let mut coefficients = vec![0; t.rank()];
    (coefficients[0], coefficients[1]) = (-1, 1);
    let triangle = Affine { coefficients, constant: Dim::from(shift_dim - 1) };
    values.iter().enumerate().all(lower).then(|| Condition(vec![triangle]))
}

fn cast(value: Abstract, ty: &TensorType) -> Option<Abstract> {
    Some(match value {
        Abstract::Bool(when) if ty.dtype == ir::DType::Bool => Abstract::Bool(when),
        Abstract::Bool(when) if ty.dtype.is_int() => {
            let constant = match (when.0.is_empty(), when.is_never()) {
                (true, _) => 1,
                (_, true) => 0,
                _ => return None,
            };
            let coefficients = vec![0; ty.rank()];
            Abstract::Integer(Affine { coefficients, constant: Dim::from(constant) })
        }
        Abstract::Bool(when) => Abstract::Choice { when, yes: 1.0, no: 0.0 },
        Abstract::Integer(a) if ty.dtype != ir::DType::Bool => Abstract::Integer(a),
        Abstract::Integer(_) => return None,
        Abstract::Choice { when, yes, no } if ty.dtype == ir::DType::Bool => {
            match (yes != 0.0, no != 0.0) {
                (true, false) => Abstract::Bool(when),
                (false, true) => Abstract::Bool(when.negate()?),
                (true, true) => Abstract::Bool(Condition::default()),
                (false, false) => return None,
            }
        }
        choice @ Abstract::Choice { .. } => choice,
    })
}

fn arithmetic(op: &str, a: Abstract, b: Abstract) -> Option<Abstract> {
    let f: fn(f64, f64) -> f64 = match op {
        "add" => |x, y| x + y,
        "sub" => |x, y| x - y,
        _ => |x, y| x * y,
    };
    match (a, b) {
        (Abstract::Integer(a), Abstract::Integer(b)) => Some(Abstract::Integer(match op {
            "add" => a.combine(&b, 1),
            "sub" => a.combine(&b, -1),
            _ => match (a.as_const().and_then(Dim::as_const), b.as_const().and_then(Dim::as_const))
            {
                (Some(c), _) => b.times(c),
                (_, Some(c)) => a.times(c),
                _ => return None,
            },
        })),
        (Abstract::Choice { when, yes, no }, Abstract::Choice { when: other, yes: y, no: n }) => {
            if other.0.is_empty() {
                return Some(Abstract::Choice { when, yes: f(yes, y), no: f(no, y) });
            }
            if when.0.is_empty() {
                return Some(Abstract::Choice { when: other, yes: f(yes, y), no: f(yes, n) });
            }
            // Two masks that both add nothing where they show.
            let masks = op == "add" && (yes, y) == (0.0, 0.0) && no <= HIDDEN && n <= HIDDEN;
            let no = no.max(n);
            masks.then(|| Abstract::Choice { when: when.and(other), yes, no })
        }
        _ => None,
    }
}

fn compare(op: &str, a: Abstract, b: Abstract) -> Option<Abstract> {
    let (Abstract::Integer(a), Abstract::Integer(b)) = (a, b) else { return None };
    let c = match op {
        "equal" => {
            let difference = a.combine(&b, -1);
            return Some(Abstract::Bool(Condition(vec![difference.times(-1), difference])));
        }
        "less" => b.combine(&a, -1).plus(-1),
        "less_equal" => b.combine(&a, -1),
        "greater" => a.combine(&b, -1).plus(-1),
        _ => a.combine(&b, -1),
    };
    Some(Abstract::Bool(Condition(vec![c])))
}

/// One affine function over parts joined along an axis, given with their extents.
fn joined(parts: &[(Affine, Dim)], axis: usize) -> Option<Affine> {
    let mut start = Dim::from(0i64);
    let mut starts = Vec::with_capacity(parts.len());
    for (_, extent) in parts {
        starts.push(start.clone());
        start = start + extent.clone();
    }
    // A part of more than one element gives the slope, and so the whole.
    let long = parts.iter().position(|(_, extent)| !extent.is(1))?;
    let whole = parts[long].0.clone().shift(axis, &-starts[long].clone());
    let fits = parts.iter().zip(&starts).all(|((value, extent), start)| {
        let mut here = whole.clone().shift(axis, start);
        if extent.is(1) {
            here.coefficients[axis] = 0;
        }
        here == *value
    });
    fits.then_some(whole)
}

/// Drops coefficients of axes of extent one, and inequalities that always hold.
fn simplify(value: Abstract, ty: &TensorType, symbols: &Symbols) -> Abstract {
    let extent = |i: usize| ty.shape.len().checked_sub(i + 1).map(|a| &ty.shape[a]);
    let value = value.map(|mut a| {
        a.coefficients.resize(ty.rank(), 0);
        for (i, c) in a.coefficients.iter_mut().enumerate() {
            if extent(i).is_none_or(|d| d.is(1)) {
                *c = 0;
            }
        }
        a
    });
    // The least value over all indices; of the negated function, less the greatest.
    let lowest = |a: &Affine| {
        let falls = a.coefficients.iter().enumerate().filter(|(_, c)| **c < 0);
        let low = falls.fold(a.constant.clone(), |low, (i, c)| {
            low + Dim::from(*c) * (extent(i).cloned().unwrap_or_default() - Dim::from(1i64))
        });
        low.bounds(symbols).lo
    };
    let needed = |c: Condition| {
        if c.0.iter().any(|a| lowest(&a.times(-1)) > 0) {
            return Condition::never();
        }
        Condition(c.0.into_iter().filter(|a| lowest(a) < 0).collect())
    };
    match value {
        Abstract::Bool(c) => Abstract::Bool(needed(c)),
        Abstract::Choice { when, yes, no } => Abstract::Choice { when: needed(when), yes, no },
        integer => integer,
    }
}

/// For a reshape that only adds or removes axes of extent one: which axis of the operand each axis
/// of the result is, both counted from the end.
fn same_but_for_ones(from: &[Dim], to: &[Dim]) -> Option<Vec<Option<usize>>> {
    let mut old = from.iter().rev().enumerate().filter(|(_, d)| !d.is(1));
    let mut axes = Vec::with_capacity(to.len());
    for d in to.iter().rev() {
        axes.push(if d.is(1) {
            None
        } else {
            let (i, e) = old.next()?;
            (e == d).then_some(())?;
            Some(i)
        });
    }
    old.next().is_none().then_some(axes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::terms_of;

    /// The mask of a bias over five queries and `keys` keys.
    fn mask(leaves: &[&str], bias: &str, keys: i64) -> Option<(bool, i64)> {
        let (terms, ids) = terms_of(leaves, &[bias]);
        let found = attention_mask(&terms.egraph, ids[0], &Dim::from(5i64), &Dim::from(keys))?;
        Some((found.causal, found.window))
    }

    const I: &str = "(reshape (iota <5> 0 i64) <1,1,5,1>)";
    const J: &str = "(iota <5> 0 i64)";
    const LOW: &str = "(constant 0f32) (constant -3e38f32)";

    #[test]
    fn comparisons_of_positions_are_causal_masks_and_windows() {
        let causal = format!("(select (less_equal {J} {I}) {LOW})");
        assert_eq!(mask(&[], &causal, 5), Some((true, 0)));
        let strict = format!("(select (not (greater {J} {I})) {LOW})");
        assert_eq!(mask(&[], &strict, 5), Some((true, 0)));
        let near = format!("(less (sub {I} {J}) (reshape (iota <1> 0 i64) <>))");
        assert_eq!(mask(&[], &format!("(select {near} {LOW})"), 5), None, "no key is left");
        let near = format!("(less_equal (sub {I} {J}) (reshape (iota <1> 0 i64) <>))");
        let window = format!("(select (and (less_equal {J} {I}) {near}) {LOW})");
        assert_eq!(mask(&[], &window, 5), Some((true, 1)));
    }

    #[test]
    fn conditions_that_no_window_expresses_stay_biases() {
        for no in ["-3e38f32", "-inff32"] {
            let values = format!("(constant 0f32) (constant {no})");
            let later = format!("(select (greater {J} {I}) {values})");
            assert_eq!(mask(&[], &later, 5), None, "{later}");
            // A window of three keys besides does not make it one.
            let three = format!("(less (sub {I} {J}) (constant 3i64))");
            let both = format!("(select (and (greater {J} {I}) {three}) {values})");
            assert_eq!(mask(&[], &both, 5), None, "{both}");
            let both = format!("(select (and {three} (greater {J} {I})) {values})");
            assert_eq!(mask(&[], &both, 5), None, "{both}");
            let window = format!("(select {three} {values})");
            assert_eq!(mask(&[], &window, 5), Some((false, 3)), "{window}");
        }
    }

    #[test]
    fn arithmetic_on_zero_and_one_is_followed() {
        let seen = format!("(cast (less_equal {J} {I}) f32)");
        let bias = format!("(mul (sub (constant 1f32) {seen}) (constant -1e9f32))");
        assert_eq!(mask(&[], &bias, 5), Some((true, 0)));
        let shown = format!("(mul {seen} (constant -1e9f32))");
        assert_eq!(mask(&[], &shown, 5), None, "hides what it should show");
    }

    #[test]
    fn triangular_constants_are_causal_masks() {
        let (mut terms, _) = terms_of(&[], &["(constant 0f32)"]);
        let low = |k: usize| if k % 5 <= k / 5 { 0.0 } else { f64::NEG_INFINITY };
        let value = Tensor::from_f64s(ir::DType::F32, &[1, 5, 5], (0..25).map(low));
        let attrs = ir::Attrs::none().with("value", value);
        let id = terms.op("constant", &attrs, &[]).unwrap();
        let five = Dim::from(5i64);
        let found = attention_mask(&terms.egraph, id, &five, &five).unwrap();
        assert_eq!(found, AttentionMask { causal: true, window: 0 });
    }

    #[test]
    fn what_always_holds_is_no_mask() {
        let all = format!("(select (greater_equal {J} (reshape (iota <1> 0 i64) <>)) {LOW})");
        assert_eq!(mask(&[], &all, 5), Some((false, 0)));
    }

    #[test]
    fn segments_that_are_found_by_steps_of_positions_are_one() {
        // Positions count up by one, so no new segment ever begins.
        let p = "(reshape (iota <5> 0 i64) <1,5>)";
        let before = format!("(sub (slice {p} 1 <0,1> 1) (constant 1i64))");
        let joined = format!("(concat {before} {p} 1)");
        let steps = format!("(sub (slice {joined} 1 <1,6> 1) (slice {joined} 1 <0,5> 1))");
        let starts = format!("(cast (not (equal {steps} (constant 1i64))) i64)");
        let segment = format!("(cumsum {starts} 1)");
        let same = format!("(equal (reshape {segment} <1,1,5,1>) (reshape {segment} <1,1,1,5>))");
        let bias = format!("(select (and {same} (less_equal {J} {I})) {LOW})");
        assert_eq!(mask(&[], &bias, 5), Some((true, 0)));
    }

    #[test]
    fn masks_of_data_and_of_other_offsets_stay_biases() {
        let data = format!("(select (and (less_equal {J} {I}) %0) {LOW})");
        assert_eq!(mask(&["bool[1,1,1,5]"], &data, 5), None);
        let keys = "(iota <7> 0 i64)";
        let causal = format!("(select (less_equal {keys} {I}) {LOW})");
        assert_eq!(mask(&[], &causal, 7), None, "the last query must see the last key");
    }
}
