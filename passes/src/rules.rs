//! The rules, in the phases in which they run.
//!
//! `rules/README.md` states the laws that a rule keeps.

mod activations;
mod attention;
mod library;
mod linear;
mod merge;
mod norms;
mod views;

use ir::OpError;

use crate::{
    egraph::Terms,
    rule::{Compiled, Limits, Rule, saturate},
};

/// A stage: rules that run together, then what text cannot say.
struct Phase {
    /// Its name in traces.
    name: &'static str,
    /// Tables of rules.
    rules: &'static [&'static [&'static [Rule]]],
    /// What runs once afterwards.
    then: Option<fn(&mut Terms)>,
}

impl Phase {
    fn rows(&self) -> impl Iterator<Item = &'static Rule> {
        self.rules.iter().flat_map(|t| t.iter()).flat_map(|t| t.iter())
    }
}

static PHASES: &[Phase] = &[
    Phase {
        name: "definitions",
        rules: &[&[norms::SPELLING, norms::NORMS, activations::SOFTMAX], activations::ACTIVATIONS],
        then: None,
    },
    Phase {
        name: "attention",
        rules: &[&[views::RESHAPES, views::TRANSPOSES, attention::SCORES, attention::ATTENTION]],
        then: None,
    },
    Phase { name: "products", rules: &[&[views::RESHAPES, linear::PRODUCTS]], then: None },
    Phase { name: "gates", rules: &[linear::GATED], then: Some(merge::merge_products) },
];

/// What runs at the end where products may be computed by a library.
static LIBRARY: Phase = Phase { name: "library", rules: &[&[library::PRODUCTS]], then: None };

/// Runs every phase; the last only where a library is asked for.
///
/// # Errors
/// Where a row's text does not parse: a mistake in the table, which the tests find.
pub(crate) fn apply(terms: &mut Terms, asks_library: bool) -> Result<(), OpError> {
    let before = terms.egraph.total_size();
    let limits = Limits { rounds: 12, nodes: 20 * before + 10_000, matches: 20_000 };
    for phase in PHASES {
        run(phase, terms, limits)?;
    }
    if asks_library {
        library::join_packed(terms);
        run(&LIBRARY, terms, limits)?;
    }
    Ok(())
}

fn run(phase: &Phase, terms: &mut Terms, limits: Limits) -> Result<(), OpError> {
    let span = tracing::debug_span!("rules", phase = phase.name);
    let _entered = span.enter();
    let rules = phase.rows().map(Compiled::new).collect::<Result<Vec<_>, _>>()?;
    saturate(terms, &rules, limits);
    if let Some(then) = phase.then {
        then(terms);
    }
    tracing::debug!(nodes = terms.egraph.total_size(), "phase ends");
    Ok(())
}

