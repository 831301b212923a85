//! Rewrite rules: rows of text, and the engine that applies them.
//!
//! A row says that two terms are equal: `lhs` and `rhs` in the language of [`ENode`], `?x` standing
//! for any term. An operator marked `*`, as in `(add* ?a ?b)`, matches its two operands in either
//! order. `guard` sees what was matched, refuses it with `None`, and binds what the right side
//! needs besides: computed attributes, constants, reshaped operands.
//!
//! Rules run in short phases with caps on rounds, nodes and matches, never on time, so the outcome
//! depends on the input alone. A right side that does not type, or has another type than the left
//! side, is dropped.

use egg::{ENodeOrVar, Id, Pattern, PatternAst, Searcher, Subst, Var};
use ir::{Attr, Attrs, Dim, Fact, OpError, Tensor, TensorType, normalize_axis};

use crate::egraph::{Data, EGraph, ENode, Terms};

/// How the two sides of a rule differ in floating point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numerics {
    /// Bit by bit equal.
    Exact,
    /// Equal in exact arithmetic; rounds elsewhere.
    Reassociates,
    /// Equal up to the rounding of constants in the source, and of finite scores beside the -1e30
    /// or less of a mask.
    Approximate,
    /// Equal where activations are what the type of the weight holds: the right side rounds them
    /// first, as generated kernels for tensor cores do too. Only in tables that are asked for.
    Rounds,
}

/// A pair of equal terms that shows what a rule does; a test checks that it does.
pub struct Example {
    /// Types of leaves `%0`, `%1`, ..; `weight` in front makes one a weight.
    pub leaves: &'static [&'static str],
    /// A term that the rule matches.
    pub before: &'static str,
    /// What it adds.
    pub after: &'static str,
}

/// One rewrite.
pub struct Rule {
    /// Its name in traces and test failures.
    pub name: &'static str,
    /// The term to find.
    pub lhs: &'static str,
    /// The term that equals it.
    pub rhs: &'static str,
    /// Refuses a match, or binds variables of the right side.
    pub guard: fn(&mut Match<'_>) -> Option<()>,
    /// How the sides differ.
    pub numerics: Numerics,
    /// What it does.
    pub example: Example,
}

/// A guard that takes every match.
pub fn always(_: &mut Match<'_>) -> Option<()> {
    Some(())
}

/// What a rule matched. `?root` is the whole left side.
pub struct Match<'a> {
    /// The e-graph; guards may add terms.
    pub terms: &'a mut Terms,
    subst: Subst,
}

