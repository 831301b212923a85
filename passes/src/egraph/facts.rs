//! The e-graph's analysis: what is known of every class.
//!
//! Types, symbolic contents and constants come from the operators' own inference. Besides, a value
//! is *weight-only* where weights and constants alone determine it: such a value is computed once,
//! when the model is compiled. A term whose types do not fit is [`Data::Invalid`]; the rewriter
//! drops it before it is joined to anything.

use std::{collections::BTreeMap, sync::Arc};

use egg::{Analysis, DidMerge, EGraph, Id};
use ir::{Attr, Attrs, Fact, Graph, InferCx, Module, OpRef, TensorType};
use smallvec::SmallVec;

use super::ENode;
use crate::weight_only::is_static;

/// What is known of a class.
#[derive(Clone, Debug)]
pub enum Data {
    /// Results of an operator, or one value.
    Value(Known),
    /// An attribute.
    Attr(Attr),
    /// An absent operand.
    Absent,
    /// Operands that do not fit, with the reason.
    Invalid(String),
}

/// What is known of a value.
#[derive(Clone, Debug)]
pub struct Known {
    /// Facts of the results.
    pub facts: SmallVec<[Fact; 1]>,
    /// Whether weights and constants alone determine it.
    pub weight_only: bool,
}

/// The analysis, and what inference needs to know of the module.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The module's symbols, without its functions.
    pub module: Module,
    /// Signatures of the module's functions.
    pub callees: BTreeMap<Arc<str>, (Vec<TensorType>, Vec<TensorType>)>,
    /// What is known of the leaves.
    pub leaves: Vec<Known>,
}

impl Facts {
    /// The analysis of a module's functions.
    pub fn new(module: &Module) -> Facts {
        let symbols = module.symbols.clone();
        let callees = module.functions.iter().map(|(n, g)| (n.clone(), Graph::signature(g)));
        Facts {
            module: Module { name: module.name.clone(), symbols, ..Module::default() },
            callees: callees.collect(),
            leaves: Vec::new(),
        }
    }
}

impl Data {
    /// The fact of a single value.
    pub fn fact(&self) -> Option<&Fact> {
        match self {
            Data::Value(Known { facts, .. }) if facts.len() == 1 => facts.first(),
            _ => None,
        }
    }

    /// The type of a single value.
    pub fn ty(&self) -> Option<&TensorType> {
        self.fact().map(|f| &f.ty)
    }

    /// Whether this is a value that weights and constants alone determine.
    pub fn weight_only(&self) -> bool {
        matches!(self, Data::Value(Known { weight_only: true, .. }))
    }
}

/// Attributes of an operator, from the classes of its attribute children.
pub fn attrs(egraph: &EGraph<ENode, Facts>, op: OpRef, ids: &[Id]) -> Option<Attrs> {
    let specs = op.signature().attrs.iter().zip(ids);
    let value = |id: &Id| match &egraph[*id].data {
        Data::Attr(a) => Some(a.clone()),
        _ => None,
    };
    let all = specs.map(|(spec, id)| Some((Arc::from(spec.name), value(id)?)));
    all.collect::<Option<_>>().map(Attrs)
}

impl Analysis<ENode> for Facts {
    type Data = Data;

    fn make(egraph: &mut EGraph<ENode, Facts>, node: &ENode, _: Id) -> Data {
        match node {
            ENode::Attr(a) => Data::Attr(a.clone()),
            ENode::Absent => Data::Absent,
            ENode::Leaf(i) => match egraph.analysis.leaves.get(*i as usize) {
                Some(known) => Data::Value(known.clone()),
                None => Data::Invalid(format!("leaf {i} is not declared")),
            },
            ENode::Proj(i, of) => match &egraph[*of].data {
                Data::Value(known) if known.facts.len() > *i as usize => Data::Value(Known {
                    facts: [known.facts[*i as usize].clone()].into_iter().collect(),
                    weight_only: known.weight_only,
                }),
                other => Data::Invalid(format!("no result {i} of {other:?}")),
            },
            ENode::Op(..) => infer(egraph, node).unwrap_or_else(Data::Invalid),
        }
    }

    fn merge(&mut self, a: &mut Data, b: Data) -> DidMerge {
        let (Data::Value(x), Data::Value(y)) = (&mut *a, &b) else { return DidMerge(false, false) };
        let types = |k: &Known| k.facts.iter().map(|f| f.ty.clone()).collect::<Vec<_>>();
        debug_assert_eq!(types(x), types(y), "a rule changed a type");
        let (mut mine, mut theirs) = (false, false);
        for (f, g) in x.facts.iter_mut().zip(&y.facts) {
            mine |= take(&mut f.dims, &g.dims, &mut theirs);
            mine |= take(&mut f.constant, &g.constant, &mut theirs);
        }
        mine |= y.weight_only && !x.weight_only;
        theirs |= x.weight_only && !y.weight_only;
        x.weight_only |= y.weight_only;
        DidMerge(mine, theirs)
    }
}

/// Fills an empty slot in; notes where the other side knows less.
fn take<T: Clone>(mine: &mut Option<T>, other: &Option<T>, theirs: &mut bool) -> bool {
    match (&mine, other) {
        (None, Some(v)) => {
            *mine = Some(v.clone());
            true
        }
        (Some(_), None) => {
            *theirs = true;
            false
        }
        _ => false,
    }
}

fn infer(egraph: &EGraph<ENode, Facts>, node: &ENode) -> Result<Data, String> {
    let (op, operands, attr_ids) = node.as_op().ok_or("not an operator")?;
    let attrs = attrs(egraph, op, attr_ids).ok_or("an attribute is not a constant")?;
    let attrs = op.signature().check_attrs(&attrs).map_err(|e| e.to_string())?;
    let mut args = Vec::with_capacity(operands.len());
    let mut weight_only = true;
    for id in operands {
        match &egraph[*id].data {
            Data::Absent => args.push(None),
            Data::Value(known) if known.facts.len() == 1 => {
                weight_only &= known.weight_only;
                args.push(Some(&known.facts[0]));
            }
            other => return Err(format!("operand is {other:?}")),
        }
    }
    let present: Vec<bool> = args.iter().map(Option::is_some).collect();
    op.signature().check_operands(&present).map_err(|e| e.to_string())?;
    let facts = &egraph.analysis;
    let callee = |name: &str| facts.callees.get(name).cloned();
    let cx =
        InferCx { attrs: &attrs, args: &args, symbols: &facts.module.symbols, callee: &callee };
    let results = op.infer(&cx).map_err(|e| e.to_string())?;
    let weight_only = weight_only && is_static(op, &attrs, &results);
    Ok(Data::Value(Known { facts: results.into(), weight_only }))
}
