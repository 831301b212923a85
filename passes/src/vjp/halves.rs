//! Forward and backward of a function as two, for callers that run other things in between.

use std::{collections::BTreeSet, sync::Arc};

use ir::{Graph, Module, NodeId};

use super::{
    Recompute, Wrt,
    cut::{self, Residual},
    forms::{Forms, stored},
    joint::Seed,
    verify,
};
use crate::{PassError, weight_only::weight_only};

/// The two halves of a function.
pub(crate) struct Halves {
    /// The function, and what is kept, as outputs `kept.N`.
    pub(crate) forward: Graph,
    /// Takes parameters of the function, outputs `kept.N` of the forward, and `cotangent.O` of
    /// outputs `O`, all by their names; gives `param.P` and `weight.W`, each if it is not zero.
    pub(crate) backward: Graph,
}

/// Splits a function whose `outputs` have cotangents. What its own nodes and calls compute is kept
/// if the backward reads it, but views, constants, and what depends on weights alone or on `given`
/// parameters alone; `recompute` is for the functions that it calls, whose forms are added to the
/// module.
///
/// # Errors
/// As [`differentiate`](super::differentiate).
pub(crate) fn halves(
    module: &mut Module,
    function: &str,
    wrt: &Wrt,
    (outputs, given): (&BTreeSet<Arc<str>>, &BTreeSet<Arc<str>>),
    recompute: Recompute<'_>,
) -> Result<Halves, Vec<PassError>> {
    verify(module)?;
    let source = module.functions[function].clone();
    let needs: Vec<bool> =
        source.params().iter().map(|p| wrt.params.contains(source.param_name(*p))).collect();
    let seeded: Vec<bool> = source.outputs.iter().map(|(name, _)| outputs.contains(name)).collect();
    let mut forms = Forms::new(module, &wrt.weights, recompute);
    let joint = forms.joint(&source, function, &needs, Seed::Params(&seeded));
    let (with_forms, errors) = forms.finish();
    let Some(joint) = joint.filter(|_| errors.is_empty()) else { return Err(errors) };
    let by_weights = weight_only(&joint.graph, &BTreeSet::new());
    let again = follow(&joint.graph, given);
    let kept = joint.read().into_iter().filter_map(|v| stored(&joint.graph, &by_weights, v));
    let kept = kept.filter(|v| !again.contains(&v.node)).collect();
    let names = ["forward", "backward"].map(|half| format!("{function}.{half}"));
    let cut = cut::cut(&with_forms, &source, &joint, &kept, &names);
    let cut = cut.map_err(|e| vec![PassError::new(function, e)])?;
    let (mut forward, mut backward) = (cut.forward.unwrap_or_else(|| source.clone()), cut.backward);
    let own = source.outputs.len();
    for (param, residual) in backward.params().to_vec().into_iter().zip(cut.residuals) {
        let name: Arc<str> = match residual {
            Residual::Param(i) => source.param_name(source.params()[i]).into(),
            Residual::Result(i) if i >= own => forward.outputs[i].0.clone(),
            // An output that is kept too.
            Residual::Result(i) => {
                let name: Arc<str> = format!("kept.{}", forward.outputs.len() - own).into();
                let v = forward.outputs[i].1;
                forward.outputs.push((name.clone(), v));
                name
            }
        };
        let attrs = backward.attrs_mut(param);
        *attrs = attrs.clone().with("name", &*name);
    }
    *module = with_forms;
    Ok(Halves { forward, backward })
}

/// Nodes that follow from the given parameters and constants.
fn follow(graph: &Graph, given: &BTreeSet<Arc<str>>) -> BTreeSet<NodeId> {
    let mut out = BTreeSet::new();
    for id in graph.topo() {
        let node = graph.node(id);
        let follows = match node.op.name() {
            "param" => given.contains(graph.param_name(id)),
            "weight" | "call" => false,
            _ => node.inputs().iter().flatten().all(|v| out.contains(&v.node)),
        };
        if follows {
            out.insert(id);
        }
    }
    out
}
