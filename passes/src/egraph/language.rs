//! The e-graph's language: any operator of the table, its attributes as leaves.
//!
//! Children of an operator are its operands, absent optional ones as `none`, then its attributes in
//! the signature's order, so patterns bind attributes as they bind operands:
//! `(rms_norm ?x ?w ?eps)`. An operator with several results is one node, whose results are
//! `(proj0 n)`, `(proj1 n)`, ..; `%3` is leaf 3, a parameter or weight of the function.
//!
//! Text of attributes: `-1`, `0.5`, `true`, `:silu` (a name), `bf16` (an element type), `[0,2,1]`
//! (integers), `<T,2*T>` (sizes), `0.5f32` or `0bool` (a scalar
//! tensor), `1,2i64` (a vector).

use std::fmt;

use egg::{FromOp, Id, Language};
use ir::{Arity, Attr, DType, Dim, OpRef, Tensor};
use smallvec::SmallVec;

/// A node of the e-graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ENode {
    /// An operator over operands, then attributes.
    Op(OpRef, SmallVec<[Id; 6]>),
    /// One result of an operator that has several.
    Proj(u32, Id),
    /// An attribute's value.
    Attr(Attr),
    /// A parameter or weight, by number.
    Leaf(u32),
    /// An absent operand.
    Absent,
}

/// What two nodes that match have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// See [`ENode::Op`].
    Op(OpRef),
    /// See [`ENode::Proj`].
    Proj(u32),
    /// See [`ENode::Attr`].
    Attr(Attr),
    /// See [`ENode::Leaf`].
    Leaf(u32),
    /// See [`ENode::Absent`].
    Absent,
}

impl ENode {
    /// The operator and its operands and attributes, where this is an operator.
    pub fn as_op(&self) -> Option<(OpRef, &[Id], &[Id])> {
        let ENode::Op(op, children) = self else { return None };
        let (operands, attrs) = children.split_at(children.len() - op.signature().attrs.len());
        Some((*op, operands, attrs))
    }

    /// Operands and attributes, where this is the operator of that name.
    pub fn op(&self, name: &str) -> Option<(&[Id], &[Id])> {
        self.as_op()
            .filter(|(op, ..)| op.name() == name)
            .map(|(_, operands, attrs)| (operands, attrs))
    }
}

impl Language for ENode {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        match self {
            ENode::Op(op, _) => Kind::Op(*op),
            ENode::Proj(i, _) => Kind::Proj(*i),
            ENode::Attr(a) => Kind::Attr(a.clone()),
            ENode::Leaf(i) => Kind::Leaf(*i),
            ENode::Absent => Kind::Absent,
        }
    }

    fn matches(&self, other: &ENode) -> bool {
        match (self, other) {
            (ENode::Op(a, x), ENode::Op(b, y)) => a == b && x.len() == y.len(),
            (ENode::Proj(a, _), ENode::Proj(b, _)) => a == b,
            _ => self == other,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            ENode::Op(_, children) => children,
            ENode::Proj(_, id) => std::slice::from_ref(id),
            _ => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            ENode::Op(_, children) => children,
            ENode::Proj(_, id) => std::slice::from_mut(id),
            _ => &mut [],
        }
    }
}

impl fmt::Display for ENode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ENode::Op(op, _) => f.write_str(op.name()),
            ENode::Proj(i, _) => write!(f, "proj{i}"),
            ENode::Attr(Attr::Str(s)) => write!(f, ":{s}"),
            ENode::Attr(a) => f.write_str(&a.to_string().replace(' ', "")),
            ENode::Leaf(i) => write!(f, "%{i}"),
            ENode::Absent => f.write_str("none"),
        }
    }
}

impl FromOp for ENode {
    type Error = String;

