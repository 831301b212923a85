//! Symbolic dimensions: integer polynomials over named symbols, floor divisions, minima and maxima.
//!
//! A [`Dim`] has one canonical form, so structural equality is polynomial equality. An equality
//! that the form and the bounds cannot decide is reported as undecided, never assumed.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Add, Mul, Neg, Sub},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

mod compiled;

pub use compiled::CompiledDim;

/// Bounds of one symbol, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Smallest value.
    pub lo: i64,
    /// Largest value.
    pub hi: i64,
}

impl Bounds {
    /// Those of a symbol.
    fn of(symbol: &str, symbols: &Symbols) -> Bounds {
        symbols.get(symbol).copied().unwrap_or(Bounds { lo: 0, hi: i64::MAX })
    }

    fn plus(self, other: Bounds) -> Bounds {
        let (lo, hi) = (self.lo.saturating_add(other.lo), self.hi.saturating_add(other.hi));
        Bounds { lo, hi }
    }

    fn times(self, other: Bounds) -> Bounds {
        let corners = [
            self.lo.saturating_mul(other.lo),
            self.lo.saturating_mul(other.hi),
            self.hi.saturating_mul(other.lo),
            self.hi.saturating_mul(other.hi),
        ];
        Bounds {
            lo: corners.iter().copied().fold(i64::MAX, i64::min),
            hi: corners.iter().copied().fold(i64::MIN, i64::max),
        }
    }
}

/// The most terms of an expression that common factors are looked for in.
const MAX_FACTORED: usize = 8;

/// Bounds by symbol name.
pub type Symbols = indexmap::IndexMap<Arc<str>, Bounds>;

/// Values by symbol name, as a run binds them.
pub type Env = BTreeMap<Arc<str>, i64>;

/// A size: a constant or a symbolic expression such as `T`, `2*T` or `floor_div(T + 15, 16)`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dim {
    /// Sum of coefficient × product of atoms, sorted by the product, no zero coefficient.
    terms: Vec<(Vec<Atom>, i64)>,
}

/// An irreducible factor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    Symbol(Arc<str>),
    FloorDiv(Dim, i64),
    Max(Dim, Dim),
    Min(Dim, Dim),
}

impl Atom {
    fn as_symbol(&self) -> Option<&Arc<str>> {
        match self {
            Atom::Symbol(name) => Some(name),
            _ => None,
        }
    }
}

impl Dim {
    /// A symbol by name.
    pub fn symbol(name: &str) -> Dim {
        Dim::atom(Atom::Symbol(name.into()))
    }

    fn atom(atom: Atom) -> Dim {
        Dim { terms: vec![(vec![atom], 1)] }
    }

    fn from_terms(terms: impl IntoIterator<Item = (Vec<Atom>, i64)>) -> Dim {
        let mut sum: BTreeMap<Vec<Atom>, i64> = BTreeMap::new();
        for (mut key, c) in terms {
            key.sort();
            let slot = sum.entry(key).or_insert(0);
            *slot = slot.saturating_add(c);
        }
        Dim { terms: sum.into_iter().filter(|(_, c)| *c != 0).collect() }
    }

    fn try_from_terms(terms: impl IntoIterator<Item = (Vec<Atom>, Option<i64>)>) -> Option<Dim> {
        let mut sum: BTreeMap<Vec<Atom>, i64> = BTreeMap::new();
        for (mut key, c) in terms {
            key.sort();
            let slot = sum.entry(key).or_insert(0);
            *slot = slot.checked_add(c?)?;
        }
        Some(Dim { terms: sum.into_iter().filter(|(_, c)| *c != 0).collect() })
    }

    /// The sum, unless a coefficient overflows.
    pub fn checked_add(&self, other: &Dim) -> Option<Dim> {
        let terms = self.terms.iter().chain(&other.terms);
        Dim::try_from_terms(terms.map(|(key, c)| (key.clone(), Some(*c))))
    }

    /// The product, unless a coefficient overflows.
    pub fn checked_mul(&self, other: &Dim) -> Option<Dim> {
        let pairs = self.terms.iter().flat_map(|a| other.terms.iter().map(move |b| (a, b)));
        Dim::try_from_terms(
            pairs.map(|((ka, a), (kb, b))| {
                (ka.iter().chain(kb).cloned().collect(), a.checked_mul(*b))
            }),
        )
    }

