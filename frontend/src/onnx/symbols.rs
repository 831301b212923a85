//! Symbolic sizes of the graph's inputs: names, bounds, and what nodes demand of them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use ir::{Bounds, Dim, Symbols, TensorType};
use onnx_protobuf::{
    GraphProto, ValueInfoProto, tensor_shape_proto::dimension::Value as Extent,
    type_proto::Value as Kind,
};

use crate::{FrontendError, ImportOptions};

use super::{cx::MAX_RANK, literals::Literals, tensor};

/// Upper bound of a size that the options do not bound.
pub const DEFAULT_BOUND: i64 = 512;

/// Symbols, their bounds, and the types of the graph's inputs.
pub(super) struct Sizes {
    /// Bounds as far as known; nodes may lower those that are defaults.
    pub(super) symbols: Symbols,
    /// The graph's inputs that are not initialisers.
    pub(super) inputs: Vec<(String, TensorType)>,
    open: BTreeSet<Arc<str>>,
}

/// Reads the inputs' types and bounds their symbols.
pub(super) fn declare(
    path: &Path,
    graph: &GraphProto,
    literals: &Literals,
    options: &ImportOptions,
    errors: &mut Vec<FrontendError>,
) -> Sizes {
    let inputs: Vec<_> =
        graph.input.iter().filter(|i| !literals.values.contains_key(&*i.name)).collect();
    let mut names = Names::default();
    // Plain names first, so that `s + 1` is an expression where `s` is a size.
    let params = || inputs.iter().flat_map(|i| dims(i)).filter_map(param);
    for p in params().filter(|p| is_identifier(p)) {
        names.symbol(p);
    }
    for p in params().filter(|p| !is_identifier(p)) {
        names.expression(p);
    }
    let mut types = Vec::new();
    for input in inputs {
        match type_of(input, &mut names) {
            Ok(ty) => types.push((input.name.clone(), ty)),
            Err(reason) => {
                let reason = format!("graph input `{}` {reason}", input.name);
                errors.push(FrontendError::file(path, reason));
            }
        }
    }
    let sizes = names.bound(options, errors);
    let fixed = |s: &str| sizes.symbols.get(s).filter(|b| b.lo == b.hi).map(|b| Dim::from(b.lo));
    for (_, ty) in &mut types {
        ty.shape = ty.shape.iter().map(|d| d.substitute(&fixed)).collect();
    }
    Sizes { inputs: types, ..sizes }
}

fn dims(input: &ValueInfoProto) -> Vec<&onnx_protobuf::tensor_shape_proto::Dimension> {
    match input.type_.value.as_ref() {
        Some(Kind::TensorType(t)) => t.shape.dim.iter().collect(),
        _ => Vec::new(),
    }
}

fn param(d: &onnx_protobuf::tensor_shape_proto::Dimension) -> Option<&str> {
    match &d.value {
        Some(Extent::DimParam(p)) if !p.is_empty() => Some(p),
        _ => None,
    }
}

fn type_of(input: &ValueInfoProto, names: &mut Names) -> Result<TensorType, String> {
    let Some(Kind::TensorType(t)) = &input.type_.value else {
        return Err("is not a tensor; only tensors are supported".into());
    };
    let dtype = tensor::dtype(t.elem_type).map_err(|e| format!("has an {e}"))?;
    if t.shape.is_none() {
        return Err("has no shape; export it with its rank and named dynamic axes".into());
    }
    if t.shape.dim.len() > MAX_RANK {
        return Err(format!("has {} axes; at most {MAX_RANK} are supported", t.shape.dim.len()));
    }
    let mut shape = Vec::new();
    for (axis, d) in t.shape.dim.iter().enumerate() {
        shape.push(match (&d.value, param(d)) {
            (_, Some(p)) => names.known[p].clone(),
            (Some(Extent::DimValue(v @ 0..)), _) => Dim::from(*v),
            _ => names.symbol(&format!("{}_dim{axis}", input.name)),
        });
    }
    Ok(TensorType::new(dtype, shape))
}

/// Names of sizes in the file and what they stand for.
#[derive(Default)]
struct Names {
    known: HashMap<String, Dim>,
    /// Symbols by the file's name, in order of appearance.
    symbols: indexmap::IndexMap<String, Arc<str>>,
    taken: HashSet<Arc<str>>,
}

impl Names {
    fn symbol(&mut self, raw: &str) -> Dim {
        if let Some(d) = self.known.get(raw) {
            return d.clone();
        }
        let mut base: String =
            raw.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if base.starts_with(|c: char| c.is_ascii_digit()) {
            base.insert(0, '_');
        }
        let mut name: Arc<str> = base.as_str().into();
        for n in 2.. {
            if self.taken.insert(name.clone()) {
                break;
            }
            name = format!("{base}_{n}").into();
        }
        let dim = Dim::symbol(&name);
        self.symbols.insert(raw.into(), name);
        self.known.insert(raw.into(), dim.clone());
        dim
    }

