//! The operator interface: everything the compiler knows of an operator stands in one [`OpDef`].

use std::{
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
};

use crate::{
    Attr, Attrs, Builder, DType, Dim, Env, Fact, Symbols, Tensor, TensorType, Value, Vjp, ops::OPS,
};

/// An operator: its name, signature, type inference and meaning.
pub trait OpDef: Sync {
    /// Name in IR text and rule patterns.
    fn name(&self) -> &'static str;

    /// Operands, attributes and results.
    fn signature(&self) -> &'static Signature;

    /// ONNX operator types of the default domain that import as this operator without special code,
    /// attributes under the names that they have here.
    fn onnx(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether each element of the result depends on the operands' elements at the same place
    /// alone, after broadcasting.
    fn is_elementwise(&self) -> bool {
        false
    }

    /// Whether each index of the result's leading axis depends on that index alone of the operands
    /// that have the axis, where the first operand has two axes or more.
    fn is_rowwise(&self) -> bool {
        self.is_elementwise()
    }

    /// Whether the result looks at the operand's memory in another order, and nothing is computed.
    fn is_view(&self) -> bool {
        false
    }

    /// Pairs of (result, operand) that a kernel updates in place: the result, where there is one of
    /// that number, is the operand's memory after the write.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// Facts of the results from those of the operands.
    ///
    /// # Errors
    /// [`OpError`] where the operands do not fit.
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError>;

    /// What the operator computes.
    fn body(&self) -> Body;

    /// How it is differentiated, from attributes and the operands' types.
    fn vjp(&self, attrs: &Attrs, args: &[Option<TensorType>]) -> Vjp;

    /// Floating point operations of one evaluation; by default one per result element.
    fn flops(&self, _attrs: &Attrs, _args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        results.iter().fold(Dim::from(0), |n, r| n + r.elements())
    }

    /// Well-typed applications, which the generated tests evaluate.
    fn samples(&self) -> Vec<Sample>;
}

/// How an operator is defined.
#[derive(Clone, Copy)]
pub enum Body {
    /// Evaluated by a slow, obvious function: the oracle of every other implementation.
    Primitive(fn(&EvalCx<'_>, &[Option<Tensor>]) -> Vec<Tensor>),
    /// Evaluated by such a function for all ranks that meet.
    Collective(EvalRanks),
    /// Defined by an expansion into other operators.
    Composite(Expand),
    /// Part of the graph's structure: parameters, weights and calls.
    Structural,
}

/// Evaluates an operator whose results depend on the operands of several ranks: from those of each
/// rank, in order, to the results of each.
pub type EvalRanks = fn(&EvalCx<'_>, &[Vec<Option<Tensor>>]) -> Vec<Vec<Tensor>>;

/// Builds the expansion of a composite operator.
pub type Expand = fn(&mut Builder<'_>, &Attrs, &[Option<Value>]) -> Result<Vec<Value>, OpError>;

/// What inference sees.
pub struct InferCx<'a> {
    /// Attributes, defaults filled in.
    pub attrs: &'a Attrs,
    /// Facts of the operands; `None` for an absent optional one.
    pub args: &'a [Option<&'a Fact>],
    /// Bounds of the module's symbols.
    pub symbols: &'a Symbols,
    /// Parameter and result types of a function, by name.
    pub callee: &'a dyn Fn(&str) -> Option<FunctionType>,
}

/// Types of a function's parameters and results.
pub type FunctionType = (Vec<TensorType>, Vec<TensorType>);

impl InferCx<'_> {
    /// The fact of a required operand.
    ///
    /// # Panics
    /// If it is absent, which [`Signature::check_operands`] rules out.
    pub fn arg(&self, i: usize) -> &Fact {
        self.args[i].expect("required operand")
    }

    /// The type of a required operand.
    pub fn ty(&self, i: usize) -> &TensorType {
        &self.arg(i).ty
    }

    /// Asserts that two sizes are equal.
    ///
    /// # Errors
    /// Shows both sides where they differ or where that is undecided.
    pub fn same(&self, what: &str, a: &Dim, b: &Dim) -> Result<(), OpError> {
        match a.equal(b, self.symbols) {
            Some(true) => Ok(()),
            Some(false) => Err(OpError::new(format!("{what}: {a} and {b} differ"))),
            None => Err(OpError::new(format!("{what}: cannot decide whether {a} equals {b}"))),
        }
    }

    /// The shape that both shapes broadcast to, as NumPy defines it.
    ///
    /// # Errors
    /// Where an axis differs, or where that is undecided.
    pub fn broadcast(&self, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
        let rank = a.len().max(b.len());
        (0..rank)
            .map(|i| {
                let x = (i + a.len()).checked_sub(rank).map(|j| &a[j]);
                let y = (i + b.len()).checked_sub(rank).map(|j| &b[j]);
                match (x, y) {
                    (Some(x), Some(y)) if x.is(1) => Ok(y.clone()),
                    (Some(x), Some(y)) if y.is(1) => Ok(x.clone()),
                    (Some(x), Some(y)) => {
                        self.same(&format!("broadcast axis {i}"), x, y).map(|()| x.clone())
                    }
                    (Some(x), None) | (None, Some(x)) => Ok(x.clone()),
                    (None, None) => unreachable!("axis below the larger rank"),
                }
            })
            .collect()
    }

    /// An axis attribute, counted from the end where negative, checked against `rank`.
    ///
    /// # Errors
    /// Where it is out of range.
    pub fn axis(&self, name: &str, rank: usize) -> Result<usize, OpError> {
        normalize_axis(self.attrs.int(name), rank)
            .ok_or_else(|| OpError::attr(name, format!("out of range for rank {rank}")))
    }

    /// An axes attribute, normalised as [`InferCx::axis`], sorted.
    ///
    /// # Errors
    /// Where one is out of range or repeated.
    pub fn axes(&self, name: &str, rank: usize) -> Result<Vec<usize>, OpError> {
        let mut axes = Vec::new();
        for a in self.attrs.ints(name) {
            match normalize_axis(*a, rank) {
                Some(a) if !axes.contains(&a) => axes.push(a),
                _ => {
                    let why = format!("{a} is repeated or out of range for rank {rank}");
                    return Err(OpError::attr(name, why));
                }
            }
        }
        axes.sort_unstable();
        Ok(axes)
    }
}

/// `axis` counted from the front, if it is within `rank`.
pub fn normalize_axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let a = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&a).then(|| usize::try_from(a).ok()).flatten()
}