/// Reads and binds variables by name.
///
/// # Panics
/// Where a variable is not in the pattern, or is not of the kind that its place in the pattern
/// requires: a mistake in a row of the table, which the rules' test finds.
impl Match<'_> {
    /// The class that a variable stands for.
    pub fn id(&self, var: &str) -> Id {
        self.subst[parse_var(var)]
    }

    /// Binds a variable.
    pub fn set(&mut self, var: &str, id: Id) {
        self.subst.insert(parse_var(var), id);
    }

    /// Binds a variable to an attribute.
    pub fn set_attr(&mut self, var: &str, value: impl Into<Attr>) {
        let id = self.terms.attr(value);
        self.set(var, id);
    }

    /// Binds a variable to a new term.
    pub fn set_op(&mut self, var: &str, op: &str, attrs: &Attrs, operands: &[Id]) -> Option<()> {
        let operands: Vec<_> = operands.iter().copied().map(Some).collect();
        let id = self.terms.op(op, attrs, &operands).ok()?;
        self.set(var, id);
        Some(())
    }

    /// What is known of a single value.
    pub fn fact(&self, var: &str) -> Option<&Fact> {
        self.terms.egraph[self.id(var)].data.fact()
    }

    /// The type of a single value.
    pub fn ty(&self, var: &str) -> Option<&TensorType> {
        self.fact(var).map(|f| &f.ty)
    }

    /// Whether weights and constants alone determine a value.
    pub fn weight_only(&self, var: &str) -> bool {
        self.terms.egraph[self.id(var)].data.weight_only()
    }

    /// Whether an optional operand is absent.
    pub fn absent(&self, var: &str) -> bool {
        matches!(self.terms.egraph[self.id(var)].data, Data::Absent)
    }

    /// The one value that all elements of a constant have, where it has at most one axis of
    /// extent greater than one removed: a scalar, or a tensor of one element.
    pub fn scalar(&self, var: &str) -> Option<f64> {
        let t = self.fact(var)?.constant.as_ref()?;
        (t.len() == 1).then(|| t.to_f64s()[0])
    }

    /// Requires a scalar constant to be `value`, which the element type holds exactly.
    pub fn is(&self, var: &str, value: f64) -> Option<()> {
        self.scalar(var).filter(|v| *v == value).map(|_| ())
    }

    /// Requires a scalar constant to be `value`, up to the rounding of single precision.
    pub fn near(&self, var: &str, value: f64) -> Option<()> {
        let v = self.scalar(var)?;
        ((v - value).abs() <= 1e-6 * value.abs()).then_some(())
    }

    /// An attribute.
    pub fn attr(&self, var: &str) -> &Attr {
        match &self.terms.egraph[self.id(var)].data {
            Data::Attr(a) => a,
            other => panic!("{var} is {other:?}, not an attribute"),
        }
    }

    /// An integer attribute.
    pub fn int(&self, var: &str) -> i64 {
        match self.attr(var) {
            Attr::Int(v) => *v,
            other => panic!("{var} is {other}, not an integer"),
        }
    }

    /// A float attribute.
    pub fn float(&self, var: &str) -> f64 {
        match self.attr(var) {
            Attr::Float(v) => v.0,
            other => panic!("{var} is {other}, not a float"),
        }
    }

    /// An attribute of integers.
    pub fn ints(&self, var: &str) -> &[i64] {
        match self.attr(var) {
            Attr::Ints(v) => v,
            other => panic!("{var} is {other}, not integers"),
        }
    }

    /// An attribute of sizes.
    pub fn dims(&self, var: &str) -> &[Dim] {
        match self.attr(var) {
            Attr::Dims(v) => v,
            other => panic!("{var} is {other}, not sizes"),
        }
    }

    /// Requires an axis, or a list of one axis, to be the last one of `x`.
    pub fn last_axis(&self, axis: &str, x: &str) -> Option<()> {
        let rank = self.ty(x)?.rank();
        let axis = match self.attr(axis) {
            Attr::Int(a) => *a,
            Attr::Ints(a) => *a.first().filter(|_| a.len() == 1)?,
            _ => return None,
        };
        (normalize_axis(axis, rank)? + 1 == rank).then_some(())
    }

    /// Binds `to` to `var` as a vector: itself, or reshaped where its other axes have extent one.
    pub fn as_vector(&mut self, var: &str, to: &str) -> Option<()> {
        let ty = self.ty(var)?.clone();
        let (last, lead) = ty.shape.split_last()?;
        if !lead.iter().all(|d| d.is(1)) {
            return None;
        }
        if lead.is_empty() {
            self.set(to, self.id(var));
            return Some(());
        }
        let attrs = Attrs::none().with("shape", vec![last.clone()]);
        self.set_op(to, "reshape", &attrs, &[self.id(var)])
    }

    /// Binds `to` to a scalar constant of the element type of `like`.
    pub fn set_scalar(&mut self, to: &str, value: f64, like: &str) -> Option<()> {
        let dtype = self.ty(like)?.dtype;
        let value = Tensor::from_f64s(dtype, &[], [value]);
        self.set_op(to, "constant", &Attrs::none().with("value", value), &[])
    }
}

fn parse_var(name: &str) -> Var {
    name.parse().unwrap_or_else(|_| panic!("`{name}` is not a variable"))
}

/// A rule with its patterns parsed.
pub struct Compiled {
    rule: &'static Rule,
    lhs: Vec<Pattern<ENode>>,
    rhs: PatternAst<ENode>,
}

impl Compiled {
    /// Parses a row.
    ///
    /// # Errors
    /// Names the row and what is wrong with its text.
    pub fn new(rule: &'static Rule) -> Result<Compiled, OpError> {
        let bad = |e: String| OpError::new(format!("rule `{}`: {e}", rule.name));
        let variants = either_order(rule.lhs);
        let lhs = variants.iter().map(|t| t.parse::<Pattern<ENode>>()).collect::<Result<_, _>>();
        let rhs = rule.rhs.parse::<Pattern<ENode>>().map_err(|e| bad(e.to_string()))?.ast;
        Ok(Compiled { rule, lhs: lhs.map_err(|e| bad(e.to_string()))?, rhs })
    }

