//! Reverse-mode differentiation: from a function with a loss to one with its gradients too.
//!
//! A function that is called stays one function: for each that gradients pass through there is a
//! forward form, which also returns what its backward form reads, and a backward form, which takes
//! that and the cotangents of results to those of parameters. All calls that need the same
//! gradients share one pair. Derivatives of operators are theirs to state, in
//! [`OpDef::vjp`](ir::OpDef::vjp).
//!
//! 1. `activity`: what depends on what is differentiated, and what the loss depends on. Nothing is
//!    built for the rest, so that frozen weights cost nothing.
//! 2. `joint`: forward and backward of one function in one graph. Cotangents of a value that is
//!    read several times are added in the order in which the walk meets its readers: the last one
//!    first, and of one reader the first operand first.
//! 3. `cut`: the joint graph of a function that is called is cut in two at the values that are
//!    kept between them, which [`Recompute`] chooses; others are computed again, by the same
//!    operators, so that no bit depends on the choice.
//!
//! Griewank & Walther 2008, "Evaluating Derivatives"; recomputation: Chen et al. 2016,
//! arXiv:1604.06174.

mod activity;
mod backward;
mod cut;
mod forms;
mod halves;
mod joint;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ir::{Builder, Graph, Module, NodeId, OpError, TensorType, Value};

use crate::PassError;

pub(crate) use halves::{Halves, halves};

/// What to differentiate by, all of them floats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wrt {
    /// Weights of the module.
    pub weights: BTreeSet<Arc<str>>,
    /// Parameters of the function.
    pub params: BTreeSet<Arc<str>>,
}

impl Wrt {
    /// Every weight of floats that is not frozen.
    pub fn weights_but(module: &Module, frozen: &BTreeSet<Arc<str>>) -> Wrt {
        let floats = module.weights.iter().filter(|(_, ty)| ty.dtype.is_float());
        let free = floats.map(|(name, _)| name.clone()).filter(|name| !frozen.contains(name));
        Wrt { weights: free.collect(), params: BTreeSet::new() }
    }
}

/// What the backward form of a called function gets from the forward form.
#[derive(Clone, Copy)]
pub enum Recompute<'a> {
    /// All that it reads, each value once, but views of what is kept or given, constants, and what
    /// depends on weights alone.
    None,
    /// Results of products, attention and whatever else computes much for an element of its result;
    /// what costs little is computed again: Korthikanti et al. 2022, arXiv:2205.05198, with other
    /// operators, for attention here keeps no scores.
    Cheap,
    /// The function's arguments alone: everything else is computed again.
    Full,
    /// What is chosen for each function.
    Chosen(&'a dyn Fn(&Candidates<'_>) -> BTreeSet<Value>),
}

/// What may be kept of a function.
pub struct Candidates<'a> {
    /// The function's name.
    pub function: &'a str,
    /// Its forward and its backward in one graph.
    pub graph: &'a Graph,
    /// Nodes of the forward. What is chosen of other nodes is ignored, and so is what the backward
    /// does not reach.
    pub forward: &'a BTreeSet<NodeId>,
    /// Values of the forward that the backward reads.
    pub read: &'a BTreeSet<Value>,
}

/// Adds the entry `<function>.grad`: the function's outputs, then `grad.<name>` for each weight and
/// each parameter of `wrt`, the derivatives of the output `loss`.
///
/// A gradient has the type of what it is by, and is zero where the loss does not depend on that.
///
/// # Errors
/// Everything that has no derivative on the way from `wrt` to the loss, with operator, node,
/// function and reason; a loss that is no single float; names that there are not; a module that
/// does not verify.
pub fn differentiate(
    module: &Module,
    function: &str,
    wrt: &Wrt,
    loss: &str,
    recompute: Recompute<'_>,
) -> Result<Module, Vec<PassError>> {
    verify(module)?;
    let name = format!("{function}.grad");
    let loss = check(module, function, wrt, loss, &name)?;
    let mut forms = forms::Forms::new(module, &wrt.weights, recompute);
    let source = &module.functions[function];
    let names: Vec<&str> = source.params().iter().map(|p| source.param_name(*p)).collect();
    let needs: Vec<bool> = names.iter().map(|n| wrt.params.contains(*n)).collect();
    let joint = forms.joint(source, &name, &needs, joint::Seed::One(loss));
    let (mut module, errors) = forms.finish();
    let Some(joint) = joint.filter(|_| errors.is_empty()) else { return Err(errors) };
    let graph = entry(&module, source, joint, wrt);
    module.add(graph.map_err(|e| vec![PassError::new(function, e)])?);
    module.entries.push(name.into());
    if cfg!(debug_assertions) {
        verify(&module)?;
    }
    Ok(module)
}

