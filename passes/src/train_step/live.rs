//! The serving form over weights that are being trained.

use std::sync::Arc;

use ir::{Builder, Graph, Module, NodeId, OpError, Vjp};

use super::{EntryBuilder, Parameter, Training};
use crate::{PassError, Sharding, page_kv::State};

/// Makes `entry` read the weights of these parameters from the states that
/// [`train_step`](super::train_step) computes with: `param.W`, or `weight.W` where that is
/// something else. Returns these states; others are as they were.
///
/// What depends on such weights alone, as packing, is computed in each run and not prepared. A
/// product that reads two weights as one becomes its parts, as in training and with the same bits.
///
/// # Errors
/// If there is no such entry.
pub fn live_weights(
    module: &mut Module,
    entry: &str,
    parameters: &[Parameter],
    sharding: &Sharding,
) -> Result<Vec<State>, PassError> {
    let wrap = |e: OpError| PassError::new(entry, e);
    separate_weights(module)?;
    sharding.declare(module);
    let source = module.function(entry).ok_or_else(|| PassError::new(entry, "no such function"))?;
    let source = source.clone();
    let mut live = EntryBuilder::new(module, entry);
    let training = Training::new(module, parameters, sharding);
    let outputs = training.on_states(&mut live, &source).map_err(wrap)?;
    let names = source.outputs.iter().map(|(name, _)| name);
    live.outputs.extend(names.map(|name| (name.to_string(), outputs[name])));
    let live = live.finish();
    module.add(live.graph);
    Ok(live.states)
}

/// Makes products that read two weights as one into their parts, which have the same bits: weights
/// that are updated are not packed together.
pub(super) fn separate_weights(module: &mut Module) -> Result<(), PassError> {
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = &module.functions[&name];
        if graph.topo().into_iter().any(|id| parts(graph, id).is_some()) {
            let graph = in_parts(module, graph).map_err(|e| PassError::new(&name, e))?;
            module.add(graph);
        }
    }
    Ok(())
}

/// What computes the same as a product over two weights that were packed together.
fn parts(graph: &Graph, id: NodeId) -> Option<ir::Expand> {
    let node = graph.node(id);
    if !node.op.name().ends_with("gated_linear") {
        return None;
    }
    let types: Vec<_> = node.inputs().iter().map(|v| v.map(|v| graph.ty(v).clone())).collect();
    match node.op.vjp(&node.attrs, &types) {
        Vjp::Replaced(parts) | Vjp::Recomputed(parts) => Some(parts),
        _ => None,
    }
}

/// The function with each such product in parts.
fn in_parts(module: &Module, graph: &Graph) -> Result<Graph, OpError> {
    let mut graph = Builder::rewrite(module, graph, |b, id, inputs| {
        parts(graph, id).map(|parts| parts(b, &graph.node(id).attrs, inputs)).transpose()
    })?;
    graph.remove_dead();
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use ir::{Attrs, DType, TensorType};

    use super::*;
    use crate::{Update, testing::count};

    #[test]
    fn trained_weights_are_states_and_no_two_are_packed_together() {
        let mut m = Module::new("m");
        let f32s = |shape: &[i64]| TensorType::new(DType::F32, shape.iter().copied());
        for name in ["gate", "up", "frozen"] {
            m.weight(name, f32s(&[19, 32]));
        }
        let mut b = m.builder("step");
        let x = b.param("x", f32s(&[3, 19])).unwrap();
        let mut packed = |name: &str| {
            let w = b.weight(name).unwrap();
            b.op1("pack", Attrs::none(), &[w]).unwrap()
        };
        let [gate, up, frozen] = ["gate", "up", "frozen"].map(&mut packed);
        let both = b.op1("interleave", Attrs::none(), &[gate, up]).unwrap();
        let attrs = Attrs::none().with("n", 32i64);
        let y = b.op1("gated_linear", attrs.clone().with("act", "silu"), &[x, both]).unwrap();
        let z = b.op1("linear", attrs, &[x, frozen]).unwrap();
        let y = b.add(y, z).unwrap();
        b.output("y", y);
        let step = b.finish();
        m.add(step);
        let update = Update::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let parameter =
            |weight: &str| Parameter { weight: weight.into(), update: update.clone(), group: 0 };
        let parameters = ["gate", "up"].map(parameter);
        let states = live_weights(&mut m, "step", &parameters, &Sharding::none()).unwrap();
        let names: Vec<&str> = states.iter().map(|s| &*s.param).collect();
        assert_eq!(names, ["param.gate", "param.up"]);
        assert!(states.iter().all(|state| state.output.is_none()));
        let step = &m.functions["step"];
        for (op, n) in [("interleave", 0), ("gated_linear", 0), ("linear", 3), ("weight", 1)] {
            assert_eq!(count(step, op), n, "{op}: {step}");
        }
        ir::verify(&m).unwrap();
        let error = live_weights(&mut m, "forward", &parameters, &Sharding::none());
        let error = error.unwrap_err();
        assert!(error.to_string().contains("no such function"), "{error}");
    }
}