/// What evaluation of a primitive sees besides its operands.
pub struct EvalCx<'a> {
    /// Attributes, defaults filled in.
    pub attrs: &'a Attrs,
    /// Types of the results with constant shapes.
    pub results: &'a [TensorType],
    /// Values of the symbols.
    pub env: &'a Env,
}

impl EvalCx<'_> {
    /// The extents of result `i`.
    pub fn shape(&self, i: usize) -> crate::tensor::Extents {
        self.results[i].const_shape().expect("the interpreter made the shape constant")
    }
}

/// Operands, attributes and results of an operator.
pub struct Signature {
    /// Operands in order.
    pub operands: &'static [Operand],
    /// Attributes in order.
    pub attrs: &'static [AttrSpec],
}

/// One operand.
pub struct Operand {
    /// Its name in messages and documentation.
    pub name: &'static str,
    /// Whether it must be there.
    pub arity: Arity,
}

/// How often an operand occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly once.
    One,
    /// Once or not at all (`_` in text).
    Optional,
    /// Any number of times; last operand only.
    Variadic,
}

/// One attribute.
pub struct AttrSpec {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: AttrKind,
    /// Its value where not given; `None` makes it required.
    pub default: Option<fn() -> Attr>,
}

/// Kinds of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the variants of Attr")]
pub enum AttrKind {
    Int,
    Float,
    Bool,
    Str,
    DType,
    Ints,
    Dims,
    Tensor,
}

impl AttrKind {
    fn of(attr: &Attr) -> AttrKind {
        match attr {
            Attr::Int(_) => AttrKind::Int,
            Attr::Float(_) => AttrKind::Float,
            Attr::Bool(_) => AttrKind::Bool,
            Attr::Str(_) => AttrKind::Str,
            Attr::DType(_) => AttrKind::DType,
            Attr::Ints(_) => AttrKind::Ints,
            Attr::Dims(_) => AttrKind::Dims,
            Attr::Tensor(_) => AttrKind::Tensor,
        }
    }
}

/// A required operand.
pub(crate) const fn one(name: &'static str) -> Operand {
    Operand { name, arity: Arity::One }
}

/// An operand that may be absent.
pub(crate) const fn optional(name: &'static str) -> Operand {
    Operand { name, arity: Arity::Optional }
}

/// Any number of operands.
pub(crate) const fn variadic(name: &'static str) -> Operand {
    Operand { name, arity: Arity::Variadic }
}

/// A required attribute.
pub(crate) const fn required(name: &'static str, kind: AttrKind) -> AttrSpec {
    AttrSpec { name, kind, default: None }
}

/// An attribute with a default.
pub(crate) const fn defaulted(
    name: &'static str,
    kind: AttrKind,
    default: fn() -> Attr,
) -> AttrSpec {
    AttrSpec { name, kind, default: Some(default) }
}