    /// The value, where this is a constant.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.as_slice() {
            [] => Some(0),
            [(key, c)] if key.is_empty() => Some(*c),
            _ => None,
        }
    }

    /// The symbol's name, where this is a bare symbol.
    pub fn as_symbol(&self) -> Option<&str> {
        match self.terms.as_slice() {
            [(key, 1)] => match key.as_slice() {
                [Atom::Symbol(s)] => Some(s),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether this is the given constant.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    /// `floor(self / n)` for a positive constant `n`.
    ///
    /// # Panics
    /// If `n` is not positive.
    pub fn floor_div(&self, n: i64) -> Dim {
        assert!(n > 0, "floor_div by {n}");
        if n == 1 {
            return self.clone();
        }
        let mut out = Vec::new();
        let mut rest = Vec::new();
        for (key, c) in &self.terms {
            let (q, r) = (c.div_euclid(n), c.rem_euclid(n));
            if r == 0 {
                out.push((key.clone(), q));
            } else if key.is_empty() {
                out.push((key.clone(), q));
                rest.push((key.clone(), r));
            } else {
                rest.push((key.clone(), *c));
            }
        }
        let rest = Dim::from_terms(rest);
        let whole = Dim::from_terms(out);
        match rest.as_const() {
            Some(c) => whole + Dim::from(c.div_euclid(n)),
            None => whole + Dim::atom(Atom::FloorDiv(rest, n)),
        }
    }

    /// `ceil(self / n)` for a positive constant `n`.
    pub fn ceil_div(&self, n: i64) -> Dim {
        (self.clone() + Dim::from(n - 1)).floor_div(n)
    }

    /// `self / other` where the division is exact by form: `other` is one term that divides every
    /// term of `self`, or the two are equal.
    pub fn exact_div(&self, other: &Dim) -> Option<Dim> {
        if self == other && !other.is(0) {
            return Some(Dim::from(1));
        }
        let [(key, c)] = other.terms.as_slice() else { return None };
        let mut out = Vec::with_capacity(self.terms.len());
        for (k, v) in &self.terms {
            if v.checked_rem(*c) != Some(0) {
                return None;
            }
            let mut left = k.clone();
            for atom in key {
                let at = left.iter().position(|a| a == atom)?;
                left.remove(at);
            }
            out.push((left, v / c));
        }
        Some(Dim::from_terms(out))
    }

    /// The larger of the two.
    pub fn maximum(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            _ if self == other => self.clone(),
            (Some(a), Some(b)) => Dim::from(a.max(b)),
            _ => {
                let (a, b) = if self <= other { (self, other) } else { (other, self) };
                Dim::atom(Atom::Max(a.clone(), b.clone()))
            }
        }
    }

    /// The smaller of the two.
    pub fn minimum(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            _ if self == other => self.clone(),
            (Some(a), Some(b)) => Dim::from(a.min(b)),
            _ => {
                let (a, b) = if self <= other { (self, other) } else { (other, self) };
                Dim::atom(Atom::Min(a.clone(), b.clone()))
            }
        }
    }

    /// The value under `env`.
    ///
    /// # Errors
    /// Names the unbound symbol, or says that the value overflows.
    pub fn eval(&self, env: &Env) -> Result<i64, DimError> {
        let mut sum = 0i64;
        for (key, c) in &self.terms {
            let mut product = *c;
            for atom in key {
                let value = match atom {
                    Atom::Symbol(s) => {
                        *env.get(s).ok_or_else(|| DimError::Unbound(s.to_string()))?
                    }
                    Atom::FloorDiv(d, n) => d.eval(env)?.div_euclid(*n),
                    Atom::Max(a, b) => a.eval(env)?.max(b.eval(env)?),
                    Atom::Min(a, b) => a.eval(env)?.min(b.eval(env)?),
                };
                product =
                    product.checked_mul(value).ok_or_else(|| DimError::Overflow(self.clone()))?;
            }
            sum = sum.checked_add(product).ok_or_else(|| DimError::Overflow(self.clone()))?;
        }
        Ok(sum)
    }

    /// Replaces symbols by expressions.
    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        let mut sum = Dim::from(0);
        for (key, c) in &self.terms {
            let mut product = Dim::from(*c);
            for atom in key {
                product = product
                    * match atom {
                        Atom::Symbol(s) => with(s).unwrap_or_else(|| Dim::symbol(s)),
                        Atom::FloorDiv(d, n) => d.substitute(with).floor_div(*n),
                        Atom::Max(a, b) => a.substitute(with).maximum(&b.substitute(with)),
                        Atom::Min(a, b) => a.substitute(with).minimum(&b.substitute(with)),
                    };
            }
            sum = sum + product;
        }
        sum
    }

    /// The interval of values under the symbols' bounds (an unknown symbol is `0..=i64::MAX`);
    /// arithmetic saturates.
    pub fn bounds(&self, symbols: &Symbols) -> Bounds {
        let plain = self.bounds_of_terms(symbols);
        if plain.lo == plain.hi || !(2..=MAX_FACTORED).contains(&self.terms.len()) {
            return plain;
        }
        // What terms have in common has one value in all of them: `T·n + T` is `T·(n + 1)`.
        let factored = self.common_symbols().into_iter().map(|symbol| {
            let factor = Bounds::of(symbol, symbols);
            let (quotient, rest) = self.divide(symbol);
            factor.times(quotient.bounds(symbols)).plus(rest.bounds(symbols))
        });
        factored.fold(plain, |a, b| Bounds { lo: a.lo.max(b.lo), hi: a.hi.min(b.hi) })
    }

    /// Symbols that are factors of several terms.
    fn common_symbols(&self) -> Vec<&Arc<str>> {
        let mut counts: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for (key, _) in &self.terms {
            let mut own: Vec<&Arc<str>> = key.iter().filter_map(Atom::as_symbol).collect();
            own.dedup();
            own.into_iter().for_each(|symbol| *counts.entry(symbol).or_insert(0) += 1);
        }
        counts.into_iter().filter(|(_, n)| *n > 1).map(|(symbol, _)| symbol).collect()
    }

    /// Terms with the factor `symbol`, without it once, and the others.
    fn divide(&self, symbol: &Arc<str>) -> (Dim, Dim) {
        let (mut quotient, mut rest) = (Vec::new(), Vec::new());
        for (key, c) in &self.terms {
            match key.iter().position(|atom| atom.as_symbol() == Some(symbol)) {
                Some(place) => {
                    let mut key = key.clone();
                    key.remove(place);
                    quotient.push((key, *c));
                }
                None => rest.push((key.clone(), *c)),
            }
        }
        (Dim::from_terms(quotient), Dim::from_terms(rest))
    }

    /// Bounds of each term, added up.
    fn bounds_of_terms(&self, symbols: &Symbols) -> Bounds {
        let mut total = Bounds { lo: 0, hi: 0 };
        for (key, c) in &self.terms {
            let mut p = Bounds { lo: *c, hi: *c };
            for atom in key {
                let b = match atom {
                    Atom::Symbol(s) => Bounds::of(s, symbols),
                    Atom::FloorDiv(d, n) => {
                        let b = d.bounds(symbols);
                        Bounds { lo: b.lo.div_euclid(*n), hi: b.hi.div_euclid(*n) }
                    }
                    Atom::Max(x, y) => {
                        let (x, y) = (x.bounds(symbols), y.bounds(symbols));
                        Bounds { lo: x.lo.max(y.lo), hi: x.hi.max(y.hi) }
                    }
                    Atom::Min(x, y) => {
                        let (x, y) = (x.bounds(symbols), y.bounds(symbols));
                        Bounds { lo: x.lo.min(y.lo), hi: x.hi.min(y.hi) }
                    }
                };
                p = p.times(b);
            }
            total = total.plus(p);
        }
        total
    }

    /// Whether the two are equal for every value of the symbols: `Some(true)` by form,
    /// `Some(false)` where the bounds of the difference exclude zero, `None` where undecided.
    pub fn equal(&self, other: &Dim, symbols: &Symbols) -> Option<bool> {
        if self == other {
            return Some(true);
        }
        let d = (self.clone() - other.clone()).bounds(symbols);
        if d.lo > 0 || d.hi < 0 { Some(false) } else { None }
    }

    /// Names of the symbols that occur, without repetition, in order of first occurrence.
    pub fn symbols(&self) -> Vec<Arc<str>> {
        let mut out = Vec::new();
        self.collect_symbols(&mut out);
        out
    }

    fn collect_symbols(&self, out: &mut Vec<Arc<str>>) {
        for atom in self.terms.iter().flat_map(|(key, _)| key) {
            match atom {
                Atom::Symbol(s) => {
                    if !out.contains(s) {
                        out.push(s.clone());
                    }
                }
                Atom::FloorDiv(d, _) => d.collect_symbols(out),
                Atom::Max(a, b) | Atom::Min(a, b) => {
                    a.collect_symbols(out);
                    b.collect_symbols(out);
                }
            }
        }
    }
}