    fn from_op(text: &str, children: Vec<Id>) -> Result<ENode, String> {
        if let (Some(i), [child]) = (text.strip_prefix("proj"), children.as_slice()) {
            return Ok(ENode::Proj(
                i.parse().map_err(|_| format!("`{text}` has no number"))?,
                *child,
            ));
        }
        let Some(op) = OpRef::find(text) else {
            return if children.is_empty() {
                leaf(text)
            } else {
                Err(format!("no operator `{text}`"))
            };
        };
        let signature = op.signature();
        let variadic = signature.operands.last().is_some_and(|o| o.arity == Arity::Variadic);
        let fixed = signature.operands.len() - usize::from(variadic) + signature.attrs.len();
        if children.len() < fixed || (!variadic && children.len() > fixed) {
            return Err(format!("`{text}` takes {fixed} children, got {}", children.len()));
        }
        Ok(ENode::Op(op, children.into()))
    }
}

fn leaf(text: &str) -> Result<ENode, String> {
    if text == "none" {
        return Ok(ENode::Absent);
    }
    if let Some(i) = text.strip_prefix('%') {
        return i.parse().map(ENode::Leaf).map_err(|_| format!("`{text}` has no number"));
    }
    attr(text).map(ENode::Attr).ok_or_else(|| format!("`{text}` is no operator, leaf or attribute"))
}

fn attr(text: &str) -> Option<Attr> {
    if let Some(name) = text.strip_prefix(':') {
        return Some(Attr::from(name));
    }
    if let Some(list) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let items = list.split(',').filter(|t| !t.is_empty()).map(str::parse);
        return items.collect::<Result<Vec<i64>, _>>().ok().map(Attr::from);
    }
    if let Some(list) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) {
        let items = list.split(',').filter(|t| !t.is_empty()).map(str::parse);
        return items.collect::<Result<Vec<Dim>, _>>().ok().map(Attr::from);
    }
    if let Ok(dtype) = text.parse::<DType>() {
        return Some(Attr::from(dtype));
    }
    for dtype in [DType::F32, DType::I64, DType::Bool] {
        if let Some(list) = text.strip_suffix(dtype.name()) {
            let items = list.split(',').map(str::parse);
            let items = items.collect::<Result<Vec<f64>, _>>().ok()?;
            let shape: &[usize] = if items.len() == 1 { &[] } else { &[items.len()] };
            return Some(Attr::from(Tensor::from_f64s(dtype, shape, items)));
        }
    }
    match text {
        "true" => return Some(Attr::from(true)),
        "false" => return Some(Attr::from(false)),
        _ => {}
    }
    text.parse::<i64>().map(Attr::from).ok().or_else(|| text.parse::<f64>().map(Attr::from).ok())
}

#[cfg(test)]
mod tests {
    use egg::{Pattern, RecExpr};

    use super::*;

    #[test]
    fn rule_text_reads_operators_attributes_and_leaves() {
        let text = "(transpose (reshape (add %0 (constant 0.5f32)) <T,4>) [1,0])";
        let expr = text.parse::<RecExpr<ENode>>().unwrap();
        let names: Vec<String> = expr.as_ref().iter().map(ENode::to_string).collect();
        assert_eq!(names[0], "%0");
        assert_eq!(names[4..], ["<T,4>", "reshape", "[1,0]", "transpose"]);
        let scalar = Tensor::from_f64s(DType::F32, &[], [0.5]);
        assert_eq!(expr.as_ref()[1], ENode::Attr(Attr::from(scalar)));
        assert!("(linear ?x ?w none ?r 37 :silu)".parse::<Pattern<ENode>>().is_ok());
        assert!("(proj1 (call ?x :f))".parse::<Pattern<ENode>>().is_ok());
    }

    #[test]
    fn wrong_arity_and_unknown_names_are_errors() {
        for bad in ["(mul %0)", "(linear %0 %1)", "(frobnicate %0)", "(neg 1.5.2)"] {
            assert!(bad.parse::<RecExpr<ENode>>().is_err(), "{bad}");
        }
    }
}