    /// Every match, in order of classes.
    fn search(&self, egraph: &EGraph) -> Vec<(Id, Subst)> {
        let mut found: Vec<(Id, Subst)> = Vec::new();
        for pattern in &self.lhs {
            for m in pattern.search(egraph) {
                found.extend(m.substs.into_iter().map(|s| (m.eclass, s)));
            }
        }
        found.sort_by_key(|(id, _)| *id);
        found
    }

    /// Applies the rule to one match. Returns whether that joined anything.
    fn apply(&self, terms: &mut Terms, root: Id, mut subst: Subst) -> bool {
        subst.insert(parse_var("?root"), root);
        let mut m = Match { terms, subst };
        if (self.rule.guard)(&mut m).is_none() {
            return false;
        }
        let subst = m.subst;
        let Some(new) = instantiate(terms, &self.rhs, &subst) else { return false };
        terms.join(root, new)
    }
}

/// The texts that arise from ordering the operands of each operator marked `*` in both ways.
fn either_order(text: &str) -> Vec<String> {
    let Some(at) = text.find("* ") else { return vec![text.into()] };
    let (head, rest) = (&text[..at], &text[at + 2..]);
    let (a, tail) = rest.split_at(term_len(rest));
    let tail = tail.trim_start();
    let (b, end) = tail.split_at(term_len(tail));
    let mut out = Vec::new();
    for (a, b) in [(a, b), (b, a)] {
        out.extend(either_order(&format!("{head} {a} {b}{end}")));
    }
    out
}

/// Length of the term that a text begins with.
fn term_len(text: &str) -> usize {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return i,
            ')' => {
                depth -= 1;
                if depth == 0 {
                    return i + 1;
                }
            }
            ' ' if depth == 0 => return i,
            _ => {}
        }
    }
    text.len()
}

/// Adds a term, unless a part of it does not type.
fn instantiate(terms: &mut Terms, ast: &PatternAst<ENode>, subst: &Subst) -> Option<Id> {
    let mut ids: Vec<Id> = Vec::with_capacity(ast.len());
    for node in ast {
        ids.push(match node {
            ENodeOrVar::Var(v) => *subst.get(*v)?,
            ENodeOrVar::ENode(n) => {
                let mut n = n.clone();
                for c in egg::Language::children_mut(&mut n) {
                    *c = ids[usize::from(*c)];
                }
                let id = terms.node(n);
                if matches!(terms.egraph[id].data, Data::Invalid(_)) {
                    return None;
                }
                id
            }
        });
    }
    ids.last().copied()
}

/// Limits of a phase.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rounds of searching every rule and applying every match.
    pub rounds: usize,
    /// Nodes of the e-graph beyond which no further round starts.
    pub nodes: usize,
    /// Matches of one rule that one round applies.
    pub matches: usize,
}

/// Applies rules until nothing changes or a limit is reached.
pub fn saturate(terms: &mut Terms, rules: &[Compiled], limits: Limits) {
    terms.egraph.rebuild();
    for round in 0..limits.rounds {
        if terms.egraph.total_size() > limits.nodes {
            tracing::debug!(round, "the limit of nodes ends a phase");
            return;
        }
        let found: Vec<_> = rules.iter().map(|r| r.search(&terms.egraph)).collect();
        let mut joined = 0;
        for (rule, matches) in rules.iter().zip(found) {
            for (root, subst) in matches.into_iter().take(limits.matches) {
                joined += usize::from(rule.apply(terms, root, subst));
            }
        }
        terms.egraph.rebuild();
        if joined == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_operators_match_in_either_order() {
        let all = either_order("(mul* (add* ?a ?b) ?c)");
        let want = [
            "(mul (add ?a ?b) ?c)",
            "(mul (add ?b ?a) ?c)",
            "(mul ?c (add ?a ?b))",
            "(mul ?c (add ?b ?a))",
        ];
        assert_eq!(all, want);
    }
}