/// Why a dimension has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DimError {
    /// A symbol has no value in the environment.
    #[error("symbol `{0}` has no value")]
    Unbound(String),
    /// The value does not fit in 64 bits.
    #[error("the size `{0}` overflows 64 bits")]
    Overflow(Dim),
    /// The text is not a dimension.
    #[error("`{text}` is not a dimension: {reason}")]
    Parse {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<i64> for Dim {
    fn from(v: i64) -> Dim {
        Dim::from_terms([(Vec::new(), v)])
    }
}

impl From<i32> for Dim {
    fn from(v: i32) -> Dim {
        Dim::from(i64::from(v))
    }
}

impl From<usize> for Dim {
    fn from(v: usize) -> Dim {
        Dim::from(i64::try_from(v).unwrap_or(i64::MAX))
    }
}

impl Add for Dim {
    type Output = Dim;
    fn add(self, o: Dim) -> Dim {
        Dim::from_terms(self.terms.into_iter().chain(o.terms))
    }
}

impl Sub for Dim {
    type Output = Dim;
    fn sub(self, o: Dim) -> Dim {
        self + -o
    }
}

impl Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        Dim::from_terms(self.terms.into_iter().map(|(k, c)| (k, c.saturating_neg())))
    }
}

impl Mul for Dim {
    type Output = Dim;
    fn mul(self, o: Dim) -> Dim {
        Dim::from_terms(self.terms.iter().flat_map(|(ka, a)| {
            o.terms.iter().map(move |(kb, b)| {
                let key = ka.iter().chain(kb).cloned().collect();
                (key, a.saturating_mul(*b))
            })
        }))
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Symbol(s) => f.write_str(s),
            Atom::FloorDiv(d, n) => write!(f, "floor_div({d}, {n})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Symbols first, the constant last.
        for (i, (key, c)) in self.terms.iter().rev().enumerate() {
            match (i, *c < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            let mag = c.unsigned_abs();
            if key.is_empty() {
                write!(f, "{mag}")?;
                continue;
            }
            if mag != 1 {
                write!(f, "{mag}*")?;
            }
            for (j, atom) in key.iter().enumerate() {
                if j > 0 {
                    f.write_str("*")?;
                }
                write!(f, "{atom}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Dim {
    type Err = DimError;

    fn from_str(text: &str) -> Result<Dim, DimError> {
        let err = |reason: String| DimError::Parse { text: text.into(), reason };
        let mut p = Parser { rest: text, depth: 0 };
        let dim = p.sum().map_err(&err)?;
        p.skip();
        if p.rest.is_empty() { Ok(dim) } else { Err(err(format!("unexpected `{}`", p.rest))) }
    }
}

impl Serialize for Dim {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(v) => s.serialize_i64(v),
            None => s.serialize_str(&self.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Dim, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Int(i64),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Int(v) => Ok(Dim::from(v)),
            Raw::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A text may not expand to a larger polynomial.
const MAX_TERMS: usize = 1024;

/// Recursive descent over `sum := product (('+' | '-') product)*`.
struct Parser<'a> {
    rest: &'a str,
    depth: u32,
}

impl Parser<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, c: char) -> bool {
        self.skip();
        match self.rest.strip_prefix(c) {
            Some(r) => {
                self.rest = r;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.eat(c) { Ok(()) } else { Err(format!("expected `{c}` before `{}`", self.rest)) }
    }

    fn sum(&mut self) -> Result<Dim, String> {
        self.depth += 1;
        if self.depth > 32 {
            return Err("nested too deeply".into());
        }
        let mut total = if self.eat('-') { -self.product()? } else { self.product()? };
        loop {
            if self.eat('+') {
                total = total + self.product()?;
            } else if self.eat('-') {
                total = total - self.product()?;
            } else {
                self.depth -= 1;
                return Ok(total);
            }
        }
    }

    fn product(&mut self) -> Result<Dim, String> {
        let mut total = self.factor()?;
        while self.eat('*') {
            let factor = self.factor()?;
            if total.terms.len().saturating_mul(factor.terms.len()) > MAX_TERMS {
                return Err(format!("more than {MAX_TERMS} terms"));
            }
            total = total * factor;
        }
        Ok(total)
    }

    fn factor(&mut self) -> Result<Dim, String> {
        self.skip();
        if self.eat('(') {
            let d = self.sum()?;
            self.expect(')')?;
            return Ok(d);
        }
        let end = self
            .rest
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.' && c != ':')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err(format!("expected a number or symbol before `{rest}`"));
        }
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse::<i64>().map(Dim::from).map_err(|e| format!("`{word}`: {e}"));
        }
        if !matches!(word, "floor_div" | "max" | "min") || !self.eat('(') {
            return Ok(Dim::symbol(word));
        }
        let a = self.sum()?;
        self.expect(',')?;
        let b = self.sum()?;
        self.expect(')')?;
        match (word, b.as_const()) {
            ("max", _) => Ok(a.maximum(&b)),
            ("min", _) => Ok(a.minimum(&b)),
            (_, Some(n)) if n > 0 => Ok(a.floor_div(n)),
            _ => Err(format!("floor_div needs a positive constant divisor, got `{b}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(s: &str) -> Dim {
        s.parse().unwrap()
    }

    #[test]
    fn common_factors_have_one_value() {
        let symbols: Symbols =
            [("T", 1, 256), ("r", 0, 1)].map(|(s, lo, hi)| (s.into(), Bounds { lo, hi })).into();
        let [t, r] = ["T", "r"].map(Dim::symbol);
        let gap = (Dim::from(13) - Dim::from(14) * r.clone()).floor_div(8192);
        let bounds = (t.clone() * gap + t.clone()).bounds(&symbols);
        assert_eq!((bounds.lo, bounds.hi), (0, 256));
        let bounds = (t.clone() * t.clone() - t.clone()).bounds(&symbols);
        assert_eq!((bounds.lo, bounds.hi), (0, 256 * 255));
        let bounds = (t.clone() - t * r).bounds(&symbols);
        assert_eq!((bounds.lo, bounds.hi), (0, 256));
    }

    #[test]
    fn canonical_form_decides_polynomial_equality() {
        assert_eq!(d("2*T + T*3 - T"), d("4*T"));
        assert_eq!(d("(A + B)*(A - B)"), d("A*A - B*B"));
        assert_eq!(d("floor_div(16*T + 15, 16)"), d("T"));
        assert_eq!(d("floor_div(T, 4)*4 - 4*floor_div(T, 4)"), Dim::from(0));
    }

    #[test]
    fn undecided_equality_is_not_assumed() {
        let symbols = Symbols::from_iter([("T".into(), Bounds { lo: 1, hi: 8 })]);
        assert_eq!(d("T").equal(&d("T"), &symbols), Some(true));
        assert_eq!(d("T").equal(&d("9"), &symbols), Some(false));
        assert_eq!(d("T").equal(&d("4"), &symbols), None);
    }

    #[test]
    fn prints_and_parses() {
        for s in ["0", "T", "2*T - 1", "floor_div(T + 15, 16)*B", "max(A, B + 1)", "-T + 3"] {
            assert_eq!(d(&d(s).to_string()), d(s), "{s}");
        }
        let power = ["(a + b + c + d + e + f + g)"; 30].join("*");
        for s in ["", "1 +", "floor_div(T, 0)", "T T", &"(".repeat(1000), &power] {
            assert!(s.parse::<Dim>().is_err(), "{s}");
        }
    }

    #[test]
    fn evaluates_and_bounds() {
        let env = Env::from([("T".into(), 33)]);
        assert_eq!(d("T").ceil_div(16).eval(&env), Ok(3));
        assert_eq!(d("U").eval(&env), Err(DimError::Unbound("U".into())));
        let symbols = Symbols::from_iter([("T".into(), Bounds { lo: 1, hi: 100 })]);
        assert_eq!(d("T").ceil_div(16).bounds(&symbols), Bounds { lo: 1, hi: 7 });
        assert_eq!(d("6*T*B").exact_div(&d("2*B")), Some(d("3*T")));
        assert_eq!(d("6*T + 1").exact_div(&d("2")), None);
    }
}