impl Signature {
    /// Fills defaults in, orders attributes as listed, and checks names and kinds.
    ///
    /// # Errors
    /// Names the missing, unknown or ill-typed attribute.
    pub fn check_attrs(&self, given: &Attrs) -> Result<Attrs, OpError> {
        let mut out = Attrs::none();
        for spec in self.attrs {
            let value = match (given.get(spec.name), spec.default) {
                (Some(v), _) => v.clone(),
                (None, Some(default)) => default(),
                (None, None) => return Err(OpError::attr(spec.name, "is required")),
            };
            // `[1, 2]` may stand for sizes, `1` for one of them, and for a float.
            let value = match (spec.kind, value) {
                (AttrKind::Dims, Attr::Int(v)) => Attr::Dims(vec![v.into()]),
                (AttrKind::Dims, Attr::Ints(v)) => {
                    Attr::Dims(v.into_iter().map(Dim::from).collect())
                }
                (AttrKind::Float, Attr::Int(v)) => Attr::from(v as f64),
                (_, v) => v,
            };
            if AttrKind::of(&value) != spec.kind {
                let why = format!("must be of kind {:?}, got {value}", spec.kind);
                return Err(OpError::attr(spec.name, why));
            }
            out.0.push((spec.name.into(), value));
        }
        match given.0.iter().find(|(n, _)| self.attrs.iter().all(|s| s.name != &**n)) {
            Some((n, _)) => Err(OpError::attr(n, "is not an attribute of this operator")),
            None => Ok(out),
        }
    }

    /// Checks the number of operands, and that absent ones are optional.
    ///
    /// # Errors
    /// Names the operand that is missing or says how many there may be.
    pub fn check_operands(&self, present: &[bool]) -> Result<(), OpError> {
        let variadic = self.operands.last().is_some_and(|o| o.arity == Arity::Variadic);
        let most = self.operands.len() - usize::from(variadic);
        // Optional operands at the end may be left out.
        let required = self.operands.iter().rposition(|o| o.arity == Arity::One);
        let least = required.map_or(0, |i| i + 1);
        if present.len() < least || (!variadic && present.len() > most) {
            let names: Vec<_> = self.operands.iter().map(|o| o.name).collect();
            return Err(OpError::new(format!(
                "takes ({}), got {} operands",
                names.join(", "),
                present.len()
            )));
        }
        for (i, here) in present.iter().enumerate() {
            let operand = &self.operands[i.min(self.operands.len() - 1)];
            if !here && operand.arity != Arity::Optional {
                return Err(OpError::new(format!("operand `{}` is required", operand.name)));
            }
        }
        Ok(())
    }
}

/// A well-typed application of an operator.
pub struct Sample {
    /// Attributes.
    pub attrs: Attrs,
    /// Operands; `None` for an absent optional one.
    pub args: Vec<Option<Tensor>>,
}

/// Why operands or attributes do not fit an operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OpError(String);

impl OpError {
    /// An error with its whole message.
    pub fn new(message: impl Into<String>) -> OpError {
        OpError(message.into())
    }

    /// An error about one attribute.
    pub fn attr(name: &str, reason: impl fmt::Display) -> OpError {
        OpError(format!("attribute `{name}` {reason}"))
    }

    /// Prefixes the message with what it is about.
    #[must_use]
    pub fn within(self, subject: impl fmt::Display) -> OpError {
        OpError(format!("{subject}: {}", self.0))
    }
}

/// A reference to an operator of the table, compared by name.
#[derive(Clone, Copy)]
pub struct OpRef(pub &'static dyn OpDef);

impl OpRef {
    /// The operator of that name.
    pub fn find(name: &str) -> Option<OpRef> {
        OPS.iter().find(|o| o.name() == name).map(|o| OpRef(*o))
    }

    /// The operator of that name, for names that the caller wrote itself.
    ///
    /// # Panics
    /// If there is none.
    pub fn named(name: &str) -> OpRef {
        OpRef::find(name).unwrap_or_else(|| panic!("no operator `{name}` in the table"))
    }
}

impl Deref for OpRef {
    type Target = dyn OpDef;
    fn deref(&self) -> &Self::Target {
        self.0
    }
}
impl PartialEq for OpRef {
    fn eq(&self, o: &OpRef) -> bool {
        self.name() == o.name()
    }
}
impl Eq for OpRef {}
impl PartialOrd for OpRef {
    fn partial_cmp(&self, o: &OpRef) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for OpRef {
    fn cmp(&self, o: &OpRef) -> std::cmp::Ordering {
        self.name().cmp(o.name())
    }
}
impl Hash for OpRef {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.name().hash(h);
    }
}
impl fmt::Debug for OpRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a type is the one that arithmetic on `a` and `b` needs: both the same.
pub(crate) fn same_dtype(a: DType, b: DType) -> Result<DType, OpError> {
    if a == b {
        Ok(a)
    } else {
        Err(OpError::new(format!("element types {a} and {b} differ; cast one explicitly")))
    }
}