/// Values of a function that depend on weights by way of derivatives, its parameters being given.
pub(crate) fn active(
    module: &Module,
    graph: &Graph,
    weights: &BTreeSet<Arc<str>>,
) -> BTreeSet<Value> {
    let given = vec![false; graph.params().len()];
    activity::Activity::new(module, weights).active(graph, &given)
}

/// Calls that go in circles, above all, can not be followed.
fn verify(module: &Module) -> Result<(), Vec<PassError>> {
    let told = |e: ir::VerifyError| {
        let place = e.node.map(|n| format!("{n}: ")).unwrap_or_default();
        PassError::new(&e.function, place + &e.message)
    };
    ir::verify(module).map_err(|errors| errors.into_iter().map(told).collect())
}

/// The joint graph of the entry, with its gradients as outputs.
fn entry(
    module: &Module,
    source: &Graph,
    joint: joint::Joint,
    wrt: &Wrt,
) -> Result<Graph, OpError> {
    let mut grads: BTreeMap<joint::Target, Value> = joint.grads.into_iter().collect();
    let mut b = Builder::resume(module, joint.graph);
    b.graph_mut().outputs.clear();
    for ((name, _), v) in source.outputs.iter().zip(joint.outputs) {
        b.output(name, v);
    }
    let mut output = |target, name: &str, ty: &TensorType| {
        let v = match grads.remove(&target) {
            Some(v) => v,
            None => b.full(ty.dtype, 0.0, &ty.shape)?,
        };
        b.output(&format!("grad.{name}"), v);
        Ok::<_, OpError>(())
    };
    for name in &wrt.weights {
        output(joint::Target::Weight(name.clone()), name, &module.weights[name])?;
    }
    for (i, p) in source.param_values().enumerate() {
        let name = source.param_name(p.node);
        if wrt.params.contains(name) {
            output(joint::Target::Param(i), name, source.ty(p))?;
        }
    }
    let mut graph = b.finish();
    graph.remove_dead();
    Ok(graph)
}

/// The loss among the function's outputs, if everything that is named is there.
fn check(
    module: &Module,
    function: &str,
    wrt: &Wrt,
    loss: &str,
    name: &str,
) -> Result<usize, Vec<PassError>> {
    let Some(source) = module.function(function) else {
        return Err(vec![PassError::new(function, "no such function")]);
    };
    let mut errors = Vec::new();
    let mut fail = |why: String| errors.push(PassError::new(function, why));
    for weight in &wrt.weights {
        match module.weights.get(weight) {
            None => fail(format!("the module has no weight `{weight}`")),
            Some(ty) if !ty.dtype.is_float() => {
                fail(format!("weight `{weight}` is {ty}, which has no gradient"));
            }
            Some(_) => {}
        }
    }
    for param in &wrt.params {
        match source.param(param).map(|p| source.ty(p)) {
            None => fail(format!("has no parameter `{param}`")),
            Some(ty) if !ty.dtype.is_float() => {
                fail(format!("parameter `{param}` is {ty}, which has no gradient"));
            }
            Some(_) => {}
        }
    }
    let both = wrt.weights.intersection(&wrt.params);
    both.for_each(|n| fail(format!("`{n}` is a weight and a parameter: name one of them")));
    let grads: BTreeSet<String> =
        wrt.weights.iter().chain(&wrt.params).map(|n| format!("grad.{n}")).collect();
    for (output, _) in source.outputs.iter().filter(|(n, _)| grads.contains(&**n)) {
        fail(format!("has an output `{output}` already"));
    }
    if module.functions.contains_key(name) {
        fail(format!("the module has a function `{name}` already"));
    }
    let found = source.outputs.iter().position(|(n, _)| &**n == loss);
    match found.map(|i| source.ty(source.outputs[i].1)) {
        None => fail(format!("has no output `{loss}`")),
        Some(ty) if ty.rank() > 0 || !ty.dtype.is_float() => {
            fail(format!("the loss `{loss}` is {ty}, not one float"));
        }
        Some(_) => {}
    }
    match found {
        Some(i) if errors.is_empty() => Ok(i),
        _ => Err(errors),
    }
}