/// Every row of every table, each once though several phases may use its table.
#[cfg(test)]
fn rows() -> impl Iterator<Item = &'static Rule> {
    let mut seen = std::collections::BTreeSet::new();
    PHASES
        .iter()
        .chain([&LIBRARY])
        .flat_map(Phase::rows)
        .filter(move |r| seen.insert(std::ptr::from_ref(*r)))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use egg::{Id, RecExpr};
    use indexmap::IndexMap;
    use ir::{DType, Dim, Env, Interpreter, Module, Precision, Tensor, TensorType};

    use super::*;
    use crate::{
        egraph::{Data, EGraph, ENode, Facts, Known, build_term},
        rule::Numerics,
    };

    /// A leaf's type, as examples write it, and whether it is a weight.
    fn leaf(text: &str) -> (TensorType, bool) {
        let (text, weight) = match text.strip_prefix("weight ") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (dtype, dims) = text.strip_suffix(']').and_then(|t| t.split_once('[')).expect("a type");
        let dims = dims.split(',').filter(|d| !d.is_empty());
        let dims = dims.map(|d| d.parse::<Dim>().expect("a size"));
        (TensorType::new(dtype.parse().expect("an element type"), dims), weight)
    }

    /// An e-graph of terms over leaves.
    pub(crate) fn terms_of(leaves: &[&str], terms: &[&str]) -> (Terms, Vec<Id>) {
        let mut facts = Facts::new(&Module::new("rule"));
        for text in leaves {
            let (ty, weight_only) = leaf(text);
            facts.leaves.push(Known { facts: [ty.into()].into_iter().collect(), weight_only });
        }
        let mut t = Terms { egraph: EGraph::new(facts) };
        let ids = terms.iter().map(|text| add(&mut t, text)).collect();
        t.egraph.rebuild();
        (t, ids)
    }

    fn add(terms: &mut Terms, text: &str) -> Id {
        let expr: RecExpr<ENode> = text.parse().unwrap_or_else(|e| panic!("`{text}`: {e}"));
        let mut ids: Vec<Id> = Vec::new();
        for node in expr.as_ref() {
            let node = egg::Language::map_children(node.clone(), |c| ids[usize::from(c)]);
            let id = terms.node(node);
            if let Data::Invalid(why) = &terms.egraph[id].data {
                panic!("`{text}`: {why}");
            }
            ids.push(id);
        }
        *ids.last().expect("not empty")
    }

    /// Values of a term over samples of its leaves.
    pub(crate) fn eval(leaves: &[&str], text: &str, precision: Precision) -> Vec<Tensor> {
        let module = Module::new("rule");
        let mut b = module.builder("f");
        let mut params = Vec::new();
        let mut inputs = Vec::new();
        for (i, l) in leaves.iter().enumerate() {
            let (ty, _) = leaf(l);
            let shape = ty.const_shape().expect("constant");
            // A low-discrepancy sequence: no two alike, signs and sizes mixed.
            let at = |k: usize| 4.0 * (((k + 31 * i + 1) as f64) * 0.618_033_988_749_895).fract();
            let n: usize = shape.iter().product();
            // Conditions hold here and there.
            let value = |k| match ty.dtype {
                DType::Bool => f64::from(u8::from(at(k) > 1.5)),
                _ => at(k) - 2.0,
            };
            inputs.push(Tensor::from_f64s(ty.dtype, &shape, (0..n).map(value)));
            params.push(b.param(&i.to_string(), ty).unwrap());
        }
        let expr: RecExpr<ENode> = text.parse().unwrap();
        let y = build_term(&mut b, &expr, &params).unwrap_or_else(|e| panic!("`{text}`: {e}"));
        b.output("y", y);
        let weights: IndexMap<Arc<str>, Tensor> = IndexMap::new();
        let run = Interpreter::new(&module, &weights, precision);
        run.eval(&b.finish(), &inputs, &Env::new()).unwrap()
    }

    #[test]
    fn every_rule_does_what_its_example_shows() {
        for rule in rows() {
            let e = &rule.example;
            let (mut terms, ids) = terms_of(e.leaves, &[e.before]);
            let compiled = Compiled::new(rule).unwrap();
            saturate(&mut terms, &[compiled], Limits { rounds: 1, nodes: 10_000, matches: 1000 });
            let after = add(&mut terms, e.after);
            terms.egraph.rebuild();
            let same = terms.egraph.find(after) == terms.egraph.find(ids[0]);
            assert!(same, "{}: {} is not rewritten to {}", rule.name, e.before, e.after);
        }
    }

    #[test]
    fn both_sides_of_every_example_are_equal() {
        for rule in rows() {
            let e = &rule.example;
            let (precision, tolerance) = match rule.numerics {
                Numerics::Exact => (Precision::F32, 0.0),
                Numerics::Reassociates => (Precision::F64, 1e-12),
                Numerics::Approximate => (Precision::F64, 1e-6),
                Numerics::Rounds => (Precision::F64, 2e-2),
            };
            let [x, y] = [e.before, e.after].map(|t| eval(e.leaves, t, precision));
            for (x, y) in x.iter().zip(&y) {
                assert_eq!((x.dtype(), x.shape()), (y.dtype(), y.shape()), "{}", rule.name);
                assert!(x.dtype() != DType::Bool || x == y, "{}", rule.name);
                for (x, y) in x.to_f64s().into_iter().zip(y.to_f64s()) {
                    let near = (x - y).abs() <= tolerance * x.abs().max(1.0);
                    let same = x.to_bits() == y.to_bits() || x.is_nan();
                    assert!(near || same, "{}: {x} and {y}", rule.name);
                }
            }
        }
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = rows().map(|r| r.name).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(n, names.len());
    }
}