    /// A name that is arithmetic over symbols that other inputs declare, or else a name of its own.
    fn expression(&mut self, raw: &str) {
        let parsed = (raw.len() <= 128).then(|| raw.parse::<Dim>().ok()).flatten();
        match parsed.filter(|d| d.symbols().iter().all(|s| self.known.contains_key(&**s))) {
            Some(d) if d.as_const().is_none() => {
                self.known.insert(raw.into(), d);
            }
            _ => {
                self.symbol(raw);
            }
        }
    }

    fn bound(self, options: &ImportOptions, errors: &mut Vec<FrontendError>) -> Sizes {
        let mut symbols = Symbols::new();
        let mut open = BTreeSet::new();
        for (raw, name) in &self.symbols {
            let given = options.bounds.get(&**raw).or_else(|| options.bounds.get(name));
            match given {
                Some(b) if b.lo < 0 || b.hi < b.lo || b.hi > i64::from(i32::MAX) => {
                    let reason = format!("has bounds {}..={} for `{raw}`", b.lo, b.hi);
                    errors.push(FrontendError::option("bounds", reason));
                }
                Some(_) => {}
                None => {
                    open.insert(name.clone());
                }
            }
            symbols.insert(name.clone(), *given.unwrap_or(&Bounds { lo: 1, hi: DEFAULT_BOUND }));
        }
        for name in options.bounds.keys() {
            if self.symbols.iter().all(|(raw, s)| **raw != **name && s != name) {
                let all: Vec<_> = self.symbols.keys().map(String::as_str).collect();
                let reason = format!("names `{name}`; the model's sizes are: {}", all.join(", "));
                errors.push(FrontendError::option("bounds", reason));
            }
        }
        Sizes { symbols, inputs: Vec::new(), open }
    }
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl Sizes {
    /// Whether the two are equal, where that can be decided.
    pub(super) fn equal(&self, a: &Dim, b: &Dim) -> Option<bool> {
        a.equal(b, &self.symbols)
    }

    /// Whether `a <= b` for every value of the symbols.
    pub(super) fn at_most(&self, a: &Dim, b: &Dim) -> bool {
        (b.clone() - a.clone()).bounds(&self.symbols).lo >= 0
    }

    /// As [`Sizes::at_most`], but lowers the bound of a symbol to make it so where the bound is
    /// only a default: a table of fixed length bounds what indexes it.
    pub(super) fn keep_at_most(&mut self, a: &Dim, b: &Dim) -> bool {
        if self.at_most(a, b) {
            return true;
        }
        let excess = a.clone() - b.clone();
        let [name] = &excess.symbols()[..] else { return false };
        let Some(bounds) = self.symbols.get(name).filter(|_| self.open.contains(name)) else {
            return false;
        };
        // excess = slope·s + offset, else nothing is known of where it ends.
        let at = |v: i64| excess.substitute(&|_| Some(Dim::from(v))).as_const();
        let (Some(offset), Some(one)) = (at(0), at(1)) else { return false };
        let slope = one.saturating_sub(offset);
        let line = Dim::symbol(name) * Dim::from(slope) + Dim::from(offset);
        if line != excess || slope <= 0 {
            return false;
        }
        let hi = (-offset).div_euclid(slope).min(bounds.hi);
        if hi < bounds.lo {
            return false;
        }
        tracing::info!(
            "size `{name}` is at most {hi}, as the model indexes a table of that length"
        );
        let bounds = Bounds { lo: bounds.lo, hi };
        self.symbols.insert(name.clone(), bounds);
        true
    }

    /// The smaller of the two.
    pub(super) fn minimum(&self, a: &Dim, b: &Dim) -> Dim {
        match (self.at_most(a, b), self.at_most(b, a)) {
            (true, _) => a.clone(),
            (_, true) => b.clone(),
            _ => a.minimum(b),
        }
    }

    /// The larger of the two.
    pub(super) fn maximum(&self, a: &Dim, b: &Dim) -> Dim {
        match (self.at_most(a, b), self.at_most(b, a)) {
            (true, _) => b.clone(),
            (_, true) => a.clone(),
            _ => a.maximum(b),
        }
    }

    /// The sign of a size: `Some(true)` where it is never negative, `Some(false)` where always.
    pub(super) fn non_negative(&self, d: &Dim) -> Option<bool> {
        let b = d.bounds(&self.symbols);
        if b.lo >= 0 {
            Some(true)
        } else if b.hi < 0 {
            Some(false)
        } else {
            None
        }
    }
}
